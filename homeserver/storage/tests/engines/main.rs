//! What the storage promises, on both engines: one text for both, groups that keep their members apart, a log that
//! readers see whole and in order.

mod away;
mod claims;
mod graph;
mod hints;
mod letters;
mod media;
mod migrations;
mod outgoing;
mod partial;
mod repeated;
mod sends;
mod sharing;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr};
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, NewRow, PusherKey, PusherRow, PusherTry, STATEMENTS, Store, StoreError};

/// A fresh database, removed with the test.
struct Fresh {
    url: String,
    cluster: Option<String>,
    _folder: tempfile::TempDir,
}

impl Fresh {
    fn sqlite() -> Fresh {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        Fresh { url, cluster: None, _folder: folder }
    }

    /// `None` without a cluster, which is a failure where `CI` is set.
    async fn postgres() -> Option<Fresh> {
        let Ok(cluster) = std::env::var("WAXWING_TEST_POSTGRES") else {
            assert!(std::env::var_os("CI").is_none(), "WAXWING_TEST_POSTGRES is not set");
            let _ = writeln!(std::io::stderr(), "NOT RUN on PostgreSQL: WAXWING_TEST_POSTGRES is not set");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        // The folder's name is of this test alone.
        let unique = folder.path().file_name().unwrap().to_string_lossy().replace(['.', '-'], "");
        let name = format!("waxwing_{}_{}", std::process::id(), unique.to_lowercase());
        let mut conn = PgConnection::connect(&cluster).await.unwrap();
        conn.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        let (base, _) = cluster.rsplit_once('/').unwrap();
        Some(Fresh { url: format!("{base}/{name}"), cluster: Some(cluster), _folder: folder })
    }

    async fn both() -> Vec<Fresh> {
        let mut all = vec![Fresh::sqlite()];
        all.extend(Fresh::postgres().await);
        all
    }

    async fn drop_database(self) {
        let Some(cluster) = &self.cluster else { return };
        let name = self.url.rsplit('/').next().unwrap();
        let mut conn = PgConnection::connect(cluster).await.unwrap();
        conn.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
    }

    /// Runs a statement beside the store.
    async fn execute(&self, text: &str) -> Result<(), sqlx::Error> {
        let text = AssertSqlSafe(text.to_owned());
        if self.cluster.is_some() {
            PgConnection::connect(&self.url).await?.execute(text).await?;
        } else {
            SqliteConnection::connect(&self.url).await?.execute(text).await?;
        }
        Ok(())
    }
}

/// The text as it is sent, with two values in each list and two rows.
fn expanded(text: &str) -> String {
    let numbers = text.split('$').skip(1).filter_map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().ok()
    });
    let next = numbers.max().unwrap_or(0) + 1;
    let text = text.replace("$list", &format!("${next},${}", next + 1));
    let Some(at) = text.find("$rows") else { return text };
    // The columns of an insert, or those that the rest of the statement names.
    let columns = match (1..=16).take_while(|number| text.contains(&format!("column{number}"))).last() {
        Some(columns) => columns,
        None => {
            let open = text[..at].find('(').expect("the columns of an insert");
            text[open..at].split(')').next().unwrap().split(',').count()
        }
    };
    let row = |from: usize| {
        let parameters: Vec<String> = (0..columns).map(|column| format!("${}", from + column)).collect();
        format!("({})", parameters.join(","))
    };
    text.replace("$rows", &format!("{},{}", row(1), row(1 + columns)))
}

#[tokio::test]
async fn every_statement_prepares_on_both_engines() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let mut broken = Vec::new();
        for (file, statements) in STATEMENTS {
            for (name, text) in *statements {
                let text = AssertSqlSafe(expanded(text)).into_sql_str();
                let outcome = if fresh.cluster.is_some() {
                    PgConnection::connect(&fresh.url).await.unwrap().prepare(text.clone()).await.map(|_| ())
                } else {
                    SqliteConnection::connect(&fresh.url)
                        .await
                        .unwrap()
                        .prepare(text.clone())
                        .await
                        .map(|_| ())
                };
                if let Err(error) = outcome {
                    broken.push(format!("{file}::{name}: {error}\n    {}", text.as_str()));
                }
            }
        }
        drop(store);
        fresh.drop_database().await;
        assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    }
}

