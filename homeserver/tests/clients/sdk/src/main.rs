//! matrix-sdk as Element X uses it beside waxwing-client: register, cross-sign, verify, talk, restart, restore on a new
//! device. Started by scripts/clients.sh with a server of its own.

mod device;
mod person;

use anyhow::{Context, Result, ensure};
use device::{Device, Shown};
use matrix_sdk::ruma::{OwnedUserId, RoomId, UserId};
use person::{Comparison, Person};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tokio::process::Command;

pub const PASSWORD: &str = "correct horse battery staple";
/// How long anything may take that should happen at once; the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Says what has been shown, and after how many seconds.
fn step(words: &str) {
    println!("   {:5.1} s  {words}", BEGAN.elapsed().as_secs_f32());
}

/// Calls `found` until it answers something; returns that.
pub async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = found().await? {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Ends the server by a signal, while everybody is connected, and starts it again.
async fn restart_server(signal: &str) -> Result<()> {
    let script = std::env::var("WAXWING_TEST_RESTART").context("WAXWING_TEST_RESTART is not set")?;
    let ended = Command::new(script).args(["--restart", signal]).status().await?;
    ensure!(ended.success(), "the server did not come back");
    Ok(())
}

/// Compares what two sides show, and confirms it on both.
async fn agree(
    ours: impl Future<Output = Result<Shown>>,
    theirs: impl Future<Output = Result<Comparison>>,
) -> Result<()> {
    let (ours, theirs) = tokio::try_join!(ours, theirs)?;
    ensure!(ours.emoji.len() == 7 && ours.emoji == theirs.emoji, "{:?} {:?}", ours.emoji, theirs.emoji);
    tokio::try_join!(ours.confirm(), theirs.confirm())?;
    Ok(())
}

async fn verify(sdk: &Device, alice: &Person) -> Result<()> {
    let user: OwnedUserId = alice.user_id.parse()?;
    agree(sdk.ask(&user), alice.verify(sdk.user_id().as_str(), &["--accept"])).await?;
    until("the identity to be verified", async || Ok(sdk.trusts(&user).await?.then_some(()))).await?;
    step("verified by emoji in the room, the sdk asked");
    agree(sdk.answer(), alice.verify(sdk.user_id().as_str(), &[])).await?;
    step("verified by emoji from device to device, waxwing-client asked");
    Ok(())
}

async fn talk(sdk: &Device, alice: &Person, room: &RoomId, directory: &Path) -> Result<()> {
    let open = sdk.timeline(room).await?;
    open.send("hello from the sdk").await?;
    let heard = alice.hears(room.as_str(), "hello from the sdk").await?;
    ensure!(heard["sender"] == sdk.user_id().as_str() && heard["verified"] == true, "{heard}");
    alice.run(&["send", room.as_str(), "hello from waxwing"], "").await?;
    let event = open.hears("hello from waxwing").await?;
    step("messages both ways");
    ensure!(sdk.notified(room, &event).await?.contains("Aviary"), "the notification names the room");
    step("a notification looked up");

    let picture: Vec<u8> = (0..250_000_u32).map(|index| (index * 7 % 251) as u8).collect();
    let path = directory.join("feathers.bin");
    tokio::fs::write(&path, &picture).await?;
    alice.run(&["send-file", room.as_str(), path.to_str().context("a path")?], "").await?;
    ensure!(open.receives("feathers.bin").await? == picture, "the sdk has the file");
    open.send_file("berries.bin", picture.clone()).await?;
    let saved = alice.receives(room.as_str(), "berries.bin", &directory.join("saved")).await?;
    ensure!(saved == picture, "waxwing-client has the file");
    step("attachments both ways");

    // What is handed to the send queue while the server is away arrives.
    let restart = async {
        restart_server("TERM").await?;
        Ok::<(), anyhow::Error>(())
    };
    let say = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        open.send("through the restart").await
    };
    tokio::try_join!(restart, say)?;
    alice.hears(room.as_str(), "through the restart").await?;
    alice.run(&["send", room.as_str(), "still here"], "").await?;
    open.hears("still here").await?;
    step("the server stopped and came back");
    open.read_all().await
}

/// A new device takes what was said before from the backup.
async fn new_device(second: &Device, key: &str, alice: &Person, room: &RoomId) -> Result<()> {
    second.recover(key).await?;
    let open = second.timeline(room).await?;
    open.read_all().await?;
    for said in ["hello from the sdk", "hello from waxwing", "through the restart", "still here"] {
        open.hears(said).await?;
    }
    open.receives("berries.bin").await?;
    step("restored on a new device by the recovery key");
    alice.run(&["send", room.as_str(), "to both devices"], "").await?;
    open.hears("to both devices").await?;
    open.send("from the second device").await?;
    let heard = alice.hears(room.as_str(), "from the second device").await?;
    ensure!(heard["verified"] == true, "{heard}");
    step("the new device is trusted and speaks");
    Ok(())
}

async fn scenario(directory: &Path) -> Result<()> {
    let homeserver =
        std::env::var("WAXWING_TEST_HOMESERVER").context("WAXWING_TEST_HOMESERVER is not set")?;
    let unique = format!("{:x}", std::process::id());
    let homes: [PathBuf; 2] = ["first", "second"].map(|name| directory.join(name));
    let name = format!("sdk-{unique}");
    let (sdk, alice) = (
        Device::register(&homeserver, &homes[0], &name).await?,
        Person::register(directory, &homeserver, &format!("alice-{unique}")).await?,
    );
    let key = sdk.set_up_recovery().await?;
    step("registered, cross-signing, secret storage and key backup set up");
    let said = alice.run(&["create", "Aviary", "--invite", sdk.user_id().as_str()], "").await?;
    let room = RoomId::parse(said)?;
    sdk.accept_invitation(&room).await?;
    drop(sdk.timeline(&room).await?);
    let user = UserId::parse(&alice.user_id)?;
    until("the direct chat", async || Ok(sdk.client.get_dm_room(&user))).await?;
    ensure!(sdk.listed().await? == [room.clone()], "the list has the room");
    step("invited, joined and listed");

    verify(&sdk, &alice).await?;
    talk(&sdk, &alice, &room, directory).await?;
    let second = Device::login(&homeserver, &homes[1], sdk.user_id()).await?;
    new_device(&second, &key, &alice, &room).await?;

    let sdk = sdk.reopen(&homeserver, &homes[0]).await?;
    {
        let open = sdk.timeline(&room).await?;
        open.hears("to both devices").await?;
        open.hears("from the second device").await?;
        open.send("good night").await?;
        alice.hears(room.as_str(), "good night").await?;
        second.timeline(&room).await?.hears("good night").await?;
        open.read_all().await?;
    }
    second.timeline(&room).await?.read_all().await?;
    step("the app was closed and opened; everybody can read everything");
    sdk.stop().await;
    second.stop().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    LazyLock::force(&BEGAN);
    let directory = tempfile::tempdir()?;
    tokio::time::timeout(PATIENCE * 5, scenario(directory.path())).await?
}
