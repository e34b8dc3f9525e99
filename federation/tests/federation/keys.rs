//! The key ring, request authentication and the notary on a simulated network.

use crate::sim::{NOW, Network, identity, us};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ruma::OwnedServerSigningKeyId;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_federation::keys::{KeyDocument, KeyNeeds, OwnKeys, answer_notary_query};
use waxwing_federation::ports::{KeyStore, ServerKeyRecord};
use waxwing_federation::signing::{AuthError, Incoming, authorization, verify_request};

const DAY: u64 = 24 * 60 * 60 * 1000;

fn name(text: &str) -> &ruma::ServerName {
    text.try_into().unwrap()
}

fn key_id() -> OwnedServerSigningKeyId {
    "ed25519:k1".try_into().unwrap()
}

fn document(server: &str, seed: u8, now: u64) -> Value {
    let own = OwnKeys::new(identity(server, seed), Vec::new());
    serde_json::from_str(own.document(now).unwrap().get()).unwrap()
}

fn needs(servers: &[&str], at: u64) -> KeyNeeds {
    servers.iter().map(|server| ((*server).try_into().unwrap(), BTreeMap::from([(key_id(), at)]))).collect()
}

#[tokio::test]
async fn a_signed_request_is_accepted_and_a_changed_one_is_not() {
    let network = Arc::new(Network::default());
    let us = us(&network, &[]);
    network.add("them.test", |_| Some((200, document("them.test", 2, NOW))));
    let body = br#"{"pdus":[],"n":1}"#;
    let path = "/_matrix/federation/v1/send/1?x=%41";
    let header = authorization(&identity("them.test", 2), name("us.test"), "PUT", path, Some(body)).unwrap();
    let verify = async |header: &str, method: &str, path: &str, body: &[u8]| {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
        let request = Incoming { method, path_and_query: path, headers: &headers, body };
        verify_request(&us.ring, name("us.test"), request).await
    };
    assert_eq!(verify(&header, "PUT", path, body).await.unwrap(), "them.test");
    assert!(matches!(
        verify(&header, "PUT", "/_matrix/federation/v1/send/1?x=A", body).await,
        Err(AuthError::BadSignature)
    ));
    assert!(matches!(verify(&header, "PUT", path, b"{}").await, Err(AuthError::BadSignature)));
    assert!(matches!(verify(&header, "PUT", path, b"{").await, Err(AuthError::Body)));
    let without = header.replace("destination=\"us.test\",", "");
    assert!(verify(&without, "PUT", path, body).await.is_ok());
    let elsewhere = header.replace("\"us.test\"", "\"else.test\"");
    assert!(matches!(verify(&elsewhere, "PUT", path, body).await, Err(AuthError::WrongDestination)));
    let ourselves = header.replace("them.test", "us.test");
    assert!(matches!(verify(&ourselves, "PUT", path, body).await, Err(AuthError::FromOurselves)));
    let unknown = header.replace("ed25519:k1", "ed25519:k2");
    assert!(matches!(verify(&unknown, "PUT", path, body).await, Err(AuthError::UnknownKey(..))));
    assert!(matches!(verify("Bearer x", "PUT", path, body).await, Err(AuthError::Missing)));
}

#[tokio::test]
async fn an_expired_key_verifies_old_events_but_no_request() {
    let network = Arc::new(Network::default());
    let us = us(&network, &[]);
    network.add("them.test", |_| Some((200, document("them.test", 2, NOW))));
    assert!(us.ring.request_key(name("them.test"), &key_id()).await.unwrap().is_some());
    network.remove("them.test");
    us.clock.advance(3 * DAY);
    assert!(us.ring.request_key(name("them.test"), &key_id()).await.unwrap().is_none());
    let needs = needs(&["them.test"], NOW);
    let book = us.ring.gather(&needs).await.unwrap();
    assert_eq!(book.map(&needs, Some(NOW))["them.test"].len(), 1);
    assert_eq!(book.map(&needs, Some(NOW + 3 * DAY))["them.test"].len(), 0);
    assert_eq!(book.map(&needs, None)["them.test"].len(), 1);
}

#[tokio::test]
async fn a_server_that_was_set_up_anew_with_the_old_key_id_is_believed_after_asking_it() {
    let network = Arc::new(Network::default());
    let us = us(&network, &[]);
    network.add("them.test", |_| Some((200, document("them.test", 2, NOW))));
    us.ring.request_key(name("them.test"), &key_id()).await.unwrap().unwrap();
    network.remove("them.test");
    network.add("them.test", |_| Some((200, document("them.test", 3, NOW))));
    let path = "/_matrix/federation/v1/version";
    let verify = async |seed: u8| {
        let header = authorization(&identity("them.test", seed), name("us.test"), "GET", path, None).unwrap();
        let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
        let request = Incoming { method: "GET", path_and_query: path, headers: &headers, body: b"" };
        verify_request(&us.ring, name("us.test"), request).await
    };
    // Not at once: anybody can write a wrong signature.
    assert!(matches!(verify(3).await, Err(AuthError::BadSignature)));
    assert_eq!(network.count("/key/v2/server"), 1);
    us.clock.advance(11_000);
    assert_eq!(verify(3).await.unwrap(), "them.test");
    assert!(matches!(verify(2).await, Err(AuthError::BadSignature)));
    assert_eq!(network.count("/key/v2/server"), 2);
}

