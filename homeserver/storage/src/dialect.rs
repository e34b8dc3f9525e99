//! The statements that must differ between the engines, side by side.

use crate::engine::Engine;

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
