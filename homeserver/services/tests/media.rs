//! Files over a real database and a real folder, with a clock that the test moves.

use bytes::Bytes;
use futures_util::stream;
use ruma::{RoomVersionId, ServerName, user_id};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::media::{Ask, Media, MediaError, MediaSettings, Objects, Tidied, Upload};
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, PushSettings, RegistrationMode, Settings};
use waxwing_storage::{MediaRow, Store, StoreError};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

struct Server {
    media: Media,
    store: Store,
    clock: Clock,
    dir: tempfile::TempDir,
}

impl Server {
    async fn start(settings: MediaSettings) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("test.db").display())).await.unwrap();
        let clock = Clock::manual(1_000_000_000_000);
        let core = Core {
            server_name: "test".try_into().unwrap(),
            clock: clock.clone(),
            store: store.clone(),
            key: Arc::new(KeyPair::generate().unwrap()),
            settings: Arc::new(Settings {
                registration: RegistrationMode::Token,
                registration_shared_secret: None,
                plaintext: PlaintextPolicy::default(),
                default_room_version: RoomVersionId::V12,
                presence: false,
                max_upload_bytes: 10_000,
                password: PasswordCost { memory_kib: 8, iterations: 1 },
                everyone_publishes_rooms: true,
                federation: false,
                push: PushSettings::default(),
                accounts: waxwing_services::AccountSettings::default(),
            }),
        };
        std::fs::create_dir(dir.path().join("media")).unwrap();
        let objects = Objects::folder(&dir.path().join("media")).unwrap();
        Server { media: Media::new(core, objects, None, settings), store, clock, dir }
    }

    fn files(&self) -> usize {
        fn count(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(&self.dir.path().join("media"))
    }

    /// A file of another server that was last looked at `ago`.
    async fn cached(&self, id: &str, size: i64, ago: u64) {
        // Its bytes are those of an upload, whose object it takes over.
        let object = format!("aa/bb/{id}");
        let path = self.dir.path().join("media").join(&object);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, id).unwrap();
        let row = MediaRow {
            object,
            size,
            created_at: (self.clock.millis() - ago) as i64,
            sha256: Some(format!("hash of {id}")),
            ..MediaRow::default()
        };
        let id = id.to_owned();
        let done: Result<bool, StoreError> = self
            .store
            .write("test", Vec::new(), move |tx| {
                let (id, row) = (id.clone(), row.clone());
                Box::pin(async move { tx.media_insert(elsewhere(), &id, &row).await })
            })
            .await;
        assert!(done.unwrap());
    }

    async fn held(&self, id: &str) -> bool {
        self.store.read().await.unwrap().media_load(elsewhere(), id).await.unwrap().is_some()
    }
}

fn elsewhere() -> &'static ServerName {
    "elsewhere.example".try_into().unwrap()
}

fn upload() -> Upload {
    Upload { user: user_id!("@alice:test").to_owned(), content_type: None, file_name: None, length: None }
}

fn body(text: &'static str) -> impl stream::Stream<Item = Result<Bytes, std::io::Error>> + Send {
    stream::iter([Ok(Bytes::from(text))])
}

const ASK: Ask = Ask { wait: Duration::ZERO, remote: false, without_token: false };

#[tokio::test]
async fn what_is_due_goes_and_the_rest_stays() {
    let server = Server::start(MediaSettings::default()).await;
    let own = ServerName::parse("test").unwrap();
    let (awaited, until) = server.media.create(user_id!("@alice:test")).await.unwrap();
    let kept = server.media.upload(upload(), body("kept")).await.unwrap();
    server.cached("old", 4, 91 * DAY).await;
    server.cached("withheld", 4, 91 * DAY).await;
    server.cached("new", 4, 89 * DAY).await;
    server.media.quarantine(elsewhere(), "withheld", true).await.unwrap();
    assert_eq!(server.files(), 4);
    let tidied = server.media.tidy().await.unwrap();
    assert_eq!(tidied, Tidied { aged: 1, ..Tidied::default() });
    // A download that has begun may go on reading.
    assert_eq!((server.files(), server.held("old").await), (4, false));
    server.clock.advance(HOUR / 5);
    assert_eq!(server.media.tidy().await.unwrap().objects, 1);
    assert_eq!((server.files(), server.held("new").await, server.held("withheld").await), (3, true, true));
    assert!(matches!(server.media.find(&own, &awaited, ASK).await, Err(MediaError::NotYetUploaded)));
    server.clock.advance(until - server.clock.millis() + 1);
    assert!(matches!(server.media.find(&own, &awaited, ASK).await, Err(MediaError::NotFound)));
    let late = server.media.upload_to(upload(), &own, &awaited, body("late")).await;
    assert!(matches!(late, Err(MediaError::NotFound)));
    assert_eq!(server.media.tidy().await.unwrap().expired, 1);
    assert_eq!(server.media.find(&own, &kept, ASK).await.unwrap().size, 4);
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let settings = MediaSettings { remote_cache_bytes: 1000, ..MediaSettings::default() };
    let server = Server::start(settings).await;
    for (id, ago) in [("c", 3), ("a", 1), ("d", 4), ("b", 2), ("e", 5)] {
        server.cached(id, 300, ago * HOUR).await;
    }
    // Whoever looks at the oldest makes it the newest.
    server.media.find(elsewhere(), "e", ASK).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.media.tidy().await.unwrap().crowded, 2);
    let mut left = Vec::new();
    for id in ["a", "b", "c", "d", "e"] {
        if server.held(id).await {
            left.push(id);
        }
    }
    assert_eq!(left, ["a", "b", "e"]);
    assert_eq!(server.media.tidy().await.unwrap().crowded, 0);
}

#[tokio::test]
async fn objects_that_no_row_names_are_removed_and_those_of_rows_are_not() {
    let server = Server::start(MediaSettings::default()).await;
    // Who breaks off, and who says too much, leave nothing.
    let broken = stream::iter([Ok(Bytes::from("some")), Err(std::io::Error::other("gone"))]);
    assert!(matches!(server.media.upload(upload(), broken).await, Err(MediaError::Broken(_))));
    let large = stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![1; 1000]))));
    assert!(matches!(server.media.upload(upload(), large).await, Err(MediaError::TooLarge(10_000))));
    let id = server.media.upload(upload(), body("kept")).await.unwrap();
    // A crash between the object and its row: the note is what is left.
    std::fs::create_dir_all(server.dir.path().join("media/cc")).unwrap();
    std::fs::write(server.dir.path().join("media/cc/orphan"), "x").unwrap();
    std::fs::write(server.dir.path().join("media/cc/orphan#1"), "a part").unwrap();
    let due = (server.clock.millis() + DAY) as i64;
    let noted: Result<(), StoreError> = server
        .store
        .write("test", Vec::new(), move |tx| {
            Box::pin(async move { tx.media_garbage_add("cc/orphan", due).await })
        })
        .await;
    noted.unwrap();
    assert_eq!(server.media.tidy().await.unwrap().objects, 0);
    server.clock.advance(25 * HOUR);
    server.media.tidy().await.unwrap();
    assert_eq!(server.files(), 1);
    let own = ServerName::parse("test").unwrap();
    assert_eq!(server.media.find(&own, &id, ASK).await.unwrap().size, 4);
    assert_eq!(server.media.erase_now(user_id!("@alice:test")).await.unwrap(), 1);
    assert_eq!(server.files(), 0);
    assert!(matches!(server.media.find(&own, &id, ASK).await, Err(MediaError::NotFound)));
}
