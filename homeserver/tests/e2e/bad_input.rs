//! What must be refused, and how: the specified error, nothing lost, nothing panics (a node that panicked fails its
//! test when it ends).

use crate::http::{Raw, sealed};
use crate::site::{Shape, Site};
use reqwest::Method;
use serde_json::{Value, json};
use std::fmt::Write;

async fn site() -> Site {
    Site::start(Shape::Sqlite).await.unwrap()
}

/// An account and an encrypted room of it.
async fn alice_and_room(site: &Site) -> (Raw, String) {
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({"preset": "private_chat"})).await;
    (alice, room)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_no_json_or_say_nonsense() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted");
    let state = format!("/_matrix/client/v3/rooms/{room}/state/m.room.name/");
    let endpoints = [
        (Method::POST, "/_matrix/client/v3/createRoom".to_owned()),
        (Method::POST, "/_matrix/client/v3/login".to_owned()),
        (Method::POST, "/_matrix/client/v3/register".to_owned()),
        (Method::POST, "/_matrix/client/v3/keys/upload".to_owned()),
        (Method::POST, "/_matrix/client/v3/keys/query".to_owned()),
        (Method::PUT, format!("{send}/1")),
        (Method::PUT, state.clone()),
    ];
    for (method, path) in &endpoints {
        for nonsense in ["{", "{\"a\":}", "nonsense", "{\"a\":1}}", "\u{0}", "{\"a\": \"\\ud800\"}x"] {
            let answer = alice.send(method.clone(), path, nonsense).await;
            answer.refused(400, "M_NOT_JSON");
        }
        let answer = alice.send(method.clone(), path, b"{\"a\":\"\xff\xfe\"}".to_vec()).await;
        answer.refused(400, "M_NOT_JSON");
    }
    for (method, path, body) in [
        (Method::POST, "/_matrix/client/v3/createRoom", json!({"invite": "not a list"})),
        (Method::POST, "/_matrix/client/v3/createRoom", json!({"preset": 7})),
        (Method::POST, "/_matrix/client/v3/createRoom", json!([])),
        (Method::POST, "/_matrix/client/v3/login", json!({"type": 5})),
        (Method::POST, "/_matrix/client/v3/keys/query", json!({"device_keys": ["@a:b"]})),
        (Method::PUT, &*format!("{send}/2"), json!("a string")),
        (Method::PUT, &*format!("{send}/3"), json!([1, 2])),
        (Method::PUT, &*state, json!(null)),
    ] {
        let answer = alice.send(method, path, body.to_string()).await;
        assert_eq!(answer.status.as_u16(), 400, "{path} {body} {}", answer.body);
        assert!(
            matches!(answer.code(), "M_BAD_JSON" | "M_INVALID_PARAM" | "M_MISSING_PARAM"),
            "{path} {body} {}",
            answer.body
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_canonical_json_has_not() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    for (number, body) in ["1.5", "1e300", "9007199254740993", "-9007199254740993"].into_iter().enumerate() {
        let path = format!("/_matrix/client/v3/rooms/{room}/state/org.example.number/{number}");
        alice.send(Method::PUT, &path, format!("{{\"n\":{body}}}")).await.refused(400, "M_BAD_JSON");
    }
    // Deep, but not deep enough to break anything.
    let deep = format!("{{\"n\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let path = format!("/_matrix/client/v3/rooms/{room}/state/org.example.deep/");
    let answer = alice.send(Method::PUT, &path, deep).await;
    assert_eq!(answer.status.as_u16(), 400, "{}", answer.body);
    alice.get("/_matrix/client/v3/account/whoami").await.fine();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_events_that_are_too_large() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted");
    alice.put(&format!("{send}/1"), sealed(&"A".repeat(70_000))).await.refused(413, "M_TOO_LARGE");
    let name = format!("/_matrix/client/v3/rooms/{room}/state/org.example.large/");
    alice.put(&name, json!({"a": "b".repeat(66_000)})).await.refused(413, "M_TOO_LARGE");
    let login = json!({"type": "m.login.password", "password": "x".repeat(1_000_000)});
    Raw::nobody(&site.url).post("/_matrix/client/v3/login", login).await.refused(413, "M_TOO_LARGE");
    let mut devices = String::from("{\"device_keys\":{");
    write!(devices, "\"@a:b\":[{:?}]", "x".repeat(20_000_000)).unwrap();
    devices.push_str("}}");
    alice.send(Method::POST, "/_matrix/client/v3/keys/query", devices).await.refused(413, "M_TOO_LARGE");
    // Identifiers have 255 bytes at most.
    let kind = "x".repeat(300);
    let path = format!("/_matrix/client/v3/rooms/{room}/state/{kind}/");
    let answer = alice.put(&path, json!({})).await;
    assert!(matches!(answer.status.as_u16(), 400 | 413), "{} {}", answer.status, answer.body);
    let path = format!("/_matrix/client/v3/rooms/{room}/state/org.example.key/{kind}");
    let answer = alice.put(&path, json!({})).await;
    assert!(matches!(answer.status.as_u16(), 400 | 413), "{} {}", answer.status, answer.body);
}

/// Who is refused before the whole body was sent is told so, and not cut off: each time, also where many send at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_reach_those_who_still_send() {
    const LARGE: usize = 18_000_000;
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    let nobody = Raw::nobody(&site.url);
    let stranger = alice.with_token("nonsense");
    let refused: [(&Raw, Method, String, u16, &str); 7] = [
        (&nobody, Method::POST, "/_matrix/client/v3/login".to_owned(), 413, "M_TOO_LARGE"),
        (&nobody, Method::POST, "/_matrix/client/v3/keys/upload".to_owned(), 401, "M_MISSING_TOKEN"),
        (&stranger, Method::POST, "/_matrix/media/v3/upload".to_owned(), 401, "M_UNKNOWN_TOKEN"),
        (&alice, Method::PUT, "/_matrix/media/v3/upload/localhost/nothing".to_owned(), 404, "M_NOT_FOUND"),
        (&alice, Method::PUT, format!("/_matrix/client/v3/rooms/{room}/send/m.x/1"), 413, "M_TOO_LARGE"),
        (&alice, Method::POST, "/_matrix/client/v3/nothing".to_owned(), 404, "M_UNRECOGNIZED"),
        (&alice, Method::PATCH, "/_matrix/client/v3/sync".to_owned(), 405, "M_UNRECOGNIZED"),
    ];
    for (who, method, path, status, code) in refused {
        let one = || async { who.send(method.clone(), &path, vec![b' '; LARGE]).await };
        let (first, second, third) = tokio::join!(one(), one(), one());
        for answer in [first, second, third] {
            answer.refused(status, code);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_beyond_the_limit() {
    let settings = ["media.max_upload_bytes=100000".to_owned()];
    let site = Site::start_with(Shape::Sqlite, &settings).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let path = "/_matrix/media/v3/upload";
    alice.send(Method::POST, path, vec![7_u8; 100_001]).await.refused(413, "M_TOO_LARGE");
    alice.send(Method::POST, path, vec![7_u8; 100_000]).await.fine();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_methods_that_do_not_exist() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    for path in [
        "/",
        "/_matrix",
        "/_matrix/nonsense",
        "/_matrix/client/v3/nonsense",
        "/_matrix/client/v99/sync",
        "/_matrix/client/v3/rooms/!a:b/nonsense",
        "/_matrix/media/v3/nonsense",
    ] {
        let answer = alice.get(path).await;
        if path != "/" {
            answer.refused(404, "M_UNRECOGNIZED");
        }
    }
    alice.send(Method::DELETE, "/_matrix/client/v3/sync", "").await.refused(405, "M_UNRECOGNIZED");
    alice.send(Method::PATCH, "/_matrix/client/v3/login", "{}").await.refused(405, "M_UNRECOGNIZED");
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/1");
    alice.send(Method::POST, &path, "{}").await.refused(405, "M_UNRECOGNIZED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_or_with_a_wrong_one() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    let nobody = Raw::nobody(&site.url);
    let stranger = nobody.with_token("wrong");
    for path in ["/_matrix/client/v3/sync", "/_matrix/client/v3/account/whoami", "/_matrix/client/v3/devices"]
    {
        nobody.get(path).await.refused(401, "M_MISSING_TOKEN");
        stranger.get(path).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    nobody.send_sealed(&room, "1").await.refused(401, "M_MISSING_TOKEN");
    let mallory = Raw::register(&site.url, "mallory").await;
    mallory.send_sealed(&room, "1").await.refused(403, "M_FORBIDDEN");
    mallory.get(&format!("/_matrix/client/v3/rooms/{room}/state")).await.refused(403, "M_FORBIDDEN");
    alice.send_sealed(&room, "1").await.fine();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_in_the_clear_never_reach_the_disk() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    let words = "xyzzy-plain-words";
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    let answer = alice.put(&path, json!({"msgtype": "m.text", "body": words})).await;
    answer.refused(403, "M_FORBIDDEN");
    let key = json!({"messages": {&alice.user: {"*": {"session_key": words}}}});
    alice.put("/_matrix/client/v3/sendToDevice/m.room_key/1", key).await.refused(403, "M_FORBIDDEN");
    for file in std::fs::read_dir(site.nodes[0].data()).unwrap().map(|entry| entry.unwrap().path()) {
        let bytes = if file.is_file() { std::fs::read(&file).unwrap() } else { Vec::new() };
        let found = bytes.windows(words.len()).any(|window| window == words.as_bytes());
        assert!(!found, "{} has the words", file.display());
    }
    assert!(!site.nodes[0].logged().contains(words));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_ids_do_not_climb() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    for id in [
        "..%2F..%2Fsigning.key",
        "%2e%2e%2f%2e%2e%2fsigning.key",
        "..%5Csigning.key",
        "%2Fetc%2Fpasswd",
        "..",
        "a%00b",
        "..%252Fsigning.key",
    ] {
        for base in ["/_matrix/client/v1/media/download", "/_matrix/client/v1/media/thumbnail"] {
            for server in ["localhost", "..%2F.."] {
                let answer = alice.get(&format!("{base}/{server}/{id}?width=10&height=10")).await;
                assert!(answer.status.is_client_error(), "{base} {server} {id}: {}", answer.status);
                assert!(answer.code().starts_with("M_"), "{base} {server} {id}: {}", answer.body);
                assert!(!answer.body.to_string().contains("ed25519"), "{}", answer.body);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_versions_that_nobody_knows() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    let make = "/_matrix/client/v3/createRoom";
    for version in ["99", "org.example.future", "0"] {
        let answer = alice.post(make, json!({"room_version": version})).await;
        answer.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    let room = alice.create_room(json!({})).await;
    let path = format!("/_matrix/client/v3/rooms/{room}/upgrade");
    alice.post(&path, json!({"new_version": "99"})).await.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sent_twice_counts_once() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    let first = alice.send_sealed(&room, "same").await.fine();
    let again = alice.send_sealed(&room, "same").await.fine();
    assert_eq!(first, again);
    // At the same moment, too.
    let rush: Vec<_> = (0..8)
        .map(|_| {
            let (alice, room) = (alice.clone(), room.clone());
            tokio::spawn(async move { alice.send_sealed(&room, "rush").await.fine() })
        })
        .collect();
    let mut answers = Vec::new();
    for sent in rush {
        answers.push(sent.await.unwrap());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100");
    let messages = alice.get(&path).await.fine();
    let letters = |event: &&Value| event["type"] == "m.room.encrypted";
    assert_eq!(messages["chunk"].as_array().unwrap().iter().filter(letters).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identifiers_and_tokens_that_are_none() {
    let site = site().await;
    let (alice, room) = alice_and_room(&site).await;
    for path in [
        "/_matrix/client/v3/sync?since=nonsense".to_owned(),
        "/_matrix/client/v3/sync?timeout=never".to_owned(),
        "/_matrix/client/v3/sync?filter=%7Bbroken".to_owned(),
        format!("/_matrix/client/v3/rooms/{room}/messages?dir=sideways"),
        format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&from=nonsense"),
        format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=-1"),
        "/_matrix/client/v3/rooms/nonsense/state".to_owned(),
        "/_matrix/client/v3/profile/nonsense".to_owned(),
        "/_matrix/client/v3/directory/room/nonsense".to_owned(),
    ] {
        let answer = alice.get(&path).await;
        assert!(
            matches!(answer.status.as_u16(), 400 | 403 | 404),
            "{path}: {} {}",
            answer.status,
            answer.body
        );
        assert!(answer.code().starts_with("M_"), "{path}: {}", answer.body);
    }
    let invite = format!("/_matrix/client/v3/rooms/{room}/invite");
    let answer = alice.post(&invite, json!({"user_id": "nonsense"})).await;
    assert_eq!(answer.status.as_u16(), 400, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_a_newer_version_is_left_alone() {
    let Some(mut site) = Site::start(Shape::Postgres).await else { return };
    site.nodes[0].stop().await;
    for statement in [
        "INSERT INTO schema_migrations (version, name) VALUES (9999, '9999_future')",
        "UPDATE settings SET value = '9998' WHERE name = 'compatible_since'",
    ] {
        site.database.as_ref().unwrap().execute(statement);
    }
    let output = site.nodes[0].run(&[]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("newer"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_does_not_share_the_folder() {
    let site = site().await;
    let output = site.nodes[0].run(&[]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("is in use by another server") && said.contains(&site.nodes[0].id().to_string()),
        "{said}"
    );
    Raw::register(&site.url, "alice").await;
}
