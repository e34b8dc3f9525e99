//! What a server does for, and not for, another organisation's: requests that are signed as that one signs them.

use crate::federation::{Federation, NAMES, write_certificates_for};
use crate::http::{Answer, Raw, careless};
use crate::node::Node;
use crate::site::{Shape, Site};
use reqwest::Method;
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use waxwing_federation::signing::{Identity, authorization};
use waxwing_model::Event;
use waxwing_rooms::KeyPair;
use waxwing_rooms::build::{TemplateRequest, finish_template, reference_hash_of};
use waxwing_rooms::format::Counts;
use waxwing_rooms::parse::parse_pdu;
use waxwing_rooms::sign::hash_and_sign_event;
use waxwing_storage::StoreError;

/// A server in one of its shapes, and another organisation's whose key we hold: what we sign, it has signed.
pub struct Neighbours {
    pub alpha: Site,
    pub beta: Identity,
    _beta: Node,
    /// With the certificates of all servers.
    pub folder: TempDir,
}

impl Neighbours {
    pub async fn start(shape: Shape) -> Option<Neighbours> {
        Neighbours::start_beside(shape, &[]).await
    }

    /// The same with others, which alpha finds at these ports of this machine.
    pub async fn start_beside(shape: Shape, others: &[(&str, u16)]) -> Option<Neighbours> {
        let folder = tempfile::tempdir().unwrap();
        let names = NAMES.into_iter().chain(others.iter().map(|(name, _)| *name));
        write_certificates_for(folder.path(), &names.collect::<Vec<_>>());
        let at = |file: String| folder.path().join(file).display().to_string();
        let mut beta = Node::new(
            &folder.path().join("beta"),
            &[
                format!("server_name={}", NAMES[1]),
                format!("tls.certificate={}", at(format!("{}.certificate.pem", NAMES[1]))),
                format!("tls.key={}", at(format!("{}.key.pem", NAMES[1]))),
            ],
        );
        beta.start().await;
        let all = [(NAMES[1], beta.federation_port)].into_iter().chain(others.iter().copied());
        let hosts: Vec<String> =
            all.map(|(name, port)| format!("\"{name}\" = \"127.0.0.1:{port}\"")).collect();
        let settings = [
            format!("server_name={}", NAMES[0]),
            format!("tls.extra_roots=[\"{}\"]", at("authority.pem".to_owned())),
            "federation.allow_private_addresses=true".to_owned(),
            format!("federation.hosts={{ {} }}", hosts.join(", ")),
        ];
        let alpha = Site::start_with(shape, &settings).await?;
        let line = fs::read_to_string(beta.data().join("signing.key")).unwrap();
        let key = Arc::new(KeyPair::from_line(line.trim()).unwrap());
        let identity = Identity::new(NAMES[1].try_into().unwrap(), key).unwrap();
        Some(Neighbours { alpha, beta: identity, _beta: beta, folder })
    }

    /// A request of beta's to one node of alpha's.
    async fn ask(&self, node: usize, method: Method, path: &str, body: Option<&Value>) -> Answer {
        ask_as(&self.beta, &self.alpha.nodes[node].client_url(), method, path, body).await
    }

    /// Beta's bob joins a room of `owner`'s at alpha, in which everybody may do everything.
    pub async fn joins(&self, owner: &Raw, version: RoomVersionId) -> Guest {
        let levels = json!({"state_default": 0, "events_default": 0, "events": {}});
        let room = json!({
            "preset": "public_chat", "room_version": version, "power_level_content_override": levels,
        });
        let room = owner.create_room(room).await;
        let user = format!("@bob:{}", NAMES[1]);
        let alpha = self.alpha.nodes[0].client_url();
        let (join, answer) = join_as(&self.beta, &alpha, &room, &user, &version).await;
        let mut auth_events = vec![join.clone()];
        for pdu in answer["state"].as_array().unwrap() {
            let raw = serde_json::value::to_raw_value(pdu).unwrap();
            let event = parse_pdu(&raw, &version, Counts::Unlimited).unwrap().event;
            let named = match event.kind.to_string().as_str() {
                "m.room.power_levels" => true,
                "m.room.create" => version != RoomVersionId::V12,
                _ => false,
            };
            if named {
                auth_events.push(event);
            }
        }
        Guest { room, user, version, join, auth_events }
    }

