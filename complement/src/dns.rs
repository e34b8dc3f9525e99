//! The name server of one container: it knows the other containers of its network and denies everything else at once.
//!
//! A server under test asks for the addresses and SRV records of names that do not exist. Behind a resolver of the
//! machine each such question can take seconds; here the answer is immediate.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::net::UdpSocket;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
/// No name Complement uses resolves to something that moves while a test runs, but a restart may reuse a name.
const TTL_SECONDS: u32 = 1;
/// A name has at most 255 bytes, and the question is all that is read.
const LARGEST_QUESTION: usize = 512;

/// Answers questions until the task is aborted. `resolve` gives a name's address, if the container may know it.
pub async fn serve(socket: UdpSocket, resolve: Arc<dyn Fn(&str) -> Option<Ipv4Addr> + Send + Sync>) {
    let mut packet = [0; LARGEST_QUESTION];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut packet).await else { continue };
        if let Some(reply) = answer(&packet[..length], |name| resolve(name)) {
            // A lost answer is what UDP promises: the resolver asks again.
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

/// The answer to a query, or nothing if it is no query.
pub fn answer(query: &[u8], resolve: impl Fn(&str) -> Option<Ipv4Addr>) -> Option<Vec<u8>> {
    let header = query.get(..HEADER)?;
    let is_query = header[2] & 0x80 == 0;
    if !is_query || header[4..6] != [0, 1] {
        return None;
    }
    let (name, end) = question_name(query)?;
    let question = query.get(HEADER..end + 4)?;
    let kind = u16::from_be_bytes([query[end], query[end + 1]]);
    let address = resolve(&name.to_ascii_lowercase());
    let record = address.filter(|_| kind == TYPE_A);

    let recursion_desired = header[2] & 0x01;
    let no_error_or_no_name = if address.is_some() { 0 } else { 3 };
    let mut reply = header[..2].to_vec();
    // An authoritative response, recursion available.
    reply.extend([0x84 | recursion_desired, 0x80 | no_error_or_no_name]);
    reply.extend([0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(address) = record {
        // The name is a pointer to the question; class IN.
        reply.extend([0xc0, HEADER as u8, 0, TYPE_A as u8, 0, 1]);
        reply.extend(TTL_SECONDS.to_be_bytes());
        reply.extend([0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

/// The name asked for, and where its type begins.
fn question_name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        // Two high bits would make it a pointer, which a question has no use for.
        if length > 63 {
            return None;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            packet.push(label.len() as u8);
            packet.extend(label.as_bytes());
        }
        packet.push(0);
        packet.extend(kind.to_be_bytes());
        packet.extend([0, 1]);
        packet
    }

    fn network(name: &str) -> Option<Ipv4Addr> {
        (name == "hs2").then_some(Ipv4Addr::new(127, 77, 1, 3))
    }

    #[test]
    fn a_known_name_has_an_address() {
        let reply = answer(&query("HS2", TYPE_A), network).unwrap();
        assert_eq!(reply[..2], [0xab, 0xcd]);
        assert_eq!(reply[3] & 0x0f, 0);
        assert_eq!(reply[6..8], [0, 1]);
        assert_eq!(reply[reply.len() - 4..], [127, 77, 1, 3]);
    }

    #[test]
    fn a_known_name_has_nothing_else() {
        let reply = answer(&query("hs2", 28), network).unwrap();
        assert_eq!(reply[3] & 0x0f, 0, "it exists");
        assert_eq!(reply[6..8], [0, 0]);
    }

    #[test]
    fn any_other_name_does_not_exist() {
        for (name, kind) in [("hs3", TYPE_A), ("_matrix-fed._tcp.hs2", 33), ("example.com", TYPE_A)] {
            let reply = answer(&query(name, kind), network).unwrap();
            assert_eq!(reply[3] & 0x0f, 3, "{name}");
            assert_eq!(reply.len(), query(name, kind).len(), "{name}");
        }
    }

    #[test]
    fn nonsense_gets_no_answer() {
        let good = query("hs2", TYPE_A);
        assert!(answer(&good[..good.len() - 3], network).is_none());
        assert!(answer(&[], network).is_none());
        let mut response = good.clone();
        response[2] |= 0x80;
        assert!(answer(&response, network).is_none());
        let mut pointer = good;
        pointer[HEADER] = 0xc0;
        assert!(answer(&pointer, network).is_none());
    }
}
