//! Closing an account, and having its content erased.

use super::{administrator, login, named, with_password};
use crate::federation::{Federation, NAMES};
use crate::http::Raw;
use crate::site::{Shape, Site};
use serde_json::{Value, json};

const DEACTIVATE: &str = "/_matrix/client/v3/account/deactivate";

async fn messages(raw: &Raw, room: &str) -> Vec<Value> {
    let page = raw.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100")).await.fine();
    page["chunk"].as_array().unwrap().clone()
}

fn of_type<'a>(events: &'a [Value], sender: &str, kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind && event["sender"] == sender).collect()
}

async fn is_whole(raw: &Raw, room: &str, event: &str) -> bool {
    let event = raw.get(&format!("/_matrix/client/v3/rooms/{room}/event/{event}")).await.fine();
    !event["content"].as_object().unwrap().is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_later_sees_nothing_of_what_was_erased() {
    for shape in [Shape::Sqlite, Shape::TwoNodes] {
        let Some(site) = Site::start(shape).await else { continue };
        let alice = Raw::register(&site.url, "alice").await;
        let (bob, carol) = (Raw::register(&site.url, "bob").await, Raw::register(&site.url, "carol").await);
        let room =
            alice.create_room(json!({"preset": "private_chat", "invite": [bob.user, carol.user]})).await;
        let letter = alice.send_sealed(&room, "1").await.fine()["event_id"].as_str().unwrap().to_owned();
        let edit = json!({
            "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "QUJD", "session_id": "s", "sender_key": "k",
            "device_id": "D", "m.relates_to": {"rel_type": "m.replace", "event_id": letter},
        });
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/2");
        alice.put(&path, edit).await.fine();
        // Bob joins after the letter, but before it is erased.
        bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
        let topic = format!("/_matrix/client/v3/rooms/{room}/state/m.room.topic/");
        alice.put(&topic, json!({"topic": "Alice's words"})).await.fine();
        let level = format!("/_matrix/client/v3/rooms/{room}/state/m.room.power_levels/");
        let mut levels = alice.get(&level).await.fine();
        levels["users_default"] = json!(100);
        alice.put(&level, levels).await.fine();
        let closed = with_password(&alice, DEACTIVATE, json!({"erase": true}), "correct horse").await;
        assert_eq!(closed.fine(), json!({"id_server_unbind_result": "success"}));
        carol.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
        // What replaces her words brings them along, for those who knew them.
        let next = bob.put(&topic, json!({"topic": "Bob's"})).await.fine();
        let next = format!("/_matrix/client/v3/rooms/{room}/event/{}", next["event_id"].as_str().unwrap());
        let before = bob.get(&next).await.fine()["unsigned"]["prev_content"].clone();
        assert_eq!(before, json!({"topic": "Alice's words"}));
        let before = carol.get(&next).await.fine()["unsigned"].clone();
        assert_eq!((&before["prev_content"], &before["prev_sender"]), (&json!({}), &json!(alice.user)));
        for node in &site.nodes {
            let (bob, carol) = (bob.at(&node.client_url()), carol.at(&node.client_url()));
            assert!(is_whole(&bob, &room, &letter).await);
            assert!(!is_whole(&carol, &room, &letter).await);
            let seen = messages(&carol, &room).await;
            let letters = of_type(&seen, &alice.user, "m.room.encrypted");
            assert_eq!(letters.len(), 2);
            for letter in letters {
                assert_eq!(letter["content"], json!({}), "{letter}");
                assert!(letter["unsigned"]["m.relations"]["m.replace"].is_null(), "{letter}");
            }
            let seen = messages(&bob, &room).await;
            let whole = of_type(&seen, &alice.user, "m.room.encrypted");
            assert!(whole.iter().all(|letter| letter["content"]["ciphertext"].is_string()));
            let sync = carol.get("/_matrix/client/v3/sync").await.fine();
            let timeline = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap().clone();
            let synced = of_type(&timeline, &alice.user, "m.room.encrypted");
            assert!(!synced.is_empty() && synced.iter().all(|letter| letter["content"] == json!({})));
        }
        // Bob is shown what he saw also after he has left and come back.
        bob.post(&format!("/_matrix/client/v3/rooms/{room}/leave"), json!({})).await.fine();
        carol
            .post(&format!("/_matrix/client/v3/rooms/{room}/invite"), json!({"user_id": bob.user}))
            .await
            .fine();
        bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
        assert!(is_whole(&bob, &room, &letter).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_closed_account_and_its_name_is_gone() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let user = &alice.user;
    let room = bob.create_room(json!({"preset": "private_chat", "invite": [user]})).await;
    alice.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let invited = bob.create_room(json!({"preset": "private_chat", "invite": [user]})).await;
    let name = format!("/_matrix/client/v3/profile/{user}/displayname");
    alice.put(&name, json!({"displayname": "Alice"})).await.fine();
    let data = format!("/_matrix/client/v3/user/{user}/account_data/org.example.word");
    alice.put(&data, json!({"word": "secret"})).await.fine();
    let version = json!({
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": {"public_key": "x", "signatures": {}},
    });
    alice.post("/_matrix/client/v3/room_keys/version", version).await.fine();
    // Whose password it is says whose account, where there is no token.
    let nobody = alice.with_token("");
    let asked = nobody.post(DEACTIVATE, json!({})).await;
    assert_eq!(asked.body["flows"], json!([{"stages": ["m.login.password"]}]));
    let auth = |password: &str| {
        json!({"auth": {
            "type": "m.login.password", "session": asked.body["session"], "password": password,
            "identifier": named(user),
        }})
    };
    nobody.post(DEACTIVATE, auth("wrong")).await.refused(401, "M_FORBIDDEN");
    nobody.post(DEACTIVATE, auth("correct horse")).await.fine();

    alice.get("/_matrix/client/v3/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    login(&nobody, named("alice"), "correct horse").await.refused(403, "M_USER_DEACTIVATED");
    let again = json!({"username": "alice", "password": "correct horse", "auth": {"type": "m.login.dummy"}});
    nobody.post("/_matrix/client/v3/register", again).await.refused(400, "M_USER_IN_USE");
    nobody.get("/_matrix/client/v3/register/available?username=alice").await.refused(400, "M_USER_IN_USE");
    bob.get(&format!("/_matrix/client/v3/profile/{user}")).await.refused(404, "M_NOT_FOUND");
    let found =
        bob.post("/_matrix/client/v3/user_directory/search", json!({"search_term": "alice"})).await.fine();
    assert_eq!(found["results"], json!([]));
    for room in [&room, &invited] {
        let path = format!("/_matrix/client/v3/rooms/{room}/state/m.room.member/{user}");
        assert_eq!(bob.get(&path).await.fine()["membership"], "leave");
    }
    let keys =
        bob.post("/_matrix/client/v3/keys/query", json!({"device_keys": {user.as_str(): []}})).await.fine();
    assert!(keys["device_keys"][user].as_object().is_none_or(serde_json::Map::is_empty), "{keys}");
    let kept = site.store().await;
    let id = user.as_str().try_into().unwrap();
    let mut conn = kept.read().await.unwrap();
    assert!(conn.account_data_of(id, None).await.unwrap().is_empty());
    assert!(conn.threepids_of(id).await.unwrap().is_empty());
    assert!(conn.devices_of(id).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_people_are_not_found() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let admin = administrator(&site).await;
    let (alice, bob) = (Raw::register(&site.url, "alice").await, Raw::register(&site.url, "bob").await);
    let room = alice.create_room(json!({"preset": "public_chat", "name": "Aviary"})).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let search = async || {
        let path = "/_matrix/client/v3/user_directory/search";
        alice.post(path, json!({"search_term": "bob"})).await.fine()["results"].as_array().unwrap().len()
    };
    assert_eq!(search().await, 1);
    let lock = format!("/_matrix/client/v1/admin/lock/{}", bob.user);
    admin.put(&lock, json!({"locked": true})).await.fine();
    assert_eq!(search().await, 0);
    bob.send(reqwest::Method::GET, "/_matrix/client/v3/sync", "").await.refused(401, "M_USER_LOCKED");
    login(&bob, named("bob"), "correct horse").await.refused(401, "M_USER_LOCKED");
    admin.put(&lock, json!({"locked": false})).await.fine();
    assert_eq!(search().await, 1);
    bob.get("/_matrix/client/v3/account/whoami").await.fine();
}

/// A server that comes afterwards is given the redacted form; one that had the events before keeps, and gives its people,
/// what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_come_later_get_nothing_of_what_was_erased() {
    let federation = Federation::start().await;
    let [alpha, beta] = [0, 1].map(|node: usize| federation.nodes[node].client_url());
    let alice = Raw::register(&alpha, "alice").await;
    let dave = Raw::register(&alpha, "dave").await;
    let bob = Raw::register(&beta, "bob").await;
    let join = async |who: &Raw, room: &str| {
        who.post(&format!("/_matrix/client/v3/join/{room}?via={}", NAMES[0]), json!({})).await.fine();
    };
    let mut rooms = Vec::new();
    for shared in [true, false] {
        let room = alice.create_room(json!({"preset": "public_chat"})).await;
        join(&dave, &room).await;
        if shared {
            join(&bob, &room).await;
        }
        let letter = alice.send_sealed(&room, "1").await.fine()["event_id"].as_str().unwrap().to_owned();
        // More than a join brings along.
        for number in 0..20 {
            dave.send_sealed(&room, &format!("more{number}")).await.fine();
        }
        rooms.push((room, letter));
    }
    let (early, late) = (&rooms[0], &rooms[1]);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !bob
        .get(&format!("/_matrix/client/v3/rooms/{}/event/{}", early.0, early.1))
        .await
        .status
        .is_success()
    {
        assert!(std::time::Instant::now() < end, "the letter did not arrive");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    with_password(&alice, DEACTIVATE, json!({"erase": true}), "correct horse").await.fine();
    join(&bob, &late.0).await;
    let seen = messages(&bob, &late.0).await;
    let letters = of_type(&seen, &alice.user, "m.room.encrypted");
    assert_eq!(letters.len(), 1, "{seen:?}");
    assert_eq!((&letters[0]["event_id"], &letters[0]["content"]), (&json!(late.1), &json!({})));
    assert!(is_whole(&bob, &early.0, &early.1).await);
    // Whoever was there when it was said is shown it still, by either server.
    assert!(is_whole(&dave, &late.0, &late.1).await);
    let carol = Raw::register(&beta, "carol").await;
    join(&carol, &late.0).await;
    assert!(!is_whole(&carol, &late.0, &late.1).await);
}
