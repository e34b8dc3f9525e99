//! Keys and messages between devices through the whole server, by requests: nothing is dropped unsent, backups, dehydrated
//! devices, secrets in account data.

use crate::http::{Answer, Raw};
use crate::site::Site;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long it may take until another node has heard of something.
const SOON: Duration = Duration::from_secs(20);
const DEHYDRATED: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

/// Another device of an account: its token and its id.
async fn login(who: &Raw) -> (Raw, String) {
    let name = who.user.split([':', '@']).nth(1).unwrap();
    let body = json!({
        "type": "m.login.password", "password": "correct horse",
        "identifier": {"type": "m.id.user", "user": name},
    });
    let body = who.post("/_matrix/client/v3/login", body).await.fine();
    (who.with_token(body["access_token"].as_str().unwrap()), body["device_id"].as_str().unwrap().to_owned())
}

async fn send(from: &Raw, to: &Raw, device: &str, number: usize) {
    let path = format!("/_matrix/client/v3/sendToDevice/m.room.encrypted/{}", token());
    let content = json!({"algorithm": "m.olm.v1.curve25519-aes-sha2", "ciphertext": {"k": {}}, "n": number});
    from.put(&path, json!({"messages": {&to.user: {device: content}}})).await.fine();
}

/// A name that nothing else has.
fn token() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}", RandomState::new().hash_one(0))
}

fn numbers(body: &Value) -> Vec<usize> {
    let events = body["to_device"]["events"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["n"].as_u64()).map(|n| n as usize).collect()
}

async fn sync(who: &Raw, since: Option<&str>, timeout: u32) -> Answer {
    let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
    who.get(&format!("/_matrix/client/v3/sync?timeout={timeout}{since}")).await
}

fn next(body: &Value) -> String {
    body["next_batch"].as_str().unwrap().to_owned()
}

/// A token that another session was given is ahead of what this device has: what waits for it is neither deleted nor
/// passed over.
async fn a_token_of_another_session_drops_nothing(mut site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let (phone, phone_id) = login(&alice).await;
    let (laptop, laptop_id) = login(&alice).await;
    for number in 0..3 {
        send(&alice, &alice, &phone_id, number).await;
        send(&alice, &alice, &laptop_id, 10 + number).await;
    }
    // A node hears a moment later of what came in at another.
    let end = Instant::now() + Duration::from_secs(20);
    let mut body = sync(&laptop, None, 0).await.fine();
    while numbers(&body) != [10, 11, 12] {
        assert!(Instant::now() < end, "{body}");
        body = sync(&laptop, None, 0).await.fine();
    }
    let foreign = next(&body);
    let body = sync(&phone, Some(&foreign), 0).await.fine();
    assert_eq!(numbers(&body), [0, 1, 2]);
    // The answer was lost, and the server starts anew: all of it again.
    site.restart().await;
    let body = sync(&phone, Some(&foreign), 0).await.fine();
    let again = numbers(&body);
    assert!(again.is_empty() || again == [0, 1, 2], "{again:?}");
    // Acknowledged: gone, at every node.
    let since = next(&body);
    for _ in 0..2 {
        assert!(numbers(&sync(&phone, Some(&since), 0).await.fine()).is_empty());
    }
    send(&alice, &alice, &phone_id, 7).await;
    // Other news may come first.
    let (end, mut since) = (Instant::now() + Duration::from_secs(20), since);
    loop {
        let body = sync(&phone, Some(&since), 5000).await.fine();
        if !numbers(&body).is_empty() {
            assert_eq!(numbers(&body), [7]);
            break;
        }
        assert!(Instant::now() < end, "{body}");
        since = next(&body);
    }
}

