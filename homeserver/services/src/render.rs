//! Events as one viewer sees them: what [`waxwing_rooms::client_json`] makes of an event, with everything in
//! `unsigned` that depends on the viewer, the state at the event, or later events.
//! <https://spec.matrix.org/v1.19/client-server-api/#room-event-format>

mod relations;

use crate::Core;
use crate::before::{holders_before, replaced};
use relations::Bundles;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedUserId};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_model::{LogPosition, state_key};
use waxwing_rooms::client_json::{ClientEvent, Unsigned, age};
use waxwing_rooms::visibility::membership_of;
use waxwing_storage::{StoreResult, StoredEvent};

/// For whom events are shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    /// The user.
    pub user: OwnedUserId,
    /// The device that asks: only it is told the transaction ids of what it sent.
    pub device: Option<String>,
}

impl Viewer {
    /// A user on no particular device.
    pub fn new(user: impl Into<OwnedUserId>) -> Viewer {
        Viewer { user: user.into(), device: None }
    }
}

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// With `room_id`; `/sync` has none.
    pub room_id: bool,
    /// With bundled aggregations (edits, threads, references).
    pub relations: bool,
    /// With what the state before the event says: the viewer's membership, and what a state event replaced. Lists of
    /// state have none: each of their events has a state of its own before it, and servers may leave that out where it
    /// is dear.
    pub before: bool,
}

impl Shown {
    /// As every endpoint but `/sync` shows events.
    pub const EVERYWHERE: Shown = Shown { room_id: true, relations: true, before: true };
    /// As lists of state show events: nothing relates to them that clients want to know there.
    pub const STATE: Shown = Shown { room_id: true, relations: false, before: false };
    /// As the state of `/sync` shows events.
    pub const SYNC_STATE: Shown = Shown { room_id: false, ..Shown::STATE };
    /// As the timeline of `/sync` shows events.
    pub const TIMELINE: Shown = Shown { room_id: false, relations: true, before: true };
}

/// What the state before an event says of it.
#[derive(Default)]
struct Before {
    /// The viewer's member event.
    member: Option<OwnedEventId>,
    /// The state entry that the event replaced.
    replaced: Option<OwnedEventId>,
}

/// Shows `events` to `viewer`, in their order. Reads what it needs for all of them at once.
pub async fn render(
    core: &Core,
    viewer: &Viewer,
    events: &[Arc<StoredEvent>],
    shown: Shown,
) -> StoreResult<Vec<Box<RawValue>>> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let before = if shown.before {
        states_before(core, viewer, events).await?
    } else {
        events.iter().map(|_| Before::default()).collect()
    };
    let transactions = transaction_ids(core, viewer, events).await?;
    let mut wanted: Vec<OwnedEventId> = before
        .iter()
        .flat_map(|before| [before.member.clone(), before.replaced.clone()])
        .chain(events.iter().map(|stored| stored.redacted_by.clone()))
        .flatten()
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let loaded = without_erased(core, viewer, core.store.events(&wanted).await?).await?;
    let bundles =
        if shown.relations { Bundles::load(core, viewer, events).await? } else { Bundles::default() };
    let rendering = Rendering { core, viewer, shown, loaded, transactions, bundles };
    Ok(events.iter().zip(&before).map(|(stored, before)| rendering.one(stored, before)).collect())
}

/// What goes into `unsigned` of others' events is shown as it would be by itself.
async fn without_erased(
    core: &Core,
    viewer: &Viewer,
    mut loaded: HashMap<OwnedEventId, Arc<StoredEvent>>,
) -> StoreResult<HashMap<OwnedEventId, Arc<StoredEvent>>> {
    let senders = loaded.values().map(|stored| &*stored.event.sender);
    let erased = core.store.erased_among(senders).await?;
    if !erased.is_empty() {
        let theirs = loaded.values().filter(|stored| erased.contains(&stored.event.sender)).cloned();
        for shown in crate::erasure::conceal(core, &viewer.user, theirs.collect()).await? {
            loaded.insert(shown.event.event_id.clone(), shown);
        }
    }
    Ok(loaded)
}

/// Shows one event.
pub async fn render_one(
    core: &Core,
    viewer: &Viewer,
    event: Arc<StoredEvent>,
    shown: Shown,
) -> StoreResult<Box<RawValue>> {
    let mut shown = render(core, viewer, &[event], shown).await?;
    Ok(shown.pop().unwrap_or_else(|| RawValue::NULL.to_owned()))
}