    /// A state event of the guest's that follows the join, made a minute from now.
    pub fn event_of(&self, guest: &Guest, kind: &str, content: &Value) -> Value {
        let name = |event: &Event| match guest.version {
            RoomVersionId::V1 | RoomVersionId::V2 => {
                json!([event.event_id, {"sha256": reference_hash_of(event, &guest.version).unwrap()}])
            }
            _ => json!(event.event_id),
        };
        let later = u64::from(MilliSecondsSinceUnixEpoch::now().get()) + 60_000;
        let mut event = json!({
            "type": kind, "state_key": "", "sender": guest.user, "room_id": guest.room, "content": content,
            "origin_server_ts": later, "depth": u64::from(guest.join.depth) + 1,
            "prev_events": [name(&guest.join)],
            "auth_events": guest.auth_events.iter().map(name).collect::<Vec<_>>(),
        });
        if guest.version == RoomVersionId::V2 {
            event["event_id"] = format!("${kind}:{}", NAMES[1]).into();
        }
        let mut object = serde_json::from_value(event).unwrap();
        hash_and_sign_event(&mut object, &guest.version, &self.beta.server, &self.beta.key).unwrap();
        serde_json::to_value(object).unwrap()
    }

    /// Beta sends an event, which is taken in.
    async fn sends(&self, pdu: &Value) {
        let path = format!("/_matrix/federation/v1/send/{}", waxwing_model::opaque_id(8));
        let body = json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": [pdu], "edus": []});
        let answer = self.ask(0, Method::PUT, &path, Some(&body)).await.fine();
        let results: Vec<&Value> = answer["pdus"].as_object().unwrap().values().collect();
        assert_eq!(results, [&json!({})], "{answer}");
    }

    /// Forgets the ids of all messages between devices that were taken.
    async fn forget_message_ids(&self) {
        let store = self.alpha.store().await;
        let forgotten: Result<u64, StoreError> = store
            .write("test", Vec::new(), |tx| {
                Box::pin(async move { tx.to_device_seen_prune(i64::MAX as u64).await })
            })
            .await;
        assert!(forgotten.unwrap() > 0);
    }
}

