//! Events that go to other servers: one row however many get it, read by cursors.

use crate::Fresh;
use ruma::{OwnedServerName, RoomId, ServerName};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Fact, NewRow, Outgoing, OutgoingRow, ServerSet, Store, StoreError};

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
    rows.iter().map(|row| row.event().map_or("EDU", |event| event.as_str())).collect()
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
            events(&rows).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(prune(positions[0], positions[0]).await, ["$2", "$3", "$4", "$5"]);
        assert_eq!(prune(positions[0], positions[3]).await, ["$3", "$4", "$5"]);
        assert_eq!(prune(positions[4], positions[4]).await, [""; 0]);
        drop(store);
        fresh.drop_database().await;
    }
}

/// After however long an outage, and whatever else goes.
#[tokio::test]
async fn an_edu_for_many_is_one_row_and_is_kept_until_all_have_it() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let set = set(["a.example".to_owned(), "b.example".to_owned()]);
        let first = put(&store, "one", "1", &set).await;
        let input = set.clone();
        let written: Result<(), StoreError> = store
            .write("test", Vec::new(), move |tx| {
                let set = input.clone();
                Box::pin(async move {
                    for number in 0..2 {
                        let slot = tx.log_append(NewRow::new(Fact::Outbox));
                        tx.outgoing_edu_put(slot, format!("{{\"n\":{number}}}").into(), set.clone());
                    }
                    Ok(())
                })
            })
            .await;
        written.unwrap();
        let last = put(&store, "one", "2", &set).await;
        let mut conn = store.read().await.unwrap();
        let rows = conn.outgoing_range(0, last, 100).await.unwrap();
        assert_eq!(events(&rows), ["$1", "EDU", "EDU", "$2"]);
        assert_eq!(rows[1].what, Outgoing::Edu(r#"{"n":0}"#.into()));
        assert_eq!(events(&conn.outgoing_newest(0, last, 100).await.unwrap()), ["EDU", "EDU", "$2"]);
        drop(conn);
        let pruned: Result<u64, StoreError> = store
            .write("test", Vec::new(), move |tx| {
                Box::pin(async move { tx.outgoing_prune(LogPosition(first), LogPosition(last)).await })
            })
            .await;
        pruned.unwrap();
        let rows = store.read().await.unwrap().outgoing_range(0, last, 100).await.unwrap();
        assert_eq!(events(&rows), ["EDU", "EDU", "$2"]);
        drop(store);
        fresh.drop_database().await;
    }
}

/// A room in which much is said about other things than members is not asked for its members each time.
#[tokio::test]
async fn servers_are_carried_from_state_to_state() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let done: Result<Vec<usize>, StoreError> = store
            .write("test", Vec::new(), |tx| {
                Box::pin(async move {
                    let room = RoomId::parse("!room:x").unwrap();
                    let ours: OwnedServerName = "x".try_into().unwrap();
                    let other: OwnedServerName = "b.example".try_into().unwrap();
                    let root = |byte: u8| NodeId::try_from(&[byte; 32][..]).unwrap();
                    tx.servers_carry(root(1), root(2), Some(&other));
                    let mut found = Vec::new();
                    for byte in [2, 1] {
                        found.push(tx.servers_in_state(&room, root(byte), &ours).await?.names().len());
                    }
                    tx.servers_carry(root(1), root(3), Some(&other));
                    tx.servers_carry(root(3), root(4), Some(&other));
                    tx.servers_carry(root(4), root(5), None);
                    for byte in [3, 4, 5] {
                        found.push(tx.servers_in_state(&room, root(byte), &ours).await?.names().len());
                    }
                    Ok(found)
                })
            })
            .await;
        // Of what nothing is known is asked, and nobody is in that room.
        assert_eq!(done.unwrap(), [0, 0, 1, 1, 1]);
        drop(store);
        fresh.drop_database().await;
    }
}
