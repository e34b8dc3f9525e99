//! The log lets go of rows that nobody needs: whoever comes back after a long time, from wherever they were, gets the
//! same answer as if all were there.

use super::{Client, Server, on, server, user};
use ruma::OwnedRoomId;
use ruma::events::receipt::ReceiptThread;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_services::Core;
use waxwing_services::keys::device_list_changes;
use waxwing_services::receipts::ReceiptKind;
use waxwing_services::sync::StateWanted;
use waxwing_services::timeline::Author;
use waxwing_storage::{Fact, NewRow, Store, StoreError};

const HOUR: u64 = 60 * 60 * 1000;
/// Messages of a round: with those of all rounds there are more than a room's rows are listed.
const MESSAGES: usize = 30;
const ROUNDS: usize = 9;

/// What happens in a round: something of every kind.
async fn round(server: &Server, rooms: &[OwnedRoomId], round: usize) {
    let [busy, quiet, other] = rooms else { panic!("three rooms") };
    for number in 0..MESSAGES {
        let said = server.say("bob", busy, &format!("{round}.{number}")).await;
        if number.is_multiple_of(10) {
            for reader in ["ann", "bob"] {
                let (who, thread) = (user(reader), ReceiptThread::Unthreaded);
                let reading = server.receipts.read(&who, busy, ReceiptKind::Read, &thread, said.clone());
                reading.await.unwrap();
            }
        }
    }
    server.set("ann", busy, "m.room.topic", json!({"topic": format!("{round}")})).await;
    if round == 2 {
        server.set("ann", quiet, "m.room.name", json!({"name": "Quiet"})).await;
    }
    let (joins, name) = (round.is_multiple_of(2), ["carol", "dave"][round % 3 % 2]);
    if joins {
        server.join("carol", other).await;
    } else {
        server.leave("carol", other).await;
    }
    if round == 3 {
        server.join(name, busy).await;
        server.timeline.invite(&Author::new(user("bob")), other, &user("ann"), Map::new()).await.unwrap();
    }
    server
        .core
        .store
        .write("of every kind", Vec::new(), move |tx| {
            let (ann, bob) = (user("ann"), user("bob"));
            Box::pin(async move {
                let content = json!({"round": round}).to_string();
                tx.account_data_set(&ann, None, "org.example.often", &content).await?;
                if round == 1 {
                    tx.account_data_set(&ann, None, "org.example.once", &content).await?;
                    tx.account_data_set(&ann, None, "org.example.gone", &content).await?;
                }
                if round == 4 {
                    tx.account_data_remove(&ann, None, "org.example.gone").await?;
                }
                tx.to_device_put(ann.clone(), "D".to_owned(), json!({"n": round}).to_string().into());
                tx.log_append(NewRow::new(Fact::DeviceList).user(bob.clone()));
                tx.log_append(NewRow::new(Fact::OneTimeKeys).user(ann.clone()).reference("D"));
                tx.log_append(NewRow::new(Fact::Account).user(ann).reference("D"));
                tx.log_append(NewRow::new(Fact::Other).user(bob).reference("typing"));
                Ok::<_, StoreError>(())
            })
        })
        .await
        .unwrap();
}

/// A node that has read nothing yet.
async fn fresh(server: &Server) -> Server {
    let path = server.dir.as_ref().unwrap().path().join("test.db");
    let store = Store::open(&format!("sqlite:{}", path.display())).await.unwrap();
    on(Core { store, ..server.core.clone() }, None).await
}

/// Without what changes between two answers whatever is in the log: ages, the clocks of what is not logged, and letters, which
/// go when a later token acknowledges them.
fn ageless(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            for clock in ["age", "next_batch", "presence", "to_device"] {
                entries.remove(clock);
            }
            entries.values_mut().for_each(ageless);
        }
        Value::Array(items) => items.iter_mut().for_each(ageless),
        _ => {}
    }
}

/// Where two answers differ, and how.
fn differences(at: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
                let of = |entries: &Map<String, Value>| entries.get(key).cloned().unwrap_or_default();
                differences(&format!("{at}/{key}"), &of(one), &of(other), found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differences(&format!("{at}/{index}"), one, other, found);
            }
        }
        (one, other) if one != other => found.push(format!("{at}: {one} and {other}")),
        _ => {}
    }
}

