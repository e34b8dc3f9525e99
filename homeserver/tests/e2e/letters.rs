//! People and their letters, in each shape.

use crate::http::Raw;
use crate::site::{PASSWORD, PATIENCE, Site, room_of_two};
use std::time::Duration;
use waxwing_client::{Channel, Client, Error, Seal, ShortString, TimelineEvent};

in_each_shape!(
    text_and_files_both_ways,
    a_recipient_who_was_offline_reads_later,
    history_survives_a_restart,
    acknowledged_letters_survive_a_crash,
    two_people_verify_each_other,
    a_new_device_reads_old_letters_with_the_recovery_key,
    after_a_logout_the_token_is_dead,
);

async fn text_and_files_both_ways(site: Site) {
    let (alice, bob) = (site.register("alice").await, site.register("bob").await);
    let room = room_of_two(&alice, &bob).await;
    for (from, to, words) in [(&alice, &bob, "The waxwings are back"), (&bob, &alice, "On the rowan tree")] {
        from.send_text(&room, words).await.unwrap();
        let heard = to.wait_for_text(&room, words, PATIENCE).await.unwrap();
        assert!(heard.is_encrypted());
        assert_eq!(heard.sender, from.user_id());

        let picture: Vec<u8> = words.bytes().cycle().take(300_000).collect();
        let event_id = from.send_file(&room, "waxwing.png", None, &picture).await.unwrap();
        let event = to.wait_for_event(|event| event.event_id == event_id, PATIENCE).await.unwrap();
        let attachment = event.attachment().unwrap();
        assert_eq!(attachment.name, "waxwing.png");
        assert_eq!(to.download(attachment).await.unwrap(), picture);
    }
}

async fn a_recipient_who_was_offline_reads_later(site: Site) {
    let (alice, bob) = (site.register("alice").await, site.register("bob").await);
    let room = room_of_two(&alice, &bob).await;
    drop(bob);
    for number in 0..5 {
        alice.send_text(&room, &format!("letter {number}")).await.unwrap();
    }
    let bob = Client::open(&site.home("bob")).await.unwrap();
    for number in 0..5 {
        bob.wait_for_text(&room, &format!("letter {number}"), PATIENCE).await.unwrap();
    }
    assert!(bob.timeline(&room).iter().all(|event| !event.is_sealed()));
}

async fn history_survives_a_restart(mut site: Site) {
    let (alice, bob) = (site.register("alice").await, site.register("bob").await);
    let room = room_of_two(&alice, &bob).await;
    for number in 0..5 {
        alice.send_text(&room, &format!("letter {number}")).await.unwrap();
    }
    site.restart().await;
    for number in 0..5 {
        bob.wait_for_text(&room, &format!("letter {number}"), PATIENCE).await.unwrap();
    }
    let history = bob.messages(&room, 100).await.unwrap();
    let said: Vec<&str> = history.iter().filter_map(TimelineEvent::body).collect();
    assert_eq!(said, ["letter 0", "letter 1", "letter 2", "letter 3", "letter 4"]);
    bob.send_text(&room, "after the restart").await.unwrap();
    alice.wait_for_text(&room, "after the restart", PATIENCE).await.unwrap();
}

async fn acknowledged_letters_survive_a_crash(mut site: Site) {
    let (alice, bob) = (site.register("alice").await, site.register("bob").await);
    let room = room_of_two(&alice, &bob).await;
    for number in 0..20 {
        alice.send_text(&room, &format!("letter {number}")).await.unwrap();
    }
    for node in &mut site.nodes {
        node.kill().await;
    }
    for node in &mut site.nodes {
        node.start().await;
    }
    for number in 0..20 {
        bob.wait_for_text(&room, &format!("letter {number}"), PATIENCE).await.unwrap();
    }
}

/// Both compare the emoji and say yes.
pub async fn compare(alice: &Client, bob: &Client, channel: Channel<'_>) {
    let (asked, answered) = tokio::join!(
        alice.verify_with(bob.user_id(), channel, PATIENCE, async |_: &ShortString| true),
        bob.accept_verification(alice.user_id(), PATIENCE, async |_: &ShortString| true),
    );
    let asked = asked.unwrap();
    assert_eq!(asked, answered.unwrap());
    assert_eq!(asked.emoji.len(), 7);
}

async fn two_people_verify_each_other(site: Site) {
    let (alice, bob) = (site.register("alice").await, site.register("bob").await);
    alice.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    bob.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    let room = room_of_two(&alice, &bob).await;
    compare(&alice, &bob, Channel::Room(&room)).await;
    assert!(alice.is_user_verified(bob.user_id()).await.unwrap());
    assert!(bob.is_user_verified(alice.user_id()).await.unwrap());
    alice.send_text(&room, "now I know it is you").await.unwrap();
    let event = bob.wait_for_text(&room, "now I know it is you", PATIENCE).await.unwrap();
    assert_eq!(event.seal, Seal::Verified);
}

async fn a_new_device_reads_old_letters_with_the_recovery_key(site: Site) {
    let (alice, bob) = (site.register("alice").await, site.register("bob").await);
    alice.bootstrap_cross_signing(Some(PASSWORD)).await.unwrap();
    let room = room_of_two(&alice, &bob).await;
    bob.send_text(&room, "before the backup").await.unwrap();
    alice.wait_for_text(&room, "before the backup", PATIENCE).await.unwrap();
    let recovery_key = alice.create_backup().await.unwrap();
    alice.send_text(&room, "after the backup").await.unwrap();
    let status = alice.backup_status().await.unwrap();
    assert_eq!(status.keys_here, status.keys_backed_up);

    let second = site.login(&alice, "alice-2").await;
    second.sync_once(Duration::ZERO).await.unwrap();
    let restored = second.restore_backup(recovery_key.expose()).await.unwrap();
    assert_eq!(restored.imported, status.keys_here);
    let read = second.messages(&room, 50).await.unwrap();
    for words in ["before the backup", "after the backup"] {
        assert!(read.iter().any(|event| event.body() == Some(words)), "{words}");
    }
}

async fn after_a_logout_the_token_is_dead(site: Site) {
    let alice = site.register("alice").await;
    let old = Raw::nobody(&site.url).with_token(alice.access_token().expose());
    old.get("/_matrix/client/v3/account/whoami").await.fine();
    let second = site.login(&alice, "alice-2").await;
    alice.logout().await.unwrap();
    // Both nodes, where there are two.
    for _ in 0..4 {
        old.get("/_matrix/client/v3/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    }
    assert!(matches!(Client::open(&site.home("alice")).await, Err(Error::NotLoggedIn(_))));
    second.sync_once(Duration::ZERO).await.unwrap();
}
