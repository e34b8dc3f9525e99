//! The token of `/sync`: up to where a client has seen things. Opaque to clients; the letter is its version.
//!
//! `sPOSITION_TYPING_PRESENCE`: a position of the log, and the clocks of what is not in the log. A fourth number follows
//! where to-device messages were cut off earlier. Since a live event's `sn` is its position, the position is also a
//! point of every room's timeline: [`crate::rooms_read::PageToken`] reads it too.
//! <https://spec.matrix.org/v1.19/client-server-api/#syncing>

use std::fmt;
use std::str::FromStr;
use waxwing_model::LogPosition;

/// A token that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token of this server")]
pub struct BadToken;

/// A token of `/sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncToken {
    /// Everything of the log up to here has been sent.
    pub position: LogPosition,
    /// The clock of typing that has been sent.
    pub typing: u64,
    /// The clock of presence that has been sent.
    pub presence: u64,
    /// To-device messages up to here have been sent. Behind `position` when there were too many for one answer.
    pub to_device: LogPosition,
}

impl SyncToken {
    /// A token for which everything up to `position` has been sent.
    pub fn new(position: LogPosition, typing: u64, presence: u64) -> SyncToken {
        SyncToken { position, typing, presence, to_device: position }
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}_{}_{}", self.position, self.typing, self.presence)?;
        if self.to_device != self.position {
            write!(f, "_{}", self.to_device)?;
        }
        Ok(())
    }
}

impl FromStr for SyncToken {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<SyncToken, BadToken> {
        let mut parts = text.strip_prefix('s').ok_or(BadToken)?.split('_');
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<i64>().ok()).filter(|n| *n >= 0);
        let position = LogPosition(number(parts.next()).ok_or(BadToken)?);
        let typing = number(parts.next()).ok_or(BadToken)? as u64;
        let presence = number(parts.next()).ok_or(BadToken)? as u64;
        let to_device = match parts.next() {
            Some(part) => LogPosition(number(Some(part)).ok_or(BadToken)?),
            None => position,
        };
        if parts.next().is_some() {
            return Err(BadToken);
        }
        Ok(SyncToken { position, typing, presence, to_device })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mut token = SyncToken::new(LogPosition(42), 17, 18);
        assert_eq!(token.to_string(), "s42_17_18");
        assert_eq!(token.to_string().parse(), Ok(token));
        token.to_device = LogPosition(7);
        assert_eq!(token.to_string(), "s42_17_18_7");
        assert_eq!(token.to_string().parse(), Ok(token));
        for bad in ["", "s", "s_", "s1", "s1_2", "s1_x_1", "s-1_2_1", "s1_2_3_4_5", "t5", "1_2_3"] {
            assert_eq!(bad.parse::<SyncToken>(), Err(BadToken), "{bad}");
        }
    }
}
