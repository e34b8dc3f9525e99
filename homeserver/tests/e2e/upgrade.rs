//! Two versions of the program side by side on one PostgreSQL: how an organisation upgrades without a pause.
//!
//! The older one is the program that `WAXWING_PREVIOUS_BIN` names; `scripts/upgrade.sh` builds the previous release and
//! does so. Without it, the older one is this program, and the schema is one of the future: with a table and a column
//! that it does not know, and a word that it may go on.

use super::http::Raw;
use super::node::Node;
use super::postgres::Database;
use reqwest::Method;
use serde_json::{Value, json};
use std::fs;

/// What a release of the future might add.
const FUTURE: &[&str] = &[
    "ALTER TABLE users ADD COLUMN of_the_future TEXT NOT NULL DEFAULT ''",
    "CREATE TABLE things_of_the_future (id BIGINT NOT NULL PRIMARY KEY)",
    "INSERT INTO schema_migrations (version, name) VALUES (9999, '9999_future')",
];

/// One says something at one node, and both read it at both nodes.
async fn talk(who: &Raw, other: &Raw, room: &str, at: [&str; 2], mark: &str) {
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{mark}");
    let sent = who.at(at[0]).send(Method::PUT, &path, super::http::sealed(mark).to_string()).await.fine();
    for person in [who, other] {
        for node in at {
            let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=5");
            let page = person.at(node).get(&path).await.fine();
            let newest =
                page["chunk"].as_array().unwrap().iter().find(|event| event["event_id"] == sent["event_id"]);
            assert!(newest.is_some(), "{mark} is not there at {node}");
            // The word comes by the log as well.
            let sync = person.at(node).get("/_matrix/client/v3/sync?timeout=0").await.fine();
            let timeline = &sync["rooms"]["join"][room]["timeline"]["events"];
            assert!(timeline.as_array().unwrap().iter().any(|event| event["event_id"] == sent["event_id"]));
        }
    }
}

async fn join(who: &Raw, room: &str, at: &str) {
    who.at(at).post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_two_versions_run_side_by_side() {
    let Some(database) = Database::create() else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        format!("database={}", database.url()),
        format!("media.path={}", folder.path().join("media").display()),
    ];
    let previous = std::env::var_os("WAXWING_PREVIOUS_BIN");
    let mut older = Node::new(&folder.path().join("older"), &settings);
    if let Some(program) = &previous {
        older.is_run_by(program.into());
    }
    older.start().await;
    let mut newer = Node::new(&folder.path().join("newer"), &settings);
    fs::create_dir_all(newer.data()).unwrap();
    fs::copy(older.data().join("signing.key"), newer.data().join("signing.key")).unwrap();

    let alice = Raw::register(&older.client_url(), "alice").await;
    let room = alice.create_room(json!({"preset": "public_chat"})).await;
    if previous.is_none() {
        for statement in FUTURE {
            database.execute(statement);
        }
    }
    newer.start().await;
    let (old, new) = (older.client_url(), newer.client_url());
    let bob = Raw::register(&new, "bob").await;
    join(&bob, &room, &old).await;
    talk(&alice, &bob, &room, [&old, &new], "first").await;
    talk(&bob, &alice, &room, [&new, &old], "second").await;

    // The older one is started again, on the newer schema; and goes on alone when the upgrade is taken back.
    older.stop().await;
    older.start().await;
    talk(&alice, &bob, &room, [&old, &new], "third").await;
    newer.stop().await;
    talk(&bob, &alice, &room, [&old, &old], "fourth").await;
    let me: Value = bob.at(&old).get("/_matrix/client/v3/account/whoami").await.fine();
    assert_eq!(me["user_id"], bob.user);
}
