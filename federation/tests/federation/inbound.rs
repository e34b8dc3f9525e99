//! Receiving transactions from a simulated server into rooms in memory.

use crate::sim::{Answers, Network, Resident, Shelf, Us, VERSION, transaction, us};
use crate::timeline::{Edus, Rooms};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::inbound::{Inbound, InboundParts, TransactionError, TransactionResult};
use waxwing_federation::ports::Verdict;
use waxwing_model::Event;

struct World {
    us: Us,
    resident: Arc<Resident>,
    rooms: Arc<Rooms>,
    edus: Arc<Edus>,
    shelf: Arc<Shelf>,
    inbound: Inbound,
}

impl World {
    /// `resident` serves; we know its first `known` events.
    fn new(resident: Resident, known: usize, gap: usize) -> World {
        let network = Arc::new(Network::default());
        let us = us(&network, &[]);
        let resident = Arc::new(resident);
        resident.serve(&network, gap);
        let rooms = Arc::new(Rooms::with(VERSION, &resident.events[..known]));
        let (edus, shelf) = (Arc::new(Edus::default()), Arc::new(Shelf::default()));
        let inbound = Inbound::new(InboundParts {
            client: us.client.clone(),
            ring: Arc::clone(&us.ring),
            timeline: Arc::clone(&rooms) as _,
            edus: Arc::clone(&edus) as _,
            replays: Arc::new(Answers::default()),
            staging: Arc::clone(&shelf) as _,
        });
        World { us, resident, rooms, edus, shelf, inbound }
    }

    async fn send(&self, txn: &str, events: &[&Event]) -> Arc<TransactionResult> {
        self.send_all(txn, events, &[]).await.unwrap()
    }

    async fn send_all(
        &self,
        txn: &str,
        events: &[&Event],
        edus: &[Value],
    ) -> Result<Arc<TransactionResult>, TransactionError> {
        self.inbound.transaction(&self.resident.identity.server, txn, &transaction(events, edus)).await
    }

    fn ids(&self, from: usize) -> Vec<ruma::OwnedEventId> {
        self.rooms.order()[from..].to_vec()
    }
}

fn id(event: &Event) -> ruma::OwnedEventId {
    event.event_id.clone()
}

#[tokio::test]
async fn events_are_accepted_in_order_and_repetitions_change_nothing() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let (a, b) = (resident.message("creator", "a"), resident.message("creator", "b"));
    let world = World::new(resident, known, 10);
    for txn in ["1", "1", "2"] {
        let result = world.send(txn, &[&a, &b, &a]).await;
        assert_eq!(result.pdus.len(), 2);
        assert!(result.pdus.values().all(Result::is_ok), "{result:?}");
    }
    assert_eq!(world.ids(known), [id(&a), id(&b)]);
    assert_eq!(world.us.network.count("key/v2/server"), 1);
    assert_eq!(world.us.network.count("get_missing_events"), 0);
}

#[tokio::test]
async fn forged_events_are_dropped_and_changed_content_is_redacted() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let real = resident.message("creator", "secret");
    let world = World::new(resident, known, 10);
    let edit = |from: &str, to: &str| {
        let json = real.json.get().replace(from, to);
        let raw = serde_json::value::RawValue::from_string(json).unwrap();
        Event { json: Arc::from(raw), ..(*real).clone() }
    };
    // A field that the signature covers.
    let forged = edit("\"origin_server_ts\":1", "\"origin_server_ts\":2");
    let result = world.send("1", &[&forged]).await;
    assert!(result.pdus.values().all(Result::is_err) && result.pdus.len() == 1, "{result:?}");
    // A field that only the content hash covers.
    let changed = edit("secret", "hello!");
    let result = world.send("2", &[&changed]).await;
    assert_eq!(result.pdus[&real.event_id], Ok(()));
    let inner = world.rooms.0.lock();
    assert_eq!(inner.events[&real.event_id].event.content.get(), "{}");
}

#[tokio::test]
async fn a_gap_is_filled_and_no_state_is_asked_for() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let events: Vec<_> = (0..6).map(|n| resident.message("creator", &n.to_string())).collect();
    let world = World::new(resident, known, 20);
    let result = world.send("1", &[&events[5]]).await;
    assert_eq!(result.pdus[&events[5].event_id], Ok(()));
    assert_eq!(world.ids(known), events.iter().map(|event| id(event)).collect::<Vec<_>>());
    assert_eq!(world.us.network.count("state_ids"), 0);
}

