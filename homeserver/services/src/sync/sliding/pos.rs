//! The position of a connection, as the client carries it.
//!
//! `pPOSITION_TYPING_PARTS_OWNER_CONNECTION_VERSION`: where in the log the answer ended, the clock of typing, which
//! extensions it had, a mark of whom it was given to, and which state of the connection it belongs to. It grants
//! nothing: whoever has it sees what the access token of the request lets them see.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use waxwing_model::LogPosition;
use waxwing_storage::SlidingKey;

/// A position that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position of this server")]
pub struct BadPos;

/// A position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pos {
    /// Everything of the log up to here has been looked at.
    pub position: LogPosition,
    /// The clock of typing that has been looked at.
    pub typing: u64,
    /// Extensions that were in the answer, as bits.
    pub parts: u8,
    /// See [`owner`].
    pub owner: u64,
    /// The connection's name; 0 while it has no state.
    pub connection: i64,
    /// The version of its state.
    pub version: i64,
}

/// A mark of the connection that a position belongs to.
pub(super) fn owner(key: &SlidingKey) -> u64 {
    let mut hash = Sha256::new();
    for part in [key.user.as_str(), &key.device, &key.conn_id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(6).fold(0, |mark, byte| (mark << 8) | u64::from(*byte))
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pos { position, typing, parts, owner, connection, version } = self;
        write!(f, "p{position}_{typing}_{parts}_{owner:x}_{connection:x}_{version}")
    }
}

impl FromStr for Pos {
    type Err = BadPos;
    fn from_str(text: &str) -> Result<Pos, BadPos> {
        let mut parts = text.strip_prefix('p').ok_or(BadPos)?.split('_');
        let mut next = || parts.next().ok_or(BadPos);
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0).ok_or(BadPos);
        let hex = |text: &str| i64::from_str_radix(text, 16).ok().filter(|number| *number >= 0).ok_or(BadPos);
        let pos = Pos {
            position: LogPosition(number(next()?)?),
            typing: number(next()?)? as u64,
            parts: next()?.parse().map_err(|_| BadPos)?,
            owner: hex(next()?)? as u64,
            connection: hex(next()?)?,
            version: number(next()?)?,
        };
        if parts.next().is_some() { Err(BadPos) } else { Ok(pos) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let key = |conn_id: &str| SlidingKey {
            user: "@a:x".try_into().unwrap(),
            device: "D".to_owned(),
            conn_id: conn_id.to_owned(),
        };
        let owner_of = |conn_id| owner(&key(conn_id));
        assert_ne!(owner_of("a"), owner_of("b"));
        let pos = Pos {
            position: LogPosition(7),
            typing: 8,
            parts: 3,
            owner: owner_of("a"),
            connection: i64::MAX,
            version: 9,
        };
        assert_eq!(pos.to_string().parse(), Ok(pos));
        for bad in
            ["", "p", "p1", "p1_2_3_4_5", "p1_2_3_4_5_6_7", "p-1_2_3_4_5_6", "s1_2_3_4_5_6", "p1_2_300_4_5_6"]
        {
            assert_eq!(bad.parse::<Pos>(), Err(BadPos), "{bad}");
        }
    }
}
