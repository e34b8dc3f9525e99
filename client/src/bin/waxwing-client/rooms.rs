//! Rooms and their members.

use std::time::Duration;

use anyhow::{Context, Result};
use console::style;
use waxwing_client::{
    Client, Membership,
    ruma::{OwnedServerName, OwnedUserId, RoomOrAliasId, ServerName, UserId},
};

use crate::output::{clean, find_room};

pub fn user_id(text: &str) -> Result<OwnedUserId> {
    UserId::parse(text).with_context(|| format!("{text:?} is not a user id such as @bob:example.org"))
}

pub async fn list(client: &Client) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    for (id, room) in client.rooms() {
        let state = match room.membership {
            Membership::Joined => style("joined "),
            Membership::Invited => style("invited").yellow(),
            Membership::Left => continue,
        };
        let seal = if room.is_encrypted() { "sealed" } else { "open  " };
        println!("{state}  {seal}  {id}  {}", clean(room.name.as_deref().unwrap_or("(no name)")));
    }
    Ok(())
}

pub async fn members(client: &Client, room: &str) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    let room = find_room(client, room)?;
    for (user, state) in client.members(&room).await? {
        let mark =
            if client.is_user_verified(&user).await? { style("✓").green() } else { style("·").dim() };
        println!("{mark} {:<7} {}", state.as_str(), clean(user.as_str()));
    }
    Ok(())
}

pub async fn create(client: &Client, name: &str, invite: &[String]) -> Result<()> {
    let invite = invite.iter().map(|user| user_id(user)).collect::<Result<Vec<_>>>()?;
    let invite: Vec<&UserId> = invite.iter().map(|user| &**user).collect();
    println!("{}", client.create_encrypted_room(name, &invite).await?);
    Ok(())
}

pub async fn invite(client: &Client, room: &str, user: &str) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    let (room, user) = (find_room(client, room)?, user_id(user)?);
    client.invite(&room, &user).await?;
    println!("invited {user} to {room}");
    Ok(())
}

pub async fn join(client: &Client, room: &str, via: &[String]) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    let via: Vec<OwnedServerName> = via
        .iter()
        .map(|server| ServerName::parse(server).with_context(|| format!("{server:?} is not a server name")))
        .collect::<Result<_>>()?;
    let joined = match find_room(client, room) {
        Ok(known) => client.join((*known).into(), &via).await?,
        Err(unknown) => {
            let target = RoomOrAliasId::parse(room).map_err(|_| unknown)?;
            client.join(&target, &via).await?
        }
    };
    println!("joined {joined}");
    Ok(())
}

pub async fn leave(client: &Client, room: &str) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    let room = find_room(client, room)?;
    client.leave(&room).await?;
    println!("left {room}");
    Ok(())
}
