//! How things look on the terminal, and how secrets are asked for.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, bail};
use console::{Term, style};
use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};
use waxwing_client::{Client, Content, Seal, Secret, TimelineEvent, ruma::OwnedRoomId};

/// Removes control characters: a message must not steer the reader's terminal.
pub fn clean(text: &str) -> String {
    text.chars().filter(|char| !char.is_control() || matches!(char, '\n' | '\t')).collect()
}

/// The chain of causes, without those that repeat what was said.
pub fn explain(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !said.contains(&cause) {
            if !said.is_empty() {
                said.push_str(": ");
            }
            said.push_str(&cause);
        }
    }
    said
}

/// Asks for a secret without echo, or reads a line of standard input when that is not a terminal.
pub fn ask_secret(what: &str) -> Result<Secret> {
    let secret = if std::io::stdin().is_terminal() {
        let terminal = Term::stderr();
        terminal.write_str(&format!("{what}: "))?;
        terminal.read_secure_line()?
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).with_context(|| format!("cannot read the {what}"))?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    if secret.is_empty() {
        bail!("the {what} is empty");
    }
    Ok(secret.into())
}

/// Asks a question that only "y" or "yes" answers in the affirmative.
pub async fn ask_yes(question: &str) -> Result<bool> {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    })
    .await??;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Finds a room by id, by name, or by the beginning of its id.
pub fn find_room(client: &Client, wanted: &str) -> Result<OwnedRoomId> {
    let rooms = client.rooms();
    let mut found: Vec<&OwnedRoomId> =
        rooms.iter().filter(|(id, _)| id.as_str() == wanted).map(|(id, _)| id).collect();
    if found.is_empty() {
        let named = |name: &Option<String>| name.as_deref() == Some(wanted);
        found = rooms.iter().filter(|(_, room)| named(&room.name)).map(|(id, _)| id).collect();
    }
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => bail!("no room {wanted:?} here: `waxwing-client rooms` lists them"),
        _ => bail!("several rooms are called {wanted:?}: use the room id"),
    }
}

fn moment(milliseconds: u64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    i64::try_from(milliseconds / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(format).ok())
        .unwrap_or_else(|| "(no time)".to_owned())
}

fn what(event: &TimelineEvent) -> String {
    match &event.content {
        Content::Text { body, replaces: None } => body.clone(),
        Content::Text { body, replaces: Some(_) } => format!("(edited) {body}"),
        Content::Attachment(file) => match file.size {
            Some(size) => format!("[file] {} ({size} bytes)", file.name),
            None => format!("[file] {}", file.name),
        },
        Content::Sealed { reason } => format!("[sealed: {reason}]"),
        Content::Redacted => "[deleted]".to_owned(),
        Content::State { event_type, state_key } if state_key.is_empty() => format!("[{event_type}]"),
        Content::State { event_type, state_key } => format!("[{event_type} {state_key}]"),
        Content::Other { event_type } => format!("[{event_type}]"),
    }
}

/// `2026-03-01 09:30  ✓ @alice:example.org  words`: ✓ verified, · encrypted, ! in the clear.
pub fn print_event(event: &TimelineEvent) {
    let mark = match event.seal {
        Seal::Verified => style("✓").green(),
        Seal::Unverified => style("·").dim(),
        Seal::Open => style("!").yellow(),
    };
    let words = clean(&what(event));
    let when = style(moment(event.timestamp)).dim();
    println!("{when}  {mark} {}  {words}", style(clean(event.sender.as_str())).cyan());
}

#[derive(Serialize)]
struct Line<'a> {
    room_id: &'a str,
    event_id: &'a str,
    sender: &'a str,
    timestamp: u64,
    encrypted: bool,
    verified: bool,
    text: Option<&'a str>,
    file: Option<&'a str>,
    note: Option<String>,
}

pub fn print_json(event: &TimelineEvent) -> Result<()> {
    let plain = event.body().is_some() || event.attachment().is_some();
    let line = Line {
        room_id: event.room_id.as_str(),
        event_id: event.event_id.as_str(),
        sender: event.sender.as_str(),
        timestamp: event.timestamp,
        encrypted: event.is_encrypted(),
        verified: event.seal == Seal::Verified,
        text: event.body(),
        file: event.attachment().map(|file| file.name.as_str()),
        note: (!plain).then(|| what(event)),
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

/// State changes are noise to a reader of conversations.
pub fn is_conversation(event: &TimelineEvent) -> bool {
    !matches!(event.content, Content::State { .. } | Content::Other { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(clean("a\u{1b}[31mb\u{7}\nc"), "a[31mb\nc");
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("refused").context("cannot reach it: refused").context("no luck");
        assert_eq!(explain(&error), "no luck: cannot reach it: refused");
    }

    #[test]
    fn moments_are_readable() {
        assert_eq!(moment(0), "1970-01-01 00:00");
        assert_eq!(moment(1_700_000_000_000), "2023-11-14 22:13");
        assert_eq!(moment(u64::MAX), "(no time)");
    }
}
