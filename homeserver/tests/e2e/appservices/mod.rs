//! Application services, with a real one on the loopback.

mod bridge;
mod questions;

use crate::http::{Raw, sealed};
use crate::site::{Shape, Site};
use bridge::{AS_TOKEN, Bridge, make_user};
use serde_json::{Value, json};

const BOT: &str = "@_birds_bot:localhost";
/// What makes the bridge one that encrypts.
const ENCRYPTS: &str =
    "receive_ephemeral: true\nde.sorunome.msc2409.push_ephemeral: true\norg.matrix.msc3202: true\n";

/// A test for SQLite and one for two nodes.
macro_rules! with_a_bridge {
    ($($name:ident $more:expr;)*) => {
        with_a_bridge!(@ sqlite Sqlite $($name $more;)*);
        with_a_bridge!(@ two_nodes TwoNodes $($name $more;)*);
    };
    (@ $module:ident $shape:ident $($name:ident $more:expr;)*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some((site, bridge, _folder)) = super::Bridge::with_site(super::Shape::$shape, $more).await {
                    super::$name(site, bridge).await;
                }
            })*
        }
    };
}

with_a_bridge! {
    transactions_are_repeated_until_they_are_accepted "";
    what_an_encrypting_bridge_is_told super::ENCRYPTS;
}

/// The bridge at the server: as its bot, or as another of its users.
fn bridge_at(url: &str) -> Raw {
    Raw::nobody(url).with_token(AS_TOKEN)
}

/// A room of alice in which the bot is.
async fn room_with_bot(site: &Site, bridge: &Bridge, alice: &Raw) -> String {
    let room = alice.create_room(json!({ "preset": "private_chat", "name": "Rowan", "invite": [BOT] })).await;
    let invited = bridge.wait("events", |event| event["room_id"] == *room && event["state_key"] == BOT).await;
    assert_eq!(invited["content"]["membership"], "invite");
    let state = invited["unsigned"]["invite_room_state"].as_array().expect("what it may see of the room");
    assert!(state.iter().any(|event| event["content"]["name"] == "Rowan"), "{invited}");
    bridge_at(&site.url).post(&format!("/_matrix/client/v3/rooms/{room}/join"), json!({})).await.fine();
    bridge
        .wait("events", |event| event["state_key"] == BOT && event["content"]["membership"] == "join")
        .await;
    // Who is in it is told to any user of the bridge, and to no other who is not.
    make_user(&bridge_at(&site.url), "_birds_outside").await.fine();
    let members = format!("/_matrix/client/v3/rooms/{room}/joined_members");
    let outside = format!("{members}?user_id=@_birds_outside:localhost");
    let joined = bridge_at(&site.url).get(&outside).await.fine();
    assert!(joined["joined"].get(BOT).is_some(), "{joined}");
    Raw::register(&site.url, "stranger").await.get(&members).await.refused(403, "M_FORBIDDEN");
    room
}

fn letters(bridge: &Bridge) -> Vec<String> {
    let told = bridge.told("events");
    let letters = told.iter().filter(|event| event["type"] == "m.room.encrypted");
    letters.map(|event| event["content"]["ciphertext"].as_str().unwrap().to_owned()).collect()
}

async fn send(from: &Raw, room: &str, words: &str) {
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{words}");
    from.put(&path, sealed(words)).await.fine();
}

