//! Keys, device lists, to-device messages and backups on a real database.

use ruma::api::federation::transactions::edu::{DeviceListUpdateContent, DirectDeviceContent};
use ruma::to_device::DeviceIdOrAllDevices;
use ruma::{
    CanonicalJsonObject, OneTimeKeyAlgorithm, OwnedDeviceId, OwnedUserId, RoomVersionId, ServerName, UserId,
};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::{Clock, LogPosition};
use waxwing_rooms::{KeyPair, canonical_object};
use waxwing_services::backups::{BackupError, BackupKeys, BackupScope, Backups};
use waxwing_services::keys::{Claims, KeyUpload, Keys, KeysError, SigningKeys, Wanted, device_list_changes};
use waxwing_services::to_device::{Messages, Sending, ToDevice, ToDeviceError};
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::{DeviceKeysRow, MemberRow, Outgoing, Store, StoreError};

struct Server {
    core: Core,
    keys: Keys,
    _dir: tempfile::TempDir,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}", dir.path().join("test.db").display())).await.unwrap();
    let core = Core {
        server_name: "test".try_into().unwrap(),
        clock: Clock::manual(1_000_000),
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Open,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy::default(),
            default_room_version: RoomVersionId::V12,
            presence: false,
            max_upload_bytes: 1,
            password: PasswordCost { memory_kib: 8, iterations: 1 },
            everyone_publishes_rooms: true,
            federation: true,
            push: waxwing_services::PushSettings::default(),
            accounts: waxwing_services::AccountSettings::default(),
        }),
    };
    Server { keys: Keys::new(core.clone(), None), core, _dir: dir }
}

fn user(id: &str) -> OwnedUserId {
    UserId::parse(id).unwrap()
}

fn raw(value: Value) -> Box<RawValue> {
    to_raw_value(&value).unwrap()
}

fn pair(seed: u8, id: &str) -> KeyPair {
    // A key's version may not have every character that key ids of cross-signing keys have.
    let word: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    KeyPair::from_seed([seed; 32], &word).unwrap()
}

/// Signs `value` as `signer` with the key id `ed25519:{id}`.
fn sign(value: &Value, signer: &str, id: &str, seed: u8) -> Value {
    let server: &ServerName = "s".try_into().unwrap();
    let mut object: CanonicalJsonObject = canonical_object(&value.to_string()).unwrap();
    object.remove("signatures");
    let key = pair(seed, "k");
    key.sign_json(server, &mut object).unwrap();
    let signed = serde_json::to_value(&object).unwrap();
    let mut value = value.clone();
    value["signatures"][signer][format!("ed25519:{id}")] = signed["signatures"]["s"]["ed25519:k"].clone();
    value
}

fn public(seed: u8) -> String {
    pair(seed, "k").public_key().encode()
}

fn device_keys(user: &str, device: &str, seed: u8) -> Value {
    let keys = json!({
        "user_id": user, "device_id": device, "algorithms": ["m.megolm.v1.aes-sha2"],
        "keys": { format!("ed25519:{device}"): public(seed), format!("curve25519:{device}"): "c" },
    });
    sign(&keys, user, device, seed)
}

fn cross(user: &str, usage: &str, seed: u8) -> Value {
    let key = public(seed);
    json!({ "user_id": user, "usage": [usage], "keys": { format!("ed25519:{key}"): key } })
}

impl Server {
    async fn device(&self, who: &str, device: &str, seed: u8) {
        let (core, id, name) = (self.core.clone(), user(who), OwnedDeviceId::from(device));
        self.core
            .store
            .write("test", Vec::new(), move |tx| {
                let (core, id, name) = (core.clone(), id.clone(), name.clone());
                Box::pin(async move {
                    tx.device_insert(&id, &name, Some("phone"), 1).await?;
                    waxwing_services::keys::device_changed(&core, tx, &id, name.as_str()).await
                })
            })
            .await
            .unwrap();
        let upload = KeyUpload {
            device_keys: Some(device_keys(who, device, seed).to_string()),
            ..KeyUpload::default()
        };
        self.upload(who, device, upload).await.unwrap();
    }

    async fn upload(&self, who: &str, device: &str, upload: KeyUpload) -> Result<u64, KeysError> {
        let device = OwnedDeviceId::from(device);
        let counts = self.keys.upload(&user(who), Some(&device), upload).await?;
        Ok(counts["signed_curve25519"])
    }

