//! Guests: whether there are any, where they may be, what they may do, and how they stay.

use crate::federation::{Federation, NAMES};
use crate::http::{Raw, at};
use crate::site::Site;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

in_each_shape!(guests_are_where_rooms_want_them, a_guest_becomes_a_person);

const REGISTER: &str = "/_matrix/client/v3/register";
/// How long what follows from a request may take to show.
const SOON: Duration = Duration::from_secs(20);

async fn guest(base: &str) -> Raw {
    let nobody = Raw::nobody(base);
    let made = nobody.post(&format!("{REGISTER}?kind=guest"), json!({})).await.fine();
    let mut guest = nobody.with_token(made["access_token"].as_str().unwrap());
    guest.user = made["user_id"].as_str().unwrap().to_owned();
    guest
}

/// A room that lets guests in, or does not.
async fn room(owner: &Raw, access: &str) -> String {
    let access = json!({"type": "m.room.guest_access", "content": {"guest_access": access}});
    owner.create_room(json!({"preset": "public_chat", "initial_state": [access]})).await
}

async fn until_gone(owner: &Raw, room: &str, user: &str) -> Value {
    let end = Instant::now() + SOON;
    loop {
        let member = owner.get(&at(room, &format!("state/m.room.member/{user}"))).await.fine();
        if member["membership"] == "leave" {
            return member;
        }
        assert!(Instant::now() < end, "{member}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn guests_are_where_rooms_want_them(mut site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let (lets_in, keeps_out) = (room(&alice, "can_join").await, room(&alice, "forbidden").await);
    let silent = alice.create_room(json!({"preset": "public_chat"})).await;
    let ann = guest(&site.url).await;
    assert_eq!(ann.get("/_matrix/client/v3/account/whoami").await.fine()["is_guest"], true);
    let path = |room: &str| format!("/_matrix/client/v3/join/{room}");
    for room in [&keeps_out, &silent] {
        ann.post(&path(room), json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
        ann.post(&at(room, "join"), json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    }
    ann.post(&path(&lets_in), json!({})).await.fine();
    ann.send_sealed(&lets_in, "1").await.fine();
    let name = format!("/_matrix/client/v3/profile/{}", ann.user);
    ann.put(&format!("{name}/displayname"), json!({"displayname": "Ann"})).await.fine();
    let picture = json!({"avatar_url": "mxc://localhost/a"});
    ann.put(&format!("{name}/avatar_url"), picture).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    ann.get(&format!("/_matrix/client/v3/events?room_id={lets_in}")).await.fine();
    for (path, body) in [
        ("/_matrix/client/v3/createRoom", json!({})),
        (&*at(&lets_in, "invite"), json!({"user_id": alice.user})),
        ("/_matrix/client/v3/user_directory/search", json!({"search_term": "a"})),
    ] {
        ann.post(path, body).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    }
    ann.get("/_matrix/client/v3/events").await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    // An invitation opens no room to a guest that is closed to guests.
    let private = alice.create_room(json!({"preset": "private_chat", "invite": [ann.user]})).await;
    let access = at(&private, "state/m.room.guest_access/");
    alice.put(&access, json!({"guest_access": "forbidden"})).await.fine();
    ann.post(&path(&private), json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    alice.put(&access, json!({"guest_access": "can_join"})).await.fine();
    ann.post(&path(&private), json!({})).await.fine();
    // When a room no longer wants guests they are out; people stay.
    let bob = Raw::register(&site.url, "bob").await;
    bob.post(&path(&lets_in), json!({})).await.fine();
    alice.put(&at(&lets_in, "state/m.room.guest_access/"), json!({"guest_access": "forbidden"})).await.fine();
    let member = until_gone(&alice, &lets_in, &ann.user).await;
    assert!(member["reason"].is_string(), "{member}");
    ann.send_sealed(&lets_in, "2").await.refused(403, "M_FORBIDDEN");
    bob.send_sealed(&lets_in, "1").await.fine();
    // However it comes to be so.
    let redacted = alice.get(&format!("{access}?format=event")).await.fine();
    let redacted = at(&private, &format!("redact/{}/1", redacted["event_id"].as_str().unwrap()));
    alice.put(&redacted, json!({})).await.fine();
    until_gone(&alice, &private, &ann.user).await;
    // Where only people with a token are let in, there are no guests.
    for node in &mut site.nodes {
        node.stop().await;
        node.set("registration=token".to_owned());
        node.start().await;
    }
    let refused = Raw::nobody(&site.url).post(&format!("{REGISTER}?kind=guest"), json!({})).await;
    refused.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
}

async fn a_guest_becomes_a_person(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let ann = guest(&site.url).await;
    let room = room(&alice, "can_join").await;
    ann.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let localpart = ann.user[1..].split(':').next().unwrap();
    let wanted = |name: &str, token: &str| {
        json!({
            "username": name, "password": "correct horse", "guest_access_token": token,
            "auth": {"type": "m.login.dummy"},
        })
    };
    let nobody = Raw::nobody(&site.url);
    // With no token, somebody else's, or a person's nothing is taken over.
    for token in ["nonsense", &alice.token] {
        nobody.post(REGISTER, wanted(localpart, token)).await.refused(403, "M_FORBIDDEN");
    }
    let other = guest(&site.url).await;
    nobody.post(REGISTER, wanted(localpart, &other.token)).await.refused(403, "M_FORBIDDEN");
    let made = nobody.post(REGISTER, wanted(localpart, &ann.token)).await.fine();
    assert_eq!(made["user_id"], ann.user);
    let person = nobody.with_token(made["access_token"].as_str().unwrap());
    assert_ne!(person.get("/_matrix/client/v3/account/whoami").await.fine()["is_guest"], true);
    let joined = person.get("/_matrix/client/v3/joined_rooms").await.fine();
    assert_eq!(joined["joined_rooms"], json!([room]));
    person.create_room(json!({})).await;
    let login = json!({
        "type": "m.login.password", "password": "correct horse",
        "identifier": {"type": "m.id.user", "user": ann.user},
    });
    nobody.post("/_matrix/client/v3/login", login).await.fine();
}

/// The same where the room is another server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_of_other_servers_say_so_too() {
    let federation = Federation::start().await;
    let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
    let beta = federation.nodes[1].client_url();
    let ann = guest(&beta).await;
    let (lets_in, keeps_out) = (room(&alice, "can_join").await, room(&alice, "forbidden").await);
    let path = |room: &str| format!("/_matrix/client/v3/join/{room}?via={}", NAMES[0]);
    ann.post(&path(&keeps_out), json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    let joined = ann.get("/_matrix/client/v3/sync").await.fine();
    assert!(joined["rooms"]["join"].get(&keeps_out).is_none(), "{joined}");
    ann.post(&path(&lets_in), json!({})).await.fine();
    ann.send_sealed(&lets_in, "1").await.fine();
    alice.put(&at(&lets_in, "state/m.room.guest_access/"), json!({"guest_access": "forbidden"})).await.fine();
    until_gone(&alice, &lets_in, &ann.user).await;
}
