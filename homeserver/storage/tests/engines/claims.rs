//! One-time keys: handed out in the order of their upload, each once, however many nodes claim at the same time.

use crate::Fresh;
use ruma::{OwnedUserId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use waxwing_storage::{OneTimeKeyRow, OneTimeKeysPut, Store, StoreError};

const KEYS: usize = 120;
const CLAIMERS: usize = 8;

fn alice() -> OwnedUserId {
    UserId::parse("@alice:test").unwrap()
}

fn key(number: usize) -> OneTimeKeyRow {
    // The names do not sort in the order of upload.
    let key_id = format!("{:03}", (number * 77) % 1000);
    OneTimeKeyRow { algorithm: "signed_curve25519".into(), key_id, json: format!("{{\"key\":\"{number}\"}}") }
}

fn all_of_them() -> BTreeMap<String, u64> {
    BTreeMap::from([("signed_curve25519".to_owned(), KEYS as u64)])
}

async fn upload(store: &Store, keys: Vec<OneTimeKeyRow>) -> OneTimeKeysPut {
    upload_at_most(store, keys, 1000).await
}

/// What it answers; what it wrote is undone where it answers that nothing may stay.
async fn upload_at_most(store: &Store, keys: Vec<OneTimeKeyRow>, most: u64) -> OneTimeKeysPut {
    enum Failed {
        Store(StoreError),
        Put(OneTimeKeysPut),
    }
    impl From<StoreError> for Failed {
        fn from(error: StoreError) -> Failed {
            Failed::Store(error)
        }
    }
    let done = store.write("upload", Vec::new(), move |tx| {
        let keys = keys.clone();
        Box::pin(async move {
            match tx.one_time_keys_put(&alice(), "D", &keys, most).await? {
                put @ OneTimeKeysPut::Here(..) => Ok(put),
                put => Err(Failed::Put(put)),
            }
        })
    });
    match done.await {
        Ok(put) | Err(Failed::Put(put)) => put,
        Err(Failed::Store(error)) => panic!("{error}"),
    }
}

fn number(json: &str) -> usize {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    json["key"].as_str().unwrap().parse().unwrap()
}

async fn claim(store: &Store) -> Option<usize> {
    let claimed = store.write("claim", Vec::new(), |tx| {
        let claims = [(alice(), "D".to_owned(), "signed_curve25519".to_owned())];
        Box::pin(async move { tx.one_time_keys_claim(&claims).await })
    });
    let claimed: Result<_, StoreError> = claimed.await;
    Some(number(&claimed.unwrap().remove(0)?.json))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn claimed_in_order_and_never_twice() {
    for fresh in Fresh::both().await {
        let first = Store::open(&fresh.url).await.unwrap();
        let second =
            if fresh.cluster.is_some() { Store::open(&fresh.url).await.unwrap() } else { first.clone() };
        // In two uploads: the second is handed out after the first.
        for part in [0..KEYS / 2, KEYS / 2..KEYS] {
            let keys: Vec<OneTimeKeyRow> = part.map(key).collect();
            let counts = BTreeMap::from([("signed_curve25519".to_owned(), keys.len() as u64)]);
            let counts = if keys[0] == key(0) { counts } else { all_of_them() };
            assert_eq!(upload(&first, keys.clone()).await, OneTimeKeysPut::Here(counts, true));
            // Once more the same is nothing new; another key under an id that is taken is refused.
            assert!(matches!(upload(&first, keys.clone()).await, OneTimeKeysPut::Here(_, false)));
            let other = OneTimeKeyRow { json: "{\"key\":\"x\"}".into(), ..keys[1].clone() };
            let id = format!("signed_curve25519:{}", other.key_id);
            assert_eq!(upload(&first, vec![keys[0].clone(), other]).await, OneTimeKeysPut::Taken(id));
            let more = OneTimeKeyRow { key_id: "more".into(), ..keys[0].clone() };
            assert_eq!(upload_at_most(&first, vec![more], 3).await, OneTimeKeysPut::TooMany);
        }
        let mut claimers = Vec::new();
        for claimer in 0..CLAIMERS {
            let store = if claimer % 2 == 0 { first.clone() } else { second.clone() };
            claimers.push(tokio::spawn(async move {
                let mut got = Vec::new();
                while let Some(key) = claim(&store).await {
                    got.push(key);
                }
                got
            }));
        }
        let mut all = BTreeSet::new();
        for claimer in claimers {
            let got = claimer.await.unwrap();
            assert!(got.is_sorted(), "in the order of upload: {got:?}");
            for key in got {
                assert!(all.insert(key), "key {key} was handed out twice");
            }
        }
        assert_eq!(all, (0..KEYS).collect(), "and none is lost");
        drop((first, second));
        fresh.drop_database().await;
    }
}

/// Keys as a version before the batches wrote them.
async fn write_old(fresh: &Fresh, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let OneTimeKeyRow { algorithm, key_id, json } = key(number);
        let text = format!(
            "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, upload_order, json) VALUES ('@alice:test', 'D', '{algorithm}', '{key_id}', {number}, '{json}')"
        );
        fresh.execute(&text).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_before_the_batches_are_handed_out_too() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        write_old(&fresh, 0..3).await;
        assert_eq!(claim(&store).await, Some(0));
        // They count, and are known.
        let again = upload(&store, vec![key(1)]).await;
        let two = BTreeMap::from([("signed_curve25519".to_owned(), 2)]);
        assert_eq!(again, OneTimeKeysPut::Here(two, false));
        let other = OneTimeKeyRow { json: "{\"key\":\"x\"}".into(), ..key(1) };
        assert!(matches!(upload(&store, vec![other]).await, OneTimeKeysPut::Taken(_)));
        // An upload puts them before its own.
        let four = BTreeMap::from([("signed_curve25519".to_owned(), 4)]);
        assert_eq!(upload(&store, vec![key(3), key(4)]).await, OneTimeKeysPut::Here(four.clone(), true));
        let counts = store.read().await.unwrap().one_time_key_counts(&alice(), "D").await.unwrap();
        assert_eq!(counts, four);
        // What a node of that version writes meanwhile comes last.
        write_old(&fresh, 5..6).await;
        for number in 1..6 {
            assert_eq!(claim(&store).await, Some(number));
        }
        assert_eq!(claim(&store).await, None);
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_devices_are_claimed_at_once() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        upload(&store, vec![key(0), key(1)]).await;
        let claims = || {
            let claim = |device: &str| (alice(), device.to_owned(), "signed_curve25519".to_owned());
            ["NONE", "D", "OTHER"].map(claim)
        };
        let other = store.write("upload", Vec::new(), |tx| {
            let keys: Vec<OneTimeKeyRow> = (10..12).map(key).collect();
            Box::pin(async move {
                tx.fallback_key_put(&alice(), "OTHER", &key(20)).await?;
                tx.one_time_keys_put(&alice(), "OTHER", &keys, 10).await
            })
        });
        other.await.map_err(|error: StoreError| error).unwrap();
        for expected in [[None, Some(0), Some(10)], [None, Some(1), Some(11)], [None, None, Some(20)]] {
            let claimed = store.write("claim", Vec::new(), move |tx| {
                let claims = claims();
                Box::pin(async move { tx.one_time_keys_claim(&claims).await })
            });
            let claimed: Result<_, StoreError> = claimed.await;
            let keys: Vec<Option<usize>> =
                claimed.unwrap().into_iter().map(|key| key.map(|key| number(&key.json))).collect();
            assert_eq!(keys, expected);
        }
        // What was handed out a moment ago is not taken for new when its upload is repeated.
        upload(&store, (30..33).map(key).collect()).await;
        assert_eq!(claim(&store).await, Some(30));
        assert!(matches!(upload(&store, (30..33).map(key).collect()).await, OneTimeKeysPut::Here(_, false)));
        assert_eq!(claim(&store).await, Some(31));
        drop(store);
        fresh.drop_database().await;
    }
}