/// A stream of messages arrives whole and in order although answers are lost, nodes stop, start and crash, and hints are
/// cut off; what was acknowledged does not come again.
async fn messages_survive_lost_answers_restarts_and_lost_hints(mut site: Site) {
    const MESSAGES: usize = 240;
    const STEP: usize = 40;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let who = bob.get("/_matrix/client/v3/account/whoami").await.fine();
    let device = who["device_id"].as_str().unwrap().to_owned();
    let mut since = next(&sync(&bob, None, 0).await.fine());
    let mut got: Vec<usize> = Vec::new();
    for round in 0..MESSAGES / STEP {
        for number in round * STEP..(round + 1) * STEP {
            send(&alice, &bob, &device, number).await;
        }
        match round % 3 {
            0 => cut_hints(&site),
            1 => site.restart().await,
            _ => {
                site.nodes[0].kill().await;
                site.nodes[0].start().await;
            }
        }
        // An answer that the client never sees acknowledges nothing.
        let lost = numbers(&sync(&bob, Some(&since), 0).await.fine());
        let mut quiet = 0;
        while got.len() < (round + 1) * STEP && quiet < 20 {
            let body = sync(&bob, Some(&since), 1000).await.fine();
            let new = numbers(&body);
            quiet = if new.is_empty() { quiet + 1 } else { 0 };
            got.extend(new);
            since = next(&body);
        }
        assert!(got.len() >= lost.len(), "what was lost came again");
        assert_eq!(got, (0..(round + 1) * STEP).collect::<Vec<_>>(), "round {round}");
    }
    assert!(numbers(&sync(&bob, Some(&since), 0).await.fine()).is_empty());
}

/// Ends the connections on which nodes hear of each other.
fn cut_hints(site: &Site) {
    if let Some(database) = &site.database {
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND query ILIKE 'LISTEN%'",
        );
    }
}

fn device_keys(user: &str, device: &str) -> Value {
    json!({
        "user_id": user, "device_id": device, "dehydrated": true,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {format!("curve25519:{device}"): device, format!("ed25519:{device}"): "edkey"},
        "signatures": {},
    })
}

fn dehydrated(user: &str, device: &str) -> Value {
    json!({
        "device_id": device, "initial_device_display_name": "asleep",
        "device_data": {"algorithm": "org.matrix.msc3814.v2", "device_pickle": "cGlja2xl", "nonce": "bm9uY2U"},
        "device_keys": device_keys(user, device),
        "one_time_keys": {"signed_curve25519:one": {"key": "k1"}},
        "fallback_keys": {"signed_curve25519:fall": {"key": "k2", "fallback": true}},
    })
}

async fn dehydrations_that_are_refused(alice: &Raw, bob: &Raw, first: &str) {
    for broken in [
        json!({"device_id": first}),
        json!({"device_id": first, "device_data": {}, "device_keys": device_keys(&alice.user, first)}),
        json!({"device_id": 7, "device_data": {"algorithm": "a"}, "device_keys": {}}),
    ] {
        let answer = alice.put(DEHYDRATED, broken).await;
        assert_eq!(answer.status.as_u16(), 400, "{}", answer.body);
    }
    let mut others = dehydrated(&alice.user, first);
    others["device_keys"]["user_id"] = bob.user.clone().into();
    alice.put(DEHYDRATED, others).await.refused(400, "M_INVALID_PARAM");
    let (_, used) = login(alice).await;
    alice.put(DEHYDRATED, dehydrated(&alice.user, &used)).await.refused(400, "M_INVALID_PARAM");
}

/// All events of a dehydrated device, page by page.
async fn read_events(who: &Raw, path: &str, post: bool) -> Vec<usize> {
    let mut read = Vec::new();
    let mut from: Option<String> = None;
    for _ in 0..10 {
        let body = if post {
            let body = from.as_ref().map_or(json!({}), |from| json!({"next_batch": from}));
            who.post(path, body).await.fine()
        } else {
            let query = from.as_ref().map(|from| format!("?from={from}")).unwrap_or_default();
            who.get(&format!("{path}{query}")).await.fine()
        };
        let page = body["events"].as_array().unwrap();
        read.extend(page.iter().map(|event| event["content"]["n"].as_u64().unwrap() as usize));
        from = body["next_batch"].as_str().map(str::to_owned);
        assert!(!post || from.is_some(), "clients that use POST begin anew without it");
        if from.is_none() || (post && page.is_empty()) {
            break;
        }
    }
    read
}

