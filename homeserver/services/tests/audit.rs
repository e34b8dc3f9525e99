//! An audit finds what was planted, and nothing in what is sealed.

use ruma::events::TimelineEventType;
use ruma::{OwnedUserId, RoomVersionId, UserId};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::timeline::{Author, CreateRoom, Draft, Preset, Timeline};
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings, audit};
use waxwing_storage::Store;

async fn core(dir: &tempfile::TempDir) -> Core {
    let store = Store::open(&format!("sqlite:{}", dir.path().join("test.db").display())).await.unwrap();
    Core {
        server_name: "test".try_into().unwrap(),
        clock: Clock::System,
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Open,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy { accept: true, ..PlaintextPolicy::default() },
            default_room_version: RoomVersionId::V12,
            presence: false,
            max_upload_bytes: 1,
            password: PasswordCost { memory_kib: 8, iterations: 1 },
            everyone_publishes_rooms: true,
            federation: false,
            push: waxwing_services::PushSettings::default(),
            accounts: waxwing_services::AccountSettings::default(),
        }),
    }
}

fn ann() -> OwnedUserId {
    UserId::parse("@ann:test").unwrap()
}

fn draft(kind: TimelineEventType, content: &Value) -> Draft {
    Draft::message(ann(), kind, to_raw_value(content).unwrap())
}

#[tokio::test]
async fn what_was_planted_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let core = core(&dir).await;
    let timeline = Timeline::new(core.clone(), None);
    let wish = CreateRoom {
        author: Author::new(ann()),
        version: None,
        creation_content: Map::new(),
        preset: Preset::PrivateChat,
        initial_state: Vec::new(),
        name: Some("Tea".to_owned()),
        topic: None,
        alias: None,
        power_levels: Map::new(),
        invite: Vec::new(),
        is_direct: false,
        published: false,
    };
    let room = timeline.create_room(wish).await.unwrap();
    let sealed = json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgAEn", "session_id": "S"});
    let author = Author::new(ann());
    let sealed =
        timeline.send(&author, &room, draft(TimelineEventType::RoomEncrypted, &sealed), None).await.unwrap();
    let refuse = PlaintextPolicy::default();
    let report = audit::run(&core.store, &refuse, None).await.unwrap();
    assert!(report.is_clean(), "{report}");
    let text = report.to_string();
    assert!(text.contains("m.room.encrypted") && text.contains("verdict: clean"), "{text}");
    let row = audit::show_event(&core.store, &sealed).await.unwrap().unwrap();
    let row: Value = serde_json::from_str(&row).unwrap();
    assert_eq!(row["json"]["content"]["ciphertext"], "AwgAEn");

    let words = json!({"msgtype": "m.text", "body": "the secret recipe"});
    let planted =
        timeline.send(&author, &room, draft(TimelineEventType::RoomMessage, &words), None).await.unwrap();
    core.store
        .write("plant", Vec::new(), move |tx| {
            let key: Arc<str> =
                json!({"type": "m.room_key", "sender": "@ann:test", "content": {"session_key": "x"}})
                    .to_string()
                    .into();
            Box::pin(async move {
                tx.to_device_put(ann(), "PHONE".to_owned(), key);
                Ok::<_, waxwing_storage::StoreError>(())
            })
        })
        .await
        .unwrap();
    let rooms = PlaintextPolicy { rooms: vec![room], ..refuse };
    let report = audit::run(&core.store, &rooms, None).await.unwrap();
    let text = report.to_string();
    assert!(!report.is_clean() && text.contains("NOT clean; 2 plaintext payloads"), "{text}");
    assert_eq!(report.findings()[0].id, planted.as_str());
    assert_eq!(report.findings()[0].allowed, Some("plaintext_rooms"));
    assert!(report.findings()[1].id.starts_with("@ann:test PHONE"), "{text}");
    assert!(!text.contains("recipe"), "an audit prints no content");
}