    async fn join(&self, room: &str, who: &str, joined: bool) {
        let row = MemberRow {
            room_id: room.try_into().unwrap(),
            user_id: user(who),
            membership: if joined { "join" } else { "leave" }.to_owned(),
            event_id: "$e".try_into().unwrap(),
            sender: user(who),
            sn: 0,
            display_name: None,
            avatar_url: None,
            stripped: None,
            forgotten: false,
        };
        let core = self.core.clone();
        self.core
            .store
            .write("test", Vec::new(), move |tx| {
                let (core, row) = (core.clone(), row.clone());
                Box::pin(async move {
                    tx.member_save(&row, core.is_local(&row.user_id)).await?;
                    waxwing_services::keys::sharing_changed(&core, tx, &row.room_id, &row.user_id, joined)
                        .await
                })
            })
            .await
            .unwrap();
    }

    fn head(&self) -> LogPosition {
        self.core.store.tail().head()
    }

    async fn edus(&self, server: &str) -> Vec<Value> {
        let mut conn = self.core.store.read().await.unwrap();
        let server = server.try_into().unwrap();
        let own = conn.outbox_rows(server, 0, i64::MAX, 1000).await.unwrap();
        let mut rows: Vec<(i64, Value)> = own
            .into_iter()
            .map(|row| (row.position, serde_json::from_str(&row.json.unwrap()).unwrap()))
            .collect();
        for row in conn.outgoing_range(0, i64::MAX, 1000).await.unwrap() {
            let sets = conn.server_sets(&[Arc::clone(&row.servers)]).await.unwrap();
            if let Outgoing::Edu(edu) = &row.what
                && sets[&row.servers].contains(server)
            {
                rows.push((row.position, serde_json::from_str(edu).unwrap()));
            }
        }
        rows.sort_by_key(|(position, _)| *position);
        rows.into_iter().map(|(_, edu)| edu).collect()
    }

    async fn changes(&self, who: &str, since: LogPosition) -> (Vec<String>, Vec<String>) {
        let changes = device_list_changes(&self.core.store, &user(who), since, self.head()).await.unwrap();
        let mut conn = self.core.store.read().await.unwrap();
        let rows = conn.device_list_rows(&user(who), since, self.head()).await.unwrap();
        assert!(!rows.is_empty() || changes.is_empty(), "the database says the same as the tail");
        let text = |users: BTreeSet<OwnedUserId>| users.iter().map(ToString::to_string).collect::<Vec<_>>();
        (text(changes.changed), text(changes.left))
    }

    async fn claim(&self, who: &str, device: &str) -> Option<String> {
        let claims = Claims::from([(
            user(who),
            BTreeMap::from([(device.into(), OneTimeKeyAlgorithm::SignedCurve25519)]),
        )]);
        let keys = self.keys.claim(claims, None).await.unwrap().one_time_keys;
        let keys = keys.into_values().next()?.into_values().next()?;
        keys.into_keys().next().map(|id| id.to_string())
    }
}

fn one_time(ids: &[(&str, &str)]) -> BTreeMap<String, String> {
    ids.iter()
        .map(|(id, key)| {
            (format!("signed_curve25519:{id}"), json!({ "key": key, "signatures": {} }).to_string())
        })
        .collect()
}

