//! How presence travels between the nodes of this server.

use super::known::Report;
use serde::{Deserialize, Serialize};
use waxwing_storage::MAX_WHISPER;

/// What texts of presence begin with.
const TOPIC: &str = "presence ";

/// What one node tells the others.
#[derive(Serialize, Deserialize)]
pub(super) struct Letter {
    /// The node.
    #[serde(rename = "n")]
    pub node: String,
    /// When it was written; milliseconds since the epoch by that node's clock.
    #[serde(rename = "t")]
    pub stamp: u64,
    /// The node has just begun and asks who is there.
    #[serde(rename = "q", default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
    /// What it knows.
    #[serde(rename = "r", default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
}

/// A question who is there.
pub(super) fn question(node: &str, stamp: u64) -> String {
    let letter = Letter { node: node.to_owned(), stamp, asks: true, reports: Vec::new() };
    write(&letter).unwrap_or_default()
}

/// Reports in as few texts as they fit into. One that fits into none (a status message of unusual letters) is told
/// without its status message.
pub(super) fn texts(node: &str, stamp: u64, reports: Vec<Report>) -> Vec<String> {
    let mut texts = Vec::new();
    let mut letter = Letter { node: node.to_owned(), stamp, asks: false, reports: Vec::new() };
    // The brackets, the node and the time.
    let empty = TOPIC.len() + node.len() + 80;
    let mut length = empty;
    for mut report in reports {
        let size = |report: &Report| serde_json::to_string(report).map_or(usize::MAX, |text| text.len() + 1);
        let mut own = size(&report);
        if own > MAX_WHISPER - empty {
            report.status_msg = None;
            own = size(&report);
        }
        if length + own > MAX_WHISPER {
            texts.extend(write(&letter));
            letter.reports.clear();
            length = empty;
        }
        length += own;
        letter.reports.push(report);
    }
    if !letter.reports.is_empty() {
        texts.extend(write(&letter));
    }
    texts
}

fn write(letter: &Letter) -> Option<String> {
    let text = format!("{TOPIC}{}", serde_json::to_string(letter).ok()?);
    (text.len() <= MAX_WHISPER).then_some(text)
}

/// Reads a text; none: it is about something else.
pub(super) fn read(text: &str) -> Option<Letter> {
    serde_json::from_str(text.strip_prefix(TOPIC)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::UserId;
    use ruma::presence::PresenceState;

    #[test]
    fn reports_go_in_as_few_texts_as_they_fit_into() {
        let report = |number: usize, status_msg: Option<String>| Report {
            user: UserId::parse(format!("@user{number}:example.org")).unwrap(),
            state: PresenceState::Online,
            status_msg,
            active_at: 1_700_000_000_000,
            heard_at: 1_700_000_000_000,
            still: true,
        };
        let mut reports: Vec<Report> = (0..500).map(|number| report(number, None)).collect();
        reports.push(report(500, Some("\u{1}".repeat(4096))));
        let texts = texts("node", 7, reports);
        assert!(texts.len() < 12 && texts.iter().all(|text| text.len() <= MAX_WHISPER), "{}", texts.len());
        let letters: Vec<Letter> = texts.iter().map(|text| read(text).unwrap()).collect();
        let all: Vec<_> = letters.into_iter().flat_map(|letter| letter.reports).collect();
        assert_eq!(all.len(), 501);
        assert_eq!((&all[3].user, &all[500].status_msg), (&report(3, None).user, &None));
        assert!(read(&question("node", 7)).unwrap().asks);
        assert!(read("typing {}").is_none());
    }
}