/// One row that says `text`.
async fn append(store: &Store, text: String) -> Result<(), StoreError> {
    let row = move |tx: &mut waxwing_storage::Tx| {
        tx.log_append(NewRow::new(Fact::Other).reference(text.clone()));
    };
    let row = Arc::new(row);
    let write = store.write("test", Vec::new(), move |tx| {
        let row = Arc::clone(&row);
        Box::pin(async move {
            row(tx);
            Ok(())
        })
    });
    write.await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_sees_every_row_once_and_in_order_while_sixteen_write() {
    const WRITERS: usize = 16;
    const ROWS: usize = 60;
    for fresh in Fresh::both().await {
        let first = Store::open(&fresh.url).await.unwrap();
        // On PostgreSQL two nodes write, and a third reads.
        let more = fresh.cluster.is_some();
        let second = if more { Store::open(&fresh.url).await.unwrap() } else { first.clone() };
        let reading = if more { Store::open(&fresh.url).await.unwrap() } else { first.clone() };
        let start = reading.tail().head();
        let done = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn(follow(reading, start, Arc::clone(&done), WRITERS * ROWS));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let store = if writer % 2 == 0 { first.clone() } else { second.clone() };
            writers.push(tokio::spawn(async move {
                for row in 0..ROWS {
                    append(&store, format!("{writer}-{row}")).await.unwrap();
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
        done.store(true, Ordering::Release);
        let seen = reader.await.unwrap();
        let positions: Vec<i64> = seen.iter().map(|row| row.position.0).collect();
        assert!(positions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a gap, a repetition or disorder");
        let said: BTreeSet<&str> = seen.iter().filter_map(|row| row.reference.as_deref()).collect();
        assert_eq!((seen.len(), said.len()), (WRITERS * ROWS, WRITERS * ROWS));
        drop((first, second));
        fresh.drop_database().await;
    }
}

/// Reads as a long poll does: wait for the head, read up to it.
async fn follow(
    store: Store,
    mut at: LogPosition,
    done: Arc<AtomicBool>,
    expected: usize,
) -> Vec<Arc<LogRow>> {
    let mut head = store.tail().subscribe();
    let mut seen = Vec::new();
    while seen.len() < expected {
        let last_look = done.load(Ordering::Acquire);
        if last_look {
            store.catch_up().await.unwrap();
        }
        let upto = *head.borrow_and_update();
        seen.extend(store.log_rows(at, upto, i64::MAX).await.unwrap());
        at = upto;
        if last_look {
            break;
        }
        let _ = tokio::time::timeout(Duration::from_millis(50), head.changed()).await;
    }
    seen
}

#[derive(Debug)]
enum Failure {
    Own,
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failing_member_fails_alone() {
    const MEMBERS: usize = 60;
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let start = store.tail().head();
        let mut members = Vec::new();
        for member in 0..MEMBERS {
            let store = store.clone();
            members.push(tokio::spawn(async move {
                let write = store.write("test", Vec::new(), move |tx| {
                    Box::pin(async move {
                        tx.log_append(NewRow::new(Fact::Other).reference(member.to_string()));
                        match member % 3 {
                            0 => Ok(member),
                            1 => Err(Failure::Own),
                            _ => panic!("a member panics"),
                        }
                    })
                });
                write.await
            }));
        }
        for (number, member) in members.into_iter().enumerate() {
            match (number % 3, member.await.unwrap()) {
                (0, Ok(same)) => assert_eq!(same, number),
                (1, Err(Failure::Own)) | (2, Err(Failure::Store(StoreError::Panicked))) => {}
                (_, other) => panic!("member {number}: {other:?}"),
            }
        }
        let rows = store.log_rows(start, store.tail().head(), i64::MAX).await.unwrap();
        let said: BTreeSet<usize> =
            rows.iter().map(|row| row.reference.as_ref().unwrap().parse().unwrap()).collect();
        assert_eq!(said, (0..MEMBERS).filter(|member| member % 3 == 0).collect());
        assert_eq!(rows.len(), said.len(), "nothing twice");
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_opening_again() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        append(&store, "kept".to_owned()).await.unwrap();
        let head = store.tail().head();
        drop(store);
        let again = Store::open(&fresh.url).await.unwrap();
        assert_eq!(again.tail().head(), head);
        let rows = again.read().await.unwrap().log_range(LogPosition(head.0 - 1), head, 10).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].reference.as_deref(), Some("kept"));
        drop(again);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_opened_where_it_says_that_this_one_works_with_it() {
    for fresh in Fresh::both().await {
        drop(Store::open(&fresh.url).await.unwrap());
        let future = "INSERT INTO schema_migrations (version, name) VALUES (9999, '9999_future')";
        fresh.execute(future).await.unwrap();
        // The newer program has written down that this one works beside it; then a later one, that it does not.
        drop(Store::open(&fresh.url).await.unwrap());
        let breaking = "UPDATE settings SET value = '9999' WHERE name = 'compatible_since'";
        fresh.execute(breaking).await.unwrap();
        assert!(matches!(Store::open(&fresh.url).await, Err(StoreError::Newer(9999))));
        // One that says nothing about it is not trusted.
        fresh.execute("DELETE FROM settings WHERE name = 'compatible_since'").await.unwrap();
        assert!(matches!(Store::open(&fresh.url).await, Err(StoreError::Newer(9999))));
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn one_owner_holds_a_lease_and_writes_under_it() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let take = async |owner: &'static str, now: u64| {
            let write = store.write("take", Vec::new(), move |tx| {
                Box::pin(async move { tx.lease_take("work", owner, now, now + 10).await })
            });
            write.await.unwrap()
        };
        let holds = async |owner: &'static str, epoch: i64| {
            let write = store.write("hold", Vec::new(), move |tx| {
                Box::pin(async move { tx.lease_hold("work", owner, epoch).await })
            });
            let held: Result<bool, StoreError> = write.await;
            held.unwrap()
        };
        let first: Option<i64> = take("a", 100).await;
        assert_eq!((first, take("b", 105).await), (Some(1), None));
        assert!(holds("a", 1).await && !holds("b", 1).await);
        // It ran out, and a neighbour has it: what its old owner still wants to write is not written.
        assert_eq!((take("b", 111).await, take("a", 115).await), (Some(2), None));
        assert!(holds("b", 2).await && !holds("a", 1).await);
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn what_a_pusher_owes_is_kept() {
    let user: ruma::OwnedUserId = "@a:x".try_into().unwrap();
    let key = PusherKey { user_id: user.clone(), app_id: "app".into(), pushkey: "key".into() };
    let new = PusherRow {
        key: key.clone(),
        device_id: None,
        json: "{}".into(),
        enabled: true,
        updated_at: 1,
        position: 5,
        marked: 5,
        badge: None,
        failing: None,
    };
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let failing = PusherTry { failing_since: 10, retry_at: 30, interval: 20 };
        let input = Arc::new((new.clone(), key.clone(), user.clone()));
        let write = store.write("pusher", Vec::new(), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (row, key, user) = &*input;
                tx.pusher_set(row).await?;
                tx.pushers_mark(std::slice::from_ref(user), 9).await?;
                tx.pushers_mark(std::slice::from_ref(user), 7).await?;
                tx.pusher_delivered(key, 7, Some(2)).await?;
                tx.pusher_failed(key, 7, failing).await?;
                // Late, from before: takes nothing back.
                tx.pusher_delivered(key, 6, None).await?;
                tx.cursor_save("push", LogPosition(8)).await?;
                tx.cursor_save("push", LogPosition(9)).await?;
                Ok::<(), StoreError>(())
            })
        });
        write.await.unwrap();
        let row = store.read().await.unwrap().pushers_of(&user).await.unwrap().remove(0);
        let kept =
            PusherRow { position: 7, marked: 9, badge: Some(2), failing: Some(failing), ..new.clone() };
        assert_eq!(row, kept);
        assert!(row.owes());
        let cursor = store.read().await.unwrap().cursor_load("push").await.unwrap();
        assert_eq!(cursor, Some(LogPosition(9)));
        drop(store);
        fresh.drop_database().await;
    }
}

#[test]
fn lists_and_rows_are_expanded_as_they_are_sent() {
    assert_eq!(expanded("a = $1 AND b IN ($list)"), "a = $1 AND b IN ($2,$3)");
    assert_eq!(expanded("INSERT INTO t (a, b) VALUES $rows"), "INSERT INTO t (a, b) VALUES ($1,$2),($3,$4)");
}
