//! Nodes over one PostgreSQL hear of each other's rows at once, however busy their lookups are.

use crate::{Fresh, append};
use std::time::{Duration, Instant};
use waxwing_model::LogPosition;
use waxwing_storage::Store;

/// A node that only polled would need half a second on average, and up to one.
const AT_ONCE: Duration = Duration::from_millis(300);
/// More lookups than a node has connections.
const LOOKUPS: usize = 40;
const ROWS: usize = 5;

/// How long `reader` takes to have the row that `writer` has just committed.
async fn crossing(writer: &Store, reader: &Store) -> Duration {
    let mut head = reader.tail().subscribe();
    append(writer, "row".to_owned()).await.unwrap();
    let (began, wanted) = (Instant::now(), writer.tail().head());
    tokio::time::timeout(Duration::from_secs(5), head.wait_for(|head| *head >= wanted))
        .await
        .unwrap()
        .unwrap();
    began.elapsed()
}

/// Takes all connections for lookups of a node, and holds them until dropped.
async fn busy(store: &Store) -> Vec<tokio::task::JoinHandle<()>> {
    let mut all = Vec::new();
    for _ in 0..LOOKUPS {
        let store = store.clone();
        all.push(tokio::spawn(async move {
            let conn = store.read().await;
            std::future::pending::<()>().await;
            drop(conn);
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_whose_lookups_are_all_taken_hears_hints_and_gives_them() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let first = Store::open(&fresh.url).await.unwrap();
    let second = Store::open(&fresh.url).await.unwrap();
    // Both have begun to listen.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut held = busy(&first).await;
    held.extend(busy(&second).await);
    let mut took = Vec::new();
    for _ in 0..ROWS {
        took.push(crossing(&first, &second).await);
        took.push(crossing(&second, &first).await);
    }
    for lookup in held {
        lookup.abort();
    }
    took.sort_unstable();
    assert!(took[took.len() / 2] < AT_ONCE && took[took.len() - 1] < Duration::from_millis(900), "{took:?}");
    drop((first, second));
    fresh.drop_database().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hints_go_on_after_every_connection_was_cut() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let first = Store::open(&fresh.url).await.unwrap();
    let second = Store::open(&fresh.url).await.unwrap();
    crossing(&first, &second).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND query LIKE '%waxwing_log%' AND pid <> pg_backend_pid()";
    fresh.execute(cut).await.unwrap();
    // Nothing is lost, only late; and soon nothing is late any more.
    let start = second.tail().head();
    append(&first, "in the gap".to_owned()).await.unwrap();
    let mut head = second.tail().subscribe();
    let wanted = LogPosition(start.0 + 1);
    tokio::time::timeout(Duration::from_secs(5), head.wait_for(|head| *head >= wanted))
        .await
        .unwrap()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut took = Vec::new();
    for _ in 0..ROWS {
        took.push(crossing(&first, &second).await);
    }
    took.sort_unstable();
    assert!(took[ROWS / 2] < AT_ONCE, "{took:?}");
    drop((first, second));
    fresh.drop_database().await;
}
