use crate::PlaintextPolicy;
use ruma::{OwnedUserId, UserId};
use std::collections::BTreeMap;
use std::fmt;
use waxwing_model::Event;

/// Types that are counted apart; the rest together. Types are what clients make up.
const TYPES: usize = 500;
/// Letters of a type or id that are printed.
const SHOWN: usize = 80;
/// Findings that are listed; the rest are counted.
const LISTED: usize = 100;

/// A table that was looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Events,
    ToDevice,
    AccountData,
    Backups,
    Outbox,
    Appservices,
    Media,
}

impl Place {
    const ALL: [Place; 7] = [
        Place::Events,
        Place::ToDevice,
        Place::AccountData,
        Place::Backups,
        Place::Outbox,
        Place::Appservices,
        Place::Media,
    ];

    fn name(self) -> &'static str {
        match self {
            Place::Events => "events",
            Place::ToDevice => "to_device",
            Place::AccountData => "account_data",
            Place::Backups => "backup_keys",
            Place::Outbox => "outbox",
            Place::Appservices => "appservice_transactions",
            Place::Media => "media (types only)",
        }
    }
}

/// Something that can be read by whoever holds the database: where it is, never what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The table.
    pub table: &'static str,
    /// The type of the event or message.
    pub kind: String,
    /// The event id, or the key of the row.
    pub id: String,
    /// The exception of the configuration that allows it.
    pub allowed: Option<&'static str>,
}

/// What an audit looked at and found. Its text is what `waxwing audit` prints.
#[derive(Debug)]
pub struct Report {
    policy: PlaintextPolicy,
    notices: Option<OwnedUserId>,
    counts: BTreeMap<(Place, String), u64>,
    listed: Vec<Finding>,
    found: u64,
}

impl Report {
    pub(super) fn new(policy: &PlaintextPolicy, notices: Option<&UserId>) -> Report {
        let notices = notices.map(ToOwned::to_owned);
        Report { policy: policy.clone(), notices, counts: BTreeMap::new(), listed: Vec::new(), found: 0 }
    }

    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.found == 0
    }

    /// The first findings.
    pub fn findings(&self) -> &[Finding] {
        &self.listed
    }

    pub(super) fn count(&mut self, place: Place, kind: &str) {
        let mut key = (place, printable(kind));
        if self.counts.len() >= TYPES && !self.counts.contains_key(&key) {
            "other types".clone_into(&mut key.1);
        }
        *self.counts.entry(key).or_default() += 1;
    }

    pub(super) fn find(&mut self, place: Place, kind: &str, id: &str) {
        let allowed = self.policy.accept.then_some("plaintext = \"accept\"");
        self.list(place, kind, id, allowed);
    }

    pub(super) fn find_event(&mut self, kind: &str, event: &Event) {
        let in_room = self.policy.rooms.contains(&event.room_id);
        let allowed = match (self.policy.accept, in_room) {
            (true, _) => Some("plaintext = \"accept\""),
            (false, true) => Some("plaintext_rooms"),
            (false, false) if self.notices.as_ref() == Some(&event.sender) => Some("server_notices"),
            (false, false) => None,
        };
        self.list(Place::Events, kind, event.event_id.as_str(), allowed);
    }

    fn list(&mut self, place: Place, kind: &str, id: &str, allowed: Option<&'static str>) {
        self.found += 1;
        if self.listed.len() < LISTED {
            let (kind, id) = (printable(kind), printable(id));
            self.listed.push(Finding { table: place.name(), kind, id, allowed });
        }
    }

    fn rows(&self) -> u64 {
        self.counts.values().sum()
    }

    fn exceptions(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "exceptions in force")?;
        let policy = &self.policy;
        let none = !policy.accept && policy.rooms.is_empty() && policy.appservices.is_empty();
        if none && self.notices.is_none() {
            writeln!(out, "  none")?;
        }
        if policy.accept {
            writeln!(out, "  plaintext = \"accept\": plaintext is accepted everywhere")?;
        }
        for room in &policy.rooms {
            writeln!(out, "  plaintext_rooms: {room}")?;
        }
        for appservice in &policy.appservices {
            writeln!(out, "  plaintext_appservices: {}", printable(appservice))?;
        }
        if let Some(notices) = &self.notices {
            writeln!(
                out,
                "  server_notices: {notices}, the server itself, writes to its users in the clear"
            )?;
        }
        Ok(())
    }
}

/// A key of several columns as it is printed.
pub(super) fn id_of(columns: &[&str]) -> String {
    columns.iter().filter(|column| !column.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

/// Ids and types are written by strangers: no control characters reach the terminal.
fn printable(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    let cut = if shown.len() < text.len() { "…" } else { "" };
    format!("{}{cut}", shown.escape_debug())
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:<26}{:<44}{:>10}", "checked", "type", "rows")?;
        for place in Place::ALL {
            let mut rows =
                self.counts.range((place, String::new())..).take_while(|((of, _), _)| *of == place);
            let mut none = true;
            for ((_, kind), count) in rows.by_ref() {
                none = false;
                writeln!(out, "  {:<24}{kind:<44}{count:>10}", place.name())?;
            }
            if none {
                writeln!(out, "  {:<24}{:<44}{:>10}", place.name(), "-", 0)?;
            }
        }
        self.exceptions(out)?;
        writeln!(out, "findings")?;
        if self.is_clean() {
            writeln!(out, "  none")?;
        }
        for Finding { table, kind, id, allowed } in &self.listed {
            write!(out, "  {table}: {id} ({kind})")?;
            match allowed {
                Some(exception) => writeln!(out, ", allowed by {exception}")?,
                None => writeln!(out)?,
            }
        }
        let more = self.found - self.listed.len() as u64;
        if more > 0 {
            writeln!(out, "  and {more} more")?;
        }
        let rows = self.rows();
        if self.is_clean() {
            write!(out, "verdict: clean; no plaintext message payloads in {rows} rows")
        } else {
            write!(out, "verdict: NOT clean; {} plaintext payloads in {rows} rows", self.found)
        }
    }
}