/// A request of another server's to alpha, signed as that one.
pub async fn ask_as(
    origin: &Identity,
    alpha: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Answer {
    let text = body.map(Value::to_string);
    let to = NAMES[0].try_into().unwrap();
    let signed = text.as_ref().map(String::as_bytes);
    let header = authorization(origin, to, method.as_str(), path, signed).unwrap();
    let mut request = careless().request(method, format!("{alpha}{path}")).header("authorization", header);
    if let Some(text) = text {
        request = request.body(text);
    }
    Answer::of(request.send().await.unwrap()).await
}

/// A user of another server's joins a room of alpha's; gives the event and alpha's answer.
pub async fn join_as(
    origin: &Identity,
    alpha: &str,
    room: &str,
    user: &str,
    version: &RoomVersionId,
) -> (Event, Value) {
    let path = format!("/_matrix/federation/v1/make_join/{room}/{user}?ver={version}");
    let template = ask_as(origin, alpha, Method::GET, &path, None).await.fine()["event"].take();
    let request = TemplateRequest {
        version: version.clone(),
        room_id: room.try_into().unwrap(),
        user_id: user.try_into().unwrap(),
        membership: "join",
        content: BTreeMap::new(),
        origin_server_ts: MilliSecondsSinceUnixEpoch::now(),
    };
    let template = serde_json::value::to_raw_value(&template).unwrap();
    let join = finish_template(&template, request, &origin.server, &origin.key).unwrap();
    let path = format!("/_matrix/federation/v2/send_join/{room}/{}", join.event_id);
    let body = serde_json::from_str(join.json.get()).unwrap();
    let answer = ask_as(origin, alpha, Method::PUT, &path, Some(&body)).await.fine();
    (join, answer)
}

/// Beta's bob in a room of alpha's.
pub struct Guest {
    pub room: String,
    pub user: String,
    pub version: RoomVersionId,
    pub join: Event,
    /// What authorises what he does.
    pub auth_events: Vec<Event>,
}

fn transaction(edus: &Value) -> Value {
    json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": [], "edus": edus})
}

/// A message of beta's bob to all devices of a user.
fn message(to: &str, id: &str) -> Value {
    json!({"edu_type": "m.direct_to_device", "content": {
        "sender": format!("@bob:{}", NAMES[1]), "type": "m.room.encrypted", "message_id": id,
        "messages": {to: {"*": {"algorithm": "m.olm.v1.curve25519-aes-sha2", "ciphertext": {"k": {}}}}},
    }})
}

/// How many messages between devices wait for `who`. Nothing is acknowledged.
async fn waiting(who: &Raw) -> usize {
    let body = who.get("/_matrix/client/v3/sync?timeout=0").await.fine();
    body["to_device"]["events"].as_array().map_or(0, Vec::len)
}

/// After a restart, and at another node, where memory is empty, a repeated transaction is still known.
async fn a_repeated_transaction_counts_once(mut neighbours: Neighbours) {
    let alice = Raw::register(&neighbours.alpha.nodes[0].client_url(), "alice").await;
    let path = "/_matrix/federation/v1/send/first";
    let body = transaction(&json!([message(&alice.user, "one")]));
    let answer = neighbours.ask(0, Method::PUT, path, Some(&body)).await.fine();
    assert_eq!(answer, json!({"pdus": {}}));
    let again = neighbours.ask(0, Method::PUT, path, Some(&body)).await.fine();
    assert_eq!((again, waiting(&alice).await), (answer.clone(), 1));
    // What else would recognise the message forgets it, so that the transaction alone is what is recognised.
    for node in &mut neighbours.alpha.nodes {
        node.stop().await;
    }
    neighbours.forget_message_ids().await;
    for node in &mut neighbours.alpha.nodes {
        node.start().await;
    }
    let last = neighbours.alpha.nodes.len() - 1;
    let again = neighbours.ask(last, Method::PUT, path, Some(&body)).await.fine();
    assert_eq!((again, waiting(&alice).await), (answer, 1));
    // The same id with other content is another transaction.
    let other = transaction(&json!([message(&alice.user, "two")]));
    neighbours.ask(last, Method::PUT, path, Some(&other)).await.fine();
    // The other node hears of it in a moment.
    for _ in 0..100 {
        if waiting(&alice).await > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(waiting(&alice).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_transaction_counts_once_on_sqlite() {
    a_repeated_transaction_counts_once(Neighbours::start(Shape::Sqlite).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_transaction_counts_once_on_two_nodes() {
    let Some(neighbours) = Neighbours::start(Shape::TwoNodes).await else { return };
    a_repeated_transaction_counts_once(neighbours).await;
}

/// Rubbish in the place of a transaction, and servers that speak for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_are_none_are_refused_and_forged_ones_have_no_effect() {
    let neighbours = Neighbours::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&neighbours.alpha.nodes[0].client_url(), "alice").await;
    let path = |id: &str| format!("/_matrix/federation/v1/send/{id}");
    for (id, body, code) in [
        ("a", json!([]), "M_BAD_JSON"),
        ("b", json!({"pdus": "none"}), "M_BAD_JSON"),
        ("c", json!({"edus": {}}), "M_BAD_JSON"),
        ("d", json!({"pdus": vec![json!({}); 51]}), "M_INVALID_PARAM"),
        ("e", json!({"edus": vec![json!({}); 101]}), "M_INVALID_PARAM"),
    ] {
        let answer = neighbours.ask(0, Method::PUT, &path(id), Some(&body)).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (400, code), "{id} {}", answer.body);
    }
    let long = "x".repeat(300);
    let answer = neighbours.ask(0, Method::PUT, &path(&long), Some(&transaction(&json!([])))).await;
    answer.refused(400, "M_INVALID_PARAM");
    // In the name of a user of ours, and of a third server's: dropped, and the rest is taken.
    let mut ours = message(&alice.user, "ours");
    ours["content"]["sender"] = alice.user.clone().into();
    let mut third = message(&alice.user, "third");
    third["content"]["sender"] = "@eve:third.localhost".into();
    let edus = json!([ours, third, {"edu_type": 7}, "rubbish", message(&alice.user, "own")]);
    neighbours.ask(0, Method::PUT, &path("f"), Some(&transaction(&edus))).await.fine();
    assert_eq!(waiting(&alice).await, 1);
}

/// A server that speaks none of our room versions, and invitations to rooms of versions that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_versions_that_one_side_does_not_know() {
    let neighbours = Neighbours::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&neighbours.alpha.nodes[0].client_url(), "alice").await;
    let room = alice.create_room(json!({"preset": "public_chat", "room_version": "11"})).await;
    let user = format!("@bob:{}", NAMES[1]);
    for (versions, fine) in
        [("?ver=99", false), ("?ver=1&ver=2", false), ("", false), ("?ver=1&ver=11", true)]
    {
        let path = format!("/_matrix/federation/v1/make_join/{room}/{user}{versions}");
        let answer = neighbours.ask(0, Method::GET, &path, None).await;
        if fine {
            assert_eq!(answer.fine()["room_version"], "11");
        } else {
            answer.refused(400, "M_INCOMPATIBLE_ROOM_VERSION");
            assert_eq!(answer.body["room_version"], "11", "{versions}");
        }
    }
    for version in ["99", "org.example.future"] {
        let event = json!({
            "type": "m.room.member", "state_key": alice.user, "sender": user, "room_id": "!other:beta.localhost",
            "content": {"membership": "invite"}, "origin_server_ts": 1, "depth": 1,
            "prev_events": [], "auth_events": [], "hashes": {"sha256": "x"}, "signatures": {},
        });
        let body = json!({"room_version": version, "event": event, "invite_room_state": []});
        let path = "/_matrix/federation/v2/invite/!other:beta.localhost/$event";
        let answer = neighbours.ask(0, Method::PUT, path, Some(&body)).await;
        answer.refused(400, "M_INCOMPATIBLE_ROOM_VERSION");
    }
}

/// Who asks to join a room that is not encrypted is refused before any server of the room hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_is_known_to_be_open_is_not_joined_at_all() {
    let federation = Federation::start_with([&[], &["plaintext=accept"]]).await;
    let [alpha, beta] = [0, 1].map(|node: usize| federation.nodes[node].client_url());
    let alice = Raw::register(&alpha, "alice").await;
    let bob = Raw::register(&beta, "bob").await;
    let open = bob.create_room(json!({"preset": "public_chat"})).await;
    let invited = bob.create_room(json!({"preset": "private_chat", "invite": [alice.user]})).await;
    let encryption = json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let sealed = json!({"preset": "public_chat", "initial_state": encryption});
    let sealed = bob.create_room(sealed).await;
    until_invited(&alice, &invited).await;
    let join = |room: &str| format!("/_matrix/client/v3/join/{room}?server_name={}", NAMES[1]);
    for room in [&open, &invited] {
        let answer = alice.post(&join(room), json!({})).await;
        answer.refused(403, "M_FORBIDDEN");
        assert!(answer.body["error"].as_str().unwrap().contains("encrypted"), "{}", answer.body);
        // No member event of hers is newer than her invitation.
        let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100");
        let messages = bob.get(&path).await.fine();
        let of_alice = |event: &&Value| event["state_key"] == alice.user.as_str();
        let hers: Vec<&str> = messages["chunk"]
            .as_array()
            .unwrap()
            .iter()
            .filter(of_alice)
            .map(|event| event["content"]["membership"].as_str().unwrap())
            .collect();
        let expected: &[&str] = if *room == invited { &["invite"] } else { &[] };
        assert_eq!(hers, expected);
    }
    alice.post(&join(&sealed), json!({})).await.fine();
}

