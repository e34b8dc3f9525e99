//! Two organisations: servers of different names that exchange sealed letters.

use crate::http::{Answer, Raw, careless};
use crate::letters::compare;
use crate::node::Node;
use crate::site::{PASSWORD, PATIENCE, register_at, room_of_two};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use waxwing_client::{Channel, Client};
use waxwing_storage::Store;

pub const NAMES: [&str; 2] = ["alpha.localhost", "beta.localhost"];

pub struct Federation {
    pub nodes: [Node; 2],
    folder: TempDir,
}

impl Federation {
    pub async fn start() -> Federation {
        Federation::start_with([&[], &[]]).await
    }

    /// Each server with settings of its own.
    pub async fn start_with(more: [&[&str]; 2]) -> Federation {
        let folder = tempfile::tempdir().unwrap();
        write_certificates_for(folder.path(), &[NAMES[0], NAMES[1], "localhost"]);
        let at = |file: String| folder.path().join(file).display().to_string();
        let mut nodes = NAMES.map(|name| {
            let settings = [
                format!("server_name={name}"),
                format!("tls.certificate={}", at(format!("{name}.certificate.pem"))),
                format!("tls.key={}", at(format!("{name}.key.pem"))),
                format!("tls.extra_roots=[\"{}\"]", at("authority.pem".to_owned())),
                "federation.allow_private_addresses=true".to_owned(),
            ];
            Node::new(&folder.path().join(name), &settings)
        });
        let hosts = format!(
            "federation.hosts={{ \"{}\" = \"127.0.0.1:{}\", \"{}\" = \"127.0.0.1:{}\" }}",
            NAMES[0], nodes[0].federation_port, NAMES[1], nodes[1].federation_port
        );
        for (node, more) in nodes.iter_mut().zip(more) {
            for setting in more {
                node.set((*setting).to_owned());
            }
            node.set(hosts.clone());
            node.start().await;
        }
        Federation { nodes, folder }
    }

    /// Where the certificates are: each server's, one of `localhost`, and the authority's.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A person at each server.
    pub async fn people(&self) -> (Client, Client) {
        let at = |name: &str| self.folder.path().join("people").join(name);
        let alice = register_at(&self.nodes[0].client_url(), &at("alice"), "alice").await;
        let bob = register_at(&self.nodes[1].client_url(), &at("bob"), "bob").await;
        (alice, bob)
    }
}

/// One authority, and a certificate for each server.
pub fn write_certificates(folder: &Path) {
    write_certificates_for(folder, &NAMES);
}

