//! Rooms as clients make them, and messages of the size and look of encrypted ones.

use anyhow::{Context as _, Result};
use rand::RngExt;
use serde_json::json;

use super::{
    accounts::User,
    context::{Context, PREPARERS},
    find::{self, Mark},
    http::{Call, Connection, Failure, escape},
};

/// The sizes of the content of a message, in bytes.
const CONTENT: std::ops::RangeInclusive<usize> = 400..=600;
/// Ciphertexts are cut out of this much base64.
const PAD: usize = 4096;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Creates an encrypted room that whoever knows it may join.
pub async fn create(connection: &mut Connection, creator: &User, name: &str) -> Result<String, Failure> {
    let answer = connection.prepare(&creation(creator, name)).await?;
    find::text_after(&answer, b"\"room_id\":").map(str::to_owned).ok_or(Failure::Malformed("room_id"))
}

/// The call that creates a room.
pub fn creation(creator: &User, name: &str) -> Call {
    let body = json!({
        "preset": "public_chat",
        "visibility": "private",
        "name": name,
        "initial_state": [{
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }],
    });
    Call::post("/_matrix/client/v3/createRoom", body.to_string()).by(creator)
}

/// The call that joins a room, through the server `via` if it is another's.
pub fn joining(user: &User, room: &str, via: Option<&str>) -> Call {
    let via = via.filter(|via| *via != user.server_name()).map(escape);
    let query = via.map(|via| format!("?via={via}&server_name={via}")).unwrap_or_default();
    Call::post(format!("/_matrix/client/v3/join/{}{query}", escape(room)), "{}").by(user)
}

/// Creates a room for each of the lists of people and lets all of a list join; the first of each creates.
pub async fn gather(context: &Context, lists: &[Vec<&User>]) -> Result<Vec<String>> {
    context.progress.stage(&format!("creating {} rooms", lists.len()));
    let rooms = context
        .each(&context.server, PREPARERS, lists, async |connection, people| {
            let creator = people.first().context("a room without people")?;
            create(connection, creator, "Load").await.context("cannot create a room")
        })
        .await?;
    let joins: Vec<(&User, &str, &str)> = rooms
        .iter()
        .zip(lists)
        .flat_map(|(room, people)| {
            let via = people.first().map_or("", |creator| creator.server_name());
            people.iter().skip(1).map(move |user| (*user, room.as_str(), via))
        })
        .collect();
    join_all(context, &joins).await?;
    Ok(rooms)
}

/// Lets people join rooms: who, which room, and through which server.
pub async fn join_all(context: &Context, joins: &[(&User, &str, &str)]) -> Result<()> {
    context.progress.stage(&format!("{} joins", joins.len()));
    for server in context.servers() {
        let here = joins.iter().filter(|(user, ..)| user.server.url() == server.url());
        context
            .each(server, PREPARERS, here, async |connection, (user, room, via)| {
                connection.prepare(&joining(user, room, Some(via))).await.context("cannot join a room")
            })
            .await?;
    }
    Ok(())
}

/// Makes the contents of messages.
pub struct Letters {
    pad: String,
    session: String,
    key: String,
}

impl Letters {
    pub fn new() -> Self {
        let mut random = rand::rng();
        let mut text = |length: usize| -> String {
            (0..length).map(|_| BASE64[random.random_range(0..BASE64.len())] as char).collect()
        };
        Self { pad: text(PAD), session: text(43), key: text(43) }
    }

    /// The content of `m.room.encrypted`, as megolm has it, with the mark at the beginning of the ciphertext.
    pub fn content(&self, mark: &str, device: &str) -> String {
        self.content_of(mark, device, rand::rng().random_range(CONTENT))
    }

    fn content_of(&self, mark: &str, device: &str, size: usize) -> String {
        let Self { pad, session, key } = self;
        let head = format!("{{\"algorithm\":\"m.megolm.v1.aes-sha2\",\"ciphertext\":\"AwgA{mark}");
        let tail =
            format!("\",\"device_id\":\"{device}\",\"sender_key\":\"{key}\",\"session_id\":\"{session}\"}}");
        let length = size.saturating_sub(head.len() + tail.len());
        let from = rand::rng().random_range(0..pad.len() - length);
        format!("{head}{}{tail}", &pad[from..from + length])
    }

    /// The content of an encrypted to-device message, as olm has it.
    pub fn direct(&self, mark: &str) -> String {
        let Self { pad, session, key } = self;
        let from = rand::rng().random_range(0..pad.len() - 600);
        let body = &pad[from..from + 600];
        format!(
            "{{\"algorithm\":\"m.olm.v1.curve25519-aes-sha2\",\"ciphertext\":{{\"{session}\":\
             {{\"body\":\"AwgA{mark}{body}\",\"type\":0}}}},\"sender_key\":\"{key}\"}}"
        )
    }

    /// The call that sends a message; the transaction id is made of the number.
    pub fn sending(&self, mark: &Mark, sender: &User, room: &str, number: u64) -> Call {
        let content = self.content(&mark.of(number), &sender.device);
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.encrypted/{number}", escape(room));
        Call::put(path, content).by(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_look_like_megolm_and_have_the_size() {
        let (letters, mark) = (Letters::new(), Mark::new("WXL1n"));
        for size in [400, 500, 600] {
            let content = letters.content_of(&mark.of(12), "DEVICE", size);
            assert_eq!(content.len(), size);
            let parsed: serde_json::Value = serde_json::from_str(&content).unwrap();
            assert_eq!(parsed["algorithm"], "m.megolm.v1.aes-sha2");
            assert_eq!(parsed["device_id"], "DEVICE");
            assert_eq!(mark.numbers(content.as_bytes()).collect::<Vec<_>>(), [12]);
        }
        assert!(CONTENT.contains(&letters.content(&mark.of(1), "DEVICE").len()));
    }

    #[test]
    fn direct_letters_are_json_with_one_mark() {
        let (letters, mark) = (Letters::new(), Mark::new("WXL1n"));
        let content = letters.direct(&mark.of(3));
        let parsed: serde_json::Value = serde_json::from_str(&content).unwrap();
        assert_eq!(parsed["algorithm"], "m.olm.v1.curve25519-aes-sha2");
        assert_eq!(mark.numbers(content.as_bytes()).collect::<Vec<_>>(), [3]);
    }
}
