//! Identities and keys.

use std::time::Duration;

use anyhow::Result;
use console::style;
use waxwing_client::{Channel, Client, Error, ShortString};

use crate::{
    cli::{BackupCommand, Verify},
    output::{ask_secret, ask_yes, find_room},
    rooms::user_id,
};

/// Syncs after verifying our own device, so that it can ask the other one for the identity's keys.
const SECRET_SYNCS: usize = 10;

pub async fn bootstrap(client: &Client) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    match client.bootstrap_cross_signing(None).await {
        Err(Error::AuthenticationStage(_)) => {
            let password = ask_secret("password")?;
            client.bootstrap_cross_signing(Some(password.expose())).await?;
        }
        other => other?,
    }
    println!("cross-signing is set up; `backup create` makes it survive the loss of this device");
    Ok(())
}

pub async fn verify(client: &Client, options: &Verify) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    let user = user_id(&options.user)?;
    let patience = Duration::from_secs(options.seconds);
    if options.accept {
        eprintln!("waiting for {user} …");
        client.accept_verification(&user, patience, compare).await?;
    } else {
        let room = options.room.as_deref().map(|room| find_room(client, room)).transpose()?;
        let channel = room.as_deref().map_or(Channel::Direct, Channel::Room);
        eprintln!("asking {user} …");
        client.verify_with(&user, channel, patience, compare).await?;
    }
    if user == client.user_id() && !client.cross_signing_status().await.is_complete() {
        for _ in 0..SECRET_SYNCS {
            client.sync_once(Duration::from_secs(1)).await?;
            if client.cross_signing_status().await.is_complete() {
                break;
            }
        }
    }
    println!("{} {user} is verified", style("✓").green());
    Ok(())
}

async fn compare(short: &ShortString) -> bool {
    if short.emoji.is_empty() {
        let (first, second, third) = short.decimals;
        println!("\n    {first}  {second}  {third}\n");
    } else {
        println!();
        for (symbol, name) in &short.emoji {
            println!("    {symbol}  {name}");
        }
        println!();
    }
    // No answer is no confirmation.
    ask_yes("Does the other side see the same?").await.unwrap_or(false)
}

pub async fn backup(client: &Client, command: &BackupCommand) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    match command {
        BackupCommand::Create => {
            let key = client.create_backup().await?;
            eprintln!("Keep this recovery key safe. It is shown once, and nobody can make it again:");
            println!("{}", key.expose());
        }
        BackupCommand::Restore => {
            let key = ask_secret("recovery key")?;
            let restored = client.restore_backup(key.expose()).await?;
            println!("{} of {} room keys imported", restored.imported, restored.total);
            if restored.cross_signing {
                println!("this device now holds your identity and is signed by it");
            }
        }
        BackupCommand::Status => {
            let status = client.backup_status().await?;
            match &status.enabled {
                Some(version) => println!("here       on, version {version}"),
                None => println!("here       off"),
            }
            println!("keys here  {} ({} backed up)", status.keys_here, status.keys_backed_up);
            match &status.on_server {
                Some((version, count)) => println!("on server  version {version}, {count} keys"),
                None => println!("on server  no backup"),
            }
        }
    }
    Ok(())
}