struct Rendering<'a> {
    core: &'a Core,
    viewer: &'a Viewer,
    shown: Shown,
    loaded: HashMap<OwnedEventId, Arc<StoredEvent>>,
    transactions: HashMap<OwnedEventId, String>,
    bundles: Bundles,
}

impl Rendering<'_> {
    fn one(&self, stored: &StoredEvent, before: &Before) -> Box<RawValue> {
        let event = &stored.event;
        let load = |id: Option<&OwnedEventId>| id.and_then(|id| self.loaded.get(id));
        let replaced = load(before.replaced.as_ref());
        let own_member = event.is_state_of(&StateEventType::RoomMember, self.viewer.user.as_str());
        let membership = if !self.shown.before {
            None
        } else if own_member {
            Some(membership_of(Some(event)))
        } else if stored.state_before.is_some() {
            Some(membership_of(load(before.member.as_ref()).map(|member| &*member.event)))
        } else {
            None
        };
        let redaction = load(stored.redacted_by.as_ref())
            .map(|redaction| bare(redaction, self.core.clock.now(), self.shown.room_id));
        let unsigned = Unsigned {
            age: Some(age(event, self.core.clock.now())),
            transaction_id: self.transactions.get(&event.event_id).map(String::as_str),
            membership: membership.as_ref().map(AsRef::as_ref),
            prev_content: replaced.map(|replaced| &*replaced.event.content),
            prev_sender: replaced.map(|replaced| replaced.event.sender.as_str()),
            replaces_state: replaced.map(|replaced| replaced.event.event_id.as_str()),
            redacted_because: redaction.as_deref(),
            relations: self.bundles.of(&event.event_id),
            ..Unsigned::default()
        };
        let client = ClientEvent::new(event);
        if self.shown.room_id { client.with_room(&unsigned) } else { client.for_sync(&unsigned) }
    }
}

/// An event with nothing but its age.
pub(crate) fn bare(
    stored: &StoredEvent,
    now: ruma::MilliSecondsSinceUnixEpoch,
    room_id: bool,
) -> Box<RawValue> {
    let client = ClientEvent::new(&stored.event);
    let unsigned = Unsigned { age: Some(age(&stored.event, now)), ..Unsigned::default() };
    if room_id { client.with_room(&unsigned) } else { client.for_sync(&unsigned) }
}

/// The entries of the states before the events that matter here.
async fn states_before(
    core: &Core,
    viewer: &Viewer,
    events: &[Arc<StoredEvent>],
) -> StoreResult<Vec<Before>> {
    let member = state_key(StateEventType::RoomMember, viewer.user.as_str());
    let members = holders_before(core, events, &[member]).await?;
    let replaced = replaced(core, events).await?;
    let before = members.into_iter().zip(replaced).map(|(members, replaced)| Before {
        member: members.and_then(|mut members| members.pop().flatten()),
        replaced,
    });
    Ok(before.collect())
}

/// The transaction ids of those of the events that the viewer's device sent.
async fn transaction_ids(
    core: &Core,
    viewer: &Viewer,
    events: &[Arc<StoredEvent>],
) -> StoreResult<HashMap<OwnedEventId, String>> {
    let Some(device) = &viewer.device else { return Ok(HashMap::new()) };
    let mut known = HashMap::new();
    let mut unknown = Vec::new();
    for stored in events {
        if stored.event.sender != viewer.user || stored.event.is_state() {
            continue;
        }
        match core.store.tail().row(LogPosition(stored.sn)) {
            Some(row) => {
                let sent = row.data.as_deref().and_then(|data| sent_by(data, device));
                known.extend(sent.map(|transaction| (stored.event.event_id.clone(), transaction)));
            }
            None => unknown.push(stored.event.event_id.clone()),
        }
    }
    if !unknown.is_empty() {
        known.extend(core.store.read().await?.transaction_ids(&viewer.user, device, &unknown).await?);
    }
    Ok(known)
}

/// What the row of the log that announces an event says of the request that sent it.
pub(crate) fn sent_as(device: &str, transaction: &str) -> String {
    serde_json::json!([device, transaction]).to_string()
}

/// The transaction id, where it was this device that sent the event.
fn sent_by(data: &str, device: &str) -> Option<String> {
    let (by, transaction): (String, String) = serde_json::from_str(data).ok()?;
    (by == device).then_some(transaction)
}
