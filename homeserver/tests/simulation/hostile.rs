//! What a server does that means harm.

use crate::node::{Act, Node, View};
use crate::world::{World, users_of};
use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::build::build_event;
use waxwing_rooms::parse::pdu_from_object;
use waxwing_rooms::sign::hash_and_sign_event;
use waxwing_rooms::{AuthMap, EventDraft, PrevEvent, RoomContext, canonical_object};

/// The deepest depth that can be written.
const DEEPEST: u64 = (1 << 53) - 1;
/// Events in one fan: more than an event can refer to.
const FAN: usize = 24;
/// Events in one chain: more than are fetched for a gap.
const CHAIN: usize = 30;

/// The hostile server at work in one room.
struct Strike {
    node: Arc<dyn Node>,
    room: OwnedRoomId,
    user: OwnedUserId,
    view: View,
    /// The servers to be hurt.
    others: Vec<OwnedServerName>,
}

impl Strike {
    /// An event anywhere in the graph, authorised by the state of now.
    fn make(
        &self,
        kind: &str,
        key: Option<&str>,
        content: &Value,
        prev: &[Arc<Event>],
    ) -> Option<Arc<Event>> {
        let version = &self.view.version;
        let state: AuthMap = self
            .view
            .state
            .iter()
            .filter_map(|(key, id)| Some((key.clone(), Arc::clone(self.view.event(id)?))))
            .collect();
        let draft = EventDraft {
            kind: kind.into(),
            content: to_raw_value(content).ok()?,
            state_key: key.map(str::to_owned),
            sender: self.user.clone(),
            redacts: None,
            origin_server_ts: self.node.clock().now(),
            sticky_ms: None,
        };
        let context = RoomContext {
            version: version.clone(),
            room_id: Some(self.room.clone()),
            prev_events: prev.iter().filter_map(|event| PrevEvent::of(event, version).ok()).collect(),
            state,
        };
        build_event(draft, &context, self.node.name(), self.node.key()).ok().map(Arc::new)
    }

    /// The event, changed and signed again.
    fn forge(
        &self,
        event: &Event,
        number: u64,
        change: impl FnOnce(&mut CanonicalJsonObject),
    ) -> Option<Arc<Event>> {
        let mut object = canonical_object(event.json.get()).ok()?;
        object.remove("signatures");
        object.remove("hashes");
        if matches!(self.view.version, RoomVersionId::V1 | RoomVersionId::V2) {
            object.insert("event_id".to_owned(), format!("$forged{number}:{}", self.node.name()).into());
        }
        change(&mut object);
        hash_and_sign_event(&mut object, &self.view.version, self.node.name(), self.node.key()).ok()?;
        pdu_from_object(object, &self.view.version).ok().map(|pdu| Arc::new(pdu.event))
    }

    /// Keeps it in the hostile server's own graph, so that it can answer for it.
    async fn keep(&self, event: &Event) {
        let _ = self.node.inbound().receive_event(&self.others[0], &self.room, &event.json).await;
    }

    async fn push(&self, to: &[OwnedServerName], events: &[Arc<Event>], number: u64) {
        let pdus: Vec<&RawValue> = events.iter().map(|event| &*event.json).collect();
        let body = json!({ "origin": self.node.name(), "origin_server_ts": 1, "pdus": pdus });
        let body = to_raw_value(&body).expect("JSON");
        for server in to {
            let _ = self.node.client().send_transaction(server, &format!("hostile{number}"), &body).await;
        }
    }
}

