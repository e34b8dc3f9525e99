//! What is someone else's: every way to read, by everyone who must not. Each letter and each piece of state has a
//! word of its own, and no answer to the wrong person may hold it.

use crate::endpoints::{self, Auth, Kind, Operation, plausible};
use crate::http::{Raw, sealed};
use crate::site::{Shape, Site};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use serde_json::{Value, json};
use sha1::Sha1;
use std::fmt::Write;

pub const SECRET: &str = "tenants";
/// Said while everyone was there; nobody who never came may read it.
const EARLY: &str = "early0bird0word";
/// Said after they went; nobody who went may read it.
const LATE: &str = "late0owl0word";
/// Alice's own; nobody else may read it.
const OWN: &str = "alices0own0word";

/// An account that others must be kept apart from, and what it has.
struct Owner {
    raw: Raw,
    room: String,
    early: String,
    late: String,
    device: String,
    filter: String,
    backup: String,
}

async fn site() -> Site {
    Site::start_with(Shape::Sqlite, &[format!("registration_shared_secret={SECRET}")]).await.unwrap()
}

/// An administrator, by the shared-secret API.
pub async fn administrator(site: &Site) -> Raw {
    let nobody = Raw::nobody(&site.url);
    let nonce = nobody.get("/_synapse/admin/v1/register").await.fine()["nonce"].clone();
    let mut mac = Hmac::<Sha1>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{}\0root\0correct horse\0admin", nonce.as_str().unwrap()).as_bytes());
    let mac = mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let body =
        json!({"nonce": nonce, "username": "root", "password": "correct horse", "admin": true, "mac": mac});
    let made = nobody.post("/_synapse/admin/v1/register", body).await.fine();
    let mut root = nobody.with_token(made["access_token"].as_str().unwrap());
    root.user = made["user_id"].as_str().unwrap().to_owned();
    root
}

async fn say(raw: &Raw, room: &str, word: &str) -> String {
    let state = format!("/_matrix/client/v3/rooms/{room}/state/org.example.word/");
    raw.put(&state, json!({"word": word})).await.fine();
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{word}");
    raw.put(&send, sealed(word)).await.fine()["event_id"].as_str().unwrap().to_owned()
}