async fn a_dehydrated_device_receives_until_it_is_woken_up(mut site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    alice.get(DEHYDRATED).await.refused(404, "M_NOT_FOUND");
    alice.send(Method::DELETE, DEHYDRATED, "").await.refused(404, "M_NOT_FOUND");
    bob.with_token("wrong").get(DEHYDRATED).await.refused(401, "M_UNKNOWN_TOKEN");
    // As real ids have them: characters that must be escaped in a path.
    let (first, second) = ("abc/def+ghi", "second/one");
    let events =
        |device: &str| format!("{DEHYDRATED}/{}/events", device.replace('/', "%2F").replace('+', "%2B"));
    dehydrations_that_are_refused(&alice, &bob, first).await;
    let body = alice.put(DEHYDRATED, dehydrated(&alice.user, first)).await.fine();
    assert_eq!(body, json!({"device_id": first}));
    let query = json!({"device_keys": {&alice.user: []}});
    let keys = bob.post("/_matrix/client/v3/keys/query", query.clone()).await.fine();
    assert_eq!(keys["device_keys"][&alice.user][first]["dehydrated"], true);
    let claim = json!({"one_time_keys": {&alice.user: {first: "signed_curve25519"}}});
    for expected in ["signed_curve25519:one", "signed_curve25519:fall", "signed_curve25519:fall"] {
        let claimed = bob.post("/_matrix/client/v3/keys/claim", claim.clone()).await.fine();
        let key = &claimed["one_time_keys"][&alice.user][first];
        assert_eq!(key.as_object().unwrap().keys().next().unwrap(), expected);
    }
    const MESSAGES: usize = 130;
    for number in 0..MESSAGES {
        send(&bob, &alice, first, number).await;
    }
    // The same device again, as a client that saw no answer uploads it, keeps its messages.
    alice.put(DEHYDRATED, dehydrated(&alice.user, first)).await.fine();
    site.restart().await;
    let body = alice.get(DEHYDRATED).await.fine();
    assert_eq!((&body["device_id"], &body["device_data"]["nonce"]), (&json!(first), &json!("bm9uY2U")));
    // Both ways to read, each twice: reading deletes nothing.
    for post in [false, true, false, true] {
        let read = read_events(&alice, &events(first), post).await;
        assert_eq!(read, (0..MESSAGES).collect::<Vec<_>>(), "post: {post}");
    }
    alice.get(&format!("{}?from=nonsense", events(first))).await.refused(400, "M_INVALID_PARAM");
    alice.get(&events(second)).await.refused(403, "M_FORBIDDEN");
    bob.get(&events(first)).await.refused(403, "M_FORBIDDEN");

    // Another takes its place; the first is gone with all that it had.
    alice.put(DEHYDRATED, dehydrated(&alice.user, second)).await.fine();
    alice.get(&events(first)).await.refused(403, "M_FORBIDDEN");
    let keys = bob.post("/_matrix/client/v3/keys/query", query.clone()).await.fine();
    let devices: BTreeSet<&String> = keys["device_keys"][&alice.user].as_object().unwrap().keys().collect();
    assert!(devices.contains(&second.to_owned()) && !devices.contains(&first.to_owned()), "{devices:?}");
    let body = alice.send(Method::DELETE, DEHYDRATED, "").await.fine();
    assert_eq!(body, json!({"device_id": second}));
    alice.get(DEHYDRATED).await.refused(404, "M_NOT_FOUND");
    // As an ordinary device: deleted with the others.
    alice.put(DEHYDRATED, dehydrated(&alice.user, second)).await.fine();
    alice.post("/_matrix/client/v3/logout/all", json!({})).await.fine();
    let (alice, _) = login(&alice).await;
    alice.get(DEHYDRATED).await.refused(404, "M_NOT_FOUND");
}

