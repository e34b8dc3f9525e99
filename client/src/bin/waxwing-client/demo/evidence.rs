//! What the servers store: their own account of it, and a look at the files that trusts nobody.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{servers::Server, story::Letters};

/// Characters of a ciphertext that are shown.
const SHOWN: usize = 24;
/// Characters of a printed row's line that are shown.
const LINE: usize = 110;
/// Files larger than this are no database of a demonstration.
const MAX_FILE: u64 = 512 * 1024 * 1024;

/// Reads every file of both servers and looks for the words.
pub async fn search(servers: &[&Server], letters: &Letters) -> Result<()> {
    for server in servers {
        let files = files_below(&server.data)?;
        let mut control = false;
        for file in &files {
            let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            control |= contains(&bytes, letters.room.as_str().as_bytes());
            for word in &letters.words {
                ensure!(!contains(&bytes, word.as_bytes()), "{} holds words of a message", file.display());
            }
        }
        // The room's id is metadata that a server must hold: a search that misses it would prove nothing.
        ensure!(control, "{} does not even hold the room's id: this search is blind", server.data.display());
    }
    Ok(())
}

/// Asks each server for the row of each message, checks that it is sealed, and describes it in a line.
pub async fn rows(servers: &[&Server], letters: &Letters) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for letter in &letters.sent {
        for server in servers {
            let event = letter.event.as_str();
            let (found, said) = server.audit(&["--show-event", event]).await?;
            ensure!(found, "{} shows no row of {event}: {}", server.name, said.trim());
            for word in &letters.words {
                ensure!(!said.contains(word), "{} stores the words of {event}", server.name);
            }
            if lines.is_empty() {
                // One row as it stands (laid out, long values cut), so that nobody has to trust the summaries below.
                lines.push(format!("{} prints of its row of {event}:", server.name));
                lines.extend(laid_out(&said).lines().map(shorten));
            }
            let sealed = sealed_row(&said)
                .with_context(|| format!("{} does not store {event} sealed: {said}", server.name))?;
            lines.push(format!("{:<16} {}  {}", server.name, short(event), letter.what));
            lines.push(format!("{:<16} {}", "", describe(&sealed)));
        }
    }
    Ok(lines)
}

/// Runs the whole audit on both servers.
pub async fn audit(servers: &[&Server]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for server in servers {
        let (clean, said) = server.audit(&[]).await?;
        ensure!(clean, "the audit of {} found fault: {}", server.name, said.trim());
        lines.extend(
            said.lines()
                .filter(|line| !line.trim().is_empty())
                .map(|line| format!("{}  {line}", server.name)),
        );
    }
    Ok(lines)
}

#[derive(Debug, PartialEq, Eq)]
struct Sealed {
    event_type: String,
    algorithm: String,
    ciphertext: String,
}

/// Finds the event in what the audit printed: an object with the type of a sealed message, a ciphertext and no
/// body beside it.
fn sealed_row(said: &str) -> Option<Sealed> {
    find_sealed(&parse_row(said)?)
}

fn parse_row(said: &str) -> Option<Value> {
    let start = said.find('{')?;
    serde_json::Deserializer::from_str(&said[start..]).into_iter::<Value>().next()?.ok()
}

fn find_sealed(value: &Value) -> Option<Sealed> {
    match value {
        Value::Object(fields) => {
            let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
            let event_type = text(fields.get("type")).filter(|kind| kind == "m.room.encrypted");
            let content = fields.get("content").and_then(Value::as_object);
            if let (Some(event_type), Some(content)) = (event_type, content) {
                let algorithm = text(content.get("algorithm"))?;
                let ciphertext = text(content.get("ciphertext"))?;
                let clear = content.contains_key("body") || content.contains_key("msgtype");
                return (!clear).then_some(Sealed { event_type, algorithm, ciphertext });
            }
            fields.values().find_map(find_sealed)
        }
        Value::Array(items) => items.iter().find_map(find_sealed),
        // A row may keep the event as text.
        Value::String(text) if text.starts_with('{') => find_sealed(&serde_json::from_str(text).ok()?),
        _ => None,
    }
}

fn describe(sealed: &Sealed) -> String {
    let shown: String = sealed.ciphertext.chars().take(SHOWN).collect();
    let length = sealed.ciphertext.len();
    format!("{}  {}  {shown}… ({length} characters)", sealed.event_type, sealed.algorithm)
}

/// The printed row, indented; what is no JSON stays as it is.
fn laid_out(said: &str) -> String {
    let parsed = parse_row(said).map(|row| unfold(&row));
    parsed.and_then(|row| serde_json::to_string_pretty(&row).ok()).unwrap_or_else(|| said.to_owned())
}

/// Opens JSON that is kept as text inside JSON.
fn unfold(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(name, value)| (name.clone(), unfold(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(unfold).collect()),
        Value::String(text) if text.starts_with('{') => {
            serde_json::from_str(text).unwrap_or_else(|_| value.clone())
        }
        other => other.clone(),
    }
}

/// Ciphertext fills many lines: enough of each is shown to recognise it.
fn shorten(line: &str) -> String {
    if line.chars().count() <= LINE {
        line.to_owned()
    } else {
        line.chars().take(LINE).chain(['…']).collect()
    }
}

fn short(event: &str) -> String {
    event.chars().take(12).chain(std::iter::once('…')).collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle)
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                open.push(path);
            } else if metadata.is_file() && metadata.len() <= MAX_FILE {
                files.push(path);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"type":"m.room.encrypted","content":{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"AwgAEnACg"}}"#;

    #[test]
    fn a_sealed_row_is_found_however_it_is_wrapped() {
        let nested = format!("event $e\n{{\"depth\":5,\"json\":{EVENT}}}\n");
        let as_text = serde_json::json!({"depth": 5, "json": EVENT}).to_string();
        for said in [EVENT, nested.as_str(), as_text.as_str()] {
            assert_eq!(sealed_row(said).unwrap().ciphertext, "AwgAEnACg");
            assert!(laid_out(said).lines().any(|line| line.contains("\"ciphertext\": \"AwgAEnACg\"")));
        }
    }

    #[test]
    fn a_plaintext_row_is_not_sealed() {
        assert_eq!(sealed_row(r#"{"type":"m.room.message","content":{"body":"words"}}"#), None);
        let both =
            r#"{"type":"m.room.encrypted","content":{"algorithm":"a","ciphertext":"b","body":"words"}}"#;
        assert_eq!(sealed_row(both), None);
        assert_eq!(sealed_row("no such event"), None);
    }

    #[test]
    fn the_search_finds_words_in_nested_files() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("media")).unwrap();
        fs::write(directory.path().join("media/a"), b"\0\0between us\0").unwrap();
        let files = files_below(directory.path()).unwrap();
        assert_eq!(files.len(), 1);
        let bytes = fs::read(&files[0]).unwrap();
        assert!(contains(&bytes, b"between us"));
        assert!(!contains(&bytes, b"between them"));
    }
}
