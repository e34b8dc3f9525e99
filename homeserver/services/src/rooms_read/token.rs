use super::ReadError;
use std::fmt;

/// A place between two events of a room: after the event with this number and before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageToken(pub i64);

impl PageToken {
    /// Reads a token of this kind (`t…`), or the position in a token of `/sync` (`s…`) or
    /// of sliding sync (`p…`): all count the same events.
    ///
    /// # Errors
    /// [`ReadError::InvalidParam`] for anything else.
    pub fn parse(text: &str) -> Result<PageToken, ReadError> {
        let wrong = ReadError::InvalidParam("unknown pagination token");
        let Some(rest) = text.strip_prefix(['t', 's', 'p']) else { return Err(wrong) };
        let end = rest
            .char_indices()
            .find(|(index, character)| !(character.is_ascii_digit() || *index == 0 && *character == '-'))
            .map_or(rest.len(), |(index, _)| index);
        rest[..end].parse().map(PageToken).map_err(|_| wrong)
    }

    /// The place before the event with this number.
    pub fn before(sn: i64) -> PageToken {
        PageToken(sn.saturating_sub(1))
    }
}

/// The place where a sync's timeline begins, with the position of that sync: where nothing is before the place, what is
/// asked of it (who was there) is answered for the time of the sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineToken {
    /// Before the first event of the timeline.
    pub start: i64,
    /// What the sync had seen.
    pub seen: i64,
}

impl TimelineToken {
    /// The position of the sync that a token was handed out by, if it was by one.
    pub(super) fn seen(text: &str) -> Option<i64> {
        text.strip_prefix('t')?.split_once('_')?.1.parse().ok()
    }
}

impl fmt::Display for TimelineToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}_{}", self.start, self.seen)
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_kinds() {
        assert_eq!(PageToken::parse("t-12").unwrap(), PageToken(-12));
        assert_eq!(PageToken::parse("s7_99").unwrap(), PageToken(7));
        let timeline = TimelineToken { start: -3, seen: 12 }.to_string();
        assert_eq!(PageToken::parse(&timeline).unwrap(), PageToken(-3));
        assert_eq!((TimelineToken::seen(&timeline), TimelineToken::seen("t4")), (Some(12), None));
        assert_eq!(PageToken::parse("p7_99_0_0_0_0").unwrap(), PageToken(7));
        assert_eq!(PageToken::parse(&PageToken(3).to_string()).unwrap(), PageToken(3));
        for wrong in ["", "t", "x5", "5", "t-", "tx"] {
            assert!(PageToken::parse(wrong).is_err(), "{wrong}");
        }
    }
}
