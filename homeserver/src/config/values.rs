//! The types of single settings.

use super::setting::{Kind, Setting, choices, quoted};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use std::fmt;

choices! {
    /// Who may make an account.
    Registration {
        /// Whoever has a registration token.
        Token = "token",
        /// Anyone.
        Open = "open",
        /// Nobody; the administrator makes accounts.
        Closed = "closed",
    }
    /// What happens to messages that are not end-to-end encrypted.
    Plaintext {
        /// Refused from local clients, kept only in redacted form when they come from other servers.
        Refuse = "refuse",
        /// Accepted and stored.
        Accept = "accept",
    }
    /// Who may put a room into the public room list.
    RoomListPublication {
        Everyone = "everyone",
        Administrators = "administrators",
    }
    /// What the number on an app's icon counts.
    Badge {
        /// Unread messages.
        Messages = "messages",
        /// Rooms with unread messages.
        Rooms = "rooms",
    }
    /// How the connection to the mail server is protected.
    MailTls {
        /// TLS after `STARTTLS`, never without.
        StartTls = "starttls",
        /// TLS from the first byte.
        Tls = "tls",
        /// Not at all.
        None = "none",
    }
    /// How log lines look.
    LogFormat {
        Text = "text",
        Json = "json",
    }
}

/// A value that neither a log line nor an error shows.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Setting for Secret {
    const KIND: Kind = Kind::Text;

    fn toml(&self) -> Option<String> {
        Some(quoted("[redacted]"))
    }
}

/// Addresses to listen on, each `host:port`. Written as an array, as one string, or as `""` for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(Vec<String>);

impl Addresses {
    pub fn of(address: &str) -> Addresses {
        Addresses(vec![address.to_owned()])
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Setting for Addresses {
    const KIND: Kind = Kind::List;

    fn toml(&self) -> Option<String> {
        self.0.toml()
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Addresses, D::Error> {
        deserializer.deserialize_any(AddressesVisitor)
    }
}

struct AddressesVisitor;

impl<'de> Visitor<'de> for AddressesVisitor {
    type Value = Addresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address or an array of addresses")
    }

    fn visit_str<E>(self, text: &str) -> Result<Addresses, E> {
        Ok(Addresses(if text.trim().is_empty() { Vec::new() } else { vec![text.trim().to_owned()] }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Addresses, A::Error> {
        let mut addresses = Vec::new();
        while let Some(address) = items.next_element::<String>()? {
            if !address.trim().is_empty() {
                addresses.push(address.trim().to_owned());
            }
        }
        Ok(Addresses(addresses))
    }
}

/// So many a second on the long run, so many at once.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub per_second: f64,
    pub burst: u32,
}

impl Rate {
    pub const fn new(per_second: f64, burst: u32) -> Rate {
        Rate { per_second, burst }
    }
}

impl Setting for Rate {
    const KIND: Kind = Kind::Table;

    fn toml(&self) -> Option<String> {
        Some(format!("{{ per_second = {:?}, burst = {} }}", self.per_second, self.burst))
    }
}
