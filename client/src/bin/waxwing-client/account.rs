//! Accounts and sessions.

use anyhow::Result;
use waxwing_client::{Client, ClientBuilder};

use crate::{Device, cli::Account, first_line, output::ask_secret};

fn builder(device: &Device, account: &Account) -> Result<ClientBuilder> {
    let mut builder = Client::builder(&account.server, &device.home).device_name(&account.device_name);
    if let Some(passphrase) = &device.passphrase {
        builder = builder.passphrase(passphrase.clone());
    }
    if let Some(file) = &account.token_file {
        builder = builder.registration_token(first_line(file)?);
    }
    Ok(builder)
}

pub async fn register(device: &Device, account: &Account) -> Result<()> {
    let builder = builder(device, account)?;
    let password = ask_secret("password")?;
    let client = builder.register(&account.user, password.expose()).await?;
    println!("registered {} (device {})", client.user_id(), client.device_id());
    Ok(())
}

pub async fn login(device: &Device, account: &Account) -> Result<()> {
    let builder = builder(device, account)?;
    let password = ask_secret("password")?;
    let client = builder.login(&account.user, password.expose()).await?;
    println!("logged in as {} (device {})", client.user_id(), client.device_id());
    Ok(())
}

pub async fn logout(client: Client) -> Result<()> {
    let user = client.user_id().to_owned();
    client.logout().await?;
    println!("logged out {user}");
    Ok(())
}

pub async fn whoami(client: &Client) -> Result<()> {
    let status = client.cross_signing_status().await;
    let signed = client.is_device_signed().await?;
    let identity = match (status.is_complete(), signed) {
        (true, true) => "here, and it vouches for this device",
        (true, false) => "here, but it does not vouch for this device yet",
        (false, true) => "on another device, and it vouches for this one",
        (false, false) => "not set up here: run `bootstrap` or `backup restore`",
    };
    println!("user       {}", client.user_id());
    println!("device     {}", client.device_id());
    println!("homeserver {}", client.homeserver());
    println!("device key {}", client.machine().identity_keys().ed25519.to_base64());
    println!("identity   {identity}");
    Ok(())
}
