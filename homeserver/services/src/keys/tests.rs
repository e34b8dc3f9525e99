//! Keys of local devices over a real database.

use super::*;
use crate::backups::{BackupError, Backups};
use crate::to_device::{Sending, ToDevice};
use crate::{PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use ruma::api::federation::transactions::edu::DirectDeviceContent;
use ruma::{
    CanonicalJsonObject, DeviceId, OneTimeKeyAlgorithm, OwnedUserId, RoomVersionId, UserId, server_name, user_id,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use waxwing_model::{Clock, LogPosition};
use waxwing_rooms::KeyPair;
use waxwing_storage::{BackupScope, MemberRow, Store};

struct World {
    core: Core,
    keys: Keys,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}", dir.path().join("w.db").display())).await.unwrap();
    let settings = Settings {
        registration: RegistrationMode::Open,
        registration_shared_secret: None,
        plaintext: PlaintextPolicy::default(),
        default_room_version: RoomVersionId::V11,
        presence: false,
        max_upload_bytes: 1,
        password: PasswordCost { memory_kib: 8, iterations: 1 },
        everyone_publishes_rooms: false,
        federation: true,
    };
    let core = Core {
        server_name: server_name!("x").to_owned(),
        clock: Clock::manual(1_000_000),
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(settings),
    };
    World { keys: Keys::new(core.clone(), None), core, _dir: dir }
}

impl World {
    async fn join(&self, room: &str, user: &UserId, joined: bool) {
        let (core, user, room) = (self.core.clone(), user.to_owned(), room.to_owned());
        let row = MemberRow {
            room_id: room.try_into().unwrap(),
            user_id: user.clone(),
            membership: if joined { "join" } else { "leave" }.into(),
            event_id: "$e".try_into().unwrap(),
            sender: user,
            sn: 0,
            display_name: None,
            avatar_url: None,
            stripped: None,
            forgotten: false,
        };
        self.core
            .store
            .write("test", Vec::new(), move |tx| {
                let (core, row) = (core.clone(), row.clone());
                Box::pin(async move {
                    crate::timeline::test_member_save(&core, tx, &row).await.unwrap();
                    Ok::<_, KeysError>(())
                })
            })
            .await
            .unwrap();
    }

    async fn edus(&self, server: &str) -> Vec<Value> {
        let outbox = crate::federation::test_outbox(&self.core, server).await;
        outbox.iter().map(|json| serde_json::from_str(json).unwrap()).collect()
    }

    fn head(&self) -> LogPosition {
        self.core.store.tail().head()
    }

    async fn changes(&self, user: &UserId, since: LogPosition) -> (Vec<String>, Vec<String>) {
        let changes = device_list_changes(&self.core.store, user, since, self.head()).await.unwrap();
        let texts = |users: std::collections::BTreeSet<OwnedUserId>| users.iter().map(ToString::to_string).collect();
        (texts(changes.changed), texts(changes.left))
    }
}
