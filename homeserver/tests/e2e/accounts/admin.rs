//! What administrators and whoever runs the server can do.

use super::{administrator, login, named};
use crate::http::Raw;
use crate::site::{Shape, Site};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

const NOTICE: &str = "/_synapse/admin/v1/send_server_notice";

fn notice(to: &str, body: &str) -> Value {
    json!({"user_id": to, "content": {"msgtype": "m.text", "body": body}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_writes_to_its_people_although_it_is_sealed() {
    let settings =
        ["server_notices.enabled=true".to_owned(), "server_notices.room_name=From the aviary".to_owned()];
    let site = Site::start_with(Shape::Sqlite, &settings).await.unwrap();
    let admin = administrator(&site).await;
    let alice = Raw::register(&site.url, "alice").await;
    alice.post(NOTICE, json!({})).await.refused(403, "M_FORBIDDEN");
    // Whoever wants no invitations gets this one.
    let blocks = format!("/_matrix/client/v3/user/{}/account_data/m.invite_permission_config", alice.user);
    alice.put(&blocks, json!({"default_action": "block"})).await.fine();
    let sent = admin.post(NOTICE, notice(&alice.user, "Feeding is at noon")).await.fine();
    let event = sent["event_id"].as_str().unwrap();
    let sync = alice.get("/_matrix/client/v3/sync").await.fine();
    let (room, invited) = sync["rooms"]["invite"].as_object().unwrap().iter().next().unwrap();
    let state = invited["invite_state"]["events"].as_array().unwrap();
    assert!(state.iter().any(|event| event["content"]["name"] == "From the aviary"), "{state:?}");
    let leave = format!("/_matrix/client/v3/rooms/{room}/leave");
    alice.post(&leave, json!({})).await.refused(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM");
    alice.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let read = alice.get(&format!("/_matrix/client/v3/rooms/{room}/event/{event}")).await.fine();
    assert_eq!(
        (&read["content"]["body"], &read["sender"]),
        (&json!("Feeding is at noon"), &json!("@_server:localhost"))
    );
    let tags = alice.get(&format!("/_matrix/client/v3/user/{}/rooms/{room}/tags", alice.user)).await.fine();
    assert!(tags["tags"]["m.server_notice"].is_object());
    // The room is for reading.
    assert_eq!(alice.send_sealed(room, "1").await.status.as_u16(), 403);
    // One room for each, and the same request once.
    alice.post(&leave, json!({})).await.fine();
    let once = format!("{NOTICE}/1");
    let first = admin.put(&once, notice(&alice.user, "again")).await.fine();
    assert_eq!(admin.put(&once, notice(&alice.user, "again")).await.fine(), first);
    let sync = alice.get("/_matrix/client/v3/sync").await.fine();
    assert_eq!(sync["rooms"]["invite"].as_object().unwrap().keys().collect::<Vec<_>>(), [room]);
    admin.post(NOTICE, notice("@nobody:localhost", "x")).await.refused(404, "M_NOT_FOUND");
    admin.post(NOTICE, notice("@bob:elsewhere", "x")).await.refused(404, "M_NOT_FOUND");
    admin.post(NOTICE, json!({"user_id": alice.user})).await.refused(400, "M_MISSING_PARAM");
    // The writer is nobody's to be.
    let taken = json!({"username": "_server", "password": "p", "auth": {"type": "m.login.dummy"}});
    alice.with_token("").post("/_matrix/client/v3/register", taken).await.refused(400, "M_INVALID_USERNAME");
    login(&alice, named("_server"), "").await.refused(403, "M_FORBIDDEN");
    let audit = site.nodes[0].run(&["audit"]).await;
    let report = String::from_utf8(audit.stdout).unwrap();
    assert!(
        report.contains("server_notices: @_server:localhost") && report.contains("allowed by server_notices"),
        "{report}"
    );
    assert!(!report.contains("Feeding"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrators_tools_find_what_they_know() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let admin = administrator(&site).await;
    let alice = Raw::register(&site.url, "alice").await;
    admin.post(NOTICE, notice(&alice.user, "off")).await.refused(400, "M_UNKNOWN");
    let user = &alice.user;
    let at = |tail: &str| format!("/_synapse/admin/{tail}");
    for (method, path) in [
        ("GET", "v2/users".to_owned()),
        ("GET", format!("v2/users/{user}")),
        ("GET", "v1/server_version".to_owned()),
        ("POST", format!("v1/reset_password/{user}")),
        ("POST", format!("v1/deactivate/{user}")),
        ("PUT", format!("v1/suspend/{user}")),
        ("PUT", format!("v1/users/{user}/admin")),
    ] {
        let method: reqwest::Method = method.parse().unwrap();
        alice.send(method.clone(), &at(&path), "{}").await.refused(403, "M_FORBIDDEN");
        alice.with_token("").send(method, &at(&path), "{}").await.refused(401, "M_MISSING_TOKEN");
    }
    let listed = admin.get(&at("v2/users?from=0&limit=1")).await.fine();
    assert_eq!((&listed["total"], &listed["users"][0]["name"]), (&json!(2), &json!(user)));
    let rest =
        admin.get(&at(&format!("v2/users?from={}", listed["next_token"].as_str().unwrap()))).await.fine();
    assert_eq!(rest["users"][0]["name"], "@root:localhost");
    assert!(rest["next_token"].is_null());
    let new = json!({"new_password": "by the administrator"});
    admin.post(&at(&format!("v1/reset_password/{user}")), new).await.fine();
    alice.get("/_matrix/client/v3/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    login(&alice, named("alice"), "by the administrator").await.fine();
    let whois = admin.get(&format!("/_matrix/client/v3/admin/whois/{user}")).await.fine();
    assert_eq!(whois["user_id"], json!(user));
    admin.put(&at(&format!("v1/users/{user}/admin")), json!({"admin": true})).await.fine();
    // Administrators are not locked by each other.
    let lock = format!("/_matrix/client/v1/admin/lock/{user}");
    admin.put(&lock, json!({"locked": true})).await.refused(403, "M_FORBIDDEN");
    admin.post(&at(&format!("v1/deactivate/{user}")), json!({"erase": true})).await.fine();
    let gone = admin.get(&at(&format!("v2/users/{user}"))).await.fine();
    assert_eq!(
        (&gone["deactivated"], &gone["erased"], &gone["admin"]),
        (&json!(true), &json!(true), &json!(false))
    );
    admin.get(&lock).await.refused(404, "M_NOT_FOUND");
    admin.get("/_matrix/client/v1/admin/lock/@x:elsewhere").await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_manages_accounts_beside_a_running_server() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let node = &site.nodes[0];
    let run = async |arguments: &[&str]| {
        let done = node.run(&[&["user"][..], arguments].concat()).await;
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let whoami = async |status: u16, code: &str| {
        // What another process wrote is known within a second.
        for _ in 0..50 {
            let answer = alice.get("/_matrix/client/v3/account/whoami").await;
            if (answer.status.as_u16(), answer.code()) == (status, code) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("{status} {code} never came");
    };
    run(&["lock", "alice"]).await;
    whoami(401, "M_USER_LOCKED").await;
    assert!(run(&["list"]).await.contains("@alice:localhost\t") && run(&["list"]).await.contains("\tlocked"));
    run(&["unlock", "@alice:localhost"]).await;
    whoami(200, "").await;
    run(&["suspend", "alice"]).await;
    let room = json!({});
    for _ in 0..50 {
        let answer = alice.post("/_matrix/client/v3/createRoom", room.clone()).await;
        if answer.code() == "M_USER_SUSPENDED" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    alice.post("/_matrix/client/v3/createRoom", room).await.refused(403, "M_USER_SUSPENDED");
    run(&["unsuspend", "alice"]).await;
    run(&["promote", "alice"]).await;
    assert!(run(&["list"]).await.contains("administrator"));
    run(&["demote", "alice"]).await;
    let mut child = node.piped(&["user", "password", "alice", "--password-stdin"], Stdio::piped());
    child.stdin.take().unwrap().write_all(b"from the shell\n").await.unwrap();
    assert!(child.wait().await.unwrap().success());
    whoami(401, "M_UNKNOWN_TOKEN").await;
    login(&alice, named("alice"), "from the shell").await.fine();
    run(&["deactivate", "alice", "--erase"]).await;
    assert!(run(&["list"]).await.contains("deactivated,erased"));
    login(&alice, named("alice"), "from the shell").await.refused(403, "M_USER_DEACTIVATED");
    assert!(!node.run(&["user", "lock", "nobody"]).await.status.success());
    assert!(!node.run(&["user", "unlock", "alice"]).await.status.success());
}
