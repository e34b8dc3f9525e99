//! Rooms with a policy server, which is another organisation's: it sees every event before anybody else does.
//! <https://spec.matrix.org/v1.19/server-server-api/#policy-servers>

use crate::federation::{NAMES, write_certificates_for};
use crate::http::{Answer, Raw};
use crate::neighbours::{ask_as, join_as};
use crate::node::{Node, free_port};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Response, StatusCode};
use axum_server::tls_rustls::RustlsConfig;
use parking_lot::Mutex;
use reqwest::Method;
use ruma::canonical_json::CanonicalJsonObject;
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use waxwing_federation::keys::OwnKeys;
use waxwing_federation::signing::Identity;
use waxwing_rooms::KeyPair;
use waxwing_rooms::sign::{hash_and_sign_event, sign_event};

const GUARD: &str = "guard.localhost";
/// A request that it gets is answered within this.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the policy server does with what it is asked about.
#[derive(Clone, Default)]
enum Mood {
    /// It signs everything.
    #[default]
    Content,
    /// It refuses events of this type, with these words.
    Against(&'static str),
    /// It is there, and does not work.
    Broken,
    /// It has too much to do.
    Busy,
}

#[derive(Default)]
struct Desk {
    mood: Mood,
    /// Types of the events that it was asked about.
    asked: Vec<String>,
    /// Events that it was sent as a member of the room.
    received: Vec<Value>,
}

/// A room at alpha with a policy server that has a member of its own in it, and may do everything.
struct Guarded {
    alice: Raw,
    room: String,
    version: RoomVersionId,
    alpha: Node,
    identity: Identity,
    policy_key: Arc<KeyPair>,
    desk: Arc<Mutex<Desk>>,
    join: waxwing_model::Event,
    auth_events: Vec<Value>,
    _folder: TempDir,
}

impl Guarded {
    async fn start(version: RoomVersionId) -> Guarded {
        let folder = tempfile::tempdir().unwrap();
        write_certificates_for(folder.path(), &[NAMES[0], GUARD]);
        let at = |file: String| folder.path().join(file).display().to_string();
        let identity =
            Identity::new(GUARD.try_into().unwrap(), Arc::new(KeyPair::generate().unwrap())).unwrap();
        let policy_key = Arc::new(KeyPair::from_seed([7; 32], "policy_server").unwrap());
        let desk = Arc::<Mutex<Desk>>::default();

        let port = free_port();
        let (certificate, key) = (format!("{GUARD}.certificate.pem"), format!("{GUARD}.key.pem"));
        let tls = RustlsConfig::from_pem_file(at(certificate), at(key)).await.unwrap();
        let shared = Arc::new((identity.clone(), Arc::clone(&policy_key), Arc::clone(&desk)));
        let app = Router::new().fallback(move |request: Request| {
            let shared = Arc::clone(&shared);
            async move { answer(&shared.0, &shared.1, &shared.2, request).await }
        });
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        tokio::spawn(axum_server::from_tcp_rustls(listener, tls).unwrap().serve(app.into_make_service()));

        let mut alpha = Node::new(
            &folder.path().join("alpha"),
            &[
                format!("server_name={}", NAMES[0]),
                format!("tls.certificate={}", at(format!("{}.certificate.pem", NAMES[0]))),
                format!("tls.key={}", at(format!("{}.key.pem", NAMES[0]))),
                format!("tls.extra_roots=[\"{}\"]", at("authority.pem".to_owned())),
                "federation.allow_private_addresses=true".to_owned(),
                format!("federation.hosts={{ \"{GUARD}\" = \"127.0.0.1:{port}\" }}"),
            ],
        );
        alpha.start().await;
        let alice = Raw::register(&alpha.client_url(), "alice").await;
        let room = json!({
            "preset": "public_chat", "room_version": version,
            "power_level_content_override": {"events": {}, "state_default": 0},
        });
        let room = alice.create_room(room).await;
        let (join, state) =
            join_as(&identity, &alpha.client_url(), &room, &format!("@guard:{GUARD}"), &version).await;
        let mut auth_events = vec![json!(join.event_id)];
        for pdu in state["state"].as_array().unwrap() {
            let raw = serde_json::value::to_raw_value(pdu).unwrap();
            let event =
                waxwing_rooms::parse::parse_pdu(&raw, &version, waxwing_rooms::format::Counts::Unlimited);
            let event = event.unwrap().event;
            let kind = event.kind.to_string();
            if kind == "m.room.power_levels" || kind == "m.room.create" && version != RoomVersionId::V12 {
                auth_events.push(json!(event.event_id));
            }
        }
        let this = Guarded {
            alice,
            room,
            version,
            alpha,
            identity,
            policy_key,
            desk,
            join,
            auth_events,
            _folder: folder,
        };
        this.set_policy().await;
        assert!(this.desk.lock().asked.is_empty(), "nobody asks about the setting itself");
        this
    }

