//! Finding rooms: aliases, the public list, summaries, spaces; and what takes the place of a room.

mod aliases;
mod error;
mod hierarchy;
mod listing;
mod order;
mod summary;
mod upgrade;

pub use error::DirectoryError;
pub use hierarchy::{Hierarchy, HierarchyQuery, SpaceRoom};
pub use listing::{PublicRooms, PublicRoomsQuery};
pub use summary::Summary;

use crate::Core;
use crate::appservices::Queries;
use crate::timeline::Timeline;
use quick_cache::sync::Cache;
use std::sync::Arc;
use summary::Facts;
use waxwing_federation::client::Client;
use waxwing_rooms::state_tree::NodeId;

/// Summaries kept in memory: a public list of some hundred rooms and the spaces that people look at.
const SUMMARIES: usize = 2000;

/// Finds rooms. A handle: clones share everything.
#[derive(Clone)]
pub struct Directory {
    core: Core,
    timeline: Timeline,
    client: Option<Client>,
    queries: Option<Queries>,
    /// What the state at a root says of its room. A root names its content, so nothing here can be wrong.
    facts: Arc<Cache<NodeId, Arc<Facts>>>,
    /// What other servers say of spaces, for a moment: a client pages through the same answers.
    remote: hierarchy::RemoteCache,
}

impl Directory {
    /// Over the database of `core`; `client` asks other servers (none without federation). Application services are
    /// asked as `timeline` does.
    pub fn new(core: Core, timeline: Timeline, client: Option<Client>) -> Directory {
        let facts = Arc::new(Cache::new(SUMMARIES));
        let queries = timeline.queries.clone();
        Directory { core, timeline, client, queries, facts, remote: hierarchy::remote_cache() }
    }
}
