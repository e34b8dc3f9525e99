//! `waxwing user`: accounts, over the database itself, so that it works beside a running server.

use crate::config::{Config, Secret};
use crate::{signing_key, wiring};
use anyhow::{Context, bail};
use ruma::{OwnedUserId, UserId};
use std::io::BufRead;
use std::sync::Arc;
use waxwing_services::Core;
use waxwing_services::accounts::{Accounts, Change, UserRow};
use waxwing_services::timeline::Timeline;

/// Longer lines are no passwords.
const LONGEST_PASSWORD: u64 = 4096;
/// Accounts read at once for the list.
const PAGE: usize = 500;

/// Reads one line.
pub fn read_password(input: impl BufRead) -> anyhow::Result<Secret> {
    let mut line = String::new();
    input.take(LONGEST_PASSWORD).read_line(&mut line).context("cannot read the password")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("the password on standard input is empty");
    }
    Ok(Secret::new(password))
}

async fn open(config: &Config) -> anyhow::Result<(Core, Arc<Accounts>)> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make {}", config.data_dir.display()))?;
    let core = wiring::core(config, signing_key::load_or_make(&config.data_dir)?).await?;
    let accounts = wiring::accounts(config, &core, None)?;
    Ok((core, accounts))
}

/// The user id of a name or an id.
fn id_of(core: &Core, name: &str) -> anyhow::Result<OwnedUserId> {
    let full = if name.starts_with('@') { name.to_owned() } else { format!("@{name}:{}", core.server_name) };
    let id = UserId::parse(&full).with_context(|| format!("{name} is no user name"))?;
    if !core.is_local(&id) {
        bail!("{id} belongs to another server");
    }
    Ok(id)
}

/// Makes an account.
pub async fn create(config: &Config, name: &str, password: Secret, admin: bool) -> anyhow::Result<()> {
    let (_, accounts) = open(config).await?;
    let user = accounts
        .create_by_operator(name.to_owned(), password.expose().to_owned(), admin)
        .await
        .with_context(|| format!("cannot make the account {name}"))?;
    println!("{user}");
    Ok(())
}

/// Sets the password of an account; with `logout`, all of its sessions end.
pub async fn password(config: &Config, name: &str, password: Secret, logout: bool) -> anyhow::Result<()> {
    let (core, accounts) = open(config).await?;
    let user = id_of(&core, name)?;
    accounts
        .change_password(&user, password.expose(), None, logout)
        .await
        .with_context(|| format!("cannot set the password of {user}"))?;
    println!("{user}");
    Ok(())
}

/// Locks, suspends or promotes an account, or takes that back.
pub async fn change(config: &Config, name: &str, change: Change) -> anyhow::Result<()> {
    let (core, accounts) = open(config).await?;
    let user = id_of(&core, name)?;
    accounts.change(&user, change).await.with_context(|| format!("cannot change {user}"))?;
    println!("{user}");
    Ok(())
}

/// Closes an account for ever and takes it out of its rooms. Rooms that only other servers are in, it leaves when the
/// running server tidies up.
pub async fn deactivate(config: &Config, name: &str, erase: bool) -> anyhow::Result<()> {
    let (core, accounts) = open(config).await?;
    let user = id_of(&core, name)?;
    accounts.deactivate(&user, erase).await.with_context(|| format!("cannot close {user}"))?;
    let timeline = Timeline::new(core, None);
    timeline.leave_all(&user).await.context("the account is closed, but not out of all its rooms")?;
    println!("{user}");
    Ok(())
}

/// Prints the accounts, one a line: the id, when it was made, and what it is.
pub async fn list(config: &Config) -> anyhow::Result<()> {
    let (_, accounts) = open(config).await?;
    let mut after = String::new();
    loop {
        let page = accounts.list(&after, PAGE).await.context("cannot read the accounts")?;
        for row in &page.users {
            println!("{}", line(row));
        }
        match page.next {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

fn line(row: &UserRow) -> String {
    let flags = [
        (row.admin, "administrator"),
        (row.guest, "guest"),
        (row.locked, "locked"),
        (row.suspended, "suspended"),
        (row.deactivated, "deactivated"),
        (row.erased, "erased"),
        (row.appservice.is_some(), "appservice"),
    ];
    let flags: Vec<&str> = flags.into_iter().filter_map(|(on, word)| on.then_some(word)).collect();
    format!("{}\t{}\t{}", row.user_id, row.created_at, flags.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_first_line() {
        assert_eq!(read_password(&b"hunter 2 \r\nmore"[..]).unwrap().expose(), "hunter 2 ");
        assert_eq!(read_password(&b"no newline"[..]).unwrap().expose(), "no newline");
        assert!(read_password(&b"\n"[..]).is_err());
        assert!(read_password(&b""[..]).is_err());
    }
}