#[tokio::test]
async fn many_askers_make_one_fetch_and_a_dead_server_is_left_alone() {
    let network = Arc::new(Network::default());
    let us = us(&network, &[]);
    network.add("them.test", |_| Some((200, document("them.test", 2, NOW))));
    let ring = &us.ring;
    let id = key_id();
    let asks = (0..20).map(|_| ring.request_key(name("them.test"), &id));
    assert!(futures_util::future::join_all(asks).await.into_iter().all(|key| key.unwrap().is_some()));
    assert_eq!(network.count("/key/v2/server"), 1);
    for _ in 0..5 {
        assert!(ring.request_key(name("dead.test"), &id).await.unwrap().is_none());
    }
    assert_eq!(network.count("/key/v2/server"), 2);
    us.clock.advance(11_000);
    assert!(ring.request_key(name("dead.test"), &id).await.unwrap().is_none());
    assert_eq!(network.count("/key/v2/server"), 3);
    // For events it is left alone for longer and longer.
    us.clock.advance(11_000);
    ring.gather(&needs(&["dead.test"], 0)).await.unwrap();
    assert_eq!(network.count("/key/v2/server"), 3);
}

#[tokio::test]
async fn keys_survive_a_restart_and_a_false_document_is_not_believed() {
    let network = Arc::new(Network::default());
    let us = us(&network, &[]);
    network.add("them.test", |_| Some((200, document("them.test", 2, NOW))));
    us.ring.request_key(name("them.test"), &key_id()).await.unwrap().unwrap();
    let record: ServerKeyRecord = us.keys.server_keys_load(name("them.test")).await.unwrap().unwrap();
    assert_eq!((record.keys.len(), record.fetched_at), (1, NOW));
    assert!(record.document.is_some());
    network.add("liar.test", |_| Some((200, document("them.test", 2, NOW))));
    assert!(us.ring.request_key(name("liar.test"), &key_id()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_notary_stands_in_for_dead_servers() {
    let network = Arc::new(Network::default());
    let us = us(&network, &["notary.test"]);
    let answer = move |request: &waxwing_federation::transport::Request, sign: bool| {
        let notary = OwnKeys::new(identity("notary.test", 9), Vec::new());
        if request.path_and_query == "/_matrix/key/v2/server" {
            return Some((200, document("notary.test", 9, NOW)));
        }
        let body: Value = serde_json::from_slice(request.body.as_ref()?).unwrap();
        let asked = body["server_keys"].as_object().unwrap().keys();
        let documents: Vec<Value> = asked
            .map(|server| {
                let raw = RawValue::from_string(document(server, 3, NOW).to_string()).unwrap();
                let signed = if sign { notary.countersign(&raw).unwrap() } else { raw };
                serde_json::from_str(signed.get()).unwrap()
            })
            .collect();
        Some((200, json!({ "server_keys": documents })))
    };
    network.add("notary.test", move |request| answer(request, true));
    assert!(us.ring.request_key(name("dead.test"), &key_id()).await.unwrap().is_some());
    // Many at once are asked for in one question, and nobody else is bothered.
    let before = network.log.lock().len();
    let names: Vec<String> = (0..20).map(|n| format!("dead{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let needs = needs(&names, NOW);
    let book = us.ring.gather(&needs).await.unwrap();
    assert!(book.map(&needs, Some(NOW)).values().all(|keys| keys.len() == 1));
    assert_eq!(network.log.lock().len(), before + 1);
    // A notary that does not sign is not believed.
    network.add("notary.test", move |request| answer(request, false));
    assert!(us.ring.request_key(name("other.test"), &key_id()).await.unwrap().is_none());
}

#[tokio::test]
async fn as_a_notary_we_countersign_and_give_old_documents_of_the_dead() {
    let network = Arc::new(Network::default());
    let us = us(&network, &[]);
    network.add("them.test", |_| Some((200, document("them.test", 2, NOW))));
    let query = |server: &str| BTreeMap::from([(server.try_into().unwrap(), BTreeMap::new())]);
    let ask =
        async |server: &str| answer_notary_query(&us.ring, query(server), us.clock.millis()).await.unwrap();
    let answer = ask("them.test").await;
    assert!(KeyDocument::verify(name("them.test"), answer[0].clone(), NOW).is_ok());
    assert!(answer[0].get().contains("us.test"));
    ask("them.test").await;
    assert_eq!(network.count("/key/v2/server"), 1);
    network.remove("them.test");
    us.clock.advance(3 * DAY);
    assert_eq!(ask("them.test").await.len(), 1);
    assert_eq!(network.count("/key/v2/server"), 2);
    assert!(ask("never.test").await.is_empty());
    assert_eq!(ask("us.test").await.len(), 1);
}
