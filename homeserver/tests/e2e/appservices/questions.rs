//! What application services are asked, and what only they may do.

use super::bridge::{AS_TOKEN, Bridge, make_user};
use super::{BOT, bridge_at};
use crate::http::Raw;
use crate::site::{Shape, Site};
use reqwest::Method;
use serde_json::json;

async fn site_and_bridge() -> (Site, Bridge, tempfile::TempDir) {
    Bridge::with_site(Shape::Sqlite, "").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_belong_to_whom_they_are_registered_for() {
    let (site, _bridge, _folder) = site_and_bridge().await;
    let alice = Raw::register(&site.url, "alice").await;
    let (nobody, server) = (Raw::nobody(&site.url), bridge_at(&site.url));
    let register = "/_matrix/client/v3/register";
    let person =
        |name: &str| json!({ "username": name, "password": "x", "auth": { "type": "m.login.dummy" } });
    nobody.post(register, person("_birds_jay")).await.refused(400, "M_INVALID_USERNAME");
    let service = |name: &str| json!({ "type": "m.login.application_service", "username": name });
    nobody.post(register, service("_birds_jay")).await.refused(401, "M_MISSING_TOKEN");
    alice.post(register, service("_birds_jay")).await.refused(401, "M_UNKNOWN_TOKEN");
    server.post(register, service("bob")).await.refused(400, "M_EXCLUSIVE");
    let jay = server.post(register, service("_birds_jay")).await.fine();
    assert!(jay["access_token"].is_string(), "{jay}");
    server.post(register, service("_birds_jay")).await.refused(400, "M_USER_IN_USE");
    let silent = make_user(&server, "_birds_wren").await.fine();
    assert!(silent["access_token"].is_null() && silent["device_id"].is_null(), "{silent}");

    let login = "/_matrix/client/v3/login";
    let who = |user: &str| json!({ "type": "m.login.application_service", "identifier": { "type": "m.id.user", "user": user } });
    nobody.post(login, who("_birds_jay")).await.refused(401, "M_MISSING_TOKEN");
    alice.post(login, who("_birds_jay")).await.refused(401, "M_UNKNOWN_TOKEN");
    server.post(login, who("alice")).await.refused(403, "M_EXCLUSIVE");
    assert_eq!(server.post(login, who("_birds_jay")).await.fine()["user_id"], "@_birds_jay:localhost");

    let as_user = |user: &str| format!("/_matrix/client/v3/account/whoami?user_id={user}");
    server.get(&as_user("@alice:localhost")).await.refused(403, "M_FORBIDDEN");
    server.get(&as_user("@_birds_gone:localhost")).await.refused(403, "M_FORBIDDEN");
    assert_eq!(
        server.get(&as_user("@_birds_wren:localhost")).await.fine()["user_id"],
        "@_birds_wren:localhost"
    );
    assert_eq!(server.get("/_matrix/client/v3/account/whoami").await.fine()["user_id"], BOT);

    let room = alice.create_room(json!({})).await;
    let theirs = server.create_room(json!({})).await;
    let alias = |name: &str| format!("/_matrix/client/v3/directory/room/%23{name}:localhost");
    alice.put(&alias("_birds_oak"), json!({ "room_id": room })).await.refused(400, "M_EXCLUSIVE");
    alice
        .post("/_matrix/client/v3/createRoom", json!({ "room_alias_name": "_birds_oak" }))
        .await
        .refused(400, "M_EXCLUSIVE");
    server.put(&alias("oak"), json!({ "room_id": theirs })).await.refused(400, "M_EXCLUSIVE");
    server.put(&alias("_birds_oak"), json!({ "room_id": theirs })).await.fine();
    alice.send(Method::DELETE, &alias("_birds_oak"), "").await.refused(400, "M_EXCLUSIVE");
    server.send(Method::DELETE, &alias("_birds_oak"), "").await.fine();

    // Sealing holds for a bridge like for everyone else, unless the operator says otherwise.
    let send = format!("/_matrix/client/v3/rooms/{theirs}/send/m.room.message/1?ts=1234");
    server
        .put(&send, json!({ "msgtype": "m.text", "body": "in the clear" }))
        .await
        .refused(403, "M_FORBIDDEN");
    let sealed = format!("/_matrix/client/v3/rooms/{theirs}/send/m.room.encrypted/2");
    let event = server.put(&format!("{sealed}?ts=1234"), crate::http::sealed("QQ")).await.fine();
    let path = format!("/_matrix/client/v3/rooms/{theirs}/event/{}", event["event_id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.fine()["origin_server_ts"], 1234);
    server
        .put(&format!("{sealed}3?ts=soon"), crate::http::sealed("QQ"))
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_operator_excepts_a_bridge_from_sealing() {
    let settings = ["plaintext_appservices=[\"birds\"]".to_owned()];
    let (site, bridge, _folder) = Bridge::with_settings(Shape::Sqlite, "", &settings).await.unwrap();
    let (alice, server) = (Raw::register(&site.url, "alice").await, bridge_at(&site.url));
    let room = server.create_room(json!({ "invite": [alice.user] })).await;
    alice.post(&format!("/_matrix/client/v3/rooms/{room}/join"), json!({})).await.fine();
    let words = json!({ "msgtype": "m.text", "body": "from the other network" });
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    server.put(&send, words.clone()).await.fine();
    alice.put(&send, words).await.refused(403, "M_FORBIDDEN");
    bridge.wait("events", |event| event["content"]["body"] == "from the other network").await;
    let audit = site.nodes[0].run(&["audit"]).await;
    let said = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(said.contains("plaintext_appservices: birds"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_rooms_are_made_when_they_are_asked_for() {
    let (site, bridge, _folder) = site_and_bridge().await;
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({})).await;
    let invite = format!("/_matrix/client/v3/rooms/{room}/invite");
    alice.post(&invite, json!({ "user_id": "@_birds_made:localhost" })).await.fine();
    assert_eq!(bridge.asked(), ["/users/@_birds_made:localhost"]);
    let profile = "/_matrix/client/v3/profile/@_birds_made:localhost";
    alice.get(profile).await.fine();
    bridge.wait("events", |event| event["state_key"] == "@_birds_made:localhost").await;

    let alias = |name: &str| format!("/_matrix/client/v3/directory/room/%23{name}:localhost");
    alice.get(&alias("_birds_gone")).await.refused(404, "M_NOT_FOUND");
    let found = alice.get(&alias("_birds_made")).await.fine();
    let joined = alice.post("/_matrix/client/v3/join/%23_birds_made:localhost", json!({})).await.fine();
    assert_eq!(found["room_id"], joined["room_id"]);
    alice.get(&alias("elsewhere")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(
        bridge.asked().len(),
        3,
        "asked once for each, and never for what is not its: {:?}",
        bridge.asked()
    );

    bridge.grow_old();
    alice.get(&alias("_birds_older")).await.refused(404, "M_NOT_FOUND");
    alice.get(&alias("_birds_older_made")).await.fine();
    bridge.stop();
    alice.get(&alias("_birds_silent")).await.refused(408, "M_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_networks_can_be_searched() {
    let (site, bridge, _folder) = site_and_bridge().await;
    let (alice, server) = (Raw::register(&site.url, "alice").await, bridge_at(&site.url));
    let at = |path: &str| format!("/_matrix/client/v3/thirdparty/{path}");
    let protocols = alice.get(&at("protocols")).await.fine();
    assert_eq!(protocols["birds"]["instances"][0]["instance_id"], "birds|north");
    assert_eq!(alice.get(&at("protocol/birds")).await.fine()["user_fields"][0], "ring");
    alice.get(&at("protocol/fish")).await.refused(404, "M_NOT_FOUND");
    let users = alice.get(&at("user/birds?ring=A1")).await.fine();
    assert_eq!(users[0]["userid"], "@_birds_a:x");
    assert!(bridge.asked().contains(&"/thirdparty/user/birds?ring=A1".to_owned()), "{:?}", bridge.asked());
    alice.get(&at("user/fish")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(alice.get(&at("location/birds?tree=oak")).await.fine(), json!([]));
    alice.get(&at("location?alias=%23a:localhost")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(alice.get(&at("user?userid=@_birds_a:localhost")).await.fine()[0]["protocol"], "birds");
    Raw::nobody(&site.url).get(&at("protocols")).await.refused(401, "M_MISSING_TOKEN");

    let room = server.create_room(json!({ "preset": "public_chat", "name": "Hedge" })).await;
    let list = format!("/_matrix/client/v3/directory/list/appservice/north/{room}");
    alice.put(&list, json!({ "visibility": "public" })).await.refused(403, "M_FORBIDDEN");
    server.put(&list, json!({ "visibility": "public" })).await.fine();
    let rooms = |body: serde_json::Value| {
        let alice = alice.clone();
        async move { alice.post("/_matrix/client/v3/publicRooms", body).await.fine()["chunk"].clone() }
    };
    assert_eq!(rooms(json!({})).await, json!([]));
    assert_eq!(rooms(json!({ "third_party_instance_id": "birds|north" })).await[0]["name"], "Hedge");
    assert_eq!(rooms(json!({ "third_party_instance_id": "birds|south" })).await, json!([]));
    assert_eq!(rooms(json!({ "include_all_networks": true })).await[0]["name"], "Hedge");
    server.put(&list, json!({ "visibility": "private" })).await.fine();
    assert_eq!(rooms(json!({ "include_all_networks": true })).await, json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_says_what_is_wrong() {
    let (site, bridge, folder) = site_and_bridge().await;
    std::fs::write(
        folder.path().join("mute.yaml"),
        "{id: mute, url: null, as_token: mute, hs_token: x, sender_localpart: mute, namespaces: {}}",
    )
    .unwrap();
    let mut site = site;
    site.restart().await;
    let (alice, server) = (Raw::register(&site.url, "alice").await, bridge_at(&site.url));
    let path = "/_matrix/client/v1/appservice/birds/ping";
    server.post(path, json!({ "transaction_id": "t" })).await.fine();
    alice.post(path, json!({})).await.refused(403, "M_FORBIDDEN");
    Raw::nobody(&site.url).post(path, json!({})).await.refused(401, "M_MISSING_TOKEN");
    server.with_token("nobody's").post(path, json!({})).await.refused(401, "M_UNKNOWN_TOKEN");
    let mute = server.with_token("mute");
    mute.post(path, json!({})).await.refused(403, "M_FORBIDDEN");
    mute.post("/_matrix/client/v1/appservice/mute/ping", json!({})).await.refused(400, "M_URL_NOT_SET");
    bridge.refuse(true);
    let bad = server.post(path, json!({})).await;
    bad.refused(502, "M_BAD_STATUS");
    assert_eq!(
        (&bad.body["status"], bad.body["body"].as_str()),
        (&json!(418), Some(r#"{"errcode":"M_TEAPOT"}"#))
    );
    bridge.stop();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    server.post(path, json!({})).await.refused(502, "M_CONNECTION_FAILED");
    assert!(!site.nodes[0].logged().contains(AS_TOKEN), "tokens are in no log");
    assert!(!site.nodes[0].logged().contains(super::bridge::HS_TOKEN), "tokens are in no log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_registration_stops_the_start() {
    let (mut site, _bridge, folder) = site_and_bridge().await;
    site.nodes[0].stop().await;
    std::fs::write(folder.path().join("wrong.yaml"), "id: wrong\nurl: http://127.0.0.1:1\n").unwrap();
    let output = site.nodes[0].run(&[]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("wrong.yaml") && said.contains("as_token"), "{said}");
}
