//! What the nodes of one server tell each other that nobody keeps: lost when a connection breaks, never late. With
//! PostgreSQL it goes to every node, this one too, in one order for all; with SQLite there is one node.

use crate::engine::Engine;
use crate::store::Store;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc};

/// The longest text: PostgreSQL takes less than 8000 bytes.
pub const MAX_WHISPER: usize = 7900;
/// Texts that wait to be sent; beyond them some are lost.
const MAX_WAITING: usize = 1024;
/// Texts that a slow listener may be behind; beyond them it loses some.
const MAX_BEHIND: usize = 1024;

/// Both ends on this node.
pub(crate) struct Whispers {
    waiting: mpsc::Sender<String>,
    heard: broadcast::Sender<Arc<str>>,
}

impl Whispers {
    /// Both ends, and what is to be sent.
    pub fn new() -> (Whispers, mpsc::Receiver<String>) {
        let (waiting, to_send) = mpsc::channel(MAX_WAITING);
        (Whispers { waiting, heard: broadcast::Sender::new(MAX_BEHIND) }, to_send)
    }

    /// A text has come. Nobody may be listening.
    pub fn hear(&self, text: &str) {
        let _ = self.heard.send(text.into());
    }
}

impl Store {
    /// Tells every node a text, this one too. Never waits; it may be lost.
    pub fn whisper(&self, text: String) {
        debug_assert!(text.len() <= MAX_WHISPER);
        let whispers = &self.inner.whispers;
        if self.engine() == Engine::Sqlite {
            whispers.hear(&text);
        } else if whispers.waiting.try_send(text).is_err() {
            tracing::debug!("too much waits to be told to other nodes");
        }
    }

    /// Listens to what nodes tell each other from now on.
    pub fn whispers(&self) -> broadcast::Receiver<Arc<str>> {
        self.inner.whispers.heard.subscribe()
    }
}
