//! The rooms that are measured, made through the services on the server's own database.

use crate::http::sealed;
use crate::{MEMBERS, ROOMS};
use futures_util::{StreamExt, stream};
use ruma::events::TimelineEventType;
use ruma::{OwnedRoomId, OwnedUserId, RoomVersionId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::timeline::{Author, CreateRoom, Draft, JoinRoom, Preset, Timeline};
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, PushSettings, RegistrationMode, Settings};
use waxwing_storage::Store;

/// Letters in each room.
const LETTERS: usize = 5;
/// What is made at the same time.
const TOGETHER: usize = 32;

/// Rooms that are asked about.
pub struct Made {
    /// One that both people are in.
    pub shared: String,
    /// The one with many members.
    pub large: String,
}

fn core(store: Store, server: &str) -> Core {
    Core {
        server_name: server.try_into().unwrap(),
        clock: Clock::System,
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Open,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy::default(),
            default_room_version: RoomVersionId::V11,
            presence: false,
            max_upload_bytes: 1,
            password: PasswordCost { memory_kib: 8, iterations: 1 },
            everyone_publishes_rooms: true,
            federation: false,
            push: PushSettings::default(),
            accounts: waxwing_services::AccountSettings::default(),
        }),
    }
}

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).unwrap()
}

async fn create(timeline: &Timeline, who: &OwnedUserId, name: Option<String>) -> OwnedRoomId {
    let wish = CreateRoom {
        author: Author::new(who.clone()),
        version: None,
        creation_content: Map::new(),
        preset: Preset::PublicChat,
        initial_state: Vec::new(),
        name,
        topic: None,
        alias: None,
        power_levels: Map::new(),
        invite: Vec::new(),
        is_direct: false,
        published: false,
    };
    let room = timeline.create_room(wish).await.unwrap();
    for _ in 0..LETTERS {
        let letter = raw(&sealed(&"QUJD".repeat(90)));
        let draft = Draft::message(who.clone(), TimelineEventType::RoomEncrypted, letter);
        timeline.send(&Author::new(who.clone()), &room, draft, None).await.unwrap();
    }
    room
}

async fn join(timeline: &Timeline, who: OwnedUserId, room: &OwnedRoomId) {
    let mut content = Map::new();
    content.insert("displayname".to_owned(), json!(who.localpart()));
    let wish = JoinRoom { author: Author::new(who), room: room.clone(), via: Vec::new(), content };
    timeline.join(wish).await.unwrap();
}

/// Makes them: half of the thousand have names.
pub async fn rooms(url: &str, server: &str, ann: &str, bob: &str) -> Made {
    let store = Store::open(url).await.unwrap();
    let timeline = Timeline::new(core(store, server), None);
    let (ann, bob): (OwnedUserId, OwnedUserId) = (ann.try_into().unwrap(), bob.try_into().unwrap());
    let (timeline, ann, bob) = (&timeline, &ann, &bob);
    let rooms: Vec<OwnedRoomId> = stream::iter(0..ROOMS)
        .map(|number| async move {
            let name = (number % 2 == 0).then(|| format!("Room {number}"));
            let room = create(timeline, bob, name).await;
            join(timeline, ann.clone(), &room).await;
            room
        })
        .buffer_unordered(TOGETHER)
        .collect()
        .await;
    let large = create(timeline, ann, Some("Large".to_owned())).await;
    stream::iter(0..MEMBERS)
        .for_each_concurrent(TOGETHER, |number| {
            let who = format!("@member-{number}:{server}").try_into().unwrap();
            join(timeline, who, &large)
        })
        .await;
    Made { shared: rooms[0].to_string(), large: large.to_string() }
}
