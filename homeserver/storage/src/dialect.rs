//! The statements that must differ between the engines, side by side.

use crate::engine::{Conn, Engine};
use crate::error::StoreResult;
use sqlx::AssertSqlSafe;

/// Starts a transaction that will write.
pub(crate) fn begin(engine: Engine) -> &'static str {
    match engine {
        Engine::Sqlite => "BEGIN IMMEDIATE",
        Engine::Postgres => "BEGIN",
    }
}

/// What locks the rows of a SELECT until the end of the transaction. SQLite has one writer and needs none.
pub(crate) fn for_update(engine: Engine) -> &'static str {
    match engine {
        Engine::Sqlite => "",
        Engine::Postgres => " FOR UPDATE",
    }
}

/// Gives free pages of a SQLite file back, at most `pages` of them. Gives how many are still free; none where the file
/// was made without `auto_vacuum`, since nothing can be given back there.
pub(crate) async fn shrink(conn: &mut Conn, pages: u32) -> StoreResult<i64> {
    const INCREMENTAL: i64 = 2;
    let Conn::Sqlite(inner) = conn else { return Ok(0) };
    let (mode,): (i64,) = sqlx::query_as("PRAGMA auto_vacuum").fetch_one(&mut **inner).await?;
    if mode != INCREMENTAL {
        return Ok(0);
    }
    let text = AssertSqlSafe(format!("PRAGMA incremental_vacuum({pages})"));
    sqlx::query(text).fetch_all(&mut **inner).await?;
    let (free,): (i64,) = sqlx::query_as("PRAGMA freelist_count").fetch_one(&mut **inner).await?;
    Ok(free)
}

/// Finds events by their words: $1 is made by [`search_query`], $2 limits, `$list` are rooms.
pub(crate) fn search(engine: Engine) -> &'static str {
    match engine {
        Engine::Sqlite => {
            "SELECT event_id FROM events WHERE sn IN (SELECT rowid FROM search_index WHERE search_index MATCH $1 AND room_id IN ($list) ORDER BY rowid DESC LIMIT $2) ORDER BY sn DESC"
        }
        Engine::Postgres => {
            "SELECT event_id FROM events WHERE sn IN (SELECT rowid FROM search_index WHERE words @@ to_tsquery('simple', $1) AND room_id IN ($list) ORDER BY rowid DESC LIMIT $2) ORDER BY sn DESC"
        }
    }
}

/// A query for texts in which words begin with each of `words`, which hold letters and digits only.
pub(crate) fn search_query(engine: Engine, words: &[String]) -> String {
    debug_assert!(words.iter().all(|word| word.chars().all(char::is_alphanumeric)), "{words:?}");
    match engine {
        Engine::Sqlite => {
            words.iter().map(|word| format!("text : \"{word}\" *")).collect::<Vec<_>>().join(" AND ")
        }
        Engine::Postgres => words.iter().map(|word| format!("'{word}':*")).collect::<Vec<_>>().join(" & "),
    }
}
