//! Mark and sweep of state nodes.
//!
//! States of different rooms share no nodes, because a node holds ids of the room's events: so what is needed is what
//! can be reached from the room's own states, and what may go is what can be reached from those of purged events.
//!
//! While it goes on, the room does too. A new state is made of nodes that are written with it and of nodes of a state
//! that the room has: the first are younger than the search for what is needed, the second were found by it.

use super::run::{Job, Slice};
use super::{PurgeError, Purges};
use std::collections::HashSet;
use std::sync::Arc;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{PurgeKind, PurgePhase, node_clock};

/// Roots of states read at once.
const ROOTS: i64 = 2000;
/// Nodes looked at in one transaction.
const NODES: i64 = 500;
/// Free pages of the database's file given back in one transaction: 4 MiB in pages of 1 KiB.
const PAGES: u32 = 4096;

impl Purges {
    /// Sweeps all: what is needed is known only as long as nothing else is purged, and has to fit into memory once.
    pub(super) async fn nodes_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let row = self.core.store.read().await?.room_load(&job.row.room_id).await?;
        if row.is_some_and(|row| row.partial) {
            // What is known of its states is kept elsewhere, too, until they are complete.
            return Ok(Slice::Wait);
        }
        let since = match job.row.kind {
            // Nobody is in the room, nor can anybody enter it.
            PurgeKind::Room => i64::MAX,
            PurgeKind::History => node_clock() - self.settings.grace.as_millis() as i64,
        };
        let needed = Arc::new(self.needed(job).await?);
        loop {
            let nodes = self.core.store.read().await?.purge_nodes(&job.row.purge_id, NODES).await?;
            if nodes.is_empty() {
                return self.turn_page(job, PurgePhase::Shrinking).await;
            }
            if !self.lease().await? {
                return Ok(Slice::Wait);
            }
            let gone = self.sweep(job, nodes, &needed, since).await?;
            job.progress.nodes += gone;
            metrics::counter!("waxwing_purged_state_nodes_total").increment(gone);
            tokio::time::sleep(self.settings.pause).await;
        }
    }

    async fn sweep(
        &self,
        job: &mut Job,
        nodes: Vec<NodeId>,
        needed: &Arc<HashSet<NodeId>>,
        since: i64,
    ) -> Result<u64, PurgeError> {
        let row = job.saved(self.core.now(), Slice::More)?;
        let input = Arc::new((row, nodes, Arc::clone(needed)));
        self.core
            .store
            .write("sweep state nodes", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (row, nodes, needed) = &*input;
                    let gone = tx.purge_nodes_sweep(&row.purge_id, nodes, needed, since).await?;
                    tx.purge_save(row).await?;
                    Ok::<_, PurgeError>(gone)
                })
            })
            .await
    }

    /// The nodes of all states that the room has now. What comes while this looks is made of these nodes and of nodes
    /// that are younger.
    async fn needed(&self, job: &Job) -> Result<HashSet<NodeId>, PurgeError> {
        let room = &job.row.room_id;
        let mut needed = HashSet::new();
        let mut conn = self.core.store.read().await?;
        let Some(row) = conn.room_load(room).await? else { return Ok(needed) };
        conn.state_reach([row.state_root], &mut needed).await?;
        drop(conn);
        let mut after = i64::MIN;
        loop {
            let mut conn = self.core.store.read().await?;
            let (roots, last) = conn.state_roots(room, after, ROOTS).await?;
            conn.state_reach(roots, &mut needed).await?;
            match last {
                Some(last) => after = last,
                None => return Ok(needed),
            }
        }
    }

    /// Gives free pages back, where the engine can.
    pub(super) async fn shrink_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let free = self.core.store.write("shrink", Vec::new(), |tx| {
            Box::pin(async move { tx.shrink(PAGES).await.map_err(PurgeError::from) })
        });
        if free.await? > 0 {
            return Ok(Slice::More);
        }
        self.turn_page(job, PurgePhase::Media).await
    }
}
