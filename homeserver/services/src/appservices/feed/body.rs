//! The body of a transaction.
//! <https://spec.matrix.org/v1.19/application-service-api/#put_matrixappv1transactionstxnid>

use super::collect::{Batch, Message, Told};
use crate::Core;
use crate::appservices::Appservice;
use crate::render::{Shown, Viewer, render};
use crate::sync::receipt_event;
use ruma::{OwnedEventId, OwnedUserId};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_rooms::stripped;
use waxwing_storage::{MemberRow, StoreError, StoreResult, StoredEvent};

type OfDevices<T> = BTreeMap<OwnedUserId, BTreeMap<String, T>>;

#[derive(Serialize)]
struct Lists<'a> {
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    changed: &'a BTreeSet<OwnedUserId>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    left: &'a BTreeSet<OwnedUserId>,
}

/// What is not in the specification yet stands under both of its names: some application services know the one, some
/// the other (MSC2409, MSC3202, MSC4203).
#[derive(Serialize)]
struct Body<'a> {
    events: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ephemeral: &'a [Box<RawValue>],
    #[serde(rename = "de.sorunome.msc2409.ephemeral", skip_serializing_if = "<[_]>::is_empty")]
    ephemeral_unstable: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    to_device: &'a [Box<RawValue>],
    #[serde(rename = "de.sorunome.msc2409.to_device", skip_serializing_if = "<[_]>::is_empty")]
    to_device_unstable: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "Option::is_none")]
    device_lists: Option<&'a Lists<'a>>,
    #[serde(rename = "org.matrix.msc3202.device_lists", skip_serializing_if = "Option::is_none")]
    device_lists_unstable: Option<&'a Lists<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    device_one_time_keys_count: &'a OfDevices<BTreeMap<String, u64>>,
    #[serde(
        rename = "org.matrix.msc3202.device_one_time_keys_count",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    one_time_keys_unstable: &'a OfDevices<BTreeMap<String, u64>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    device_unused_fallback_key_types: &'a OfDevices<Vec<String>>,
    #[serde(
        rename = "org.matrix.msc3202.device_unused_fallback_key_types",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    fallback_unstable: &'a OfDevices<Vec<String>>,
}

/// Puts a transaction together. `volatile`: typing and presence as they are now.
pub(super) async fn assemble(
    core: &Core,
    appservice: &Appservice,
    batch: &Batch,
    volatile: Vec<Box<RawValue>>,
) -> StoreResult<String> {
    let events = events(core, appservice, &batch.events).await?;
    let mut ephemeral = Vec::new();
    for (room, receipts) in &batch.receipts {
        let receipts: Vec<_> = receipts.values().cloned().collect();
        if let Some(event) = receipt_event(&receipts) {
            ephemeral.push(with_fields(&event, [("room_id", json!(room))])?);
        }
    }
    ephemeral.extend(volatile);
    let to_device = batch.messages.iter().map(message).collect::<StoreResult<Vec<_>>>()?;
    let lists = Lists { changed: &batch.changed, left: &batch.left };
    let lists = (!batch.changed.is_empty() || !batch.left.is_empty()).then_some(&lists);
    let (one_time, fallback) = counts(core, &batch.counted).await?;
    let body = Body {
        events,
        ephemeral_unstable: if appservice.ephemeral_unstable { &ephemeral } else { &[] },
        ephemeral: &ephemeral,
        to_device: &to_device,
        to_device_unstable: &to_device,
        device_lists: lists,
        device_lists_unstable: lists,
        device_one_time_keys_count: &one_time,
        one_time_keys_unstable: &one_time,
        device_unused_fallback_key_types: &fallback,
        fallback_unstable: &fallback,
    };
    serde_json::to_string(&body).map_err(unwritable)
}

fn unwritable(error: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt("appservice_transactions", "new", error)
}

async fn events(core: &Core, appservice: &Appservice, told: &[Told]) -> StoreResult<Vec<Box<RawValue>>> {
    let stored: Vec<Arc<StoredEvent>> = told
        .iter()
        .filter_map(|told| match told {
            Told::Stored(stored) => Some(Arc::clone(stored)),
            Told::Outside(_) => None,
        })
        .collect();
    let viewer = Viewer::new(appservice.sender.clone());
    let mut shown = render(core, &viewer, &stored, Shown::STATE).await?.into_iter();
    let mut events = Vec::with_capacity(told.len());
    for told in told {
        match told {
            Told::Stored(stored) => {
                let Some(event) = shown.next() else { break };
                if invited(appservice, stored) {
                    events.push(with_invite_state(core, stored, &event).await?);
                } else {
                    events.push(event);
                }
            }
            Told::Outside(member) => events.push(outside(core, member)?),
        }
    }
    Ok(events)
}

