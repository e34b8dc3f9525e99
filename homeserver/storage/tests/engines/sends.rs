//! What a send leaves: its place in time, its row of the log, and the answer that its repetition gets, also after a
//! restart, and although the indexes have little of it.

use crate::Fresh;
use proptest::prelude::*;
use ruma::{OwnedEventId, OwnedRoomId, UserId, room_id};
use serde_json::json;
use serde_json::value::to_raw_value;
use std::sync::Arc;
use waxwing_model::{Event, LogPosition};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{
    EventFlags, Fact, Needs, NewRow, Place, RoomRow, Store, StoreError, TransactionKey, noted_request,
    send_endpoint,
};

fn room() -> OwnedRoomId {
    room_id!("!r:test").to_owned()
}

fn event(name: &str, ts: u64) -> Arc<Event> {
    let id = OwnedEventId::try_from(format!("${name}")).unwrap();
    let json = json!({
        "type": "m.room.encrypted", "sender": "@alice:test", "room_id": room(), "origin_server_ts": ts,
        "depth": 1, "prev_events": [], "auth_events": [], "content": {}, "hashes": {}, "signatures": {},
    });
    Arc::new(Event::parse(id, room(), to_raw_value(&json).unwrap()).unwrap())
}

fn request(transaction: &str) -> TransactionKey {
    let endpoint = send_endpoint(&room(), "m.room.encrypted");
    (UserId::parse("@alice:test").unwrap(), "DEVICE".to_owned(), endpoint, transaction.to_owned())
}

/// Sends an event with the transaction id `name`. A time below zero is one of history.
async fn send(store: &Store, name: &str, ts: i64) {
    let name = name.to_owned();
    let done: Result<(), StoreError> = store
        .write("send", vec![room()], move |tx| {
            let name = name.clone();
            Box::pin(async move {
                let event = event(&name, ts.unsigned_abs());
                let place = if ts < 0 { Place::History(tx.history_reserve(1).await?) } else { Place::Live };
                let row = NewRow::new(Fact::Event).room(room()).reference(event.event_id.as_str());
                tx.event_put(Arc::clone(&event), EventFlags::NONE, None, place, row, None);
                if ts >= 0 {
                    tx.transaction_sent(request(&name), &event.event_id, 7);
                }
                let row = RoomRow {
                    room_id: room(),
                    version: ruma::RoomVersionId::V12,
                    state_root: NodeId::EMPTY,
                    extremities: vec![(event.event_id.clone(), 1)],
                    revision: 0,
                    published: false,
                    encrypted: true,
                    partial: false,
                    newest_ts: 0,
                };
                tx.room_put(row).await
            })
        })
        .await;
    done.unwrap();
}

async fn answer(store: &Store, transaction: &str) -> Option<String> {
    let key = request(transaction);
    let found: Result<Option<String>, StoreError> = store
        .write_needing("repeat", Needs { request: Some(key.clone()), ..Needs::default() }, move |tx| {
            let key = key.clone();
            Box::pin(async move { tx.transaction_get(&key).await })
        })
        .await;
    found.unwrap()
}

