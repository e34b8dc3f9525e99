//! Reading rooms: events, state, members, history, relations, as far as the reader may see them.
//!
//! What it does not do: change rooms (that is `timeline`), or follow them (that is `sync`).

mod access;
mod around;
mod error;
mod events;
mod filter;
mod members;
mod messages;
mod relations;
mod snapshot;
mod state;
mod token;

pub use around::{Context, TimestampHit};
pub use error::ReadError;
pub use filter::EventFilter;
pub(crate) use filter::wildcard;
pub use members::MemberQuery;
pub use messages::{MessagesQuery, Page};
pub use relations::{RelationPage, RelationsQuery, ThreadsQuery};
pub use snapshot::{NewEvents, RoomSnapshot};
pub use state::StateEvent;
pub use token::{PageToken, TimelineToken};
pub use waxwing_storage::JoinedRow;

use crate::Core;
use async_trait::async_trait;
use ruma::{OwnedEventId, OwnedServerName, RoomId};
use std::sync::Arc;
use waxwing_federation::client::Client;

/// Fetches what other servers have of a room and we lack.
#[async_trait]
pub trait RemoteHistory: Send + Sync {
    /// Fetches about `limit` events before what we have of the room. Returns whether any new event came.
    async fn backfill(&self, room: &RoomId, limit: usize) -> bool;

    /// Fetches an event that `server` has, and some before it, as history. Returns whether the event is here now.
    async fn fetch(&self, room: &RoomId, event: OwnedEventId, server: OwnedServerName) -> bool;
}

/// Reads rooms.
#[derive(Clone)]
pub struct RoomReader {
    core: Core,
    history: Option<Arc<dyn RemoteHistory>>,
    client: Option<Client>,
}

impl RoomReader {
    /// Over the database of `core`. `history` and `client` ask other servers for what is missing; without federation
    /// there are none.
    pub fn new(core: Core, history: Option<Arc<dyn RemoteHistory>>, client: Option<Client>) -> RoomReader {
        RoomReader { core, history, client }
    }
}