async fn until_invited(who: &Raw, room: &str) {
    for _ in 0..100 {
        let body = who.get("/_matrix/client/v3/sync?timeout=100").await.fine();
        if body["rooms"]["invite"][room].is_object() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no invitation");
}

/// A state event of beta's that does not know of alpha's newest one: the later of the two holds the entry, and an
/// entry of which alpha knows nothing is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_states_side_by_side_the_one_that_just_came_counts_too() {
    let neighbours = Neighbours::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&neighbours.alpha.nodes[0].client_url(), "alice").await;
    for version in ["2", "10", "11", "12"] {
        let guest = neighbours.joins(&alice, version.try_into().unwrap()).await;
        let state = |kind: &str| format!("/_matrix/client/v3/rooms/{}/state/{kind}/", guest.room);
        alice.put(&state("m.room.topic"), json!({"topic": "alpha's"})).await.fine();
        for kind in ["m.room.topic", "org.example.note"] {
            let content = json!({"topic": "beta's"});
            let event = neighbours.event_of(&guest, kind, &content);
            let path = format!("/_matrix/federation/v1/send/{version}-{kind}");
            let body = json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": [event], "edus": []});
            let answer = neighbours.ask(0, Method::PUT, &path, Some(&body)).await.fine();
            let outcome = answer["pdus"].as_object().unwrap().values().next().unwrap();
            assert_eq!(*outcome, json!({}), "{version} {kind}");
            assert_eq!(alice.get(&state(kind)).await.fine(), content, "{version} {kind}");
        }
    }
}

