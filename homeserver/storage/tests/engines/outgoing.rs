//! Events that go to other servers: one row however many get it, read by cursors.

use crate::Fresh;
use ruma::{OwnedServerName, RoomId, ServerName};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, NewRow, OutgoingRow, ServerSet, Store, StoreError};

fn set(names: impl IntoIterator<Item = String>) -> ServerSet {
    ServerSet::new(names.into_iter().map(|name| OwnedServerName::try_from(name).unwrap()))
}

/// Queues an event of a room for the servers; gives its position.
async fn put(store: &Store, room: &str, event: &str, servers: &ServerSet) -> i64 {
    let input = Arc::new((format!("!{room}:x"), format!("${event}"), servers.clone()));
    let written: Result<(), StoreError> = store
        .write("test", Vec::new(), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let slot = tx.log_append(NewRow::new(Fact::Outbox));
                let room = RoomId::parse(&input.0).unwrap();
                tx.outgoing_put(slot, room, input.1.as_str().try_into().unwrap(), input.2.clone());
                Ok(())
            })
        })
        .await;
    written.unwrap();
    store.tail().head().0
}

fn events(rows: &[OutgoingRow]) -> Vec<&str> {
    rows.iter().map(|row| row.event.as_str()).collect()
}

#[tokio::test]
async fn an_event_for_two_thousand_servers_is_one_row_and_their_names_are_written_once() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let many = set((0..2000).map(|number| format!("s{number}.example")));
        let few = set(["a.example".to_owned(), "b.example".to_owned()]);
        let first = put(&store, "one", "1", &many).await;
        put(&store, "one", "2", &many).await;
        let third = put(&store, "two", "3", &few).await;
        let mut conn = store.read().await.unwrap();
        let rows = conn.outgoing_range(0, third, 100).await.unwrap();
        assert_eq!(events(&rows), ["$1", "$2", "$3"]);
        assert_eq!(events(&conn.outgoing_range(first, third, 1).await.unwrap()), ["$2"]);
        assert_eq!(events(&conn.outgoing_newest(0, third, 100).await.unwrap()), ["$2", "$3"]);
        assert_eq!(events(&conn.outgoing_newest(0, first, 100).await.unwrap()), ["$1"]);
        assert_eq!(rows[0].servers, rows[1].servers);
        let ids: Vec<Arc<str>> = rows.iter().map(|row| Arc::clone(&row.servers)).collect();
        let sets = conn.server_sets(&ids).await.unwrap();
        assert_eq!(sets.len(), 2);
        let found = &sets[&rows[0].servers];
        assert_eq!(found.names().len(), 2000);
        assert!(found.contains(<&ServerName>::try_from("s1999.example").unwrap()));
        assert!(!found.contains(<&ServerName>::try_from("a.example").unwrap()));
        drop(conn);
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn what_everybody_has_goes_and_what_some_lack_stays_as_the_newest_of_its_room() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let set = set(["a.example".to_owned()]);
        let mut positions = Vec::new();
        for (room, event) in [("one", "1"), ("one", "2"), ("two", "3"), ("one", "4"), ("two", "5")] {
            positions.push(put(&store, room, event, &set).await);
        }
        let prune = async |delivered: i64, recent: i64| {
            let gone: Result<u64, StoreError> = store
                .write("test", Vec::new(), move |tx| {
                    Box::pin(
                        async move { tx.outgoing_prune(LogPosition(delivered), LogPosition(recent)).await },
                    )
                })
                .await;
            gone.unwrap();
            let mut conn = store.read().await.unwrap();
            let rows = conn.outgoing_range(0, i64::MAX, 100).await.unwrap();
            rows.iter().map(|row| row.event.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(prune(positions[0], positions[0]).await, ["$2", "$3", "$4", "$5"]);
        assert_eq!(prune(positions[0], positions[3]).await, ["$3", "$4", "$5"]);
        assert_eq!(prune(positions[4], positions[4]).await, [""; 0]);
        drop(store);
        fresh.drop_database().await;
    }
}