#[tokio::test]
async fn a_long_gap_is_crossed_with_the_state_at_the_missing_event() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let joined = resident.join("late");
    for n in 0..30 {
        resident.message("creator", &n.to_string());
    }
    let last = resident.message("late", "hello");
    let world = World::new(resident, known, 5);
    let result = world.send("1", &[&last]).await;
    assert_eq!(result.pdus[&last.event_id], Ok(()));
    assert_eq!(world.rooms.verdict(&last), Some(Verdict::Accepted));
    assert!(world.rooms.flags(&joined).unwrap().outlier);
    let network = &world.us.network;
    // One state for the whole gap, asked for at the missing event, and one event for the unknown member in it.
    assert_eq!(network.count("state_ids"), 1);
    assert_eq!(world.ids(known).len(), 6);
}

#[tokio::test]
async fn a_pushed_event_whose_past_cannot_be_had_waits_until_it_can() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    resident.message("creator", "missing");
    let pushed = resident.message("creator", "pushed");
    let world = World::new(resident, known, 0);
    for txn in ["1", "2"] {
        let result = world.send(txn, &[&pushed]).await;
        // Nothing is wrong with it.
        assert_eq!(result.pdus[&pushed.event_id], Ok(()));
    }
    // Nothing of it is in the room: the second time it was asked for again.
    assert_eq!(world.us.network.count("get_missing_events"), 2);
    assert_eq!(world.us.network.count("state_ids"), 0);
    assert!(world.rooms.flags(&pushed).is_none());
    // But it waits, once, with what it takes to try again.
    assert_eq!(world.shelf.0.lock().len(), 1);
    assert_eq!(world.shelf.0.lock()[0].1.origin, world.resident.identity.server);

    world.resident.serve(&world.us.network, 10);
    let taken = async {
        while world.rooms.flags(&pushed).is_none() || !world.shelf.0.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = world.inbound.run_staged() => unreachable!("it runs for ever"),
        () = taken => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("what waited was not taken in"),
    }
    assert_eq!(world.rooms.verdict(&pushed), Some(Verdict::Accepted));
    assert_eq!(world.ids(known).len(), 2);
}

#[tokio::test]
async fn what_can_never_be_had_is_given_up() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    resident.message("creator", "missing");
    let pushed = resident.message("creator", "pushed");
    let world = World::new(resident, known, 0);
    world.send("1", &[&pushed]).await;
    world.shelf.0.lock()[0].1.attempts = 5;
    let gone = async {
        while !world.shelf.0.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = world.inbound.run_staged() => unreachable!("it runs for ever"),
        () = gone => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it is tried for ever"),
    }
    assert!(world.rooms.flags(&pushed).is_none());
}

#[tokio::test]
async fn what_is_not_allowed_is_rejected_and_stays_without_effect() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    // The user never joined; the power to change the topic is not theirs.
    let stranger = resident.add("stranger", "m.room.topic", Some(""), json!({ "topic": "mine" }));
    let after = resident.message("creator", "after");
    let world = World::new(resident, known, 10);
    let result = world.send("1", &[&stranger, &after]).await;
    assert!(result.pdus.values().all(Result::is_ok), "{result:?}");
    assert!(matches!(world.rooms.verdict(&stranger), Some(Verdict::Rejected(_))));
    assert_eq!(world.rooms.verdict(&after), Some(Verdict::Accepted));
}

#[tokio::test]
async fn an_event_that_rests_on_a_rejected_one_is_rejected() {
    let mut resident = Resident::new("them.test", 2);
    resident.join("user");
    let known = resident.events.len();
    let rejected = resident.add("user", "m.room.power_levels", Some(""), json!({ "users_default": 100 }));
    let resting = resident.message("user", "by my own power");
    let world = World::new(resident, known, 10);
    world.send("1", &[&rejected, &resting]).await;
    assert!(matches!(world.rooms.verdict(&rejected), Some(Verdict::Rejected(_))));
    assert!(resting.auth_events.contains(&rejected.event_id));
    assert!(matches!(world.rooms.verdict(&resting), Some(Verdict::Rejected(_))));
}

