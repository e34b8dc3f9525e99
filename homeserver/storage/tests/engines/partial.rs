//! Rooms whose members are still to come: who counts as in them, when they are due, what is noted for them.

use super::Fresh;
use ruma::{event_id, owned_server_name, room_id, server_name, user_id};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{MemberRow, PartialEvent, PartialVerdict, RoomRow, Store, StoreError};

fn member(user: &ruma::UserId) -> MemberRow {
    MemberRow {
        room_id: room_id!("!r:there").to_owned(),
        user_id: user.to_owned(),
        membership: "join".to_owned(),
        event_id: event_id!("$join").to_owned(),
        sender: user.to_owned(),
        sn: 0,
        display_name: None,
        avatar_url: None,
        stripped: None,
        forgotten: false,
    }
}

async fn begin(store: &Store) {
    store
        .write("begin", vec![room_id!("!r:there").to_owned()], |tx| {
            Box::pin(async move {
                let room = room_id!("!r:there");
                let row = RoomRow {
                    room_id: room.to_owned(),
                    version: ruma::RoomVersionId::V12,
                    state_root: NodeId::EMPTY,
                    extremities: Vec::new(),
                    revision: 0,
                    published: false,
                    encrypted: false,
                    partial: true,
                    newest_ts: 0,
                };
                tx.room_put(row).await?;
                let members = [member(user_id!("@me:here")), member(user_id!("@one:there"))];
                tx.members_save(&members, |user| user.server_name() == "here").await?;
                let servers = [owned_server_name!("there"), owned_server_name!("else.where")];
                tx.partial_begin(room, event_id!("$join"), server_name!("there"), &servers, None).await?;
                tx.partial_event_put(room, event_id!("$later"), &[NodeId::EMPTY, NodeId::EMPTY]).await?;
                tx.device_list_hold(room, user_id!("@two:there")).await?;
                Ok::<_, StoreError>(())
            })
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_room_without_its_members_names_its_servers_until_they_are_here() {
    for fresh in Fresh::both().await {
        let room = room_id!("!r:there");
        let store = Store::open(&fresh.url).await.unwrap();
        begin(&store).await;

        let mut conn = store.read().await.unwrap();
        assert!(conn.room_load(room).await.unwrap().unwrap().partial);
        assert_eq!(conn.partial_rooms().await.unwrap(), [room]);
        let mut servers = conn.servers_in(room).await.unwrap();
        servers.sort();
        assert_eq!(servers, ["else.where", "here", "there"]);
        let mut sharing = conn.servers_sharing(user_id!("@me:here")).await.unwrap();
        sharing.sort();
        assert_eq!(sharing, ["else.where", "here", "there"]);
        assert_eq!(conn.partial_rooms_of(server_name!("else.where")).await.unwrap(), [room]);
        let due = conn.partial_rooms_due(1, 10).await.unwrap();
        assert_eq!((due.len(), due[0].resident.as_str(), due[0].attempts), (1, "there", 0));
        let join = PartialEvent {
            event_id: event_id!("$join").to_owned(),
            fetched: Vec::new(),
            place: 1,
            joined: true,
            wanted: true,
        };
        let later = PartialEvent {
            event_id: event_id!("$later").to_owned(),
            fetched: vec![NodeId::EMPTY, NodeId::EMPTY],
            place: 2,
            joined: false,
            wanted: false,
        };
        assert_eq!(conn.partial_unjudged(room, 10).await.unwrap(), [join, later]);
        assert_eq!(conn.device_lists_held(room).await.unwrap(), ["@two:there"]);
        drop(conn);

        store
            .write("later", Vec::new(), |tx| {
                Box::pin(async move { tx.partial_retry(room_id!("!r:there"), 3, 500).await })
            })
            .await
            .unwrap();
        let mut conn = store.read().await.unwrap();
        assert!(conn.partial_rooms_due(499, 10).await.unwrap().is_empty());
        assert_eq!(conn.partial_rooms_due(500, 10).await.unwrap()[0].attempts, 3);
        drop(conn);

        store
            .write("end", Vec::new(), |tx| {
                Box::pin(async move { tx.partial_end(room_id!("!r:there")).await })
            })
            .await
            .unwrap();
        let mut conn = store.read().await.unwrap();
        let mut servers = conn.servers_in(room).await.unwrap();
        servers.sort();
        assert_eq!(servers, ["here", "there"]);
        assert!(conn.partial_room(room).await.unwrap().is_none());
        assert!(conn.partial_unjudged(room, 10).await.unwrap().is_empty());
        assert!(conn.device_lists_held(room).await.unwrap().is_empty());
        drop(conn);
        drop(store);
        fresh.drop_database().await;
    }
}

/// The members that arrive are written ahead; what came of the room meanwhile is newer and stays.
#[tokio::test]
async fn members_written_ahead_leave_what_is_known() {
    for fresh in Fresh::both().await {
        let room = room_id!("!r:there");
        let store = Store::open(&fresh.url).await.unwrap();
        begin(&store).await;
        for _ in 0..2 {
            let written: Result<(), StoreError> = store
                .write("ahead", Vec::new(), |tx| {
                    Box::pin(async move {
                        let mut gone = member(user_id!("@one:there"));
                        gone.membership = "ban".to_owned();
                        gone.event_id = event_id!("$older").to_owned();
                        let mut new = member(user_id!("@three:else.where"));
                        new.event_id = event_id!("$three").to_owned();
                        tx.members_add(&[gone, new], |_| false).await
                    })
                })
                .await;
            written.unwrap();
        }
        let mut conn = store.read().await.unwrap();
        let one = conn.member_load(room, user_id!("@one:there")).await.unwrap().unwrap();
        assert_eq!((one.membership.as_str(), one.event_id.as_str()), ("join", "$join"));
        let events = conn.member_events(room).await.unwrap();
        assert_eq!(events.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["$join", "$three"]);
        drop(conn);
        drop(store);
        fresh.drop_database().await;
    }
}

/// What is known of the order and the verdicts outlives whoever works on it.
#[tokio::test]
async fn events_since_the_join_are_judged_in_their_order() {
    for fresh in Fresh::both().await {
        let room = room_id!("!r:there");
        let store = Store::open(&fresh.url).await.unwrap();
        begin(&store).await;
        let again: Result<(), StoreError> = store
            .write("again", Vec::new(), |tx| {
                Box::pin(async move {
                    let room = room_id!("!r:there");
                    let (resident, servers) = (server_name!("other"), [owned_server_name!("other")]);
                    tx.partial_begin(room, event_id!("$anew"), resident, &servers, None).await?;
                    tx.partial_event_put(room, event_id!("$last"), &[]).await?;
                    tx.partial_fill(room, event_id!("$join"), Some(NodeId::EMPTY)).await
                })
            })
            .await;
        again.unwrap();
        let mut conn = store.read().await.unwrap();
        assert_eq!(conn.partial_wanted(room, 9).await.unwrap(), ["$anew"]);
        let unjudged = conn.partial_unjudged(room, 9).await.unwrap();
        let order: Vec<_> =
            unjudged.iter().map(|noted| (noted.event_id.as_str(), noted.joined, noted.wanted)).collect();
        let expected = [
            ("$join", true, false),
            ("$later", false, false),
            ("$anew", true, true),
            ("$last", false, false),
        ];
        assert_eq!(order, expected);
        let mut servers = conn.partial_servers(room).await.unwrap();
        servers.sort();
        assert_eq!(servers, ["else.where", "other", "there"]);
        drop(conn);
        let judged: Result<(), StoreError> = store
            .write("judged", Vec::new(), |tx| {
                Box::pin(async move {
                    let room = room_id!("!r:there");
                    let shown = Some((PartialVerdict::Shown, NodeId::EMPTY));
                    tx.partial_judged(room, event_id!("$join"), shown).await?;
                    tx.partial_judged(
                        room,
                        event_id!("$later"),
                        Some((PartialVerdict::Pending, NodeId::EMPTY)),
                    )
                    .await?;
                    tx.partial_judged(room, event_id!("$last"), None).await
                })
            })
            .await;
        judged.unwrap();
        let mut conn = store.read().await.unwrap();
        assert_eq!(conn.partial_unjudged(room, 9).await.unwrap().len(), 1);
        let pending = conn.partial_pending(room, 0, 9).await.unwrap();
        assert_eq!((pending.len(), pending[0].event_id.as_str(), pending[0].place), (1, "$later", 2));
        let back = conn.partial_backward(room, i64::MAX, 1, 9).await.unwrap();
        assert_eq!(back.iter().map(|row| row.event_id.as_str()).collect::<Vec<_>>(), ["$later", "$join"]);
        let ids = [event_id!("$join").to_owned(), event_id!("$anew").to_owned()];
        assert_eq!(conn.partial_known(room, &ids).await.unwrap().len(), 1);
        drop(conn);
        drop(store);
        fresh.drop_database().await;
    }
}
