//! Messages and files.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use waxwing_client::{Client, TimelineEvent};

use crate::{
    cli::Read,
    output::{clean, find_room, is_conversation, print_event, print_json},
};

/// How long one poll of `watch` holds.
const POLL: Duration = Duration::from_secs(30);
/// A message beyond this cannot fit an event, whatever the server allows.
const MAX_TEXT: usize = 32 * 1024;

pub async fn send(client: &Client, room: &str, words: &[String]) -> Result<()> {
    let text = if words.is_empty() { read_stdin()? } else { words.join(" ") };
    if text.is_empty() || text.len() > MAX_TEXT {
        bail!("a message has between 1 and {MAX_TEXT} bytes");
    }
    client.sync_once(Duration::ZERO).await?;
    let room = find_room(client, room)?;
    println!("{}", client.send_text(&room, &text).await?);
    Ok(())
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().take(MAX_TEXT as u64 + 1).read_to_string(&mut text)?;
    Ok(text.trim_end_matches('\n').to_owned())
}

pub async fn send_file(client: &Client, room: &str, path: &Path, media_type: Option<&str>) -> Result<()> {
    let data = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().context("this is not a file")?.to_string_lossy();
    client.sync_once(Duration::ZERO).await?;
    let room = find_room(client, room)?;
    println!("{}", client.send_file(&room, &name, media_type, &data).await?);
    Ok(())
}

pub async fn read(client: &Client, options: &Read) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    let room = find_room(client, &options.room)?;
    for event in client.messages(&room, options.limit).await?.iter().filter(|event| is_conversation(event)) {
        show(event, options.json)?;
        if let Some(directory) = &options.save {
            save(client, event, directory).await?;
        }
    }
    Ok(())
}

fn show(event: &TimelineEvent, json: bool) -> Result<()> {
    if json {
        return print_json(event);
    }
    print_event(event);
    Ok(())
}

async fn save(client: &Client, event: &TimelineEvent, directory: &Path) -> Result<()> {
    let Some(attachment) = event.attachment() else { return Ok(()) };
    let data = client.download(attachment).await?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = free_path(directory, &safe_name(&attachment.name));
    std::fs::write(&path, data).with_context(|| format!("cannot write {}", path.display()))?;
    println!("    saved {}", path.display());
    Ok(())
}

/// The sender chose this name: no directories, no hidden files, nothing that steers a terminal.
fn safe_name(name: &str) -> String {
    let name = clean(name).replace(['/', '\\', '\n', '\t'], "_");
    let name = name.trim_start_matches('.');
    if name.is_empty() { "attachment".to_owned() } else { name.chars().take(120).collect() }
}

/// A path that does not exist yet: `minutes.txt`, then `minutes-2.txt`, …
fn free_path(directory: &Path, name: &str) -> PathBuf {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) => (stem, format!(".{extension}")),
        None => (name, String::new()),
    };
    let mut path = directory.join(name);
    let mut number = 2;
    while path.exists() {
        path = directory.join(format!("{stem}-{number}{extension}"));
        number += 1;
    }
    path
}

pub async fn watch(client: &Client, room: Option<&str>, seconds: Option<u64>, json: bool) -> Result<()> {
    client.sync_once(Duration::ZERO).await?;
    let room = room.map(|room| find_room(client, room)).transpose()?;
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let left = deadline.map_or(POLL, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(());
        }
        let update = tokio::select! {
            update = client.sync_once(left.min(POLL)) => update?,
            interrupt = tokio::signal::ctrl_c() => return Ok(interrupt?),
        };
        for id in &update.invitations {
            eprintln!("invited to {id}: `waxwing-client join {id}` accepts");
        }
        for user in client.pending_verifications() {
            eprintln!("{user} asks to be verified: `waxwing-client verify --accept {user}` answers");
        }
        let here = |event: &&TimelineEvent| room.as_ref().is_none_or(|room| event.room_id == *room);
        for event in update.events.iter().filter(here).filter(|event| is_conversation(event)) {
            show(event, json)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_stay_inside_the_directory() {
        assert_eq!(safe_name("../../etc/passwd"), "_.._etc_passwd");
        assert_eq!(safe_name(".bashrc"), "bashrc");
        assert_eq!(safe_name("..."), "attachment");
        assert_eq!(safe_name("a\u{1b}[2Jb.txt"), "a[2Jb.txt");
    }

    #[test]
    fn nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(free_path(directory.path(), "a.txt"), directory.path().join("a.txt"));
        std::fs::write(directory.path().join("a.txt"), "").unwrap();
        assert_eq!(free_path(directory.path(), "a.txt"), directory.path().join("a-2.txt"));
    }
}
