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

async fn claim(store: &Store) -> Option<usize> {
    let claimed = store.write("claim", Vec::new(), |tx| {
        Box::pin(async move { tx.one_time_key_claim(&alice(), "D", "signed_curve25519").await })
    });
    let claimed: Result<_, StoreError> = claimed.await;
    let json: serde_json::Value = serde_json::from_str(&claimed.unwrap()?.json).unwrap();
    Some(json["key"].as_str().unwrap().parse().unwrap())
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