/// Bob left, carol was kicked, dave was banned, ivan was invited, eve never came.
async fn a_room_of_many(site: &Site) -> (Owner, Vec<(&'static str, Raw)>) {
    let alice = Raw::register(&site.url, "alice").await;
    let mut others = Vec::new();
    for name in ["bob", "carol", "dave", "ivan", "eve"] {
        others.push((name, Raw::register(&site.url, name).await));
    }
    let joined = &others[..3];
    let invite: Vec<&str> = joined.iter().map(|(_, raw)| raw.user.as_str()).collect();
    let history = json!({"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}});
    let room = alice
        .create_room(json!({"preset": "private_chat", "invite": invite, "initial_state": [history]}))
        .await;
    let at = |tail: &str| format!("/_matrix/client/v3/rooms/{room}/{tail}");
    for (_, raw) in joined {
        raw.post(&at("join"), json!({})).await.fine();
    }
    let early = say(&alice, &room, EARLY).await;
    others[0].1.post(&at("leave"), json!({})).await.fine();
    alice.post(&at("kick"), json!({"user_id": others[1].1.user})).await.fine();
    alice.post(&at("ban"), json!({"user_id": others[2].1.user})).await.fine();
    alice.post(&at("invite"), json!({"user_id": others[3].1.user})).await.fine();
    let late = say(&alice, &room, LATE).await;
    let owner = owner(alice, room, early, late).await;
    (owner, others)
}

/// Gives the account one of everything.
async fn owner(raw: Raw, room: String, early: String, late: String) -> Owner {
    let user = raw.user.clone();
    let me = |tail: &str| format!("/_matrix/client/v3/user/{user}/{tail}");
    let word = json!({"word": OWN});
    raw.put(&me("account_data/org.example.kind"), word.clone()).await.fine();
    raw.put(&me(&format!("rooms/{room}/account_data/org.example.kind")), word).await.fine();
    raw.put(&me(&format!("rooms/{room}/tags/u.{OWN}")), json!({"order": 0.5})).await.fine();
    let filter = json!({"room": {"timeline": {"types": [OWN]}}});
    let filter = raw.post(&me("filter"), filter).await.fine()["filter_id"].as_str().unwrap().to_owned();
    let whoami = raw.get("/_matrix/client/v3/account/whoami").await.fine();
    let device = whoami["device_id"].as_str().unwrap().to_owned();
    raw.put(&format!("/_matrix/client/v3/devices/{device}"), json!({"display_name": OWN})).await.fine();
    let version =
        json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": OWN}});
    let backup = raw.post("/_matrix/client/v3/room_keys/version", version).await.fine();
    let backup = backup["version"].as_str().unwrap().to_owned();
    let key = json!({
        "first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": {"ciphertext": OWN},
    });
    let path = format!("/_matrix/client/v3/room_keys/keys/{room}/session?version={backup}");
    raw.put(&path, key).await.fine();
    let rule = json!({"actions": ["notify"], "pattern": OWN});
    raw.put(&format!("/_matrix/client/v3/pushrules/global/content/{OWN}"), rule).await.fine();
    let message = json!({"messages": {&user: {&device: {"algorithm": "m.olm.v1", "ciphertext": OWN}}}});
    raw.put("/_matrix/client/v3/sendToDevice/m.room.encrypted/1", message).await.fine();
    Owner { raw, room, early, late, device, filter, backup }
}

impl Owner {
    /// A path that names what is hers.
    fn path(&self, operation: &Operation, event: &str) -> String {
        let path = operation.filled(|name| match name {
            "eventId" => event.to_owned(),
            "deviceId" => self.device.clone(),
            "filterId" => self.filter.clone(),
            "version" => self.backup.clone(),
            "sessionId" => "session".to_owned(),
            "eventType" if operation.path.contains("/state/") => "org.example.word".to_owned(),
            "stateKey" => String::new(),
            "kind" => "content".to_owned(),
            "ruleId" => OWN.to_owned(),
            "tag" => format!("u.{OWN}"),
            "relType" => "m.reference".to_owned(),
            _ => plausible(name, &self.raw.user, &self.room),
        });
        let query = match operation.path.rsplit('/').next().unwrap_or_default() {
            "messages" => "?dir=b&limit=100",
            "timestamp_to_event" => "?ts=9999999999999&dir=b",
            "sync" => "?full_state=true&filter=%7B%22room%22%3A%7B%22include_leave%22%3Atrue%7D%7D",
            "events" if event == self.late => "?timeout=0",
            "events" => return format!("{path}?timeout=0&room_id={}", self.room),
            "mutual_rooms" => "?user_id=@alice:localhost",
            _ if operation.path.contains("room_keys/keys") => {
                return format!("{path}?version={}", self.backup);
            }
            _ => "",
        };
        format!("{path}{query}")
    }
}

fn reads() -> Vec<Operation> {
    let wanted =
        |operation: &Operation| operation.method == Method::GET && operation.auth != Auth::Appservice;
    endpoints::all().into_iter().filter(wanted).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_what_is_not_theirs() {
    let site = site().await;
    let (alice, others) = a_room_of_many(&site).await;
    let mut wrong = Vec::new();
    for operation in reads() {
        let in_room = operation.path.contains("{roomId}") && !operation.path.contains("/user/{userId}");
        for event in [&alice.early, &alice.late] {
            let path = alice.path(&operation, event);
            for (name, raw) in &others {
                let answer = raw.get(&path).await;
                let text = answer.body.to_string();
                let was_there = matches!(*name, "bob" | "carol" | "dave");
                let leaks = text.contains(LATE) || text.contains(OWN) || !was_there && text.contains(EARLY);
                if leaks {
                    wrong.push(format!("{name} {path}: {} {text}", answer.status));
                }
                let invited = *name == "ivan" && operation.path.ends_with("/hierarchy");
                if in_room && !was_there && !invited && answer.status.is_success() && !harmless(&operation) {
                    wrong.push(format!("{name} {path}: {} {text}", answer.status));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The words are there for her, or nothing was shown.
    for path in ["account_data/org.example.kind", &*format!("filter/{}", alice.filter)] {
        let own = alice.raw.get(&format!("/_matrix/client/v3/user/{}/{path}", alice.raw.user)).await.fine();
        assert!(own.to_string().contains(OWN), "{path}");
    }
    let history = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100", alice.room);
    let history = alice.raw.get(&history).await.fine().to_string();
    assert!(history.contains(EARLY) && history.contains(LATE));
}

/// Says nothing of the room that is not public.
fn harmless(operation: &Operation) -> bool {
    operation.path.contains("/directory/list/room/") || operation.path.contains("room_keys")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_changes_what_is_not_theirs() {
    let site = site().await;
    let (alice, others) = a_room_of_many(&site).await;
    let eve = &others[4].1;
    let (user, room) = (&alice.raw.user, &alice.room);
    let uploaded = alice.raw.post("/_matrix/media/v1/create", json!({})).await.fine();
    let media = uploaded["content_uri"].as_str().unwrap().trim_start_matches("mxc://").to_owned();
    let at = |tail: &str| format!("/_matrix/client/v3/{tail}");
    let in_room = |tail: &str| at(&format!("rooms/{room}/{tail}"));
    let refused: [(Method, String, Value); 22] = [
        (Method::PUT, at(&format!("user/{user}/account_data/org.example.kind")), json!({"word": "eve"})),
        (Method::PUT, at(&format!("user/{user}/rooms/{room}/account_data/org.example.kind")), json!({})),
        (Method::PUT, at(&format!("user/{user}/rooms/{room}/tags/u.eve")), json!({})),
        (Method::DELETE, at(&format!("user/{user}/rooms/{room}/tags/u.{OWN}")), json!({})),
        (Method::POST, at(&format!("user/{user}/filter")), json!({})),
        (Method::POST, at(&format!("user/{user}/openid/request_token")), json!({})),
        (Method::PUT, at(&format!("profile/{user}/displayname")), json!({"displayname": "eve"})),
        (Method::DELETE, at(&format!("profile/{user}/displayname")), json!({})),
        (Method::PUT, at(&format!("presence/{user}/status")), json!({"presence": "offline"})),
        (Method::PUT, in_room(&format!("typing/{user}")), json!({"typing": true, "timeout": 1000})),
        (Method::PUT, in_room("send/m.room.encrypted/eve"), sealed("eve")),
        (Method::PUT, in_room("state/org.example.word/"), json!({"word": "eve"})),
        (Method::PUT, in_room(&format!("redact/{}/eve", alice.early)), json!({})),
        (Method::POST, in_room("invite"), json!({"user_id": "@eve:localhost"})),
        (Method::POST, in_room("join"), json!({})),
        (Method::POST, in_room("kick"), json!({"user_id": user})),
        (Method::POST, in_room("ban"), json!({"user_id": user})),
        (Method::POST, in_room("upgrade"), json!({"new_version": "12"})),
        (Method::PUT, at(&format!("directory/list/room/{room}")), json!({"visibility": "public"})),
        (Method::GET, at(&format!("admin/whois/{user}")), json!({})),
        (Method::PUT, format!("/_matrix/client/v1/admin/lock/{user}"), json!({"locked": true})),
        (Method::PUT, format!("/_matrix/media/v3/upload/{media}"), json!({})),
    ];
    for (method, path, body) in refused {
        let answer = eve.send(method.clone(), &path, body.to_string()).await;
        assert_eq!(answer.status.as_u16(), 403, "{method} {path}: {}", answer.body);
        assert!(answer.code().starts_with("M_"), "{method} {path}: {}", answer.body);
    }
    // A device that is not one's own does not exist.
    let device = at(&format!("devices/{}", alice.device));
    eve.put(&device, json!({"display_name": "eve"})).await.refused(404, "M_NOT_FOUND");
    let auth = json!({"auth": {
        "type": "m.login.password", "password": "correct horse",
        "identifier": {"type": "m.id.user", "user": user},
    }});
    // Someone else's password is no proof of being oneself.
    let answer = eve.send(Method::DELETE, &device, auth.to_string()).await;
    assert_eq!(answer.status.as_u16(), 403, "{}", answer.body);
    alice.raw.get(&device).await.fine();
    let own = alice.raw.get(&at(&format!("user/{user}/account_data/org.example.kind"))).await.fine();
    assert_eq!(own, json!({"word": OWN}));
}

/// What guests may do beyond the specification's list: clients cannot start without it.
const ALSO_GUESTS: [&str; 6] =
    ["getCapabilities", "getPushRules", "defineFilter", "getFilter", "joinRoom", "getTurnServer"];

/// Everything that needs a token, with someone's own ids.
fn needing_tokens() -> impl Iterator<Item = Operation> {
    endpoints::all()
        .into_iter()
        .filter(|operation| operation.auth == Auth::User && !matches!(operation.kind, Kind::Unstable))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_suspended_guest_and_logged_out_accounts() {
    let site = site().await;
    let root = administrator(&site).await;
    let (locked, suspended) =
        (Raw::register(&site.url, "locked").await, Raw::register(&site.url, "suspended").await);
    let gone = Raw::register(&site.url, "gone").await;
    let room = suspended.create_room(json!({})).await;
    gone.post("/_matrix/client/v3/logout", json!({})).await.fine();
    let set = |what: &str, user: &str| format!("/_matrix/client/v1/admin/{what}/{user}");
    root.put(&set("lock", &locked.user), json!({"locked": true})).await.fine();
    root.put(&set("suspend", &suspended.user), json!({"suspended": true})).await.fine();
    let guest = Raw::nobody(&site.url).post("/_matrix/client/v3/register?kind=guest", json!({})).await.fine();
    let guest = Raw::nobody(&site.url).with_token(guest["access_token"].as_str().unwrap());
    for operation in needing_tokens() {
        let shown = operation.shown();
        let mut path = operation.filled(|name| plausible(name, &suspended.user, &room));
        if operation.name == "peekEvents" {
            // Guests look at one room at a time.
            write!(path, "?room_id={room}").unwrap();
        }
        let send = async |raw: &Raw| raw.send(operation.method.clone(), &path, "{}").await;
        let answer = send(&gone).await;
        if answer.code() == "M_UNRECOGNIZED" {
            // It does not exist: `docs/coverage.md` says so.
            continue;
        }
        assert_eq!((answer.status.as_u16(), answer.code()), (401, "M_UNKNOWN_TOKEN"), "{shown}");
        let ends = operation.path.ends_with("/logout") || operation.path.ends_with("/logout/all");
        if !ends {
            let answer = send(&locked).await;
            assert_eq!((answer.status.as_u16(), answer.code()), (401, "M_USER_LOCKED"), "{shown}");
            assert_eq!(answer.body["soft_logout"], true, "{shown}");
            let answer = send(&guest).await;
            let kept_out = (answer.status.as_u16(), answer.code()) == (403, "M_GUEST_ACCESS_FORBIDDEN");
            let let_in = operation.guests || ALSO_GUESTS.contains(&operation.name.as_str());
            assert_eq!(kept_out, !let_in, "{shown}: {}", answer.body);
        }
        if operation.method == Method::GET {
            let answer = send(&suspended).await;
            assert_ne!(answer.code(), "M_USER_SUSPENDED", "{shown}");
        }
    }
    let written = [
        (Method::POST, "/_matrix/client/v3/createRoom".to_owned()),
        (Method::POST, format!("/_matrix/client/v3/rooms/{room}/join")),
        (Method::POST, format!("/_matrix/client/v3/rooms/{room}/invite")),
        (Method::PUT, format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/1")),
        (Method::PUT, format!("/_matrix/client/v3/rooms/{room}/state/org.example.word/")),
        (Method::PUT, format!("/_matrix/client/v3/profile/{}/displayname", suspended.user)),
    ];
    for (method, path) in written {
        suspended.send(method, &path, "{}").await.refused(403, "M_USER_SUSPENDED");
    }
    let leave = format!("/_matrix/client/v3/rooms/{room}/leave");
    suspended.post(&leave, json!({})).await.fine();
    locked.post("/_matrix/client/v3/logout", json!({})).await.fine();
}
