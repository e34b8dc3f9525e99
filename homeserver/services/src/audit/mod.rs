//! What the database really holds: walks through every table that may hold what people wrote and looks for what
//! anyone with the database could read.
//!
//! It reports ids and counts, never content. It does not look into media files: an encrypted attachment and an avatar
//! look alike from outside, so their types are counted only.

mod check;
mod report;

pub use report::{Finding, Report};

use crate::PlaintextPolicy;
use check::{is_readable_key, is_readable_secret, readable_edu, readable_to_device};
use report::{Place, id_of};
use ruma::{EventId, UserId};
use serde::Serialize;
use serde_json::value::RawValue;
use waxwing_rooms::sealed::is_plaintext_payload;
use waxwing_storage::{Store, StoreError, ToDeviceEntry};

/// Rows read at once: at most 64 KiB each.
const CHUNK: i64 = 500;

/// Looks through the whole database. `policy` is what the configuration allows: it is reported, and plaintext that
/// it allows is a finding all the same. `notices` is the user as whom the server writes to its users.
///
/// # Errors
/// A row that cannot be read fails the audit.
pub async fn run(
    store: &Store,
    policy: &PlaintextPolicy,
    notices: Option<&UserId>,
) -> Result<Report, StoreError> {
    let mut report = Report::new(policy, notices);
    events(store, &mut report).await?;
    to_device(store, &mut report).await?;
    account_data(store, &mut report).await?;
    backups(store, &mut report).await?;
    outbox(store, &mut report).await?;
    appservices(store, &mut report).await?;
    media(store, &mut report).await?;
    Ok(report)
}

async fn events(store: &Store, report: &mut Report) -> Result<(), StoreError> {
    let mut after = i64::MIN;
    loop {
        let chunk = store.read().await?.events_scan(after, CHUNK).await?;
        let Some(last) = chunk.last() else { return Ok(()) };
        after = last.sn;
        for stored in &chunk {
            let event = &stored.event;
            let kind = event.kind.to_string();
            report.count(Place::Events, &kind);
            if is_plaintext_payload(&event.kind, &event.content, event.is_state()) {
                report.find_event(&kind, event);
            }
        }
    }
}

async fn to_device(store: &Store, report: &mut Report) -> Result<(), StoreError> {
    // Those first: what is filed meanwhile is found among the others.
    let mut position = i64::MIN;
    loop {
        let chunk = store.read().await?.to_device_scan_unfiled(position, CHUNK).await?;
        let Some(last) = chunk.last() else { break };
        position = last.2;
        for message in &chunk {
            to_device_message(message, report);
        }
    }
    let mut after = (String::new(), String::new(), i64::MIN);
    loop {
        let chunk = store.read().await?.to_device_scan((&after.0, &after.1, after.2), CHUNK).await?;
        let Some(last) = chunk.last() else { return Ok(()) };
        after = (last.0.clone(), last.1.clone(), last.2);
        for message in &chunk {
            to_device_message(message, report);
        }
    }
}

fn to_device_message((user, device, position, content): &ToDeviceEntry, report: &mut Report) {
    let (kind, readable) = readable_to_device(content);
    report.count(Place::ToDevice, &kind);
    if readable {
        report.find(Place::ToDevice, &kind, &id_of(&[user, device, &position.to_string()]));
    }
}

async fn account_data(store: &Store, report: &mut Report) -> Result<(), StoreError> {
    let mut after = (String::new(), String::new(), String::new());
    loop {
        let chunk = store.read().await?.account_data_scan((&after.0, &after.1, &after.2), CHUNK).await?;
        let Some(last) = chunk.last() else { return Ok(()) };
        after = (last.0.clone(), last.1.clone(), last.2.clone());
        for (user, room, kind, content) in &chunk {
            report.count(Place::AccountData, kind);
            if is_readable_secret(kind, content) {
                report.find(Place::AccountData, kind, &id_of(&[user, room, kind]));
            }
        }
    }
}

