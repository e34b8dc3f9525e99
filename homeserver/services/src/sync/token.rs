//! Tokens: how a client says up to where it has seen things. Opaque to clients, versioned for us.
//!
//! * `s1_POSITION_CLOCK` from `/sync`: a position of the log, and a clock for what is not in the log (typing,
//!   presence). A third number follows where to-device messages were cut off earlier.
//! * `tSN` from a timeline: the point just after the event with this `sn`.
//!
//! Both name a point of the room's timeline, since a live event's `sn` is its position: everything up to the number
//! lies before the point, everything above it after.
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
    /// The clock of typing and presence that has been sent, milliseconds.
    pub clock: u64,
    /// To-device messages up to here have been sent. Behind `position` when there were too many for one answer.
    pub to_device: LogPosition,
}

impl SyncToken {
    /// A token for which everything up to `position` has been sent.
    pub fn new(position: LogPosition, clock: u64) -> SyncToken {
        SyncToken { position, clock, to_device: position }
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s1_{}_{}", self.position, self.clock)?;
        if self.to_device != self.position {
            write!(f, "_{}", self.to_device)?;
        }
        Ok(())
    }
}

impl FromStr for SyncToken {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<SyncToken, BadToken> {
        let mut parts = text.strip_prefix("s1_").ok_or(BadToken)?.split('_');
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<i64>().ok()).filter(|n| *n >= 0);
        let position = LogPosition(number(parts.next()).ok_or(BadToken)?);
        let clock = number(parts.next()).ok_or(BadToken)? as u64;
        let to_device = match parts.next() {
            Some(part) => LogPosition(number(Some(part)).ok_or(BadToken)?),
            None => position,
        };
        if parts.next().is_some() {
            return Err(BadToken);
        }
        Ok(SyncToken { position, clock, to_device })
    }
}

/// A point of a room's timeline: just after the event with this `sn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimelineToken(pub i64);

impl TimelineToken {
    /// The point just before the event with this `sn`.
    pub fn before(sn: i64) -> TimelineToken {
        TimelineToken(sn - 1)
    }
    /// The point just after the event with this `sn`.
    pub fn after(sn: i64) -> TimelineToken {
        TimelineToken(sn)
    }
}

impl fmt::Display for TimelineToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

impl FromStr for TimelineToken {
    type Err = BadToken;
    /// Reads either form: a token of `/sync` is a point of every room's timeline.
    fn from_str(text: &str) -> Result<TimelineToken, BadToken> {
        if let Some(number) = text.strip_prefix('t') {
            return number.parse().map(TimelineToken).map_err(|_| BadToken);
        }
        text.parse::<SyncToken>().map(|token| TimelineToken(token.position.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mut token = SyncToken::new(LogPosition(42), 1700);
        assert_eq!(token.to_string(), "s1_42_1700");
        assert_eq!(token.to_string().parse(), Ok(token));
        token.to_device = LogPosition(7);
        assert_eq!(token.to_string(), "s1_42_1700_7");
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_eq!("t-5".parse(), Ok(TimelineToken(-5)));
        assert_eq!("s1_42_1".parse(), Ok(TimelineToken(42)));
        for bad in ["", "s", "s1_", "s1_1", "s1_1_x", "s1_-1_2", "s1_1_2_3_4", "t", "tx", "42"] {
            assert_eq!(bad.parse::<SyncToken>(), Err(BadToken), "{bad}");
        }
        assert_eq!("t".parse::<TimelineToken>(), Err(BadToken));
    }
}