#[tokio::test]
async fn one_time_keys_are_handed_out_once_and_in_order() {
    let server = server().await;
    server.device("@a:test", "D", 1).await;
    let upload = |keys: &[(&str, &str)]| KeyUpload { one_time_keys: one_time(keys), ..KeyUpload::default() };
    assert_eq!(server.upload("@a:test", "D", upload(&[("2", "x")])).await.unwrap(), 1);
    assert_eq!(server.upload("@a:test", "D", upload(&[("1", "y"), ("2", "x")])).await.unwrap(), 2);
    let other = server.upload("@a:test", "D", upload(&[("1", "z"), ("3", "n")])).await;
    assert!(matches!(other, Err(KeysError::Invalid(_))));
    let fallback = KeyUpload { fallback_keys: one_time(&[("f", "f")]), ..KeyUpload::default() };
    assert_eq!(server.upload("@a:test", "D", fallback.clone()).await.unwrap(), 2);
    let unused = || async {
        let mut conn = server.core.store.read().await.unwrap();
        conn.fallback_types_unused(&user("@a:test"), "D").await.unwrap()
    };
    assert_eq!(server.claim("@a:test", "D").await.as_deref(), Some("signed_curve25519:2"));
    assert_eq!(server.claim("@a:test", "D").await.as_deref(), Some("signed_curve25519:1"));
    assert_eq!(unused().await, ["signed_curve25519"]);
    assert_eq!(server.claim("@a:test", "D").await.as_deref(), Some("signed_curve25519:f"));
    assert!(unused().await.is_empty());
    assert_eq!(server.claim("@a:test", "D").await.as_deref(), Some("signed_curve25519:f"));
    server.upload("@a:test", "D", fallback).await.unwrap();
    assert!(unused().await.is_empty(), "the same fallback key is still used");
    let new = KeyUpload { fallback_keys: one_time(&[("g", "g")]), ..KeyUpload::default() };
    server.upload("@a:test", "D", new).await.unwrap();
    assert_eq!(unused().await, ["signed_curve25519"]);
    assert_eq!(server.claim("@a:test", "E").await, None);
}

#[tokio::test]
async fn device_keys_must_be_the_devices_own() {
    let server = server().await;
    server.device("@a:test", "D", 1).await;
    let with = |keys: Value| KeyUpload { device_keys: Some(keys.to_string()), ..KeyUpload::default() };
    let others = server.upload("@a:test", "D", with(device_keys("@b:test", "D", 1))).await;
    assert!(matches!(others, Err(KeysError::Invalid(_))));
    let mut forged = device_keys("@a:test", "D", 1);
    forged["keys"]["curve25519:D"] = "evil".into();
    assert!(matches!(server.upload("@a:test", "D", with(forged)).await, Err(KeysError::Signature(_))));
    let short = json!({ "user_id": "@a:test", "device_id": "D" });
    assert!(matches!(server.upload("@a:test", "D", with(short)).await, Err(KeysError::BadJson(_))));
    let wanted = Wanted::from([(user("@a:test"), Vec::new()), (user("@nobody:test"), Vec::new())]);
    let found = server.keys.query(&user("@b:test"), wanted, None).await.unwrap();
    assert!(found.device_keys[&user("@nobody:test")].is_empty());
    let device = &found.device_keys[&user("@a:test")].values().next().unwrap();
    assert_eq!(device.deserialize().unwrap().unsigned.device_display_name.as_deref(), Some("phone"));
}