async fn backups(store: &Store, report: &mut Report) -> Result<(), StoreError> {
    let mut after = (String::new(), i64::MIN, String::new(), String::new());
    loop {
        let at = (after.0.as_str(), after.1, after.2.as_str(), after.3.as_str());
        let chunk = store.read().await?.backup_keys_scan(at, CHUNK).await?;
        let Some(last) = chunk.last() else { return Ok(()) };
        after = (last.0.clone(), last.1, last.2.clone(), last.3.clone());
        for (user, version, room, session, content) in &chunk {
            report.count(Place::Backups, "session");
            if is_readable_key(content) {
                let id = id_of(&[user, &version.to_string(), room, session]);
                report.find(Place::Backups, "session", &id);
            }
        }
    }
}

async fn outbox(store: &Store, report: &mut Report) -> Result<(), StoreError> {
    let mut after = (String::new(), i64::MIN);
    loop {
        let chunk = store.read().await?.outbox_scan((&after.0, after.1), CHUNK).await?;
        let Some(last) = chunk.last() else { return Ok(()) };
        after = (last.0.clone(), last.1);
        for (destination, position, content) in &chunk {
            let (kind, readable) = readable_edu(content);
            report.count(Place::Outbox, &kind);
            if readable {
                report.find(Place::Outbox, &kind, &id_of(&[destination, &position.to_string()]));
            }
        }
    }
}

async fn appservices(store: &Store, report: &mut Report) -> Result<(), StoreError> {
    let mut after = (String::new(), i64::MIN);
    loop {
        let at = (after.0.as_str(), after.1);
        let chunk = store.read().await?.appservice_transactions_scan(at, CHUNK).await?;
        let Some(last) = chunk.last() else { return Ok(()) };
        after = (last.0.clone(), last.1);
        for (appservice, id, body) in &chunk {
            let transaction = check::transaction(body);
            if transaction.is_none() {
                let id = id_of(&[appservice, &id.to_string()]);
                report.find(Place::Appservices, "unreadable", &id);
            }
            for (kind, readable) in transaction.into_iter().flatten() {
                report.count(Place::Appservices, &kind);
                if readable {
                    report.find(Place::Appservices, &kind, &id_of(&[appservice, &id.to_string()]));
                }
            }
        }
    }
}

async fn media(store: &Store, report: &mut Report) -> Result<(), StoreError> {
    let mut after = (String::new(), String::new());
    loop {
        let chunk = store.read().await?.media_scan(&after.0, &after.1, CHUNK).await?;
        let Some(last) = chunk.last() else { return Ok(()) };
        after = (last.0.clone(), last.1.clone());
        for (_, _, content_type, _, _) in &chunk {
            report.count(Place::Media, content_type.as_deref().unwrap_or("unknown"));
        }
    }
}

#[derive(Serialize)]
struct Row<'a> {
    event_id: &'a EventId,
    room_id: &'a ruma::RoomId,
    sn: i64,
    outlier: bool,
    rejected: bool,
    soft_failed: bool,
    redacted_by: Option<&'a EventId>,
    json: &'a RawValue,
}

/// The stored row of one event, as JSON. None: there is none.
pub async fn show_event(store: &Store, id: &EventId) -> Result<Option<String>, StoreError> {
    let Some(stored) = store.event(id).await? else { return Ok(None) };
    let row = Row {
        event_id: &stored.event.event_id,
        room_id: &stored.event.room_id,
        sn: stored.sn,
        outlier: stored.flags.outlier,
        rejected: stored.flags.rejected,
        soft_failed: stored.flags.soft_failed,
        redacted_by: stored.redacted_by.as_deref(),
        json: &stored.event.json,
    };
    serde_json::to_string(&row).map(Some).map_err(|error| StoreError::corrupt("events", id.as_str(), error))
}