/// Whether the event invites one of its users.
fn invited(appservice: &Appservice, stored: &StoredEvent) -> bool {
    let target = crate::timeline::effects::member_target(&stored.event);
    target.is_some_and(|user| appservice.has_user(&user))
        && stored.event.content_str("membership").as_deref() == Some("invite")
}

/// Adds what the invited user may see of the room.
async fn with_invite_state(
    core: &Core,
    stored: &StoredEvent,
    event: &RawValue,
) -> StoreResult<Box<RawValue>> {
    let Some(root) = stored.state_before else { return Ok(event.to_owned()) };
    let keys = stripped::keys(Some(&stored.event.sender));
    let ids = {
        let mut conn = core.store.read().await?;
        core.store.state(&mut conn).get_many(root, &keys).await?
    };
    let ids: Vec<OwnedEventId> = ids.into_iter().flatten().collect();
    let loaded = core.store.events(&ids).await?;
    let state: Vec<_> = ids.iter().filter_map(|id| loaded.get(id)).map(|stored| &*stored.event).collect();
    let state = stripped::stripped_state(state);
    let mut object: Map<String, Value> = serde_json::from_str(event.get()).map_err(unwritable)?;
    let unsigned = object.entry("unsigned").or_insert_with(|| json!({}));
    if let Value::Object(unsigned) = unsigned {
        unsigned.insert("invite_room_state".to_owned(), serde_json::to_value(state).map_err(unwritable)?);
    }
    to_raw_value(&object).map_err(unwritable)
}

/// A membership of a room that this server is not in. Its event is not kept: this is what is known of it.
fn outside(core: &Core, member: &MemberRow) -> StoreResult<Box<RawValue>> {
    let state: Vec<Value> =
        member.stripped.as_deref().and_then(|state| serde_json::from_str(state).ok()).unwrap_or_default();
    let own = state.iter().find(|event| {
        event["type"] == "m.room.member"
            && event["state_key"] == member.user_id.as_str()
            && event["content"]["membership"] == member.membership.as_str()
    });
    let content =
        own.map_or_else(|| json!({ "membership": member.membership }), |own| own["content"].clone());
    let unsigned = match member.membership.as_str() {
        "invite" => json!({ "age": 0, "invite_room_state": state }),
        "knock" => json!({ "age": 0, "knock_room_state": state }),
        _ => json!({ "age": 0 }),
    };
    let event = json!({
        "type": "m.room.member",
        "event_id": member.event_id,
        "room_id": member.room_id,
        "sender": member.sender,
        "state_key": member.user_id,
        "origin_server_ts": core.now(),
        "content": content,
        "unsigned": unsigned,
    });
    to_raw_value(&event).map_err(unwritable)
}

fn message(message: &Message) -> StoreResult<Box<RawValue>> {
    let to = [("to_user_id", json!(message.user)), ("to_device_id", json!(message.device))];
    with_fields(&message.json, to)
}

/// The object with more fields.
fn with_fields<const N: usize>(json: &RawValue, fields: [(&str, Value); N]) -> StoreResult<Box<RawValue>> {
    let mut object: BTreeMap<String, Box<RawValue>> = serde_json::from_str(json.get()).map_err(unwritable)?;
    for (name, value) in fields {
        object.insert(name.to_owned(), to_raw_value(&value).map_err(unwritable)?);
    }
    to_raw_value(&object).map_err(unwritable)
}

async fn counts(
    core: &Core,
    devices: &BTreeSet<(OwnedUserId, String)>,
) -> StoreResult<(OfDevices<BTreeMap<String, u64>>, OfDevices<Vec<String>>)> {
    let (mut one_time, mut fallback) = (OfDevices::new(), OfDevices::new());
    if devices.is_empty() {
        return Ok((one_time, fallback));
    }
    let mut conn = core.store.read().await?;
    for (user, device) in devices {
        let counts = conn.one_time_key_counts(user, device).await?;
        one_time.entry(user.clone()).or_default().insert(device.clone(), counts);
        let types = conn.fallback_types_unused(user, device).await?;
        fallback.entry(user.clone()).or_default().insert(device.clone(), types);
    }
    Ok((one_time, fallback))
}