#[tokio::test]
async fn missing_auth_events_are_fetched_or_the_event_is_refused() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let tip = resident.events[known - 1].clone();
    let state = resident.state.clone();
    let user = resident.user("side");
    let content = json!({ "membership": "join" });
    // A join that nobody sent us, and a message beside it that needs it.
    let join =
        resident.make("side", "m.room.member", Some(user.as_str()), content, &[Arc::clone(&tip)], &state);
    let mut with_join = state.clone();
    with_join.insert(join.state_entry().unwrap(), Arc::clone(&join));
    let message = resident.make("side", "m.room.message", None, json!({}), &[tip], &with_join);
    let mut lost = with_join.clone();
    let ghost = resident.make(
        "side",
        "m.room.member",
        Some(user.as_str()),
        json!({ "membership": "join", "n": 1 }),
        &[Arc::clone(&join)],
        &with_join,
    );
    lost.insert(ghost.state_entry().unwrap(), ghost);
    let unjudged = resident.make(
        "side",
        "m.room.message",
        None,
        json!({ "n": 2 }),
        &[resident.events[known - 1].clone()],
        &lost,
    );
    resident.events.push(Arc::clone(&join));
    let world = World::new(resident, known, 10);
    let result = world.send("1", &[&message, &unjudged]).await;
    // Fetched; but in the state at its prev_events the sender is no member.
    assert_eq!(result.pdus[&message.event_id], Ok(()));
    assert!(world.rooms.flags(&join).unwrap().outlier);
    assert!(matches!(world.rooms.verdict(&message), Some(Verdict::Rejected(_))));
    assert!(result.pdus[&unjudged.event_id].is_err());
    assert!(world.rooms.flags(&unjudged).is_none());
}

#[tokio::test]
async fn an_event_from_before_a_ban_is_soft_failed() {
    let mut resident = Resident::new("them.test", 2);
    resident.join("user");
    let known = resident.events.len();
    let (tip, state) = (resident.events[known - 1].clone(), resident.state.clone());
    let user = resident.user("user");
    let ban = resident.add("creator", "m.room.member", Some(user.as_str()), json!({ "membership": "ban" }));
    let late = resident.make("user", "m.room.message", None, json!({ "body": "evading" }), &[tip], &state);
    let world = World::new(resident, known, 10);
    world.send("1", &[&ban, &late]).await;
    assert_eq!(world.rooms.verdict(&ban), Some(Verdict::Accepted));
    assert!(matches!(world.rooms.verdict(&late), Some(Verdict::SoftFailed(_))));
}

#[tokio::test]
async fn a_lost_race_is_tried_again() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let event = resident.message("creator", "a");
    let world = World::new(resident, known, 10);
    world.rooms.0.lock().races = 3;
    assert_eq!(world.send("1", &[&event]).await.pdus[&event.event_id], Ok(()));
    let endless = World { rooms: Arc::clone(&world.rooms), ..world };
    let mut more = Resident::new("them.test", 2);
    more.events.clone_from(&endless.resident.events);
    more.state.clone_from(&endless.resident.state);
    let next = more.message("creator", "b");
    endless.rooms.0.lock().races = usize::MAX;
    assert_eq!(endless.send("2", &[&next]).await.pdus[&next.event_id], Err("internal error".into()));
}

#[tokio::test]
async fn a_banned_server_gets_an_error_for_each_event_and_its_typing_is_ignored() {
    let mut resident = Resident::new("them.test", 2);
    resident.add("creator", "m.room.server_acl", Some(""), json!({ "allow": ["*"], "deny": ["*.TEST"] }));
    let known = resident.events.len();
    let event = resident.message("creator", "a");
    let typing = json!({ "edu_type": "m.typing", "content": {
        "room_id": resident.room, "user_id": resident.user("creator"), "typing": true } });
    let world = World::new(resident, known, 10);
    let result = world.send_all("1", &[&event], &[typing]).await.unwrap();
    assert!(result.pdus[&event.event_id].as_ref().unwrap_err().contains("banned"));
    assert!(world.rooms.flags(&event).is_none());
    assert!(world.edus.seen.lock().is_empty());
}

#[tokio::test]
async fn servers_speak_for_their_own_users_only() {
    let resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let room = resident.room.clone();
    let edu = |kind: &str, content: Value| json!({ "edu_type": kind, "content": content });
    let mut edus = Vec::new();
    for user in ["@a:them.test", "@b:else.test"] {
        edus.push(edu("m.typing", json!({ "room_id": room, "user_id": user, "typing": true })));
        edus.push(edu(
            "m.direct_to_device",
            json!({ "sender": user, "type": "m.x", "message_id": "1", "messages": {} }),
        ));
        edus.push(edu("m.device_list_update", json!({ "user_id": user, "device_id": "D", "stream_id": 1 })));
        edus.push(edu("org.matrix.signing_key_update", json!({ "user_id": user })));
    }
    let receipt = json!({ "data": { "ts": 1 }, "event_ids": ["$x"] });
    let read = json!({ "@a:them.test": receipt, "@b:else.test": receipt });
    edus.push(edu("m.receipt", json!({ room.as_str(): { "m.read": read } })));
    let online = |user: &str| json!({ "user_id": user, "presence": "online", "last_active_ago": 0 });
    edus.push(edu("m.presence", json!({ "push": [online("@a:them.test"), online("@b:else.test")] })));
    edus.push(edu("m.unheard_of", json!({})));
    edus.push(json!("not an edu"));
    let world = World::new(resident, known, 10);
    world.send_all("1", &[], &edus).await.unwrap();
    let expected: Vec<String> = ["typing", "to-device", "devices", "keys", "receipts", "presence"]
        .iter()
        .map(|kind| format!("{kind} @a:them.test"))
        .collect();
    assert_eq!(*world.edus.seen.lock(), expected);
}