/// The same for these servers.
pub fn write_certificates_for(folder: &Path, names: &[&str]) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Waxwing test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(folder.join("authority.pem"), authority.pem()).unwrap();
    for name in names {
        let params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        fs::write(folder.join(format!("{name}.certificate.pem")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key.pem")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_organisations_exchange_sealed_letters() {
    let federation = Federation::start().await;
    let (alice, bob) = federation.people().await;
    let room = room_of_two(&alice, &bob).await;
    for (from, to, words) in [(&alice, &bob, "from alpha"), (&bob, &alice, "from beta")] {
        from.send_text(&room, words).await.unwrap();
        let heard = to.wait_for_text(&room, words, PATIENCE).await.unwrap();
        assert!(heard.is_encrypted());
        assert_eq!(heard.sender, from.user_id());
        let file: Vec<u8> = words.bytes().cycle().take(200_000).collect();
        let event_id = from.send_file(&room, "seeds.bin", None, &file).await.unwrap();
        let event = to.wait_for_event(|event| event.event_id == event_id, PATIENCE).await.unwrap();
        assert_eq!(to.download(event.attachment().unwrap()).await.unwrap(), file);
    }
    for node in &federation.nodes {
        let audit = node.run(&["audit"]).await;
        assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_wait_for_a_server_that_was_down() {
    let mut federation = Federation::start().await;
    let (alice, bob) = federation.people().await;
    let room = room_of_two(&alice, &bob).await;
    // Their devices must know each other: a server that is down cannot give out keys.
    alice.send_text(&room, "good night").await.unwrap();
    bob.wait_for_text(&room, "good night", PATIENCE).await.unwrap();
    federation.nodes[1].stop().await;
    for number in 0..5 {
        alice.send_text(&room, &format!("letter {number}")).await.unwrap();
    }
    federation.nodes[1].start().await;
    // A word from beta tells alpha that it is back, if alpha's own patience has not ended by then.
    bob.send_text(&room, "I am back").await.unwrap();
    for number in 0..5 {
        bob.wait_for_text(&room, &format!("letter {number}"), PATIENCE * 2).await.unwrap();
    }
    alice.wait_for_text(&room, "I am back", PATIENCE).await.unwrap();
}

/// Two servers go on without each other; what one of them set meanwhile holds on both afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_are_joined_with_what_either_set() {
    let mut federation = Federation::start().await;
    let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
    let bob = Raw::register(&federation.nodes[1].client_url(), "bob").await;
    let room = bob.create_room(json!({ "preset": "public_chat" })).await;
    let path = |rest: &str| format!("/_matrix/client/v3/rooms/{room}/{rest}");
    alice.post(&format!("/_matrix/client/v3/join/{room}?via={}", NAMES[1]), json!({})).await.fine();
    alice.send_sealed(&room, "one").await.fine();
    let began = Instant::now();
    while !bob.get(&path("messages?dir=b&limit=1")).await.fine().to_string().contains("m.room.encrypted") {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    federation.nodes[1].stop().await;
    for transaction in ["two", "three"] {
        alice.send_sealed(&room, transaction).await.fine();
    }
    federation.nodes[0].stop().await;
    federation.nodes[1].start().await;
    bob.put(&path("state/m.room.name/"), json!({ "name": "Fork" })).await.fine();
    federation.nodes[0].start().await;
    // A word in another room tells beta that alpha is back.
    alice.create_room(json!({ "preset": "private_chat", "invite": [&bob.user] })).await;
    let began = Instant::now();
    while alice.get(&path("state/m.room.name/")).await.body["name"] != "Fork" {
        let page = alice.get(&path("messages?dir=b&limit=5")).await.body;
        assert!(began.elapsed() < PATIENCE * 2, "the name does not arrive: {page}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    alice.send_sealed(&room, "four").await.fine();
    let name = alice.get(&path("state/m.room.name/")).await.fine();
    assert_eq!(name["name"], "Fork");
    // What came late is part of what was before.
    let filter = "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:2%7D%7D%7D";
    let synced = alice.get(&format!("/_matrix/client/v3/sync?filter={filter}")).await.fine();
    let entry = &synced["rooms"]["join"][&room];
    let state = entry["state"]["events"].as_array().unwrap();
    assert!(state.iter().any(|event| event["content"]["name"] == "Fork"), "{entry}");
    let from = entry["timeline"]["prev_batch"].as_str().unwrap();
    let page = alice.get(&path(&format!("messages?dir=b&limit=3&from={from}"))).await.fine();
    assert!(page["chunk"].to_string().contains("Fork"), "{page}");
}

/// What was written for a server that is away is there after a crash of ours, and goes out once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_for_a_server_that_is_away_survive_a_crash_of_ours() {
    let mut federation = Federation::start().await;
    let (alice, bob) = federation.people().await;
    let room = room_of_two(&alice, &bob).await;
    alice.send_text(&room, "good night").await.unwrap();
    bob.wait_for_text(&room, "good night", PATIENCE).await.unwrap();
    federation.nodes[1].stop().await;
    let mut sent = Vec::new();
    for number in 0..4 {
        sent.push(alice.send_text(&room, &format!("letter {number}")).await.unwrap());
        if number % 2 == 1 {
            // Once when it has just been written, once when it has failed.
            federation.nodes[0].kill().await;
            federation.nodes[0].start().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    federation.nodes[1].start().await;
    bob.send_text(&room, "I am back").await.unwrap();
    for number in 0..4 {
        bob.wait_for_text(&room, &format!("letter {number}"), PATIENCE * 2).await.unwrap();
    }
    alice.wait_for_text(&room, "I am back", PATIENCE).await.unwrap();
    // Nothing is left that waits, not even a note that it once did.
    let database = format!("sqlite:{}", federation.nodes[0].data().join("waxwing.db").display());
    let store = Store::open(&database).await.unwrap();
    for _ in 0..100 {
        let mut conn = store.read().await.unwrap();
        let own = conn.destinations_waiting(10).await.unwrap();
        let behind = conn.destinations_behind().await.unwrap();
        if own.is_empty() && behind.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("something still waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_of_two_organisations_verify_each_other() {
    let federation = Federation::start().await;
    let (alice, bob) = federation.people().await;
    alice.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    bob.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    let room = room_of_two(&alice, &bob).await;
    compare(&alice, &bob, Channel::Room(&room)).await;
    assert!(alice.is_user_verified(bob.user_id()).await.unwrap());
    assert!(bob.is_user_verified(alice.user_id()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_servers_signature_is_refused() {
    let federation = Federation::start().await;
    let client = careless();
    let alpha = federation.nodes[0].federation_url();
    let beta = federation.nodes[1].federation_url();
    let keys = client.get(format!("{beta}/_matrix/key/v2/server")).send().await.unwrap();
    let keys = Answer::of(keys).await.fine();
    assert_eq!(keys["server_name"], NAMES[1]);
    let key = keys["verify_keys"].as_object().unwrap().keys().next().unwrap();
    let forged = "A".repeat(86);
    let header = |origin: &str, destination: &str, key: &str, signature: &str| {
        format!(r#"X-Matrix origin="{origin}",destination="{destination}",key="{key}",sig="{signature}""#)
    };
    let path = "/_matrix/federation/v1/send/1";
    let body = json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": [], "edus": []});
    for authorization in [
        None,
        Some("Bearer abc".to_owned()),
        Some("X-Matrix nonsense".to_owned()),
        // The origin exists, its key too, but did not sign.
        Some(header(NAMES[1], NAMES[0], key, &forged)),
        // A key that it does not have.
        Some(header(NAMES[1], NAMES[0], "ed25519:other", &forged)),
        // Meant for somebody else.
        Some(header(NAMES[1], NAMES[1], key, &forged)),
        // Our own name.
        Some(header(NAMES[0], NAMES[0], key, &forged)),
        // Nobody's name.
        Some(header("nobody.invalid", NAMES[0], key, &forged)),
        Some(header("../..", NAMES[0], key, &forged)),
    ] {
        let mut request = client.put(format!("{alpha}{path}")).body(body.to_string());
        if let Some(value) = &authorization {
            request = request.header("authorization", value);
        }
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.status.as_u16(), 401, "{authorization:?} {}", answer.body);
        assert!(
            matches!(answer.code(), "M_UNAUTHORIZED" | "M_FORBIDDEN"),
            "{authorization:?} {}",
            answer.body
        );
    }
    let unknown = client.get(format!("{alpha}/_matrix/federation/v1/nonsense")).send().await.unwrap();
    Answer::of(unknown).await.refused(404, "M_UNRECOGNIZED");
}