/// Harms a room, if the server can.
pub async fn strike(world: &mut World) {
    let Some(index) = world.hostile else { return };
    let room = world.dice.pick(&world.rooms).clone();
    let user = world.dice.pick(&users_of(index)).clone();
    let node = Arc::clone(&world.nodes[index]);
    let Some(view) = node.view(&room).await else {
        let via = world.honest().into_iter().map(|other| world.nodes[other].name().to_owned()).collect();
        world.act(index, Act::Join { room, user, via }).await;
        return;
    };
    let mut others: Vec<OwnedServerName> =
        world.honest().into_iter().map(|other| world.nodes[other].name().to_owned()).collect();
    world.dice.shuffle(&mut others);
    let strike = Strike { node, room, user, view, others };
    let choice = world.dice.below(9);
    world.note(format!("{} strikes {}: {choice}", strike.user, strike.room));
    match choice {
        0 | 1 => equivocate(world, &strike).await,
        2 => bad_auth(world, &strike).await,
        3 => forged_depth(world, &strike).await,
        4 => fan_out(world, &strike).await,
        5 => deep_chain(world, &strike).await,
        6 => forged_sender(world, &strike).await,
        7 => on_rejected(world, &strike).await,
        _ => from_the_past(world, &strike).await,
    }
    .unwrap_or_default();
}

fn tips(strike: &Strike) -> Vec<Arc<Event>> {
    strike.view.extremities.iter().filter_map(|id| strike.view.event(id).cloned()).collect()
}

/// Something that changes the state, or tries to.
fn change(world: &mut World, strike: &Strike) -> (&'static str, String, Value) {
    let number = world.next_number();
    match world.dice.below(4) {
        0 => ("m.room.topic", String::new(), json!({ "topic": format!("hostile {number}") })),
        1 => {
            let name = format!("hostile {number}");
            ("m.room.member", strike.user.to_string(), json!({ "membership": "join", "displayname": name }))
        }
        2 => {
            let whose = world.dice.below(world.nodes.len());
            let target = world.dice.pick(&users_of(whose)).clone();
            ("m.room.member", target.to_string(), json!({ "membership": "ban" }))
        }
        _ => {
            let now = strike.view.holds("m.room.power_levels", "");
            let mut levels: Value =
                now.and_then(|event| event.content_as().ok()).unwrap_or_else(|| json!({}));
            levels["users"][strike.user.as_str()] = 100.into();
            levels["ban"] = (*world.dice.pick(&[0, 50])).into();
            ("m.room.power_levels", String::new(), levels)
        }
    }
}

/// Two events in one place, one for these, one for those.
async fn equivocate(world: &mut World, strike: &Strike) -> Option<()> {
    let tips = tips(strike);
    for side in 0..2 {
        let (kind, key, content) = change(world, strike);
        let event = strike.make(kind, Some(&key), &content, &tips)?;
        strike.keep(&event).await;
        let half = strike.others.len().div_ceil(2);
        let to = if side == 0 { &strike.others[..half] } else { &strike.others[half..] };
        strike.push(to, &[event], world.next_number()).await;
    }
    Some(())
}

/// `auth_events` that are too few, twice there, or those of another event.
async fn bad_auth(world: &mut World, strike: &Strike) -> Option<()> {
    let (kind, key, content) = change(world, strike);
    let event = strike.make(kind, Some(&key), &content, &tips(strike))?;
    let how = world.dice.below(3);
    let all: Vec<&Arc<Event>> = strike.view.events.values().map(|seen| &seen.event).collect();
    let other = canonical_object(world.dice.pick(&all).json.get()).ok()?.remove("auth_events")?;
    let forged = strike.forge(&event, world.next_number(), |object| {
        let Some(CanonicalJsonValue::Array(auth)) = object.get_mut("auth_events") else { return };
        match how {
            0 => drop(auth.pop()),
            1 => auth.extend(auth.first().cloned()),
            _ => drop(object.insert("auth_events".to_owned(), other)),
        }
    })?;
    strike.keep(&forged).await;
    strike.push(&strike.others, &[forged], world.next_number()).await;
    Some(())
}

async fn forged_depth(world: &mut World, strike: &Strike) -> Option<()> {
    let (kind, key, content) = change(world, strike);
    let event = strike.make(kind, Some(&key), &content, &tips(strike))?;
    let depth = *world.dice.pick(&[DEEPEST, DEEPEST, 1, 0]);
    let forged = strike.forge(&event, world.next_number(), |object| {
        let depth = ruma::UInt::new_saturating(depth);
        object.insert("depth".to_owned(), depth.into());
    })?;
    strike.keep(&forged).await;
    let some = 1 + world.dice.below(strike.others.len());
    strike.push(&strike.others[..some], &[forged], world.next_number()).await;
    Some(())
}