/// What people of several kinds of clients get who come back with each of these tokens.
async fn answers(server: &Server, tokens: &[String]) -> Vec<Value> {
    let server = fresh(server).await;
    let mut all = Vec::new();
    for since in tokens {
        for (name, lazy, state) in [
            ("ann", false, StateWanted::Before),
            ("ann", true, StateWanted::After),
            ("carol", false, StateWanted::Before),
        ] {
            let filter = json!({"room": {"state": {"lazy_load_members": lazy}, "timeline": {"limit": 40}}});
            let mut client = Client::new(&server, name).with(filter);
            client.state = state;
            client.since = Some(since.clone());
            let mut answer = client.sync().await;
            ageless(&mut answer);
            all.push(answer);
        }
    }
    all
}

#[tokio::test]
async fn whoever_comes_back_gets_the_same_from_a_trimmed_log() {
    let server = server().await;
    let rooms = [server.room("ann").await, server.room("ann").await, server.room("bob").await];
    server.join("bob", &rooms[0]).await;
    server.join("bob", &rooms[1]).await;
    let mut tokens = Vec::new();
    for number in 0..ROUNDS {
        let mut ann = Client::new(&server, "ann");
        ann.sync().await;
        tokens.extend(ann.since);
        round(&server, &rooms, number).await;
    }
    let before = answers(&server, &tokens).await;
    let now = server.core.now();
    let head = server.core.store.tail().head();
    assert_eq!(server.core.store.log_trim(now).await.unwrap(), 0, "nothing is old");
    let gone = server.core.store.log_trim(now + 49 * HOUR).await.unwrap();
    let kept = count(&server, head).await;
    assert!(gone > (ROUNDS * MESSAGES) as u64 && kept > 0, "{gone} rows gone, {kept} kept");
    assert_eq!(gone as usize + kept, head.0 as usize);
    let after = answers(&server, &tokens).await;
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        let mut found = Vec::new();
        differences("", before, after, &mut found);
        assert!(found.is_empty(), "answer {number}: {}", found.join("\n"));
    }
    assert_eq!(server.core.store.log_trim(now + 50 * HOUR).await.unwrap(), 0, "nothing goes twice");
    let examined = waxwing_services::doctor::examine(&server.core.store).await.unwrap();
    assert!(examined.is_healthy(), "{examined}");
    // A stretch that ends where rows are gone: what replaced them lies beyond it.
    let node = fresh(&server).await;
    let (ann, half) = (user("ann"), LogPosition(head.0 / 2));
    let changes = device_list_changes(&node.core.store, &ann, LogPosition(0), half);
    assert!(changes.await.unwrap().changed.contains(&user("bob")));
}

async fn count(server: &Server, head: LogPosition) -> usize {
    let mut conn = server.core.store.read().await.unwrap();
    conn.log_range(LogPosition(0), head, i64::MAX).await.unwrap().len()
}

#[tokio::test]
async fn what_a_reader_has_yet_to_see_stays() {
    let server = Arc::new(server().await);
    let room = server.room("ann").await;
    server
        .core
        .store
        .write("a reader", Vec::new(), |tx| {
            Box::pin(async move {
                tx.cursor_save("push", LogPosition(3)).await?;
                tx.appservice_cursor_make("bridge", LogPosition(20), 1).await
            })
        })
        .await
        .unwrap_or_else(|error: StoreError| panic!("{error}"));
    for number in 0..60 {
        server.say("ann", &room, &number.to_string()).await;
    }
    let (now, head) = (server.core.now(), server.core.store.tail().head());
    let trim = async |hours: u64| server.core.store.log_trim(now + hours * HOUR).await.unwrap();
    trim(0).await;
    trim(49).await;
    let rows = count(&server, head).await;
    assert!(rows as i64 > head.0 - 3, "push has yet to read them: {rows} of {}", head.0);
    // Push was switched off long ago.
    trim(15 * 24).await;
    let rows = count(&server, head).await;
    assert!(rows as i64 >= head.0 - 20 && (rows as i64) < head.0, "{rows} of {}", head.0);
    // The bridge has gone for good.
    trim(91 * 24).await;
    assert!(count(&server, head).await < rows - 30);
}
