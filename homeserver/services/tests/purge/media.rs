//! Files go with what named them, and stay with what still does.

use super::*;
use bytes::Bytes;
use futures_util::stream;
use ruma::ServerName;
use waxwing_services::media::{Ask, Media, MediaSettings, Objects, Upload};
use waxwing_storage::{MediaRow, StoreError};

const ASK: Ask = Ask { wait: Duration::ZERO, remote: false, without_token: false };

fn files(server: &Server, settings: MediaSettings) -> Media {
    let folder = server.dir.path().join("media");
    std::fs::create_dir_all(&folder).unwrap();
    Media::new(server.core.clone(), Objects::folder(&folder).unwrap(), None, settings)
}

fn own() -> &'static ServerName {
    "test".try_into().unwrap()
}

async fn upload(media: &Media, name: &str) -> String {
    let upload = Upload { user: user(name), content_type: None, file_name: None, length: None };
    // No two are alike: what is done to one under quarantine is done to all with the same bytes.
    let bytes = Bytes::from(waxwing_model::opaque_id(8));
    media.upload(upload, stream::iter([Ok::<_, std::io::Error>(bytes)])).await.unwrap()
}

fn uri(id: &str) -> String {
    format!("mxc://test/{id}")
}

impl Server {
    async fn post(&self, name: &str, room: &OwnedRoomId, content: Value) -> OwnedEventId {
        let draft = Draft::message(user(name), TimelineEventType::RoomMessage, raw(&content));
        self.timeline.send(&Author::new(user(name)), room, draft, None).await.unwrap()
    }

    async fn set(&self, room: &OwnedRoomId, kind: TimelineEventType, content: Value) {
        let draft = Draft::state(user("ann"), kind, "", raw(&content));
        self.timeline.set_state(&Author::new(user("ann")), room, draft).await.unwrap();
    }

    async fn has_file(&self, server: &ServerName, id: &str) -> bool {
        self.core.store.read().await.unwrap().media_load(server, id).await.unwrap().is_some()
    }

