//! Which files events name, through redactions; and an event that its own group redacts.

use crate::Fresh;
use ruma::{EventId, OwnedEventId, OwnedRoomId, ServerName, room_id};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_storage::{EventFlags, Fact, MediaRow, NewRow, Place, Store, StoreError, Tx};

/// A member of a group gives up.
#[derive(Debug)]
struct Undone;

impl From<StoreError> for Undone {
    fn from(_: StoreError) -> Undone {
        Undone
    }
}

fn room() -> OwnedRoomId {
    room_id!("!r:test").to_owned()
}

fn event(name: &str, content: Value) -> Event {
    let id = OwnedEventId::try_from(format!("${name}")).unwrap();
    let json = json!({
        "type": "m.room.message", "sender": "@alice:test", "room_id": room(), "origin_server_ts": 1, "depth": 1,
        "prev_events": [], "auth_events": [], "content": content, "hashes": {}, "signatures": {},
    });
    Event::parse(id, room(), to_raw_value(&json).unwrap()).unwrap()
}

fn own() -> &'static ServerName {
    "test".try_into().unwrap()
}

fn put(tx: &mut Tx, event: Event) {
    let row = NewRow::new(Fact::Event).room(room()).reference(event.event_id.as_str());
    let parent: OwnedEventId = "$parent".try_into().unwrap();
    let relates = Some((parent, "m.reference".to_owned()));
    tx.event_put(Arc::new(event), EventFlags::NONE, None, Place::Live, row, relates);
}

async fn send(store: &Store, name: &'static str, content: Value) {
    let done: Result<(), StoreError> = store
        .write("send", Vec::new(), move |tx| {
            let event = event(name, content.clone());
            Box::pin(async move {
                put(tx, event);
                Ok(())
            })
        })
        .await;
    done.unwrap();
}

async fn uses(store: &Store, id: &str) -> Vec<String> {
    store.read().await.unwrap().media_uses_of(own(), id, 10).await.unwrap()
}

#[tokio::test]
async fn what_an_event_names_is_known_until_it_is_redacted() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        send(&store, "one", json!({"url": "mxc://test/x", "info": {"thumbnail_url": "mxc://test/y"}})).await;
        send(&store, "two", json!({"url": "mxc://test/x"})).await;
        send(&store, "none", json!({"ciphertext": "nothing"})).await;
        assert_eq!(
            (uses(&store, "x").await, uses(&store, "y").await),
            (vec!["$one".into(), "$two".into()], vec!["$one".into()])
        );
        let row =
            MediaRow { object: "o".into(), uploader: Some("@alice:test".into()), ..MediaRow::default() };
        let gone: Result<u64, StoreError> = store
            .write("redact", Vec::new(), move |tx| {
                let row = row.clone();
                Box::pin(async move {
                    for id in ["x", "y"] {
                        tx.media_insert(own(), id, &row).await?;
                    }
                    tx.event_redact(&event("one", json!({})), <&EventId>::try_from("$by").unwrap()).await?;
                    let files = ["x", "y"].map(|id| ("test".to_owned(), id.to_owned()));
                    tx.media_remove_unnamed(&files, &HashSet::new(), 0).await
                })
            })
            .await;
        assert_eq!(gone.unwrap(), 1, "one is named by another event");
        assert_eq!((uses(&store, "x").await, uses(&store, "y").await), (vec!["$two".to_owned()], vec![]));
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn an_event_is_redacted_by_another_of_its_group() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let by = <&EventId>::try_from("$by").unwrap();
        let done: Result<(), StoreError> = store
            .write("both", Vec::new(), move |tx| {
                Box::pin(async move {
                    put(tx, event("one", json!({"body": "secret", "url": "mxc://test/x"})));
                    tx.event_redact(&event("one", json!({})), by).await?;
                    let known = tx.events_known(&["$one".try_into().unwrap()]).await?;
                    assert_eq!(known[0].redacted_by.as_deref(), Some(by));
                    Ok(())
                })
            })
            .await;
        done.unwrap();
        // A member of a group that fails undoes what it did to others' events.
        let undone: Result<(), Undone> = store
            .write("undone", Vec::new(), move |tx| {
                Box::pin(async move {
                    put(tx, event("two", json!({"body": "kept"})));
                    tx.event_redact(&event("two", json!({})), by).await?;
                    Err(Undone)
                })
            })
            .await;
        assert!(undone.is_err());
        send(&store, "three", json!({"body": "kept"})).await;
        drop(store);
        let store = Store::open(&fresh.url).await.unwrap();
        let one = store.event(<&EventId>::try_from("$one").unwrap()).await.unwrap().unwrap();
        assert_eq!((one.redacted_by.as_deref(), one.event.content.get()), (Some(by), "{}"));
        assert!(uses(&store, "x").await.is_empty());
        let three = store.event(<&EventId>::try_from("$three").unwrap()).await.unwrap().unwrap();
        assert!(three.redacted_by.is_none() && three.event.content.get().contains("kept"));
        drop(store);
        fresh.drop_database().await;
    }
}
