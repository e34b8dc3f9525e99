//! PostgreSQL goes away at the worst moments, and comes back.

use crate::{Fresh, append};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use waxwing_storage::{Store, StoreError};

/// What a line does when a transaction is committed for the first time over one of its connections.
const NOTHING: u8 = 0;
const LOSE_THE_ANSWER: u8 = 1;
const LOSE_THE_QUESTION: u8 = 2;

/// A line to the database that breaks once, at a commit. Gives the database's address by it.
async fn line(url: &str, breaks: Arc<AtomicU8>) -> String {
    let (before, rest) = url.split_once('@').unwrap();
    let (target, name) = rest.split_once('/').unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let through = format!("{before}@127.0.0.1:{port}/{name}?sslmode=disable");
    let target = target.to_owned();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&target).await.unwrap();
            tokio::spawn(carry(near, far, Arc::clone(&breaks)));
        }
    });
    through
}

async fn carry(mut near: TcpStream, mut far: TcpStream, breaks: Arc<AtomicU8>) {
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    // The text of a statement comes once, to be prepared; what follows it runs it.
    let mut commits = false;
    loop {
        tokio::select! {
            read = near.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                let how = if commits { breaks.swap(NOTHING, Ordering::SeqCst) } else { NOTHING };
                if how == LOSE_THE_QUESTION {
                    return;
                }
                far.write_all(&asked[..count]).await.unwrap();
                if how == LOSE_THE_ANSWER {
                    let _ = far.read(&mut answered).await;
                    return;
                }
                commits = asked[..count].windows(6).any(|window| window == b"COMMIT");
            }
            read = far.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                if near.write_all(&answered[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn rows(fresh: &Fresh, reference: &str) -> i64 {
    let mut conn = PgConnection::connect(&fresh.url).await.unwrap();
    let count = sqlx::query_as("SELECT COUNT(*) FROM log WHERE reference = $1").bind(reference);
    let (count,): (i64,) = count.fetch_one(&mut conn).await.unwrap();
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_done_once() {
    for how in [LOSE_THE_ANSWER, LOSE_THE_QUESTION] {
        let Some(fresh) = Fresh::postgres().await else { return };
        // The schema is there, so that the first commit is the one of this test.
        drop(Store::open(&fresh.url).await.unwrap());
        let breaks = Arc::new(AtomicU8::new(NOTHING));
        let store = Store::open(&line(&fresh.url, Arc::clone(&breaks)).await).await.unwrap();
        breaks.store(how, Ordering::SeqCst);
        append(&store, "in doubt".to_owned()).await.unwrap();
        assert_eq!(breaks.load(Ordering::SeqCst), NOTHING, "the line was cut");
        assert_eq!(rows(&fresh, "in doubt").await, 1);
        // And this node knows of it.
        let head = store.tail().head();
        assert_eq!(store.tail().row(head).unwrap().reference.as_deref(), Some("in doubt"));
        append(&store, "after that".to_owned()).await.unwrap();
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_in_a_transaction_holds_up_nobody_for_long() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let (hanging, other) = (Store::open(&fresh.url).await.unwrap(), Store::open(&fresh.url).await.unwrap());
    let (reached, mut waits) = tokio::sync::mpsc::channel(1);
    // As a process that is stopped where it holds a row that others want.
    let hangs = tokio::spawn(async move {
        let hung = hanging.write("hangs", Vec::new(), move |tx| {
            let reached = reached.clone();
            Box::pin(async move {
                tx.lease_take("wanted", "hanging", 1, 2).await?;
                let _ = reached.send(()).await;
                std::future::pending::<Result<(), StoreError>>().await
            })
        });
        hung.await
    });
    waits.recv().await.unwrap();
    let began = Instant::now();
    let owner: Arc<str> = "other".into();
    assert!(other.lease_take("wanted", &owner, 10, 10).await.unwrap().is_some());
    assert!(began.elapsed() > Duration::from_secs(1), "it was held up");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    hangs.abort();
    drop(other);
    fresh.drop_database().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_may_end_and_the_next_requests_are_served() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let store = Store::open(&fresh.url).await.unwrap();
    append(&store, "before".to_owned()).await.unwrap();
    // Several lookups at a time, so that there are several connections.
    let held = [store.read().await.unwrap(), store.read().await.unwrap(), store.read().await.unwrap()];
    drop(held);
    let mut conn = PgConnection::connect(&fresh.url).await.unwrap();
    let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    conn.execute(AssertSqlSafe(all.to_owned())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    for _ in 0..4 {
        store.read().await.unwrap().log_head().await.unwrap();
    }
    append(&store, "after".to_owned()).await.unwrap();
    assert_eq!(rows(&fresh, "after").await, 1);
    drop(store);
    fresh.drop_database().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_lacks_what_was_read_is_noticed() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let store = Store::open(&fresh.url).await.unwrap();
    append(&store, "one".to_owned()).await.unwrap();
    append(&store, "two".to_owned()).await.unwrap();
    store.catch_up().await.unwrap();
    // As after a fail-over to a replica that had not got the last row, on which another was written since.
    fresh.execute("UPDATE log SET reference = 'another' WHERE reference = 'two'").await.unwrap();
    fresh.execute("INSERT INTO log (position, kind) SELECT position + 1, 15 FROM log_head").await.unwrap();
    fresh.execute("UPDATE log_head SET position = position + 1").await.unwrap();
    assert!(matches!(store.catch_up().await, Err(StoreError::GoneBack(_))));
    tokio::time::timeout(Duration::from_secs(1), store.gone_back()).await.unwrap();
    drop(store);
    fresh.drop_database().await;
}