/// Both listeners answer what they do not know in the words of the specification.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_methods_on_both_listeners() {
    let federation = Federation::start_with([&[], &[]]).await;
    let client = careless();
    let node = &federation.nodes[0];
    for base in [node.client_url(), node.federation_url()] {
        for path in [
            "/_matrix/federation/v1/nonsense",
            "/_matrix/federation/v99/version",
            "/_matrix/federation/v1/send",
            "/_matrix/federation/v1/send/1/2",
            "/_matrix/key/v2/nonsense",
            "/_matrix/key/v9/server",
        ] {
            let answer = client.get(format!("{base}{path}")).send().await.unwrap();
            Answer::of(answer).await.refused(404, "M_UNRECOGNIZED");
        }
        for (method, path) in [
            (Method::GET, "/_matrix/federation/v1/send/1"),
            (Method::POST, "/_matrix/federation/v1/version"),
            (Method::DELETE, "/_matrix/key/v2/server"),
            (Method::PATCH, "/_matrix/federation/v1/user/keys/query"),
            (Method::PUT, "/_matrix/federation/v1/user/keys/claim"),
        ] {
            let answer = client.request(method, format!("{base}{path}")).send().await.unwrap();
            Answer::of(answer).await.refused(405, "M_UNRECOGNIZED");
        }
    }
    // The federation listener has no client API.
    let url = format!("{}/_matrix/client/v3/login", node.federation_url());
    Answer::of(client.get(url).send().await.unwrap()).await.refused(404, "M_UNRECOGNIZED");
}

/// An event that came too late for the state as it was, and that state resolution lets in later, is part of the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_kept_back_counts_when_state_resolution_lets_it_in() {
    let neighbours = Neighbours::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&neighbours.alpha.nodes[0].client_url(), "alice").await;
    let guest = neighbours.joins(&alice, RoomVersionId::V10).await;
    let room = format!("/_matrix/client/v3/rooms/{}", guest.room);
    let levels = format!("{room}/state/m.room.power_levels/");
    let before = alice.get(&levels).await.fine();
    let mut strict = before.clone();
    strict["events"] = json!({"x.late": 100});
    alice.put(&levels, strict).await.fine();

    let late = neighbours.event_of(&guest, "x.late", &json!({"from": "before"}));
    let raw = serde_json::value::to_raw_value(&late).unwrap();
    let late_id = parse_pdu(&raw, &guest.version, Counts::Limited).unwrap().event.event_id;
    neighbours.sends(&late).await;
    let event = format!("{room}/event/{late_id}");
    alice.get(&event).await.refused(404, "M_NOT_FOUND");
    alice.get(&format!("{room}/state/x.late/")).await.refused(404, "M_NOT_FOUND");

    let restored = alice.put(&levels, before).await.fine()["event_id"].clone();
    let since = alice.get("/_matrix/client/v3/sync?timeout=0").await.fine()["next_batch"].clone();
    // The next event of the guest's follows both: alice's levels as they were, and what came late.
    let mut next = neighbours.event_of(&guest, "x.next", &json!({}));
    next["prev_events"] = json!([restored, late_id]);
    next["depth"] = (u64::from(guest.join.depth) + 3).into();
    for id in next["auth_events"].as_array_mut().unwrap() {
        let levels = guest.auth_events.iter().find(|event| *id == *event.event_id.as_str()).unwrap();
        if levels.kind.to_string() == "m.room.power_levels" {
            *id = restored.clone();
        }
    }
    for field in ["hashes", "signatures"] {
        next.as_object_mut().unwrap().remove(field);
    }
    let mut object = serde_json::from_value(next).unwrap();
    let beta = &neighbours.beta;
    hash_and_sign_event(&mut object, &guest.version, &beta.server, &beta.key).unwrap();
    neighbours.sends(&serde_json::to_value(object).unwrap()).await;

    assert_eq!(alice.get(&format!("{room}/state/x.late/")).await.fine(), json!({"from": "before"}));
    assert_eq!(alice.get(&event).await.fine()["content"], json!({"from": "before"}));
    let path = format!("/_matrix/client/v3/sync?timeout=0&since={}", since.as_str().unwrap());
    let news = alice.get(&path).await.fine()["rooms"]["join"][&guest.room].take();
    let kinds = |part: &str| -> Vec<String> {
        let events = news[part]["events"].as_array().cloned().unwrap_or_default();
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds("state"), ["x.late"], "{news}");
    assert_eq!(kinds("timeline"), ["x.next"], "{news}");
}