async fn transactions_are_repeated_until_they_are_accepted(mut site: Site, bridge: Bridge) {
    let alice = Raw::register(&site.url, "alice").await;
    let room = room_with_bot(&site, &bridge, &alice).await;
    let private = alice.create_room(json!({ "preset": "private_chat" })).await;
    send(&alice, &private, "nobodysbusiness").await;

    bridge.refuse(true);
    let before = bridge.attempts().len();
    send(&alice, &room, "first").await;
    let refused = bridge.until("second attempt", |bridge| bridge.attempts().get(before + 1).cloned()).await;
    send(&alice, &room, "second").await;
    site.restart().await;
    let count = bridge.attempts().len();
    bridge.until("attempt after the restart", |bridge| bridge.attempts().get(count).cloned()).await;
    for attempt in &bridge.attempts()[before..] {
        assert_eq!(
            (&attempt.id, &attempt.body),
            (&refused.id, &refused.body),
            "byte for byte, until accepted"
        );
    }
    bridge.refuse(false);
    // A ping says that the bridge is there again: nobody waits for the end of a pause.
    let ping = json!({ "transaction_id": "are you there" });
    let path = "/_matrix/client/v1/appservice/birds/ping";
    let answer = bridge_at(&site.url).post(path, ping).await.fine();
    assert!(answer["duration_ms"].is_u64(), "{answer}");
    bridge.until("letters", |bridge| (letters(bridge).len() >= 2).then_some(())).await;

    if site.nodes.len() > 1 {
        // Whichever node served the bridge, the other goes on.
        site.nodes[0].kill().await;
        let other = alice.at(&site.nodes[1].client_url());
        send(&other, &room, "third").await;
        bridge.until("letter after a crash", |bridge| letters(bridge).get(2).cloned()).await;
        site.nodes[0].start().await;
    } else {
        send(&alice, &room, "third").await;
        bridge.until("letter", |bridge| letters(bridge).get(2).cloned()).await;
    }
    assert_eq!(letters(&bridge), ["first", "second", "third"], "each once, in order");
    let accepted: Vec<String> = bridge.accepted().into_iter().map(|attempt| attempt.id).collect();
    assert!(accepted.is_sorted(), "{accepted:?}");
}

/// A device of a user of the bridge, with keys.
async fn device(server: &Raw, user: &str, name: &str) {
    let path = format!("/_matrix/client/v3/devices/{name}?user_id={user}");
    assert_eq!(server.put(&path, json!({ "display_name": "Bridge" })).await.status.as_u16(), 201);
    assert_eq!(server.put(&path, json!({ "display_name": "Bird bridge" })).await.status.as_u16(), 200);
    // Bridges name the device twice, by both names.
    let as_device = format!("?user_id={user}&device_id={name}&org.matrix.msc3202.device_id={name}");
    let whoami = server.get(&format!("/_matrix/client/v3/account/whoami{as_device}")).await.fine();
    assert_eq!((&whoami["user_id"], &whoami["device_id"]), (&json!(user), &json!(name)));
    let unknown =
        server.get(&format!("/_matrix/client/v3/account/whoami?user_id={user}&device_id=OTHER")).await;
    unknown.refused(400, "M_UNKNOWN_DEVICE");
    let key = json!({ "key": "LhQ3kSSVzbJ3tLRFQMJBYzSRpx1PdJ7kEpOuDwSc4jg", "fallback": true });
    let one_time = json!({ "curve25519:AAAAAQ": "LhQ3kSSVzbJ3tLRFQMJBYzSRpx1PdJ7kEpOuDwSc4jg" });
    let keys = json!({ "one_time_keys": one_time, "fallback_keys": { "signed_curve25519:AAAAAg": key } });
    server.post(&format!("/_matrix/client/v3/keys/upload{as_device}"), keys).await.fine();
}

