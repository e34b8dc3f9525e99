//! The whole library against a real homeserver with open registration:
//! `WAXWING_TEST_HOMESERVER=http://127.0.0.1:8008 cargo test -p waxwing-client --test live -- --ignored`

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;
use waxwing_client::{Channel, Client, Error, Membership, ShortString};

const PATIENCE: Duration = Duration::from_secs(20);
const PASSWORD: &str = "correct horse battery staple";
const NEEDS: &str = "set WAXWING_TEST_HOMESERVER to a homeserver with open registration";

struct World {
    server: String,
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        let server = std::env::var("WAXWING_TEST_HOMESERVER").expect(NEEDS);
        Self { server, directory: tempfile::tempdir().unwrap() }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn register(&self, name: &str) -> Client {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let unique = format!("{name}-{now}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Client::builder(&self.server, &self.home(name)).register(&unique, PASSWORD).await.unwrap()
    }

    async fn login(&self, who: &Client, home: &str) -> Client {
        Client::builder(&self.server, &self.home(home)).login(who.user_id().as_str(), PASSWORD).await.unwrap()
    }
}

async fn room_of_two(alice: &Client, bob: &Client) -> waxwing_client::ruma::OwnedRoomId {
    let room = alice.create_encrypted_room("Aviary", &[bob.user_id()]).await.unwrap();
    bob.wait_for_invitation(&room, PATIENCE).await.unwrap();
    bob.join((*room).into(), &[]).await.unwrap();
    alice.wait_for_member(&room, bob.user_id(), PATIENCE).await.unwrap();
    bob.sync_once(Duration::ZERO).await.unwrap();
    room
}

#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn text_and_files_both_ways() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of_two(&alice, &bob).await;
    assert_eq!(bob.room(&room).unwrap().name.as_deref(), Some("Aviary"));

    alice.send_text(&room, "The waxwings are back").await.unwrap();
    let heard = bob.wait_for_text(&room, "The waxwings are back", PATIENCE).await.unwrap();
    assert!(heard.is_encrypted());
    assert_eq!(heard.sender, alice.user_id());

    let picture: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let event_id = bob.send_file(&room, "waxwing.png", None, &picture).await.unwrap();
    let event = alice.wait_for_event(|event| event.event_id == event_id, PATIENCE).await.unwrap();
    let attachment = event.attachment().unwrap();
    assert_eq!(attachment.name, "waxwing.png");
    assert_eq!(alice.download(attachment).await.unwrap(), picture);

    let history = alice.messages(&room, 100).await.unwrap();
    assert!(history.iter().any(|event| event.body() == Some("The waxwings are back")));
}

#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn a_recipient_who_was_offline_reads_later() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of_two(&alice, &bob).await;
    let home = world.home("bob");
    drop(bob);
    for number in 0..5 {
        alice.send_text(&room, &format!("letter {number}")).await.unwrap();
    }
    let bob = Client::open(&home).await.unwrap();
    assert!(matches!(Client::open(&home).await, Err(Error::HomeInUse(_))));
    for number in 0..5 {
        bob.wait_for_text(&room, &format!("letter {number}"), PATIENCE).await.unwrap();
    }
    assert!(bob.timeline(&room).iter().all(|event| !event.is_sealed()));
}

async fn compare(alice: &Client, bob: &Client, channel: Channel<'_>) -> (ShortString, ShortString) {
    let (asked, answered) = tokio::join!(
        alice.verify_with(bob.user_id(), channel, PATIENCE, async |_: &ShortString| true),
        bob.accept_verification(alice.user_id(), PATIENCE, async |_: &ShortString| true),
    );
    (asked.unwrap(), answered.unwrap())
}

#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn two_people_verify_each_other() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    alice.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    bob.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    assert!(alice.is_device_signed().await.unwrap());
    let room = room_of_two(&alice, &bob).await;
    assert!(!alice.is_user_verified(bob.user_id()).await.unwrap());

    let (asked, answered) = compare(&alice, &bob, Channel::Room(&room)).await;
    assert_eq!(asked, answered);
    assert_eq!(asked.emoji.len(), 7);
    assert!(alice.is_user_verified(bob.user_id()).await.unwrap());
    assert!(bob.is_user_verified(alice.user_id()).await.unwrap());

    alice.send_text(&room, "now I know it is you").await.unwrap();
    let event = bob.wait_for_text(&room, "now I know it is you", PATIENCE).await.unwrap();
    assert_eq!(event.seal, waxwing_client::Seal::Verified);
}

#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn verification_device_to_device_and_a_refusal() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (asked, answered) = tokio::join!(
        alice.verify_with(bob.user_id(), Channel::Direct, PATIENCE, async |_: &ShortString| false),
        bob.accept_verification(alice.user_id(), PATIENCE, async |_: &ShortString| true),
    );
    assert!(matches!(asked, Err(Error::VerificationCancelled(_))));
    assert!(matches!(answered, Err(Error::VerificationCancelled(_))));
    alice.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    bob.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    let (asked, answered) = compare(&alice, &bob, Channel::Direct).await;
    assert_eq!(asked, answered);
    assert!(alice.is_user_verified(bob.user_id()).await.unwrap());
}