#[tokio::test]
async fn an_answer_outlives_restarts_in_memory_and_in_its_table() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        for number in 0..40 {
            send(&store, &number.to_string(), number).await;
        }
        assert_eq!(answer(&store, "3").await.as_deref(), Some("$3"));
        drop(store);
        let store = Store::open(&fresh.url).await.unwrap();
        assert_eq!(answer(&store, "3").await.as_deref(), Some("$3"));
        assert_eq!(answer(&store, "40").await, None);
        // Beyond what stays in memory.
        for number in 40..1100 {
            send(&store, &number.to_string(), number).await;
        }
        for transaction in ["3", "39", "40", "1000", "1099"] {
            assert_eq!(answer(&store, transaction).await, Some(format!("${transaction}")));
        }
        drop(store);
        let store = Store::open(&fresh.url).await.unwrap();
        for transaction in ["3", "39", "40", "1000", "1099"] {
            assert_eq!(answer(&store, transaction).await, Some(format!("${transaction}")));
        }
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn a_device_that_is_gone_repeats_nothing() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        send(&store, "1", 1).await;
        let gone: Result<bool, StoreError> = store
            .write("delete", Vec::new(), |tx| {
                Box::pin(async move { tx.device_delete(&request("").0, "DEVICE".into()).await })
            })
            .await;
        gone.unwrap();
        assert_eq!(answer(&store, "1").await, None);
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn the_log_of_a_room_has_its_events_and_what_else_happened() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        send(&store, "a", 1).await;
        let done: Result<(), StoreError> = store
            .write("receipt", Vec::new(), |tx| {
                Box::pin(async move {
                    tx.log_append(NewRow::new(Fact::Receipt).room(room()));
                    Ok(())
                })
            })
            .await;
        done.unwrap();
        send(&store, "b", 2).await;
        let head = store.tail().head();
        let mut conn = store.read().await.unwrap();
        let rows = conn.log_range_of_room(&room(), LogPosition(0), head, 10).await.unwrap();
        let facts: Vec<(Fact, i64)> = rows.iter().map(|row| (row.fact, row.position.0)).collect();
        assert_eq!(facts, [(Fact::Event, 1), (Fact::Receipt, 2), (Fact::Event, 3)]);
        let rows = conn.log_range_of_room(&room(), LogPosition(1), head, 1).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.position.0).collect::<Vec<_>>(), [2]);
        for (after, upto, changed) in [(0, 1, true), (1, 2, true), (2, 3, true), (3, 3, false)] {
            let rooms =
                conn.log_rooms_changed(&[room()], LogPosition(after), LogPosition(upto)).await.unwrap();
            assert_eq!(!rooms.is_empty(), changed, "{after} to {upto}");
        }
        let notes = conn.log_notes(&[1, 2, 3]).await.unwrap();
        assert_eq!(noted_request(&notes[&3]), Some(("DEVICE".to_owned(), "b".to_owned())));
        assert_eq!(notes.len(), 2);
        drop(conn);
        drop(store);
        fresh.drop_database().await;
    }
}

/// The names of events in the order in which a list of all of them would have them.
fn expected(times: &[i64], forward: bool, at: i64, limit: usize) -> Vec<String> {
    // Events of history have numbers below zero, each lower than the one before.
    let mut all: Vec<(i64, i64, String)> = times
        .iter()
        .enumerate()
        .map(|(index, ts)| {
            let number = index as i64;
            (ts.abs(), if *ts < 0 { -1 - number } else { number }, format!("${index}"))
        })
        .filter(|(ts, _, _)| if forward { *ts >= at } else { *ts <= at })
        .collect();
    all.sort();
    if !forward {
        all.reverse();
    }
    all.into_iter().take(limit).map(|(_, _, name)| name).collect()
}

async fn check_times(times: &[i64]) {
    let fresh = Fresh::sqlite();
    let store = Store::open(&fresh.url).await.unwrap();
    for (index, ts) in times.iter().enumerate() {
        send(&store, &index.to_string(), *ts).await;
    }
    let mut conn = store.read().await.unwrap();
    for at in 0..12 {
        for forward in [true, false] {
            let found = conn.events_by_time(&room(), at, forward, 4).await.unwrap();
            let found: Vec<String> = found.iter().map(|stored| stored.event.event_id.to_string()).collect();
            assert_eq!(found, expected(times, forward, at, 4), "{times:?} at {at} forward {forward}");
        }
        // As a purge goes through them, three at a time.
        let (mut after, mut all) = ((-1, i64::MIN), Vec::new());
        loop {
            let some = conn.events_sent_before(&room(), after, at, 3).await.unwrap();
            let Some(last) = some.last() else { break };
            after = (last.event.sent_at(), last.sn);
            all.extend(some.iter().map(|stored| stored.event.event_id.to_string()));
        }
        let mut wanted = expected(times, false, at - 1, usize::MAX);
        wanted.reverse();
        assert_eq!(all, wanted, "{times:?} before {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn times_are_found_whatever_their_order(times in prop::collection::vec(-10i64..10, 0..14)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(check_times(&times));
    }
}
