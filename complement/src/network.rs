//! Addresses and names: each runner has a subnet of the loopback network, each container an address in it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

/// The name by which a server reaches Complement itself.
pub const HOST_NAME: &str = "host.docker.internal";

/// 127.77.N.0/24 of one runner. Two runners on one machine must not share addresses.
pub struct Subnet {
    third: u8,
    used: Mutex<[bool; 256]>,
    /// Holding a port of the first address is what keeps other runners out of the subnet.
    _claim: TcpListener,
}

impl Subnet {
    pub fn claim() -> Result<Self> {
        for third in 1..=254 {
            if let Ok(claim) = TcpListener::bind((Ipv4Addr::new(127, 77, third, 1), 8008)) {
                let mut used = [false; 256];
                // The network's own address, the claimed one, broadcast.
                for taken in [0, 1, 255] {
                    used[taken] = true;
                }
                return Ok(Self { third, used: Mutex::new(used), _claim: claim });
            }
        }
        bail!("every subnet of 127.77.0.0/16 is taken")
    }

    pub fn take(&self) -> Result<Ipv4Addr> {
        let mut used = lock(&self.used);
        let free = used.iter().position(|taken| !taken).context("no more than 253 containers at a time")?;
        used[free] = true;
        Ok(Ipv4Addr::new(127, 77, self.third, free as u8))
    }

    pub fn give_back(&self, address: Ipv4Addr) {
        let [_, _, third, last] = address.octets();
        assert_eq!(third, self.third, "{address} is not of this subnet");
        lock(&self.used)[usize::from(last)] = false;
    }
}

/// Who is called what, by network.
#[derive(Default)]
pub struct Names {
    known: Mutex<BTreeMap<(String, String), Ipv4Addr>>,
}

impl Names {
    /// The newest container of a name wins: one that a blueprint was made of stays behind, stopped, under its name.
    pub fn add(&self, network: &str, name: &str, address: Ipv4Addr) {
        lock(&self.known).insert((network.to_owned(), name.to_ascii_lowercase()), address);
    }

    pub fn remove(&self, address: Ipv4Addr) {
        lock(&self.known).retain(|_, known| *known != address);
    }

    pub fn resolve(&self, network: &str, name: &str) -> Option<Ipv4Addr> {
        if matches!(name, HOST_NAME | "localhost") {
            return Some(Ipv4Addr::LOCALHOST);
        }
        lock(&self.known).get(&(network.to_owned(), name.to_owned())).copied()
    }
}

/// A panic while a lock was held is reported where it happened; the plain values behind these locks stay usable.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runners_never_share_a_subnet() {
        let (one, two) = (Subnet::claim().unwrap(), Subnet::claim().unwrap());
        assert_ne!(one.third, two.third);
        let (a, b) = (one.take().unwrap(), one.take().unwrap());
        assert_ne!(a, b);
        one.give_back(a);
        assert_eq!(one.take().unwrap(), a);
    }

    #[test]
    fn a_subnet_is_finite() {
        let subnet = Subnet::claim().unwrap();
        assert_eq!(std::iter::from_fn(|| subnet.take().ok()).count(), 253);
    }

    #[test]
    fn names_are_known_in_their_network_only() {
        let names = Names::default();
        let (old, new) = (Ipv4Addr::new(127, 77, 9, 2), Ipv4Addr::new(127, 77, 9, 3));
        names.add("one", "hs1", old);
        names.add("one", "HS1", new);
        assert_eq!(names.resolve("one", "hs1"), Some(new));
        assert_eq!(names.resolve("two", "hs1"), None);
        names.remove(old);
        assert_eq!(names.resolve("one", "hs1"), Some(new));
        names.remove(new);
        assert_eq!(names.resolve("one", "hs1"), None);
        assert_eq!(names.resolve("one", HOST_NAME), Some(Ipv4Addr::LOCALHOST));
    }
}