/// Many events after one: each is the end of a branch.
async fn fan_out(world: &mut World, strike: &Strike) -> Option<()> {
    let accepted: Vec<&Arc<Event>> = strike
        .view
        .events
        .values()
        .filter(|seen| !seen.flags.outlier && !seen.flags.rejected)
        .map(|seen| &seen.event)
        .collect();
    let stem = vec![Arc::clone(accepted[world.dice.below(accepted.len())])];
    let mut fan = Vec::new();
    for _ in 0..FAN {
        let number = world.next_number();
        let topic = json!({ "topic": format!("fan {number}") });
        fan.push(strike.make("m.room.topic", Some(""), &topic, &stem)?);
    }
    for event in &fan {
        strike.keep(event).await;
    }
    let some = 1 + world.dice.below(strike.others.len());
    strike.push(&strike.others[..some], &fan, world.next_number()).await;
    Some(())
}

/// A long branch of which only the end is shown, by a server that may answer nothing.
async fn deep_chain(world: &mut World, strike: &Strike) -> Option<()> {
    let mut last = tips(strike);
    for _ in 0..CHAIN {
        let body = json!({ "msgtype": "m.text", "body": format!("chain {}", world.next_number()) });
        let event = strike.make("m.room.message", None, &body, &last)?;
        strike.keep(&event).await;
        last = vec![event];
    }
    if world.dice.chance(50) {
        world.net.faults.lock().silent.insert(strike.node.name().to_owned());
    }
    strike.push(&strike.others[..1], &last, world.next_number()).await;
    Some(())
}

/// In another's name, or with a content that nobody signed.
async fn forged_sender(world: &mut World, strike: &Strike) -> Option<()> {
    let body = json!({ "msgtype": "m.text", "body": "forged" });
    let event = strike.make("m.room.message", None, &body, &tips(strike))?;
    let victim = users_of(0)[0].clone();
    let number = world.next_number();
    let forged = if world.dice.chance(50) {
        strike.forge(&event, number, |object| {
            object.insert("sender".to_owned(), victim.as_str().into());
        })?
    } else {
        let mut object = canonical_object(event.json.get()).ok()?;
        let mut content = CanonicalJsonObject::new();
        content.insert("body".to_owned(), "never signed".into());
        object.insert("content".to_owned(), content.into());
        pdu_from_object(object, &strike.view.version).ok().map(|pdu| Arc::new(pdu.event))?
    };
    strike.push(&strike.others, &[forged], world.next_number()).await;
    Some(())
}

/// An event that must be rejected, and one that builds upon it.
async fn on_rejected(world: &mut World, strike: &Strike) -> Option<()> {
    let creator = users_of(0)[0].clone();
    let ban = json!({ "membership": "ban" });
    let rejected = strike.make("m.room.member", Some(creator.as_str()), &ban, &tips(strike))?;
    strike.keep(&rejected).await;
    let body = json!({ "msgtype": "m.text", "body": format!("upon it {}", world.next_number()) });
    let child = strike.make("m.room.message", None, &body, &[Arc::clone(&rejected)])?;
    strike.keep(&child).await;
    let all = if world.dice.chance(50) { vec![child] } else { vec![rejected, child] };
    let some = 1 + world.dice.below(strike.others.len());
    strike.push(&strike.others[..some], &all, world.next_number()).await;
    Some(())
}

/// A change that claims to have been made long ago, when the sender was still allowed to.
async fn from_the_past(world: &mut World, strike: &Strike) -> Option<()> {
    let known: Vec<OwnedEventId> = strike
        .view
        .events
        .iter()
        .filter(|(_, seen)| !seen.flags.outlier && !seen.flags.rejected)
        .map(|(id, _)| id.clone())
        .collect();
    let place = strike.view.event(&known[world.dice.below(known.len())]).cloned()?;
    let (kind, key, content) = change(world, strike);
    let event = strike.make(kind, Some(&key), &content, &[place])?;
    strike.keep(&event).await;
    let some = 1 + world.dice.below(strike.others.len());
    strike.push(&strike.others[..some], &[event], world.next_number()).await;
    Some(())
}