async fn what_an_encrypting_bridge_is_told(site: Site, bridge: Bridge) {
    let alice = Raw::register(&site.url, "alice").await;
    let server = bridge_at(&site.url);
    make_user(&server, "_birds_tit").await.fine();
    let tit = "@_birds_tit:localhost";
    device(&server, tit, "NEST").await;
    let room = room_with_bot(&site, &bridge, &alice).await;
    // The first user of the bridge in the room: whoever is there is news.
    for key in ["device_lists", "org.matrix.msc3202.device_lists"] {
        told_of(&bridge, key, |lists| listed(lists, "changed", "@alice:localhost")).await;
    }
    for key in ["device_one_time_keys_count", "org.matrix.msc3202.device_one_time_keys_count"] {
        told_of(&bridge, key, |counts| counts[tit]["NEST"]["curve25519"] == 1).await;
    }
    for key in ["device_unused_fallback_key_types", "org.matrix.msc3202.device_unused_fallback_key_types"] {
        told_of(&bridge, key, |types| types[tit]["NEST"][0] == "signed_curve25519").await;
    }

    let message = json!({ "messages": { tit: { "NEST": { "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "sender_key": "k", "ciphertext": { "k": { "type": 0, "body": "QQ" } } } } } });
    alice.put("/_matrix/client/v3/sendToDevice/m.room.encrypted/1", message).await.fine();
    for key in ["to_device", "de.sorunome.msc2409.to_device"] {
        let event = bridge.wait(key, |event| event["to_user_id"] == tit).await;
        assert_eq!((&event["to_device_id"], &event["sender"]), (&json!("NEST"), &json!("@alice:localhost")));
        assert_eq!(event["content"]["ciphertext"]["k"]["body"], "QQ");
    }
    let sync = server.get(&format!("/_matrix/client/v3/sync?user_id={tit}&device_id=NEST")).await.fine();
    assert!(sync["to_device"]["events"].as_array().is_none_or(Vec::is_empty), "the bridge has it: {sync}");

    ephemeral(&alice, &bridge, &room).await;

    // Another device of alice is a change of her list; when she leaves, nothing is shared any more.
    let before = bridge.attempts().len();
    let login = json!({ "type": "m.login.password", "user": "alice", "password": "correct horse" });
    Raw::nobody(&site.url).post("/_matrix/client/v3/login", login).await.fine();
    let changed =
        |attempt: &bridge::Attempt| listed(&attempt.json()["device_lists"], "changed", "@alice:localhost");
    bridge.until("change", |bridge| bridge.attempts()[before..].iter().any(changed).then_some(())).await;
    alice.post(&format!("/_matrix/client/v3/rooms/{room}/leave"), json!({})).await.fine();
    told_of(&bridge, "device_lists", |lists| listed(lists, "left", "@alice:localhost")).await;
}

/// Typing, receipts and presence.
async fn ephemeral(alice: &Raw, bridge: &Bridge, room: &str) {
    let typing = format!("/_matrix/client/v3/rooms/{room}/typing/@alice:localhost");
    alice.put(&typing, json!({ "typing": true, "timeout": 20_000 })).await.fine();
    for key in ["ephemeral", "de.sorunome.msc2409.ephemeral"] {
        let event = bridge.wait(key, |event| event["type"] == "m.typing").await;
        assert_eq!((&event["room_id"], &event["content"]["user_ids"][0]), (&json!(room), &json!(alice.user)));
    }
    send(alice, room, "read").await;
    let sent = bridge.wait("events", |event| event["content"]["ciphertext"] == "read").await;
    let id = sent["event_id"].as_str().unwrap();
    for kind in ["m.read.private", "m.read"] {
        let path = format!("/_matrix/client/v3/rooms/{room}/receipt/{kind}/{id}");
        alice.post(&path, json!({})).await.fine();
    }
    let receipt = bridge.wait("ephemeral", |event| event["type"] == "m.receipt").await;
    assert_eq!(receipt["room_id"], room);
    assert!(receipt["content"][id]["m.read"][&alice.user]["ts"].is_u64(), "{receipt}");
    assert!(receipt["content"][id]["m.read.private"].is_null(), "a private one is nobody's business");
    // Presence is known to one node only: each is told.
    let path = format!("/_matrix/client/v3/presence/{}/status", alice.user);
    let words = json!({ "presence": "unavailable", "status_msg": "In the hedge" });
    for _ in 0..2 {
        alice.put(&path, words.clone()).await.fine();
    }
    let presence = bridge.wait("ephemeral", |event| event["content"]["status_msg"] == "In the hedge").await;
    assert_eq!((&presence["type"], &presence["sender"]), (&json!("m.presence"), &json!(alice.user)));
}

fn listed(lists: &Value, which: &str, user: &str) -> bool {
    lists[which].as_array().is_some_and(|users| users.iter().any(|other| other == user))
}

/// Waits until a transaction says something under this key that fits.
async fn told_of(bridge: &Bridge, key: &str, fits: impl Fn(&Value) -> bool) {
    let found =
        |bridge: &Bridge| bridge.attempts().iter().any(|attempt| fits(&attempt.json()[key])).then_some(());
    bridge.until(key, found).await;
}