#[tokio::test]
async fn cross_signing_keys_are_checked_and_shown_to_those_who_may_see_them() {
    let server = server().await;
    server.device("@a:test", "D", 1).await;
    server.device("@b:test", "E", 2).await;
    let (a, b) = (user("@a:test"), user("@b:test"));
    let master_id = public(10);
    let master = cross("@a:test", "master", 10);
    let first = SigningKeys { master: Some(master.to_string()), ..SigningKeys::default() };
    assert!(!server.keys.signing_keys_need_auth(&a, &first).await.unwrap());
    server.keys.signing_keys_put(&a, first.clone()).await.unwrap();
    assert!(!server.keys.signing_keys_need_auth(&a, &first).await.unwrap());
    let unsigned = cross("@a:test", "self_signing", 11);
    let more = SigningKeys { self_signing: Some(unsigned.to_string()), ..SigningKeys::default() };
    assert!(server.keys.signing_keys_need_auth(&a, &more).await.unwrap());
    assert!(matches!(server.keys.signing_keys_put(&a, more).await, Err(KeysError::Signature(_))));
    let signed =
        |usage: &str, seed: u8| sign(&cross("@a:test", usage, seed), "@a:test", &master_id, 10).to_string();
    let rest = SigningKeys {
        master: None,
        self_signing: Some(signed("self_signing", 11)),
        user_signing: Some(signed("user_signing", 12)),
    };
    server.keys.signing_keys_put(&a, rest).await.unwrap();
    let b_master = cross("@b:test", "master", 20);
    let keys = SigningKeys { master: Some(b_master.to_string()), ..SigningKeys::default() };
    server.keys.signing_keys_put(&b, keys).await.unwrap();

    let device = sign(&device_keys("@a:test", "D", 1), "@a:test", &public(11), 11);
    let own_master = sign(&master, "@a:test", "D", 1);
    let theirs = sign(&b_master, "@a:test", &public(12), 12);
    let forged = sign(&b_master, "@a:test", &public(12), 13);
    let own =
        BTreeMap::from([("D".to_owned(), device.to_string()), (master_id.clone(), own_master.to_string())]);
    let since = server.head();
    let signed = BTreeMap::from([
        (a.clone(), own),
        (b.clone(), BTreeMap::from([(public(20), theirs.to_string()), ("X".into(), "{}".into())])),
    ]);
    let failures = server.keys.sign(&a, signed).await.unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[&b].keys().collect::<Vec<_>>(), ["X"]);
    let bad = BTreeMap::from([(b.clone(), BTreeMap::from([(public(20), forged.to_string())]))]);
    let failures = server.keys.sign(&a, bad).await.unwrap();
    assert_eq!(failures[&b][&public(20)].0, "M_INVALID_SIGNATURE");
    assert_eq!(server.changes("@a:test", since).await.0, ["@a:test", "@b:test"]);
    assert_eq!(server.changes("@b:test", since).await.0, Vec::<String>::new());

    let wanted = || Wanted::from([(a.clone(), Vec::new()), (b.clone(), Vec::new())]);
    let seen = server.keys.query(&a, wanted(), None).await.unwrap();
    let by = |raw: &RawValue, signer: &str| {
        let value: Value = serde_json::from_str(raw.get()).unwrap();
        value["signatures"][signer].as_object().map_or(0, serde_json::Map::len)
    };
    assert_eq!(by(seen.device_keys[&a].values().next().unwrap().json(), "@a:test"), 2);
    assert_eq!(by(seen.master_keys[&a].json(), "@a:test"), 1);
    assert_eq!(by(seen.master_keys[&b].json(), "@a:test"), 1);
    assert!(seen.user_signing_keys.contains_key(&a));
    let seen = server.keys.query(&b, wanted(), None).await.unwrap();
    assert_eq!(by(seen.device_keys[&a].values().next().unwrap().json(), "@a:test"), 2);
    assert_eq!(by(seen.master_keys[&b].json(), "@a:test"), 0);
    assert!(seen.user_signing_keys.is_empty());
    let outside = server.keys.query_local(wanted()).await.unwrap();
    assert_eq!(outside.self_signing_keys.len(), 1);
    assert_eq!(by(outside.master_keys[&b].json(), "@a:test"), 0);
    let clash =
        SigningKeys { master: Some(cross("@b:test", "master", 21).to_string()), ..SigningKeys::default() };
    server.device("@b:test", &public(21), 3).await;
    assert!(matches!(server.keys.signing_keys_put(&b, clash).await, Err(KeysError::Forbidden(_))));
}

/// Keys come with the signatures that their owner's keys really made, and no others.
#[tokio::test]
async fn forged_signatures_inside_uploaded_keys_are_not_kept() {
    let server = server().await;
    let a = user("@a:test");
    server.device("@a:test", "D", 1).await;
    let master = cross("@a:test", "master", 10);
    let signed_by = |value: &Value, id: &str, seed: u8| {
        let mut all = value.clone();
        let signed = sign(value, "@a:test", id, seed);
        all["signatures"]["@a:test"][format!("ed25519:{id}")] =
            signed["signatures"]["@a:test"][format!("ed25519:{id}")].clone();
        all
    };
    let by_device = signed_by(&master, "D", 1);
    let by_none = signed_by(&by_device, "E", 2);
    let self_signing = sign(&cross("@a:test", "self_signing", 11), "@a:test", &public(10), 10);
    let keys = SigningKeys {
        master: Some(by_none.to_string()),
        self_signing: Some(signed_by(&self_signing, "D", 3).to_string()),
        user_signing: None,
    };
    server.keys.signing_keys_put(&a, keys).await.unwrap();
    // One device signed by the real self-signing key, one by a false one of the same name.
    let upload = |value: &Value| KeyUpload { device_keys: Some(value.to_string()), ..KeyUpload::default() };
    for (device, seed, signer) in [("D", 1, 11), ("E", 2, 12)] {
        server.device("@a:test", device, seed).await;
        let signed = signed_by(&device_keys("@a:test", device, seed), &public(11), signer);
        server.upload("@a:test", device, upload(&signed)).await.unwrap();
    }
    let wanted = Wanted::from([(a.clone(), Vec::new())]);
    let found = server.keys.query(&a, wanted, None).await.unwrap();
    let signers = |raw: &RawValue| {
        let value: Value = serde_json::from_str(raw.get()).unwrap();
        let keys = value["signatures"]["@a:test"].as_object().cloned().unwrap_or_default();
        keys.into_iter().map(|(id, _)| id.trim_start_matches("ed25519:").to_owned()).collect::<BTreeSet<_>>()
    };
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(signers(found.master_keys[&a].json()), set(&["D"]));
    assert_eq!(signers(found.self_signing_keys[&a].json()), set(&[&public(10)]));
    let devices = &found.device_keys[&a];
    assert_eq!(signers(devices[&OwnedDeviceId::from("D")].json()), set(&["D", &public(11)]));
    assert_eq!(signers(devices[&OwnedDeviceId::from("E")].json()), set(&["E"]));
}

