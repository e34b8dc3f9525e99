//! The full-text index of the database engine: FTS5 on SQLite, tsvector on PostgreSQL. It holds the words of what this
//! server can read at all: names, topics, and messages that are stored in the clear.

use crate::dialect;
use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::events::StoredEvent;
use crate::sql::{CHUNK, list, padded, rows, statements};
use ruma::events::TimelineEventType;
use ruma::{EventId, OwnedEventId, OwnedRoomId};
use sqlx::AssertSqlSafe;
use std::sync::Arc;
use waxwing_model::Event;

/// Bytes of one event's text that are indexed: an event has at most 64 KiB.
const MAX_TEXT_BYTES: usize = 65_536;

statements! {
    INSERT = "INSERT INTO search_index (rowid, room_id, text) VALUES $rows";
    REMOVE = "DELETE FROM search_index WHERE rowid IN (SELECT sn FROM events WHERE event_id = $1)";
}

/// The words of a text, in lower case: what is indexed, and what is looked for.
pub fn search_words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// What of an event is searched: the key below `content`, and its text.
pub fn search_text(event: &Event) -> Option<(&'static str, String)> {
    let key = match &event.kind {
        TimelineEventType::RoomMessage => "body",
        TimelineEventType::RoomName => "name",
        TimelineEventType::RoomTopic => "topic",
        _ => return None,
    };
    Some((key, event.content_str(key)?))
}

impl Conn {
    pub(crate) async fn search_insert(&mut self, events: &[Arc<StoredEvent>]) -> StoreResult<()> {
        let texts: Vec<(i64, &str, String)> = events
            .iter()
            .filter(|stored| stored.flags.visible())
            .filter_map(|stored| {
                let (_, mut text) = search_text(&stored.event)?;
                text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
                let words = search_words(&text).collect::<Vec<_>>().join(" ");
                (!words.is_empty()).then_some((stored.sn, stored.event.room_id.as_str(), words))
            })
            .collect();
        for chunk in texts.chunks(CHUNK) {
            let text = rows(INSERT, 3, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (sn, room, words) in chunk {
                    query = query.bind(*sn).bind(*room).bind(words);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// Events of these rooms with words that begin with each of `words` (see [`search_words`]), those with the highest
    /// numbers first, at most `limit` for each 500 rooms.
    pub async fn search(
        &mut self,
        rooms: &[OwnedRoomId],
        words: &[String],
        limit: i64,
    ) -> StoreResult<Vec<OwnedEventId>> {
        let engine = self.engine();
        let wanted = dialect::search_query(engine, words);
        let mut all = Vec::new();
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(dialect::search(engine), 3, chunk.len());
            let found: Vec<(String,)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(&wanted).bind(limit);
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(found.into_iter().filter_map(|(id,)| OwnedEventId::try_from(id).ok()));
        }
        Ok(all)
    }
}

impl crate::Tx {
    /// An event says nothing any more: it was redacted.
    pub(crate) async fn search_forget(&mut self, event: &EventId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE).bind(event.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
