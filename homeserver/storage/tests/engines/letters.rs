//! Messages to devices: in order, each until it is taken, wherever the database has them meanwhile.

use crate::Fresh;
use ruma::{OwnedUserId, UserId};
use std::collections::BTreeSet;
use waxwing_model::LogPosition;
use waxwing_storage::{Store, StoreError};

/// More than are kept unfiled.
const MANY: usize = 2100;

fn alice() -> OwnedUserId {
    UserId::parse("@alice:test").unwrap()
}

async fn put(store: &Store, messages: Vec<(&'static str, usize)>) {
    let done = store.write("put", Vec::new(), move |tx| {
        for (device, number) in &messages {
            tx.to_device_put(alice(), (*device).to_owned(), format!("{{\"n\":{number}}}").into());
        }
        Box::pin(async { Ok::<_, StoreError>(()) })
    });
    done.await.unwrap();
}

/// The numbers of the messages of a device after `after`, and the position of the last.
async fn load(store: &Store, device: &str, after: LogPosition, limit: usize) -> (Vec<usize>, LogPosition) {
    let found = store.to_device_load(&alice(), device, after, store.tail().head(), limit).await.unwrap();
    let last = found.last().map_or(after, |(position, _)| *position);
    let number = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["n"].as_u64().unwrap();
    (found.iter().map(|(_, json)| number(json.get()) as usize).collect(), last)
}

async fn all(store: &Store, device: &str) -> Vec<usize> {
    load(store, device, LogPosition::START, 100).await.0
}

async fn delete_upto(store: &Store, device: &'static str, upto: LogPosition) -> u64 {
    let done = store.write("delete", Vec::new(), move |tx| {
        Box::pin(async move { tx.to_device_delete_upto(&alice(), device, upto).await })
    });
    let done: Result<u64, StoreError> = done.await;
    done.unwrap()
}

async fn delete_all(store: &Store, device: &'static str) {
    let done = store.write("delete all", Vec::new(), move |tx| {
        Box::pin(async move { tx.to_device_delete_all(&alice(), device).await })
    });
    let done: Result<(), StoreError> = done.await;
    done.unwrap();
}

async fn newest(store: &Store, device: &str) -> Option<LogPosition> {
    let newest = store.to_device_newest().await.unwrap();
    newest.into_iter().filter(|(_, of, _)| of == device).map(|(_, _, position)| position).max()
}

/// How many messages an audit sees, and how many of them are not filed.
async fn scanned(store: &Store) -> (usize, usize) {
    let mut conn = store.read().await.unwrap();
    let unfiled = conn.to_device_scan_unfiled(i64::MIN, 10_000).await.unwrap();
    let filed = conn.to_device_scan(("", "", i64::MIN), 10_000).await.unwrap();
    let positions: BTreeSet<i64> = unfiled.iter().chain(&filed).map(|message| message.2).collect();
    assert_eq!(positions.len(), unfiled.len() + filed.len());
    (positions.len(), unfiled.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_in_order_until_they_are_taken() {
    for fresh in Fresh::both().await {
        let late = fresh.cluster.is_none();
        let store = Store::open(&fresh.url).await.unwrap();
        put(&store, vec![("D", 1), ("E", 1), ("D", 2)]).await;
        put(&store, vec![("E", 2), ("D", 3), ("D", 4)]).await;
        assert_eq!(scanned(&store).await, (6, if late { 6 } else { 0 }));
        assert_eq!(all(&store, "D").await, [1, 2, 3, 4]);
        let (first, second) = load(&store, "D", LogPosition::START, 2).await;
        assert_eq!(first, [1, 2]);
        assert_eq!(load(&store, "D", second, 100).await.0, [3, 4]);
        assert_eq!(delete_upto(&store, "D", second).await, 2);
        assert_eq!(all(&store, "D").await, [3, 4]);
        drop(store);

        // After a start the same.
        let store = Store::open(&fresh.url).await.unwrap();
        assert_eq!((all(&store, "D").await, all(&store, "E").await), (vec![3, 4], vec![1, 2]));
        let last = load(&store, "D", LogPosition::START, 100).await.1;
        assert_eq!(newest(&store, "D").await, Some(last));

        // So many that they are filed; and a few after them.
        put(&store, (0..MANY).map(|number| ("F", number)).collect()).await;
        assert_eq!(scanned(&store).await, (MANY + 4, 0));
        assert_eq!(newest(&store, "D").await, Some(last));
        put(&store, vec![("D", 5), ("E", 3), ("D", 6)]).await;
        assert_eq!(scanned(&store).await, (MANY + 7, if late { 3 } else { 0 }));
        assert_eq!(all(&store, "D").await, [3, 4, 5, 6]);
        let (some, third) = load(&store, "D", LogPosition::START, 3).await;
        assert_eq!(some, [3, 4, 5]);
        assert_eq!(load(&store, "D", third, 3).await.0, [6]);
        assert!(newest(&store, "D").await > Some(third));
        assert_eq!(delete_upto(&store, "D", third).await, 3);
        assert_eq!(all(&store, "D").await, [6]);

        delete_all(&store, "F").await;
        delete_all(&store, "E").await;
        assert_eq!(scanned(&store).await.0, 1);
        drop(store);
        let store = Store::open(&fresh.url).await.unwrap();
        assert_eq!((all(&store, "D").await, all(&store, "E").await), (vec![6], vec![]));
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_deletes_none() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        put(&store, vec![("D", 1), ("D", 2)]).await;
        let upto = store.tail().head();
        let failed = store.write("fails", Vec::new(), move |tx| {
            Box::pin(async move {
                tx.to_device_delete_upto(&alice(), "D", upto).await?;
                Err::<(), _>(StoreError::Full)
            })
        });
        // Beside it one that writes, and stays.
        let (failed, ()) = tokio::join!(failed, put(&store, vec![("D", 3)]));
        assert!(matches!(failed, Err(StoreError::Full)));
        assert_eq!(all(&store, "D").await, [1, 2, 3]);
        drop(store);
        fresh.drop_database().await;
    }
}