#[tokio::test]
async fn device_lists_follow_shared_rooms() {
    let server = server().await;
    server.device("@a:test", "D", 1).await;
    server.device("@b:test", "E", 2).await;
    server.join("!r:test", "@a:test", true).await;
    let since = server.head();
    server.join("!r:test", "@b:test", true).await;
    assert_eq!(server.changes("@a:test", since).await, (vec!["@b:test".into()], vec![]));
    assert_eq!(server.changes("@b:test", since).await.0, ["@a:test", "@b:test"]);
    let since = server.head();
    server.device("@c:test", "F", 3).await;
    assert_eq!(server.changes("@a:test", since).await, (vec![], vec![]));
    let since = server.head();
    server.device("@b:test", "E", 4).await;
    assert_eq!(server.changes("@a:test", since).await.0, ["@b:test"]);
    let since = server.head();
    server.join("!r:test", "@b:test", false).await;
    assert_eq!(server.changes("@a:test", since).await, (vec![], vec!["@b:test".into()]));
    assert_eq!(server.changes("@b:test", since).await, (vec![], vec!["@a:test".into()]));
}

#[tokio::test]
async fn other_servers_are_told_of_each_change_once_and_in_a_chain() {
    let server = server().await;
    server.device("@a:test", "D", 1).await;
    assert!(server.edus("far").await.is_empty());
    server.join("!r:test", "@z:far", true).await;
    server.join("!r:test", "@a:test", true).await;
    let edus = server.edus("far").await;
    assert_eq!(edus.len(), 1, "the joining user's devices are told to the new server");
    assert_eq!(edus[0]["edu_type"], "m.device_list_update");
    assert_eq!(edus[0]["content"]["device_id"], "D");
    assert_eq!(edus[0]["content"]["device_display_name"], "phone");
    assert!(edus[0]["content"]["keys"]["keys"].is_object());
    let stream = edus[0]["content"]["stream_id"].as_i64().unwrap();
    server.device("@a:test", "D", 5).await;
    let edus = server.edus("far").await;
    let last = &edus.last().unwrap()["content"];
    assert_eq!(last["stream_id"].as_i64().unwrap(), stream + 2, "the device was announced, then its keys");
    assert_eq!(last["prev_id"], json!([stream + 1]));
    let list = server.keys.user_devices(&user("@a:test")).await.unwrap();
    assert_eq!(u64::from(list.stream_id) as i64, stream + 2);
    assert_eq!(list.devices[0].device_display_name.as_deref(), Some("phone"));
    let before = edus.len();
    server.join("!s:test", "@z:far", true).await;
    server.join("!s:test", "@a:test", true).await;
    assert_eq!(server.edus("far").await.len(), before, "this server knows already");
}