    async fn set_policy(&self) {
        let content = json!({"via": GUARD, "public_keys": {"ed25519": self.policy_key.public_key()}});
        self.state("m.room.policy", content).await.fine();
    }

    async fn state(&self, kind: &str, content: Value) -> Answer {
        self.alice.put(&format!("/_matrix/client/v3/rooms/{}/state/{kind}/", self.room), content).await
    }

    fn mood(&self, mood: Mood) {
        self.desk.lock().mood = mood;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.desk.lock().asked)
    }

    /// The event as it came to the policy server as a member of the room.
    async fn received(&self, kind: &str) -> Value {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let found = self.desk.lock().received.iter().rev().find(|pdu| pdu["type"] == kind).cloned();
                if let Some(found) = found {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {kind} came"))
    }

    /// Sends alpha a state event of the guard's own user, signed by the policy server or not; gives its id.
    async fn guest_sends(&self, kind: &str, approved: bool) -> String {
        let mut object: CanonicalJsonObject = serde_json::from_value(json!({
            "type": kind, "state_key": "", "sender": format!("@guard:{GUARD}"), "room_id": self.room,
            "content": {"by": "guest"}, "origin_server_ts": MilliSecondsSinceUnixEpoch::now(),
            "depth": u64::from(self.join.depth) + 1, "prev_events": [self.join.event_id],
            "auth_events": self.auth_events,
        }))
        .unwrap();
        let server = &self.identity.server;
        hash_and_sign_event(&mut object, &self.version, server, &self.identity.key).unwrap();
        if approved {
            sign_event(&mut object, &self.version, server, &self.policy_key).unwrap();
        }
        let id = waxwing_rooms::parse::pdu_from_object(object.clone(), &self.version).unwrap();
        let id = id.event.event_id.to_string();
        let body = json!({"origin": GUARD, "origin_server_ts": 1, "pdus": [object], "edus": []});
        let path = format!("/_matrix/federation/v1/send/{}", waxwing_model::opaque_id(8));
        let answer = ask_as(&self.identity, &self.alpha.client_url(), Method::PUT, &path, Some(&body)).await;
        assert_eq!(answer.fine()["pdus"][&id], json!({}));
        id
    }

    async fn shows(&self, event: &str) -> bool {
        let path = format!("/_matrix/client/v3/rooms/{}/event/{event}", self.room);
        self.alice.get(&path).await.status.is_success()
    }
}

async fn answer(
    identity: &Identity,
    policy_key: &KeyPair,
    desk: &Mutex<Desk>,
    request: Request,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    if path == "/_matrix/key/v2/server" {
        let now = u64::from(MilliSecondsSinceUnixEpoch::now().get());
        let document = OwnKeys::new(identity.clone(), Vec::new()).document(now).unwrap();
        return Response::new(Body::from(document.get().to_owned()));
    }
    if path == "/_matrix/policy/v1/sign" {
        let mut object: CanonicalJsonObject = serde_json::from_slice(&body).unwrap();
        let kind = object["type"].as_str().unwrap().to_owned();
        desk.lock().asked.push(kind.clone());
        let (status, answer) = match desk.lock().mood.clone() {
            Mood::Against(other) if other == kind => {
                (400, json!({"errcode": "M_FORBIDDEN", "error": format!("no {kind} here")}))
            }
            Mood::Broken => (502, json!({})),
            Mood::Busy => {
                let later = json!({"errcode": "M_LIMIT_EXCEEDED", "error": "slowly", "retry_after_ms": 7000});
                (429, later)
            }
            Mood::Content | Mood::Against(_) => {
                // The key of a room version is not asked for: every version signs the redacted form alike here.
                let version = RoomVersionId::V11;
                sign_event(&mut object, &version, &identity.server, policy_key).unwrap();
                let signature = &object["signatures"].as_object().unwrap()[GUARD];
                let signature = signature.as_object().unwrap()["ed25519:policy_server"].clone();
                (200, json!({GUARD: {"ed25519:policy_server": signature}}))
            }
        };
        return reply(status, &answer);
    }
    if path.starts_with("/_matrix/federation/v1/send/") {
        let body: Value = serde_json::from_slice(&body).unwrap();
        desk.lock().received.extend(body["pdus"].as_array().unwrap().iter().cloned());
        return reply(200, &json!({"pdus": {}}));
    }
    reply(404, &json!({"errcode": "M_UNRECOGNIZED", "error": "not here"}))
}

fn reply(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn has_signature(pdu: &Value) -> bool {
    pdu["signatures"][GUARD]["ed25519:policy_server"].is_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_has_the_signature_of_the_policy_server_or_is_not_sent() {
    let guarded = Guarded::start(RoomVersionId::V11).await;
    guarded.alice.send_sealed(&guarded.room, "one").await.fine();
    assert_eq!(guarded.asked(), ["m.room.encrypted"]);
    assert!(has_signature(&guarded.received("m.room.encrypted").await));
    assert!(!has_signature(&guarded.received("m.room.policy").await));

    guarded.mood(Mood::Against("m.room.topic"));
    let refused = guarded.state("m.room.topic", json!({"topic": "spam"})).await;
    refused.refused(400, "M_FORBIDDEN");
    assert_eq!(refused.body["error"], "no m.room.topic here");
    guarded.state("m.room.name", json!({"name": "no spam"})).await.fine();
    guarded.mood(Mood::Broken);
    let answer = guarded.state("m.room.topic", json!({"topic": "nobody looks"})).await;
    assert_eq!(answer.status.as_u16(), 502, "{}", answer.body);
    let topic = format!("/_matrix/client/v3/rooms/{}/state/m.room.topic/", guarded.room);
    guarded.alice.get(&topic).await.refused(404, "M_NOT_FOUND");
    guarded.mood(Mood::Busy);
    let answer = guarded.state("m.room.topic", json!({"topic": "too much"})).await;
    answer.refused(429, "M_LIMIT_EXCEEDED");
    assert_eq!((&answer.body["retry_after_ms"], &answer.body["error"]), (&json!(7000), &json!("slowly")));
    guarded.alice.get(&topic).await.refused(404, "M_NOT_FOUND");
    // Without the setting there is nobody to ask, and taking it back needs nobody's consent.
    guarded.asked();
    guarded.state("m.room.policy", json!({})).await.fine();
    guarded.state("m.room.topic", json!({"topic": "free"})).await.fine();
    assert!(guarded.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_without_a_valid_signature_is_asked_about_and_kept_back() {
    let guarded = Guarded::start(RoomVersionId::V11).await;
    let signed = guarded.guest_sends("x.signed", true).await;
    assert!(guarded.asked().is_empty());
    assert!(guarded.shows(&signed).await);
    let unsigned = guarded.guest_sends("x.unsigned", false).await;
    assert_eq!(guarded.asked(), ["x.unsigned"]);
    assert!(guarded.shows(&unsigned).await);
    guarded.mood(Mood::Against("x.refused"));
    let refused = guarded.guest_sends("x.refused", false).await;
    assert!(!guarded.shows(&refused).await);
    guarded.mood(Mood::Broken);
    let unseen = guarded.guest_sends("x.unseen", false).await;
    assert!(!guarded.shows(&unseen).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_several_events_goes_through_one_by_one() {
    let guarded = Guarded::start(RoomVersionId::V11).await;
    let (alice, room) = (&guarded.alice, &guarded.room);
    let first = alice.send_sealed(room, "one").await.fine()["event_id"].clone();
    let first = first.as_str().unwrap();
    for key in ["a", "b", "c"] {
        let relation = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": first, "key": key}});
        alice.put(&format!("/_matrix/client/v3/rooms/{room}/send/m.reaction/{key}"), relation).await.fine();
    }
    guarded.asked();
    let path = format!("/_matrix/client/v3/rooms/{room}/redact/{first}/gone");
    alice.put(&path, json!({"with_rel_types": ["m.annotation"]})).await.fine();
    assert_eq!(guarded.asked(), ["m.room.redaction"; 4]);

    guarded.mood(Mood::Against("m.room.tombstone"));
    let upgrade = format!("/_matrix/client/v3/rooms/{room}/upgrade");
    let refused = alice.post(&upgrade, json!({"new_version": "12"})).await;
    refused.refused(400, "M_FORBIDDEN");
    assert_eq!(refused.body["error"], "no m.room.tombstone here");
    let tombstone = format!("/_matrix/client/v3/rooms/{room}/state/m.room.tombstone/");
    alice.get(&tombstone).await.refused(404, "M_NOT_FOUND");

    guarded.mood(Mood::Against("m.room.power_levels"));
    guarded.asked();
    let new = alice.post(&upgrade, json!({"new_version": "12"})).await.fine()["replacement_room"].clone();
    assert_eq!(guarded.asked(), ["m.room.tombstone", "m.room.power_levels"]);
    assert_eq!(alice.get(&tombstone).await.fine()["replacement_room"], new);
    assert!(has_signature(&guarded.received("m.room.tombstone").await));
    let levels = format!("/_matrix/client/v3/rooms/{room}/state/m.room.power_levels/");
    assert!(alice.get(&levels).await.fine()["events_default"].as_i64().is_none_or(|level| level < 50));
}
