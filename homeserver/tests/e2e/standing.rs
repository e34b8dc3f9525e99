//! What accounts in a special standing may do, and how often a password may be tried.

use crate::http::{Raw, sealed};
use crate::site::{Shape, Site};
use reqwest::Method;
use serde_json::{Value, json};
use waxwing_storage::StoreError;

/// Bodies with a wrong password on every endpoint that asks for one.
fn attempts(device: &str) -> Vec<(Method, String, Value)> {
    let key =
        |usage: &str| json!({"user_id": "@alice:localhost", "usage": [usage], "keys": {"ed25519:k": "k"}});
    [
        (Method::POST, "account/password".to_owned(), json!({"new_password": "a new, long password"})),
        (Method::POST, "account/deactivate".to_owned(), json!({})),
        (Method::DELETE, format!("devices/{device}"), json!({})),
        (Method::POST, "delete_devices".to_owned(), json!({"devices": [device]})),
        (Method::POST, "keys/device_signing/upload".to_owned(), json!({"master_key": key("master")})),
    ]
    .into_iter()
    .map(|(method, path, mut body)| {
        body["auth"] = json!({
            "type": "m.login.password", "password": "guess",
            "identifier": {"type": "m.id.user", "user": "alice"},
        });
        (method, format!("/_matrix/client/v3/{path}"), body)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_not_guessed_through_any_endpoint() {
    let slow = "{ per_second = 0.001, burst = 3 }";
    let settings = ["rate_limits.enabled=true".to_owned(), format!("rate_limits.login={slow}")];
    for turn in 0..attempts("D").len() {
        let site = Site::start_with(Shape::Sqlite, &settings).await.unwrap();
        let alice = Raw::register(&site.url, "alice").await;
        let who = alice.get("/_matrix/client/v3/account/whoami").await.fine();
        let first = json!({"master_key": {
            "user_id": alice.user, "usage": ["master"],
            "keys": {"ed25519:l7LGhjLBRvRXZ8Y8XqPvjjFDgjRKzYQSm7sSLA4NjcM": "l7LGhjLBRvRXZ8Y8XqPvjjFDgjRKzYQSm7sSLA4NjcM"},
        }});
        alice.post("/_matrix/client/v3/keys/device_signing/upload", first).await.fine();
        let (method, path, mut body) = attempts(who["device_id"].as_str().unwrap()).swap_remove(turn);
        if body["master_key"].is_object() {
            let key = "Nm6PRhlZ6EP/qEsNhwmgOcZYLPlfKzHUqGBv7sOlXuE";
            body["master_key"] =
                json!({"user_id": alice.user, "usage": ["master"], "keys": {format!("ed25519:{key}"): key}});
        }
        let mut codes = Vec::new();
        for _ in 0..5 {
            let answer = alice.send(method.clone(), &path, body.to_string()).await;
            codes.push(answer.status.as_u16());
        }
        assert_eq!(codes, [401, 401, 401, 429, 429], "{path}");
        // Without a try nothing is counted: a client may ask what is needed.
        body.as_object_mut().unwrap().remove("auth");
        assert_eq!(alice.send(method, &path, body.to_string()).await.status.as_u16(), 401, "{path}");
    }
}

/// An account that the operator has made an administrator.
pub async fn administrator(site: &Site) -> Raw {
    let root = Raw::register(&site.url, "root").await;
    let raised: Result<bool, StoreError> = site
        .store()
        .await
        .write("test", Vec::new(), |tx| {
            Box::pin(async move {
                let mut row = tx.user_load("@root:localhost".try_into().unwrap()).await?.unwrap();
                row.admin = true;
                tx.user_standing_set(&row).await
            })
        })
        .await;
    assert!(raised.unwrap());
    let login = json!({
        "type": "m.login.password", "password": "correct horse",
        "identifier": {"type": "m.id.user", "user": "root"},
    });
    let body = root.post("/_matrix/client/v3/login", login).await.fine();
    root.with_token(body["access_token"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_account_redacts_its_own_events_alone() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let admin = administrator(&site).await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"preset": "private_chat", "invite": [bob.user]})).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let letter = |who: &Raw, id: &str| {
        let (who, path) =
            (who.clone(), format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{id}"));
        async move {
            let sent = who.put(&path, sealed("QUJD")).await.fine();
            sent["event_id"].as_str().unwrap().to_owned()
        }
    };
    let (own, other) = (letter(&alice, "1").await, letter(&bob, "2").await);
    let suspend = format!("/_matrix/client/v1/admin/suspend/{}", alice.user);
    admin.put(&suspend, json!({"suspended": true})).await.fine();
    let redact = |event: &str, id: &str| format!("/_matrix/client/v3/rooms/{room}/redact/{event}/{id}");
    // The room is hers: without the suspension she might.
    alice.put(&redact(&other, "1"), json!({})).await.refused(403, "M_USER_SUSPENDED");
    alice.put(&redact("$unknown", "2"), json!({})).await.refused(403, "M_USER_SUSPENDED");
    alice.put(&redact(&own, "3"), json!({})).await.fine();
    admin.put(&suspend, json!({"suspended": false})).await.fine();
    alice.put(&redact(&other, "4"), json!({})).await.fine();
}