#[tokio::test]
async fn copies_of_other_servers_lists_hold_while_a_room_is_shared() {
    let server = server().await;
    let far = user("@z:far");
    let update = |stream: u32, before: u32| {
        let mut update = DeviceListUpdateContent::new(far.clone(), "Z".into(), stream.into());
        update.prev_id = vec![before.into()];
        update.keys = Some(ruma::serde::Raw::from_json(raw(device_keys("@z:far", "Z", 7))));
        update
    };
    let since = server.head();
    server.keys.device_list_update(update(2, 1)).await.unwrap();
    assert_eq!(server.head(), since, "no room is shared");
    server.join("!r:test", "@a:test", true).await;
    server.join("!r:test", "@z:far", true).await;
    let put = |stream: i64| {
        let (store, far, since) = (server.core.store.clone(), far.clone(), server.head());
        async move {
            store
                .write("test", Vec::new(), move |tx| {
                    let far = far.clone();
                    Box::pin(async move {
                        let generation = tx.remote_list_generation(&far).await?;
                        let json = device_keys("@z:far", "Z", 6).to_string();
                        let row = DeviceKeysRow {
                            user_id: far.clone(),
                            device_id: "Z".into(),
                            json,
                            display_name: None,
                        };
                        tx.device_keys_put(&row).await?;
                        tx.remote_list_put(&far, stream, since, generation).await?;
                        Ok::<_, StoreError>(())
                    })
                })
                .await
                .unwrap();
        }
    };
    let valid = || async {
        let mut conn = server.core.store.read().await.unwrap();
        let valid =
            conn.remote_lists_valid(&server.core.server_name, std::slice::from_ref(&far)).await.unwrap();
        valid.first().map(|(_, stream)| *stream)
    };
    put(4).await;
    assert_eq!(valid().await, Some(4));
    let since = server.head();
    server.keys.device_list_update(update(5, 4)).await.unwrap();
    assert_eq!(valid().await, Some(5), "the change connects");
    assert_eq!(server.changes("@a:test", since).await.0, ["@z:far"]);
    let wanted = Wanted::from([(far.clone(), Vec::new())]);
    let found = server.keys.query(&user("@a:test"), wanted.clone(), None).await.unwrap();
    let json: Value =
        serde_json::from_str(found.device_keys[&far].values().next().unwrap().json().get()).unwrap();
    assert_eq!(json["keys"]["ed25519:Z"], public(7));
    let since = server.head();
    server.keys.device_list_update(update(5, 4)).await.unwrap();
    assert_eq!(server.head(), since, "a repeated change is none");
    server.keys.device_list_update(update(8, 7)).await.unwrap();
    assert_eq!(valid().await, None, "a gap: the copy is stale");
    let found = server.keys.query(&user("@a:test"), wanted, None).await.unwrap();
    assert!(found.failures.contains_key("far"));
    put(8).await;
    assert_eq!(valid().await, Some(8));
    server.join("!r:test", "@z:far", false).await;
    assert_eq!(valid().await, None);
    server.join("!r:test", "@z:far", true).await;
    assert_eq!(valid().await, None, "what happened between is not known");
}

fn sending(kind: &str, txn: &str, to: &[(&str, DeviceIdOrAllDevices)]) -> Sending {
    let mut messages = Messages::new();
    for (who, device) in to {
        messages.entry(user(who)).or_default().insert(device.clone(), raw(json!({ "n": 1 })));
    }
    Sending { kind: kind.into(), txn_id: txn.into(), messages }
}

