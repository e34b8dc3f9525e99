//! Invitations by an address: a small identity server on the loopback, which is honest or not.

use crate::federation::{Federation, NAMES};
use crate::http::{Answer, Raw, at, careless};
use crate::node::free_port;
use axum::extract::{Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use waxwing_rooms::KeyPair;

const PEPPER: &str = "pepper";

/// What the identity server knows and was told.
#[derive(Default)]
struct Known {
    /// Users by address.
    users: BTreeMap<String, String>,
    /// Invitations that it keeps.
    stored: Vec<Value>,
    /// Whether its keys no longer count.
    revoked: bool,
    tokens: Vec<String>,
}

struct Inner {
    name: String,
    key: KeyPair,
    known: Mutex<Known>,
}

/// A running identity server.
struct IdentityServer(Arc<Inner>);

impl IdentityServer {
    async fn start(folder: &Path) -> IdentityServer {
        let port = free_port();
        let at = |file: &str| folder.join(file);
        let tls = RustlsConfig::from_pem_file(at("localhost.certificate.pem"), at("localhost.key.pem"));
        waxwing_client::install_tls_provider();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let server = axum_server::bind_rustls(address, tls.await.unwrap());
        let inner = Arc::new(Inner {
            name: format!("localhost:{port}"),
            key: KeyPair::generate().unwrap(),
            known: Mutex::default(),
        });
        let routes = Router::new()
            .route(
                "/_matrix/identity/v2/hash_details",
                get(|| async { Json(json!({"algorithms": ["none", "sha256"], "lookup_pepper": PEPPER})) }),
            )
            .route("/_matrix/identity/v2/lookup", post(lookup))
            .route("/_matrix/identity/v2/store-invite", post(store))
            .route("/_matrix/identity/v2/pubkey/isvalid", get(is_valid))
            .with_state(Arc::clone(&inner));
        tokio::spawn(async move { server.serve(routes.into_make_service()).await.unwrap() });
        IdentityServer(inner)
    }

    fn known<T>(&self, with: impl FnOnce(&mut Known) -> T) -> T {
        with(&mut self.0.known.lock().unwrap())
    }

    /// What a client asks its server for.
    fn invitation(&self, address: &str) -> Value {
        json!({"id_server": self.0.name, "id_access_token": "secret", "medium": "email", "address": address})
    }

    /// Tells the user's server that an address was proven.
    async fn bind(&self, server: &str, user: &str, room: &str, sender: &str, signed: Value) -> Answer {
        let body = json!({
            "medium": "email", "address": "bob@example.org", "mxid": user,
            "invites": [{
                "medium": "email", "address": "bob@example.org", "mxid": user, "room_id": room,
                "sender": sender, "signed": signed,
            }],
        });
        let url = format!("{server}/_matrix/federation/v1/3pid/onbind");
        let request = careless().request(Method::PUT, url).body(body.to_string());
        Answer::of(request.send().await.unwrap()).await
    }
}

/// Says that `user` has the address of the invitation, signed by `key`.
fn signed(key: &KeyPair, user: &str, token: &str, sender: &str) -> Value {
    let signed = json!({"mxid": user, "token": token, "sender": sender});
    let mut object = serde_json::from_value(signed).unwrap();
    key.sign_json("localhost".try_into().unwrap(), &mut object).unwrap();
    serde_json::to_value(object).unwrap()
}

async fn lookup(State(inner): State<Arc<Inner>>, Json(asked): Json<Value>) -> Json<Value> {
    assert_eq!((&asked["algorithm"], &asked["pepper"]), (&json!("sha256"), &json!(PEPPER)));
    let known = inner.known.lock().unwrap();
    let hash = |address: &str| {
        URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{address} email {PEPPER}").as_bytes()))
    };
    let all: BTreeMap<String, &String> =
        known.users.iter().map(|(address, user)| (hash(address), user)).collect();
    let asked = asked["addresses"].as_array().unwrap().iter().map(|hash| hash.as_str().unwrap());
    let found: BTreeMap<&str, &String> = asked.filter_map(|hash| Some((hash, *all.get(hash)?))).collect();
    Json(json!({ "mappings": found }))
}

async fn store(
    State(inner): State<Arc<Inner>>,
    headers: http::HeaderMap,
    Json(invite): Json<Value>,
) -> Json<Value> {
    let mut known = inner.known.lock().unwrap();
    known.tokens.push(headers["authorization"].to_str().unwrap().to_owned());
    known.stored.push(invite);
    let token = format!("token{}", known.stored.len());
    let url = format!("https://{}/_matrix/identity/v2/pubkey/isvalid", inner.name);
    let public = inner.key.public_key().encode();
    Json(json!({
        "token": token, "display_name": "b...@e...",
        "public_keys": [
            {"public_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "key_validity_url": url},
            {"public_key": public, "key_validity_url": url},
        ],
    }))
}

async fn is_valid(
    State(inner): State<Arc<Inner>>,
    Query(asked): Query<BTreeMap<String, String>>,
) -> Json<Value> {
    let known = inner.known.lock().unwrap();
    let valid = !known.revoked && asked["public_key"] == inner.key.public_key().encode();
    Json(json!({ "valid": valid }))
}

/// Alice at the first server, her room, and somebody at the same or the other one.
struct Cast {
    federation: Federation,
    identity: IdentityServer,
    alice: Raw,
    room: String,
}

impl Cast {
    async fn new() -> Cast {
        let federation = Federation::start().await;
        let identity = IdentityServer::start(federation.folder()).await;
        let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
        let room = alice.create_room(json!({"preset": "private_chat", "name": "Tea"})).await;
        Cast { federation, identity, alice, room }
    }

    /// Invites by address; gives the token under which the identity server keeps the invitation.
    async fn invite(&self, address: &str) -> String {
        self.alice.post(&at(&self.room, "invite"), self.identity.invitation(address)).await.fine();
        format!("token{}", self.identity.known(|known| known.stored.len()))
    }

    /// Proves that the address of an invitation is `who`'s.
    async fn prove(&self, who: &Raw, key: &KeyPair, token: &str) -> Answer {
        let said = signed(key, &who.user, token, &self.alice.user);
        let sender = &self.alice.user;
        let server = &who.base;
        self.identity.bind(server, &who.user, &self.room, sender, said).await
    }

    async fn membership(&self, user: &str) -> Answer {
        self.alice.get(&at(&self.room, &format!("state/m.room.member/{user}"))).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_an_address_is_invited_here_and_elsewhere() {
    let cast = Cast::new().await;
    for node in &cast.federation.nodes {
        let bob = Raw::register(&node.client_url(), "bob").await;
        let token = cast.invite(" Bob@Example.org").await;
        // The identity server can write a letter that says what it is about.
        let stored = cast.identity.known(|known| known.stored.last().cloned().unwrap());
        assert_eq!(stored["address"], "bob@example.org");
        assert_eq!((&stored["room_id"], &stored["room_name"]), (&json!(cast.room), &json!("Tea")));
        assert_eq!(stored["sender"], cast.alice.user);
        let tokens = cast.identity.known(|known| known.tokens.clone());
        assert!(tokens.iter().all(|token| token == "Bearer secret"), "{tokens:?}");
        let path = at(&cast.room, &format!("state/m.room.third_party_invite/{token}"));
        let event = cast.alice.get(&path).await.fine();
        assert_eq!(
            (&event["display_name"], event["public_keys"].as_array().unwrap().len()),
            (&json!("b...@e..."), 2)
        );
        cast.membership(&bob.user).await.refused(404, "M_NOT_FOUND");
        cast.prove(&bob, &cast.identity.0.key, &token).await.fine();
        let invited = |sync: &Answer| sync.body["rooms"]["invite"][&cast.room].is_object();
        bob.until("/_matrix/client/v3/sync", invited).await;
        let invited = cast.membership(&bob.user).await.fine();
        assert_eq!(invited["membership"], "invite");
        assert_eq!(invited["third_party_invite"]["signed"]["token"], token, "{invited}");
        bob.post(&format!("/_matrix/client/v3/join/{}", cast.room), json!({})).await.fine();
        let joined = format!("state/m.room.member/{}", bob.user);
        cast.alice.until(&at(&cast.room, &joined), |member| member.body["membership"] == "join").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_up_an_invitation_that_is_not_theirs() {
    let cast = Cast::new().await;
    let [here, there] = &cast.federation.nodes;
    let token = cast.invite("bob@example.org").await;
    let forger = KeyPair::generate().unwrap();
    for node in [here, there] {
        let eve = Raw::register(&node.client_url(), "eve").await;
        let mallory = Raw::register(&node.client_url(), "mallory").await;
        // A key that is not the invitation's, a token that is none, and what was signed of somebody else.
        cast.prove(&eve, &forger, &token).await.fine();
        cast.prove(&eve, &cast.identity.0.key, "token99").await.fine();
        let other = signed(&cast.identity.0.key, &mallory.user, &token, &cast.alice.user);
        cast.identity.bind(&eve.base, &eve.user, &cast.room, &cast.alice.user, other.clone()).await.fine();
        let join = format!("/_matrix/client/v3/join/{}", cast.room);
        let via = format!("{join}?via={}", NAMES[0]);
        let mut stolen = other.clone();
        stolen["sender"] = json!(cast.alice.user);
        eve.post(&via, json!({"third_party_signed": stolen})).await.refused(403, "M_FORBIDDEN");
        let mut changed = other;
        changed["mxid"] = json!(eve.user);
        eve.post(&via, json!({"third_party_signed": changed})).await.refused(403, "M_FORBIDDEN");
        // Its keys no longer count.
        cast.identity.known(|known| known.revoked = true);
        cast.prove(&eve, &cast.identity.0.key, &token).await.fine();
        cast.identity.known(|known| known.revoked = false);
        cast.membership(&eve.user).await.refused(404, "M_NOT_FOUND");
        cast.membership(&mallory.user).await.refused(404, "M_NOT_FOUND");
    }
    // She takes it back.
    let taken = at(&cast.room, &format!("state/m.room.third_party_invite/{token}"));
    cast.alice.put(&taken, json!({})).await.fine();
    let bob = Raw::register(&here.client_url(), "bob").await;
    cast.prove(&bob, &cast.identity.0.key, &token).await.fine();
    cast.membership(&bob.user).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_known_is_a_user_and_who_may_not_invite_tells_nobody() {
    let cast = Cast::new().await;
    let node = &cast.federation.nodes[0];
    let bob = Raw::register(&node.client_url(), "bob").await;
    let carol = Raw::register(&node.client_url(), "carol").await;
    let user = bob.user.clone();
    cast.identity.known(|known| known.users.insert("bob@example.org".to_owned(), user));
    cast.alice.post(&at(&cast.room, "invite"), cast.identity.invitation("bob@example.org")).await.fine();
    assert_eq!(cast.membership(&bob.user).await.fine()["membership"], "invite");
    assert!(cast.identity.known(|known| known.stored.is_empty()));
    // Neither who is not in the room nor who has not the power to.
    let carols = cast.identity.invitation("dave@example.org");
    carol.post(&at(&cast.room, "invite"), carols.clone()).await.refused(403, "M_FORBIDDEN");
    bob.post(&format!("/_matrix/client/v3/join/{}", cast.room), json!({})).await.fine();
    let levels = at(&cast.room, "state/m.room.power_levels/");
    let mut content = cast.alice.get(&levels).await.fine();
    content["invite"] = json!(50);
    cast.alice.put(&levels, content).await.fine();
    bob.post(&at(&cast.room, "invite"), carols).await.refused(403, "M_FORBIDDEN");
    assert!(cast.identity.known(|known| known.stored.is_empty()));
    for (field, value, status, code) in [
        ("medium", "pigeon", 400, "M_INVALID_PARAM"),
        ("address", "", 400, "M_INVALID_PARAM"),
        ("id_server", "localhost:1", 502, "M_UNKNOWN"),
        ("id_server", "10.0.0.1/x", 400, "M_INVALID_PARAM"),
    ] {
        let mut wrong = cast.identity.invitation("dave@example.org");
        wrong[field] = json!(value);
        cast.alice.post(&at(&cast.room, "invite"), wrong).await.refused(status, code);
    }
    // A new room invites by address too.
    let made =
        json!({"preset": "private_chat", "invite_3pid": [cast.identity.invitation("dave@example.org")]});
    let room = cast.alice.create_room(made).await;
    let stored = cast.identity.known(|known| known.stored.clone());
    assert_eq!((stored.len(), &stored[0]["room_id"]), (1, &json!(room)));
    cast.alice.get(&at(&room, "state/m.room.third_party_invite/token1")).await.fine();
}