#[tokio::test]
async fn a_message_between_devices_that_cannot_be_stored_fails_the_transaction_and_is_taken_later() {
    let resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let world = World::new(resident, known, 10);
    let message = json!({ "edu_type": "m.direct_to_device", "content": {
        "sender": "@a:them.test", "type": "m.x", "message_id": "1", "messages": {} } });
    *world.edus.broken.lock() = true;
    let failed = world.send_all("1", &[], std::slice::from_ref(&message)).await;
    assert!(matches!(failed, Err(TransactionError::Internal)));
    *world.edus.broken.lock() = false;
    world.send_all("1", &[], &[message]).await.unwrap();
    assert_eq!(world.edus.seen.lock().len(), 1);
}

#[tokio::test]
async fn limits_and_rubbish() {
    let mut resident = Resident::new("them.test", 2);
    let known = resident.events.len();
    let event = resident.message("creator", "a");
    let world = World::new(resident, known, 10);
    let many: Vec<&Event> = std::iter::repeat_n(&*event, 51).collect();
    assert!(matches!(world.send_all("1", &many, &[]).await, Err(TransactionError::TooMany)));
    let edus = vec![json!({}); 101];
    assert!(matches!(world.send_all("2", &[], &edus).await, Err(TransactionError::TooMany)));
    let origin = &world.resident.identity.server;
    for body in ["", "[", "7", r#"{"pdus":{}}"#] {
        let answer = world.inbound.transaction(origin, "3", body.as_bytes()).await;
        assert!(matches!(answer, Err(TransactionError::Malformed(_))), "{body}");
    }
    let odd = br#"{"pdus":[1,{},{"room_id":"!room:them.test"},{"room_id":"nonsense"}]}"#;
    assert!(world.inbound.transaction(origin, "4", odd).await.unwrap().pdus.is_empty());
    world.rooms.0.lock().version = None;
    assert!(world.send("5", &[&event]).await.pdus.is_empty());
}

fn texts(events: &[Arc<Event>]) -> Vec<Value> {
    events.iter().rev().map(|event| serde_json::from_str(event.json.get()).unwrap()).collect()
}

/// The creator says ten things, of which we know six events and the tenth; the resident server tells what comes before.
fn world_with_history() -> World {
    let mut resident = Resident::new("them.test", 2);
    for n in 0..10 {
        resident.message("creator", &n.to_string());
    }
    let world = World::new(resident, 6, 10);
    let old = texts(&world.resident.events[8..12]);
    let inner = Arc::clone(&world.resident);
    world.us.network.add("them.test", move |request| {
        if request.path_and_query.contains("/backfill/") {
            return Some((200, json!({ "pdus": old })));
        }
        if request.path_and_query.contains("/key/") {
            return Some((200, inner.key_document()));
        }
        if request.path_and_query.contains("/state_ids/") {
            return Some((200, json!({ "pdu_ids": inner.state_ids_before(7), "auth_chain_ids": [] })));
        }
        let id = request.path_and_query.rsplit('/').next().unwrap();
        let event = inner.find(id)?;
        Some((200, json!({ "pdus": [serde_json::from_str::<Value>(event.json.get()).unwrap()] })))
    });
    world
}

#[tokio::test]
async fn history_is_taken_in_behind_what_we_have() {
    let world = world_with_history();
    let servers = ["gone.test".try_into().unwrap(), "them.test".try_into().unwrap()];
    let from = [world.resident.events[13].event_id.clone()];
    let count = world.inbound.backfill(&world.resident.room, &servers, &from, 10).await.unwrap();
    assert_eq!(count, 4);
    assert_eq!(world.ids(6), world.resident.events[8..12].iter().map(|event| id(event)).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_tells_only_what_is_known_does_not_keep_us_from_asking_others() {
    let world = world_with_history();
    let known = texts(&world.resident.events[..6]);
    world.us.network.add("parrot.test", move |_| Some((200, json!({ "pdus": known }))));
    let from = [world.resident.events[13].event_id.clone()];
    let parrot = ["parrot.test".try_into().unwrap()];
    assert_eq!(world.inbound.backfill(&world.resident.room, &parrot, &from, 10).await.unwrap(), 0);
    let both = ["parrot.test".try_into().unwrap(), "them.test".try_into().unwrap()];
    assert_eq!(world.inbound.backfill(&world.resident.room, &both, &from, 10).await.unwrap(), 4);
}
