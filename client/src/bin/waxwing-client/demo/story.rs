//! Two people on two servers: they meet, compare emoji, write and send files to each other, one of them offline
//! for a while.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use rand::{RngExt, distr::Alphanumeric};
use waxwing_client::{
    Channel, Client, Content, Seal, ShortString,
    ruma::{OwnedEventId, OwnedRoomId, RoomId, api::client::keys::upload_keys},
};

use super::{
    servers::Server,
    steps::{Steps, note},
};

/// How long any one thing may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);
const FILE_SIZE: usize = 64 * 1024;

/// Everything that was said, to look for in the databases.
pub struct Letters {
    pub room: OwnedRoomId,
    pub sent: Vec<Letter>,
    /// Byte strings that must be nowhere on the servers' disks.
    pub words: Vec<String>,
}

pub struct Letter {
    pub event: OwnedEventId,
    pub what: String,
}

impl Letters {
    fn note(&mut self, event: OwnedEventId, what: &str) {
        self.sent.push(Letter { event, what: what.to_owned() });
    }
}

struct Person<'a> {
    name: &'static str,
    client: Client,
    server: &'a Server,
    password: String,
}

pub async fn tell(alpha: &Server, beta: &Server, directory: &Path, steps: &mut Steps) -> Result<Letters> {
    let (alice, bob) = steps
        .run("registration and key upload", async {
            tokio::try_join!(register("alice", alpha, directory), register("bob", beta, directory))
        })
        .await?;
    note(&format!("{} and {}", alice.client.user_id(), bob.client.user_id()));
    steps.run("cross-signing", async { tokio::try_join!(cross_sign(&alice), cross_sign(&bob)) }).await?;
    let room = steps.run("an encrypted room across both servers", meet(&alice.client, &bob.client)).await?;
    note(room.as_str());
    let emoji = steps.run("verification by emoji", verify(&alice.client, &bob.client, &room)).await?;
    note(&emoji);
    let mut letters = Letters { room, sent: Vec::new(), words: Vec::new() };
    steps
        .run("text in both directions", async {
            say(&alice.client, &bob.client, "The waxwings are back", &mut letters).await?;
            say(&bob.client, &alice.client, "I counted forty in the rowan", &mut letters).await
        })
        .await?;
    steps
        .run("an encrypted attachment in both directions", async {
            send_file(&alice.client, &bob.client, "rowan.txt", &mut letters).await?;
            send_file(&bob.client, &alice.client, "feathers.txt", &mut letters).await
        })
        .await?;
    steps
        .run("delivery to a recipient who was offline", offline(alice, bob, directory, &mut letters))
        .await?;
    Ok(letters)
}

fn home(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join(format!("{name}.device"))
}

fn random_word(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

async fn register<'a>(name: &'static str, server: &'a Server, directory: &Path) -> Result<Person<'a>> {
    let password = random_word(24);
    let client = Client::builder(&server.client_url(), &home(directory, name))
        .device_name("Waxwing demo")
        .register(name, &password)
        .await?;
    ensure!(client.user_id().server_name() == server.name.as_str(), "{} got another name", client.user_id());
    client.sync_once(Duration::ZERO).await?;
    // An upload of nothing is answered with what the server holds.
    let held = client.http().send(upload_keys::v3::Request::new()).await?.one_time_key_counts;
    ensure!(held.values().any(|count| *count > 0_u32.into()), "the server holds no one-time keys of {name}");
    Ok(Person { name, client, server, password })
}

async fn cross_sign(person: &Person<'_>) -> Result<()> {
    person.client.bootstrap_cross_signing(Some(&person.password)).await?;
    ensure!(person.client.is_device_signed().await?, "{}'s device is not signed", person.name);
    Ok(())
}

async fn meet(alice: &Client, bob: &Client) -> Result<OwnedRoomId> {
    let room = alice.create_encrypted_room("Aviary", &[bob.user_id()]).await?;
    bob.wait_for_invitation(&room, PATIENCE).await.context("bob was not invited")?;
    bob.join((*room).into(), &[]).await.context("bob could not join")?;
    alice.wait_for_member(&room, bob.user_id(), PATIENCE).await?;
    let joined = |store: &waxwing_client::Store| {
        let room = store.room(&room);
        room.is_some_and(|room| room.is_encrypted() && room.membership_of(alice.user_id()).is_some())
    };
    bob.sync_until(joined, PATIENCE).await.context("bob does not see the room's encryption")?;
    Ok(room)
}

async fn verify(alice: &Client, bob: &Client, room: &RoomId) -> Result<String> {
    let agree = async |_: &ShortString| true;
    let (asked, answered) = tokio::try_join!(
        alice.verify_with(bob.user_id(), Channel::Room(room), PATIENCE, agree),
        bob.accept_verification(alice.user_id(), PATIENCE, agree),
    )?;
    ensure!(asked == answered, "the two saw different emoji");
    ensure!(alice.is_user_verified(bob.user_id()).await?, "bob is not verified");
    ensure!(bob.is_user_verified(alice.user_id()).await?, "alice is not verified");
    let shown: Vec<String> = asked.emoji.iter().map(|(symbol, name)| format!("{symbol} {name}")).collect();
    Ok(shown.join("  "))
}

async fn say(from: &Client, to: &Client, text: &str, letters: &mut Letters) -> Result<()> {
    let text = format!("{text}, {}", random_word(12));
    letters.words.push(text.clone());
    let event = from.send_text(&letters.room, &text).await?;
    letters.note(event.clone(), "text");
    let heard = to.wait_for_text(&letters.room, &text, PATIENCE).await?;
    ensure!(heard.event_id == event, "another event carries these words");
    ensure!(heard.seal == Seal::Verified, "the message is not from a verified device");
    Ok(())
}

async fn send_file(from: &Client, to: &Client, name: &str, letters: &mut Letters) -> Result<()> {
    let line = random_word(48);
    letters.words.push(line.clone());
    letters.words.push(name.to_owned());
    let data = line.repeat(FILE_SIZE / line.len()).into_bytes();
    let event = from.send_file(&letters.room, name, Some("text/plain"), &data).await?;
    letters.note(event.clone(), "attachment");
    let arrived = to.wait_for_event(|seen| seen.event_id == event && !seen.is_sealed(), PATIENCE).await?;
    let Content::Attachment(attachment) = &arrived.content else {
        anyhow::bail!("{name} arrived as something else");
    };
    ensure!(to.download(attachment).await? == data, "{name} arrived changed");
    Ok(())
}

/// Bob's device goes away, Alice writes, Bob's device comes back.
async fn offline(alice: Person<'_>, bob: Person<'_>, directory: &Path, letters: &mut Letters) -> Result<()> {
    let server = bob.server;
    drop(bob);
    let mut texts = Vec::new();
    for number in 1..=3 {
        let text = format!("Note {number} for when you are back, {}", random_word(12));
        letters.words.push(text.clone());
        let event = alice.client.send_text(&letters.room, &text).await?;
        letters.note(event, "text while offline");
        texts.push(text);
    }
    let bob = Client::open(&home(directory, "bob")).await?;
    ensure!(bob.homeserver() == server.client_url(), "bob came back elsewhere");
    for text in &texts {
        bob.wait_for_text(&letters.room, text, PATIENCE).await?;
    }
    let history = bob.messages(&letters.room, 100).await?;
    for text in &texts {
        ensure!(history.iter().any(|event| event.body() == Some(text)), "the history lacks a note");
    }
    Ok(())
}