#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn a_new_device_reads_old_letters_with_the_recovery_key() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    alice.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    let room = room_of_two(&alice, &bob).await;
    bob.send_text(&room, "before the backup").await.unwrap();
    alice.wait_for_text(&room, "before the backup", PATIENCE).await.unwrap();
    let recovery_key = alice.create_backup().await.unwrap();
    alice.send_text(&room, "after the backup").await.unwrap();
    let status = alice.backup_status().await.unwrap();
    assert_eq!(status.keys_here, status.keys_backed_up);
    assert!(status.keys_here >= 2);

    let second = world.login(&alice, "alice-2").await;
    second.sync_once(Duration::ZERO).await.unwrap();
    let sealed = second.messages(&room, 50).await.unwrap();
    assert!(sealed.iter().any(waxwing_client::TimelineEvent::is_sealed));
    let wrong = second.restore_backup("EsTc 5rr1 4ixP aLHT Ca8U BsWt r4Vr 8sNV mBjq nZrQ WUcc 9N1A").await;
    assert!(matches!(wrong, Err(Error::Backup(_))));
    let restored = second.restore_backup(recovery_key.expose()).await.unwrap();
    assert_eq!(restored.imported, status.keys_here);
    assert!(restored.cross_signing);
    assert!(second.is_device_signed().await.unwrap());
    let read = second.messages(&room, 50).await.unwrap();
    for words in ["before the backup", "after the backup"] {
        assert!(read.iter().any(|event| event.body() == Some(words)), "{words}");
    }
}

#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn own_devices_verify_and_share_secrets() {
    let world = World::new();
    let alice = world.register("alice").await;
    alice.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    alice.sync_once(Duration::ZERO).await.unwrap();
    let second = world.login(&alice, "alice-2").await;
    let user = alice.user_id().to_owned();
    let (asked, answered) = tokio::join!(
        second.verify_with(&user, Channel::Direct, PATIENCE, async |_: &ShortString| true),
        alice.accept_verification(&user, PATIENCE, async |_: &ShortString| true),
    );
    assert_eq!(asked.unwrap(), answered.unwrap());
    assert!(second.is_device_signed().await.unwrap());
    // The old device answers the new one's request for the private cross-signing keys.
    for _ in 0..10 {
        alice.sync_once(Duration::from_millis(200)).await.unwrap();
        second.sync_once(Duration::from_millis(200)).await.unwrap();
        if second.cross_signing_status().await.is_complete() {
            return;
        }
    }
    panic!("the secrets did not arrive");
}

#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn leaving_and_logging_out() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of_two(&alice, &bob).await;
    bob.leave(&room).await.unwrap();
    alice
        .sync_until(
            |store| {
                let bob = store.room(&room).and_then(|room| room.membership_of(bob.user_id()).cloned());
                bob.is_some_and(|state| state.as_str() == "leave")
            },
            PATIENCE,
        )
        .await
        .unwrap();
    assert_eq!(bob.room(&room).unwrap().membership, Membership::Left);
    let home: &Path = &world.home("bob");
    bob.logout().await.unwrap();
    assert!(matches!(Client::open(home).await, Err(Error::NotLoggedIn(_))));
}

/// The load driver's scenarios, at a tiny size; those of two servers have the same one twice.
#[tokio::test]
#[ignore = "needs WAXWING_TEST_HOMESERVER"]
async fn every_load_scenario_runs() {
    let server = std::env::var("WAXWING_TEST_HOMESERVER").expect(NEEDS);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_waxwing-client"));
    command.args(["load", "all", "--size", "tiny", "--label", "x", "--server", &server, "--to", &server]);
    // Known when scripts/with-server.sh started the server.
    let folder = std::env::var("WAXWING_TEST_SERVER").ok();
    if let Some(folder) = &folder {
        let id = std::fs::read_to_string(format!("{folder}/id")).unwrap();
        command.args(["--pid", id.trim(), "--data", &format!("{folder}/data")]);
    }
    let ran = command.kill_on_drop(true).output().await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let mut scenarios = BTreeSet::new();
    for line in String::from_utf8(ran.stdout).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        scenarios.insert(line["scenario"].as_str().unwrap().to_owned());
        assert_eq!(line["queued"], line["drained"], "{line}");
        assert!(folder.is_none() || line["data_mb_after"].as_f64().unwrap() > 0.0, "{line}");
        for measure in line["measures"].as_array().unwrap() {
            assert!(measure["count"].as_u64().unwrap() > 0, "{line}");
            for trouble in ["errors", "missing", "repeated", "failed_polls", "overloaded"] {
                assert!(measure.get(trouble).is_none(), "{line}");
            }
        }
    }
    assert_eq!(scenarios.len(), 11, "{scenarios:?}");
}