/// Each operation of key backup, as a client goes through them, and in the way of another user.
async fn backups_are_made_filled_read_and_deleted(mut site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let at = |tail: &str| format!("/_matrix/client/v3/room_keys/{tail}");
    let definition = |auth: &str| json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": auth}});
    alice.get(&at("version")).await.refused(404, "M_NOT_FOUND");
    let made = alice.post(&at("version"), definition("one")).await.fine();
    let version = made["version"].as_str().unwrap().to_owned();
    let info = alice.get(&at("version")).await.fine();
    assert_eq!((&info["version"], &info["count"]), (&json!(version), &json!(0)));
    assert_eq!(alice.get(&at(&format!("version/{version}"))).await.fine(), info);
    let mut changed = definition("two");
    changed["version"] = version.clone().into();
    alice.put(&at(&format!("version/{version}")), changed).await.fine();
    let info = alice.get(&at("version")).await.fine();
    assert_eq!(info["auth_data"]["public_key"], "two");
    alice
        .put(&at(&format!("version/{version}")), json!({"algorithm": "m.other", "auth_data": {}}))
        .await
        .refused(400, "M_INVALID_PARAM");

    let key = |n: u32| json!({"first_message_index": n, "forwarded_count": 0, "is_verified": false, "session_data": {"c": n}});
    let keys = |tail: &str| at(&format!("keys{tail}?version={version}"));
    let rooms = json!({"rooms": {"!a:x": {"sessions": {"s1": key(1), "s2": key(2)}}}});
    let state = alice.put(&keys(""), rooms).await.fine();
    assert_eq!(state["count"], 2);
    let state = alice.put(&keys("/!b:x"), json!({"sessions": {"s3": key(3)}})).await.fine();
    assert_eq!(state["count"], 3);
    let state = alice.put(&keys("/!b:x/s4"), key(4)).await.fine();
    assert_eq!(state["count"], 4);
    // A worse key changes nothing.
    assert_eq!(alice.put(&keys("/!b:x/s4"), key(9)).await.fine(), state);
    site.restart().await;
    let all = alice.get(&keys("")).await.fine();
    assert_eq!(all["rooms"]["!a:x"]["sessions"]["s2"], key(2));
    assert_eq!(alice.get(&keys("/!b:x")).await.fine()["sessions"]["s3"], key(3));
    assert_eq!(alice.get(&keys("/!b:x/s4")).await.fine(), key(4));
    alice.get(&keys("/!b:x/none")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(alice.get(&keys("/!none:x")).await.fine(), json!({"sessions": {}}));
    for tail in ["version", &format!("version/{version}")] {
        bob.get(&at(tail)).await.refused(404, "M_NOT_FOUND");
    }
    bob.get(&keys("")).await.refused(404, "M_NOT_FOUND");
    bob.put(&keys("/!b:x/s4"), key(0)).await.refused(404, "M_NOT_FOUND");
    for broken in
        [json!({"sessions": {"s": {}}}), json!({"sessions": 7}), json!({"sessions": {"s": key(1), "t": 1}})]
    {
        alice.put(&keys("/!b:x"), broken).await.refused(400, "M_BAD_JSON");
    }

    let second = alice.post(&at("version"), definition("three")).await.fine();
    let answer = alice.put(&keys("/!b:x/s4"), key(0)).await;
    answer.refused(403, "M_WRONG_ROOM_KEYS_VERSION");
    assert_eq!(answer.body["current_version"], second["version"]);
    for (tail, left) in [("/!b:x/s4", 3), ("/!a:x", 1), ("", 0)] {
        let state = alice.send(Method::DELETE, &keys(tail), "").await.fine();
        assert_eq!(state["count"], left, "{tail}");
    }
    alice.send(Method::DELETE, &at(&format!("version/{version}")), "").await.fine();
    alice.get(&at(&format!("version/{version}"))).await.refused(404, "M_NOT_FOUND");
    assert_eq!(alice.get(&at("version")).await.fine()["version"], second["version"]);
}

/// Secrets are account data like any other: kept as they came, told to the other devices, nobody else's.
async fn secrets_are_kept_as_they_came(mut site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let (phone, _) = login(&alice).await;
    let since = next(&sync(&phone, None, 0).await.fine());
    let at = |who: &Raw, kind: &str| format!("/_matrix/client/v3/user/{}/account_data/{kind}", who.user);
    let secret = json!({"encrypted": {"key1": {"ciphertext": "AAAA", "iv": "BBBB", "mac": "CCCC"}}});
    let entries = [
        ("m.secret_storage.default_key", json!({"key": "key1"})),
        (
            "m.secret_storage.key.key1",
            json!({"algorithm": "m.secret_storage.v1.aes-hmac-sha2", "iv": "x", "mac": "y"}),
        ),
        ("m.cross_signing.master", secret.clone()),
        ("m.megolm_backup.v1", secret),
    ];
    for (kind, content) in &entries {
        alice.get(&at(&alice, kind)).await.refused(404, "M_NOT_FOUND");
        alice.put(&at(&alice, kind), content.clone()).await.fine();
    }
    site.restart().await;
    for (kind, content) in &entries {
        assert_eq!(phone.get(&at(&alice, kind)).await.fine(), *content);
        bob.get(&at(&alice, kind)).await.refused(403, "M_FORBIDDEN");
        bob.put(&at(&alice, kind), json!({})).await.refused(403, "M_FORBIDDEN");
    }
    let mut told = BTreeSet::new();
    for _ in 0..10 {
        let body = sync(&phone, Some(&since), 0).await.fine();
        for event in body["account_data"]["events"].as_array().into_iter().flatten() {
            told.insert(event["type"].as_str().unwrap().to_owned());
        }
        if told.len() >= entries.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(entries.iter().all(|(kind, _)| told.contains(*kind)), "{told:?}");
}

/// One-time keys go in the order in which they came, each once, however many ask whichever node at the same time; then the
/// fallback key, as often as it takes.
async fn one_time_keys_are_claimed_once_by_many(site: Site) {
    const KEYS: usize = 24;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let (phone, device) = login(&alice).await;
    let key = |name: String| (format!("signed_curve25519:{name}"), json!({"key": name, "signatures": {}}));
    let upload = async |field: &str, keys: Vec<(String, Value)>| {
        let keys: serde_json::Map<String, Value> = keys.into_iter().collect();
        phone.post("/_matrix/client/v3/keys/upload", json!({ field: keys })).await.fine()
    };
    // Later ones have names that come before: it is not by name.
    for number in 0..3 {
        upload("one_time_keys", vec![key(format!("Z{}", 9 - number))]).await;
    }
    let many = (0..KEYS).map(|number| key(format!("A{number:02}"))).collect();
    let counts = upload("one_time_keys", many).await;
    assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], KEYS + 3, "{counts}");
    upload("fallback_keys", vec![key("F".to_owned())]).await;
    let claim = json!({"one_time_keys": {&alice.user: {&device: "signed_curve25519"}}});
    let claimed = async |who: Raw| {
        let answer = who.post("/_matrix/client/v3/keys/claim", claim.clone()).await.fine();
        let keys = answer["one_time_keys"][&alice.user][&device].as_object().unwrap().clone();
        assert_eq!(keys.len(), 1, "{answer}");
        keys.into_iter().next().unwrap().0
    };
    for number in 0..3 {
        assert_eq!(claimed(bob.clone()).await, format!("signed_curve25519:Z{}", 9 - number));
    }
    let unused = |sync: &Value| sync["device_unused_fallback_key_types"].clone();
    // Another node hears of it a moment later.
    let told = async |since: Option<String>, count: usize, fallback: Value| {
        let end = Instant::now() + SOON;
        loop {
            let told = sync(&phone, since.as_deref(), 0).await.fine();
            let counted = told["device_one_time_keys_count"]["signed_curve25519"] == count;
            if counted && unused(&told) == fallback || Instant::now() > end {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let before = told(None, KEYS, json!(["signed_curve25519"])).await;
    assert_eq!(unused(&before), json!(["signed_curve25519"]), "{before}");
    let nodes: Vec<Raw> = site.nodes.iter().map(|node| bob.at(&node.client_url())).collect();
    let asked = (0..KEYS).map(|number| claimed(nodes[number % nodes.len()].clone()));
    let all = futures_util::future::join_all(asked).await;
    let different: BTreeSet<&String> = all.iter().collect();
    assert_eq!(different.len(), KEYS, "{all:?}");
    assert!(!all.iter().any(|id| id.ends_with(":F")), "{all:?}");
    let after = told(Some(next(&before)), 0, json!(["signed_curve25519"])).await;
    assert_eq!(after["device_one_time_keys_count"]["signed_curve25519"], 0, "{after}");
    assert_eq!(unused(&after), json!(["signed_curve25519"]), "{after}");
    let asked = (0..4).map(|number| claimed(nodes[number % nodes.len()].clone()));
    let all = futures_util::future::join_all(asked).await;
    assert!(all.iter().all(|id| id == "signed_curve25519:F"), "{all:?}");
    let after = told(Some(next(&after)), 0, json!([])).await;
    assert_eq!(unused(&after), json!([]), "{after}");
    upload("fallback_keys", vec![key("G".to_owned())]).await;
    let after = told(Some(next(&after)), 0, json!(["signed_curve25519"])).await;
    assert_eq!(unused(&after), json!(["signed_curve25519"]), "{after}");
}

/// Who shares no room any more is `left`, once, and whoever still shares one is not.
async fn device_lists_tell_exactly_who_is_shared_with(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let carol = Raw::register(&site.url, "carol").await;
    let join = async |who: &Raw, room: &str| {
        who.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    };
    let leave = async |who: &Raw, room: &str| {
        who.post(&format!("/_matrix/client/v3/rooms/{room}/leave"), json!({})).await.fine();
    };
    let first = alice.create_room(json!({"preset": "public_chat"})).await;
    let second = alice.create_room(json!({"preset": "public_chat"})).await;
    let mut since = next(&sync(&alice, None, 0).await.fine());
    let mut lists = async |changed: &[&Raw], left: &[&Raw], what: &str| {
        let users = |list: &Value| -> BTreeSet<String> {
            let list = list.as_array().cloned().unwrap_or_default();
            list.iter().map(|user| user.as_str().unwrap().to_owned()).collect()
        };
        let wanted: [BTreeSet<String>; 2] =
            [changed, left].map(|users| users.iter().map(|raw| raw.user.clone()).collect());
        let mut told: [BTreeSet<String>; 2] = Default::default();
        let began = since.clone();
        // Another node may have it a moment later.
        for _ in 0..20 {
            let body = sync(&alice, Some(&since), 100).await.fine();
            since = next(&body);
            told[0].extend(users(&body["device_lists"]["changed"]));
            told[1].extend(users(&body["device_lists"]["left"]));
            if told == wanted && !body["rooms"]["join"].is_null() {
                break;
            }
        }
        assert_eq!(told, wanted, "{what}");
        let same =
            alice.get(&format!("/_matrix/client/v3/keys/changes?from={began}&to={since}")).await.fine();
        assert_eq!([users(&same["changed"]), users(&same["left"])], wanted, "{what}: {same}");
    };
    join(&bob, &first).await;
    lists(&[&bob], &[], "bob is new").await;
    join(&bob, &second).await;
    join(&carol, &second).await;
    // Whoever begins to share a room is looked at again, also one with whom another is shared already.
    lists(&[&bob, &carol], &[], "carol is new, bob comes nearer").await;
    leave(&bob, &first).await;
    lists(&[], &[], "bob is in the second room").await;
    leave(&bob, &second).await;
    lists(&[], &[&bob], "bob is in none").await;
    join(&bob, &first).await;
    leave(&carol, &second).await;
    join(&carol, &first).await;
    lists(&[&bob, &carol], &[], "bob is back, carol went and came").await;
    // A device of somebody else's that comes or goes is a change for whoever shares a room.
    let (phone, _) = login(&bob).await;
    lists(&[&bob], &[], "bob has another device").await;
    leave(&carol, &first).await;
    phone.post("/_matrix/client/v3/logout", json!({})).await.fine();
    login(&carol).await;
    lists(&[&bob], &[&carol], "carol's device is not told any more").await;
}

in_each_shape! {
    one_time_keys_are_claimed_once_by_many,
    device_lists_tell_exactly_who_is_shared_with,
    a_token_of_another_session_drops_nothing,
    messages_survive_lost_answers_restarts_and_lost_hints,
    a_dehydrated_device_receives_until_it_is_woken_up,
    backups_are_made_filled_read_and_deleted,
    secrets_are_kept_as_they_came,
}