    async fn left_of(&self, ids: &[(&'static str, String)]) -> Vec<&'static str> {
        let mut left = Vec::new();
        for (name, id) in ids {
            if self.has_file(own(), id).await {
                left.push(*name);
            }
        }
        left
    }

    /// The file of another server in the cache.
    async fn cached(&self, id: &str) {
        let row = MediaRow { object: format!("aa/{id}"), created_at: START as i64, ..MediaRow::default() };
        let id = id.to_owned();
        let done = self.core.store.write("test", Vec::new(), move |tx| {
            let (id, row) = (id.clone(), row.clone());
            Box::pin(async move {
                tx.media_insert("elsewhere".try_into().unwrap(), &id, &row).await?;
                Ok::<_, StoreError>(())
            })
        });
        done.await.unwrap();
    }

    async fn give_profile(&self, name: &str, avatar: &str) {
        let (user, value) = (user(name), format!("\"{avatar}\""));
        let done = self.core.store.write("test", Vec::new(), move |tx| {
            let (user, value) = (user.clone(), value.clone());
            Box::pin(async move { tx.profile_field_set(&user, "avatar_url", &value).await })
        });
        let done: Result<(), StoreError> = done.await;
        done.unwrap();
    }

    async fn give_account_data(&self, name: &str, content: Value) {
        let (user, content) = (user(name), content.to_string());
        let done = self.core.store.write("test", Vec::new(), move |tx| {
            let (user, content) = (user.clone(), content.clone());
            Box::pin(async move { tx.account_data_set(&user, None, "im.ponies.user_emotes", &content).await })
        });
        let done: Result<(), StoreError> = done.await;
        done.unwrap();
    }
}

#[tokio::test]
async fn files_go_with_the_messages_that_named_them() {
    let server = server().await;
    let media = files(&server, MediaSettings::default());
    let (room, other) = (server.room().await, server.room().await);
    let mut ids = Vec::new();
    for name in [
        "file",
        "thumbnail",
        "inline",
        "twice",
        "avatar",
        "emote",
        "room",
        "protected",
        "withheld",
        "redacted",
    ] {
        ids.push((name, upload(&media, "bob").await));
    }
    ids.push(("of ann", upload(&media, "ann").await));
    ids.push(("unnamed", upload(&media, "bob").await));
    let of = |name: &str| uri(&ids.iter().find(|(other, _)| *other == name).unwrap().1);
    let picture = json!({"body": "p", "msgtype": "m.image", "url": of("file"), "info": {"thumbnail_url": of("thumbnail")}});
    server.post("bob", &room, picture).await;
    let html = format!("<img src=\"{}\">", of("inline"));
    server.post("bob", &room, json!({"body": "x", "msgtype": "m.text", "formatted_body": html})).await;
    for name in ["twice", "avatar", "emote", "room", "protected", "withheld", "of ann"] {
        server.post("bob", &room, json!({"body": "f", "msgtype": "m.file", "file": {"url": of(name)}})).await;
    }
    let redacted =
        server.post("bob", &other, json!({"body": "f", "msgtype": "m.file", "url": of("redacted")})).await;
    server.post("bob", &room, json!({"body": "f", "msgtype": "m.file", "url": of("redacted")})).await;
    let mut redaction =
        Draft::message(user("bob"), TimelineEventType::RoomRedaction, raw(&json!({ "redacts": redacted })));
    redaction.redacts = Some(redacted);
    server.timeline.send(&Author::new(user("bob")), &other, redaction, None).await.unwrap();
    server.post("bob", &other, json!({"body": "f", "msgtype": "m.file", "url": of("twice")})).await;
    server.give_profile("bob", &of("avatar")).await;
    server.give_account_data("ann", json!({"images": {"x": {"url": of("emote")}}})).await;
    server.set(&room, TimelineEventType::RoomAvatar, json!({ "url": of("room") })).await;
    let id = |name: &str| ids.iter().find(|(other, _)| *other == name).unwrap().1.clone();
    media.protect(own(), &id("protected"), true).await.unwrap();
    media.quarantine(own(), &id("withheld"), true).await.unwrap();
    server.cached("seen").await;
    server.post("bob", &room, json!({"body": "f", "msgtype": "m.file", "url": "mxc://elsewhere/seen"})).await;
    server.core.clock.advance(DAY);

    let purges = server.purges();
    let wanted = HistoryPurge { before: Before::Time(START + DAY / 2), local: false };
    purges.purge_history(&room, wanted.clone()).await.unwrap();
    purges.turn().await;
    assert_eq!(server.left_of(&ids).await.len(), ids.len(), "what is hidden is not forgotten");
    assert!(server.has_file("elsewhere".try_into().unwrap(), "seen").await);

    let purge = purges.purge_room(&room, RoomPurge { purge: true, ..RoomPurge::default() }).await.unwrap();
    purges.turn().await;
    let purge = purges.status(&purge).await.unwrap().unwrap();
    // Whether the room's avatar, which bob had also sent, is used goes by the room that is gone.
    let stay = ["twice", "avatar", "emote", "protected", "withheld", "of ann", "unnamed"];
    assert_eq!(server.left_of(&ids).await, stay, "{purge}");
    assert!(!server.has_file("elsewhere".try_into().unwrap(), "seen").await);
    assert_eq!((purge.phase, purge.progress.media), (PurgePhase::Complete, 6), "{purge}");
    let mut conn = server.core.store.read().await.unwrap();
    assert!(conn.media_uses_of(own(), &id("twice"), 10).await.unwrap().len() == 1);
    for what in conn.disagreements().await.unwrap() {
        assert_eq!(what.count, 0, "{what:?}");
    }
}

#[tokio::test]
async fn what_state_still_names_stays_when_history_goes() {
    let server = server().await;
    let media = files(&server, MediaSettings::default());
    let room = server.room().await;
    let (picture, avatar) = (upload(&media, "ann").await, upload(&media, "ann").await);
    for id in [&picture, &avatar] {
        server.post("ann", &room, json!({"body": "p", "msgtype": "m.image", "url": uri(id)})).await;
    }
    server.set(&room, TimelineEventType::RoomAvatar, json!({ "url": uri(&avatar) })).await;
    server.core.clock.advance(DAY);
    let last = server.say(&room, "the end").await;
    let purges = server.purges();
    purges.purge_history(&room, HistoryPurge { before: Before::Event(last), local: true }).await.unwrap();
    purges.turn().await;
    assert!(!server.has_file(own(), &picture).await);
    assert!(server.has_file(own(), &avatar).await);
}

#[tokio::test]
async fn files_in_encrypted_messages_go_when_no_room_keeps_messages_for_so_long() {
    let server = server().await;
    let media = files(&server, MediaSettings { with_retention: true, ..MediaSettings::default() });
    let (short, long) = (server.room().await, server.room().await);
    let retention = || TimelineEventType::from("m.room.retention");
    server.set(&short, retention(), json!({ "max_lifetime": 5 * DAY })).await;
    let mut ids = Vec::new();
    for name in ["sealed", "seen", "avatar", "protected"] {
        ids.push((name, upload(&media, "bob").await));
    }
    server.give_profile("bob", &uri(&ids[2].1)).await;
    media.protect(own(), &ids[3].1, true).await.unwrap();
    let purges = server.purges();
    server.core.clock.advance(9 * DAY);
    purges.turn().await;
    assert_eq!(media.tidy().await.unwrap().unused, 0, "a room keeps its messages for ever");

    server.set(&long, retention(), json!({ "max_lifetime": 10 * DAY })).await;
    media.find(own(), &ids[1].1, ASK).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.core.clock.advance(2 * DAY);
    let young = upload(&media, "bob").await;
    purges.turn().await;
    assert_eq!(media.tidy().await.unwrap().unused, 1);
    assert_eq!(server.left_of(&ids).await, ["seen", "avatar", "protected"]);
    assert!(server.has_file(own(), &young).await);
}

#[tokio::test]
async fn files_that_nobody_uses_go_by_their_age_alone_where_it_is_asked_for() {
    let server = server().await;
    let settings = MediaSettings { unused_age: Some(Duration::from_hours(48)), ..MediaSettings::default() };
    let media = files(&server, settings);
    let room = server.room().await;
    let (named, unnamed) = (upload(&media, "bob").await, upload(&media, "bob").await);
    server.post("bob", &room, json!({"body": "p", "msgtype": "m.image", "url": uri(&named)})).await;
    // As a database of before this was noted.
    let forget = server.core.store.write("test", Vec::new(), |tx| {
        Box::pin(async move { tx.setting_save("media_uses", "-9223372036854775808").await })
    });
    let done: Result<(), StoreError> = forget.await;
    done.unwrap();
    server.core.clock.advance(3 * DAY);
    assert_eq!(media.tidy().await.unwrap().unused, 1);
    assert!(server.has_file(own(), &named).await && !server.has_file(own(), &unnamed).await);
    assert_eq!(media.tidy().await.unwrap().unused, 0);
}