#[tokio::test]
async fn to_device_messages_are_delivered_once() {
    let server = server().await;
    let service = ToDevice::new(server.core.clone());
    server.device("@b:test", "E", 1).await;
    server.device("@b:test", "F", 2).await;
    let all = DeviceIdOrAllDevices::AllDevices;
    let device = |id: &str| DeviceIdOrAllDevices::DeviceId(id.into());
    let from = OwnedDeviceId::from("D");
    let send = |kind: &str, txn: &str, to: &[(&str, DeviceIdOrAllDevices)]| {
        let sending = sending(kind, txn, to);
        let (service, from) = (service.clone(), from.clone());
        async move { service.send(&user("@a:test"), Some(&from), sending, false).await }
    };
    let waiting = |id: &'static str| {
        let store = server.core.store.clone();
        async move {
            let upto = store.tail().head();
            store.to_device_load(&user("@b:test"), id, LogPosition::START, upto, 100).await.unwrap()
        }
    };
    send("t", "1", &[("@b:test", device("E")), ("@b:test", device("nope"))]).await.unwrap();
    send("t", "1", &[("@b:test", device("E"))]).await.unwrap();
    send("t", "2", &[("@b:test", all.clone()), ("@z:far", all.clone())]).await.unwrap();
    assert_eq!(waiting("E").await.len(), 2);
    let messages = waiting("F").await;
    let event: Value = serde_json::from_str(messages[0].1.get()).unwrap();
    assert_eq!(event, json!({ "type": "t", "sender": "@a:test", "content": { "n": 1 } }));
    let edus = server.edus("far").await;
    assert_eq!(edus.len(), 1);
    assert_eq!(edus[0]["content"]["messages"]["@z:far"]["*"], json!({ "n": 1 }));
    let refused = send("m.room_key", "3", &[("@b:test", all)]).await;
    assert!(matches!(refused, Err(ToDeviceError::Refused(_))));
    for _ in 0..2 {
        let edu = json!({ "sender": "@z:far", "type": "t", "message_id": "m",
            "messages": { "@b:test": { "E": {} }, "@q:elsewhere": { "*": {} } } });
        let edu: DirectDeviceContent = serde_json::from_value(edu).unwrap();
        service.receive(edu).await.unwrap();
    }
    let messages = waiting("E").await;
    assert_eq!(messages.len(), 3);
    let upto = messages[1].0;
    let gone = server
        .core
        .store
        .write("test", Vec::new(), move |tx| {
            Box::pin(async move { tx.to_device_delete_upto(&user("@b:test"), "E", upto).await })
        })
        .await;
    assert_eq!(gone.map_err(|error: StoreError| error.to_string()), Ok(2));
    assert_eq!(waiting("E").await.len(), 1);
}

#[tokio::test]
async fn backups_keep_the_better_key() {
    let server = server().await;
    let backups = Backups::new(server.core.clone());
    let a = user("@a:test");
    let definition = raw(json!({ "algorithm": "m.x", "auth_data": { "k": 1 } }));
    assert!(matches!(backups.info(&a, None).await, Err(BackupError::NotFound(_))));
    let first = backups.create(&a, &definition).await.unwrap();
    let key = |index: u32, count: u32, verified: bool| {
        let key = json!({ "first_message_index": index, "forwarded_count": count, "is_verified": verified,
            "session_data": { "a": "b" } });
        BackupKeys::from([("!r:x".into(), BTreeMap::from([("s".into(), raw(key))]))])
    };
    let state = backups.keys_put(&a, &first, key(10, 5, false)).await.unwrap();
    assert_eq!((state.count, state.etag.as_str()), (1, "1"));
    for worse in [key(11, 5, false), key(10, 6, false), key(10, 5, false)] {
        assert_eq!(backups.keys_put(&a, &first, worse).await.unwrap().etag, "1");
    }
    for (nth, better) in [key(10, 4, false), key(9, 9, false), key(99, 9, true)].into_iter().enumerate() {
        assert_eq!(backups.keys_put(&a, &first, better).await.unwrap().etag, (nth + 2).to_string());
    }
    assert_eq!(backups.keys_put(&a, &first, key(0, 0, false)).await.unwrap().etag, "4");
    let kept: Value =
        serde_json::from_str(backups.key(&a, &first, "!r:x", "s").await.unwrap().get()).unwrap();
    assert_eq!(kept["first_message_index"], 99);
    let second = backups.create(&a, &definition).await.unwrap();
    let wrong = backups.keys_put(&a, &first, key(0, 0, true)).await;
    assert!(matches!(wrong, Err(BackupError::WrongVersion(current)) if current == second));
    let other = raw(json!({ "algorithm": "m.y", "auth_data": {} }));
    assert!(matches!(backups.update(&a, &second, &other).await, Err(BackupError::Invalid(_))));
    backups.delete(&a, &second).await.unwrap();
    assert_eq!(backups.info(&a, None).await.unwrap().version, first);
    let state = backups.keys_delete(&a, &first, BackupScope::Room("!r:x".into())).await.unwrap();
    assert_eq!((state.count, state.etag.as_str()), (0, "5"));
    assert_eq!(backups.keys_delete(&a, &first, BackupScope::All).await.unwrap().etag, "5");
    assert!(backups.keys(&a, &first, &BackupScope::All).await.unwrap().is_empty());
    assert!(matches!(backups.delete(&a, &second).await, Err(BackupError::NotFound(_))));
    assert_ne!(backups.create(&a, &definition).await.unwrap(), second, "numbers are not used again");
}
