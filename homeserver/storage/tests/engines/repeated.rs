//! A request that is repeated is answered as it was before, also when its repetitions meet in one group.

use crate::Fresh;
use ruma::UserId;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use waxwing_storage::{Needs, Store, StoreError, TransactionKey};

fn request() -> TransactionKey {
    (UserId::parse("@alice:test").unwrap(), "DEVICE".to_owned(), "send".to_owned(), "1".to_owned())
}

/// Answers as before, or `fresh` when there was no before.
async fn ask(store: &Store, fresh: String) -> String {
    let done: Result<String, StoreError> = store
        .write_needing("repeatable", Needs { request: Some(request()), ..Needs::default() }, move |tx| {
            let fresh = fresh.clone();
            Box::pin(async move {
                if let Some(before) = tx.transaction_get(&request()).await? {
                    return Ok(before);
                }
                tx.transaction_put(request(), fresh.clone(), 1);
                Ok(fresh)
            })
        })
        .await;
    done.unwrap()
}

/// A node that is slow, or was killed while the database still commits what it wrote; the client tries another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_that_another_node_is_just_answering_is_answered_once() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let store = Store::open(&fresh.url).await.unwrap();
    let mut other = PgConnection::connect(&fresh.url).await.unwrap();
    other.execute("BEGIN").await.unwrap();
    let written = "INSERT INTO transactions (user_id, device_id, endpoint, txn_id, response, created_at) \
                   VALUES ('@alice:test', 'DEVICE', 'send', '1', 'by the other', 1)";
    other.execute(written).await.unwrap();
    let asked = tokio::spawn({
        let store = store.clone();
        async move { ask(&store, "by this one".to_owned()).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!asked.is_finished(), "it waits for the other's commit");
    other.execute("COMMIT").await.unwrap();
    assert_eq!(asked.await.unwrap(), "by the other");
    drop(store);
    fresh.drop_database().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn repetitions_in_one_group_hear_the_first_answer() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        assert_eq!(ask(&store, "first".to_owned()).await, "first");
        // While one group is held up, those that follow gather in the next.
        let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let holder = tokio::spawn({
            let (store, began, go) = (store.clone(), Arc::clone(&began), Arc::clone(&go));
            async move {
                let held: Result<(), StoreError> = store
                    .write("hold", Vec::new(), move |_| {
                        let (began, go) = (Arc::clone(&began), Arc::clone(&go));
                        Box::pin(async move {
                            began.notify_one();
                            go.notified().await;
                            Ok(())
                        })
                    })
                    .await;
                held.unwrap();
            }
        });
        began.notified().await;
        let mut repeated = Vec::new();
        for number in 0..8 {
            let store = store.clone();
            repeated.push(tokio::spawn(async move { ask(&store, format!("again {number}")).await }));
        }
        while store.waiting() < 8 {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        holder.await.unwrap();
        for answer in repeated {
            assert_eq!(answer.await.unwrap(), "first");
        }
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn answers_are_forgotten_by_their_age_a_slice_at_a_time() {
    async fn prune(store: &Store, before: u64) -> u64 {
        let done: Result<u64, StoreError> = store
            .write("prune", Vec::new(), move |tx| {
                Box::pin(async move { tx.transactions_prune(before, 100).await })
            })
            .await;
        done.unwrap()
    }
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        for at in [1000, 1050, 2000, 3000] {
            let done: Result<(), StoreError> = store
                .write("put", Vec::new(), move |tx| {
                    Box::pin(async move {
                        let (user, device, endpoint, _) = request();
                        tx.transaction_put((user, device, endpoint, at.to_string()), "done".to_owned(), at);
                        Ok(())
                    })
                })
                .await;
            done.unwrap();
        }
        assert_eq!(prune(&store, 2500).await, 2, "the first slice");
        assert_eq!(prune(&store, 2500).await, 1, "the next that has any");
        assert_eq!(prune(&store, 2500).await, 0);
        assert_eq!(prune(&store, 3001).await, 1, "what was too young before");
        drop(store);
        fresh.drop_database().await;
    }
}
