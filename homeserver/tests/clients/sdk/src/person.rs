//! Drives `waxwing-client` by its command line, as a person would.

use crate::{PASSWORD, PATIENCE, until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A person with one device of waxwing-client, whose keys are in a directory.
pub struct Person {
    home: PathBuf,
    pub user_id: String,
}

impl Person {
    /// Makes an account with cross-signing.
    pub async fn register(directory: &Path, homeserver: &str, name: &str) -> Result<Person> {
        let mut person = Person { home: directory.join("waxwing-client"), user_id: String::new() };
        let said = person.run(&["register", homeserver, name], PASSWORD).await?;
        let found = said.split_whitespace().find(|word| word.starts_with('@'));
        person.user_id = found.context("no user id is said")?.to_owned();
        person.run(&["bootstrap"], PASSWORD).await?;
        Ok(person)
    }

    fn start(&self, words: &[&str]) -> Result<Child> {
        let program = std::env::var("WAXWING_TEST_CLIENT").context("WAXWING_TEST_CLIENT is not set")?;
        let mut command = Command::new(program);
        command.arg("--home").arg(&self.home).args(words).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// Runs a command with a line of input; what it says.
    pub async fn run(&self, words: &[&str], input: &str) -> Result<String> {
        let mut child = self.start(words)?;
        let mut stdin = child.stdin.take().context("no input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = timeout(PATIENCE, child.wait_with_output()).await??;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {complaint}", words.join(" "));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The last messages of a room; attachments go to `save`. Fails when one cannot be read.
    async fn messages(&self, room: &str, save: Option<&Path>) -> Result<Vec<Value>> {
        let mut words = vec!["read", room, "--limit", "100", "--json"];
        if let Some(save) = save {
            words.extend(["--save", save.to_str().context("a path in Unicode")?]);
        }
        let said = self.run(&words, "").await?;
        let lines = said.lines().filter(|line| line.starts_with('{'));
        let found: Vec<Value> = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
        for message in &found {
            let sealed = message["note"].as_str().is_some_and(|note| note.starts_with("[sealed"));
            ensure!(!sealed, "waxwing-client cannot decrypt {message}");
        }
        Ok(found)
    }

    /// Waits for a text, which must have come encrypted.
    pub async fn hears(&self, room: &str, text: &str) -> Result<Value> {
        let message = until(&format!("waxwing-client to read {text:?}"), async || {
            Ok(self.messages(room, None).await?.into_iter().find(|message| message["text"] == text))
        })
        .await?;
        ensure!(message["encrypted"] == true, "{message} came in the clear");
        Ok(message)
    }

    /// Waits for an attachment; its content.
    pub async fn receives(&self, room: &str, file: &str, save: &Path) -> Result<Vec<u8>> {
        until(&format!("waxwing-client to receive {file}"), async || {
            let messages = self.messages(room, None).await?;
            Ok(messages.iter().any(|message| message["file"] == file).then_some(()))
        })
        .await?;
        self.messages(room, Some(save)).await?;
        Ok(tokio::fs::read(save.join(file)).await?)
    }

    /// Begins to verify a user by emoji; `more` are what follows the user id.
    pub async fn verify(&self, user: &str, more: &[&str]) -> Result<Comparison> {
        let seconds = PATIENCE.as_secs().to_string();
        let mut child = self.start(&[&["verify", user, "--seconds", &seconds], more].concat())?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut emoji = Vec::new();
        while emoji.len() < 7 {
            let Some(line) = timeout(PATIENCE, lines.next_line()).await?? else {
                let mut complaint = String::new();
                child.stderr.take().context("no complaint")?.read_to_string(&mut complaint).await?;
                anyhow::bail!("verify: {complaint}");
            };
            let words = line.strip_prefix("    ").filter(|rest| !rest.starts_with(' '));
            emoji.extend(words.and_then(|words| words.split_once("  ")).map(|(symbol, _)| symbol.to_owned()));
        }
        Ok(Comparison { child, lines, emoji })
    }
}

/// Emoji that are shown.
pub struct Comparison {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    pub emoji: Vec<String>,
}

impl Comparison {
    /// Confirms that they are the same, and waits until the user is verified.
    pub async fn confirm(mut self) -> Result<()> {
        self.child.stdin.take().context("no input")?.write_all(b"y\n").await?;
        let mut verified = false;
        while let Some(line) = timeout(PATIENCE, self.lines.next_line()).await?? {
            verified |= line.contains("is verified");
        }
        let ended = timeout(PATIENCE, self.child.wait()).await??;
        let mut complaint = String::new();
        self.child.stderr.take().context("no complaint")?.read_to_string(&mut complaint).await?;
        ensure!(verified && ended.success(), "waxwing-client did not verify: {complaint}");
        Ok(())
    }
}
