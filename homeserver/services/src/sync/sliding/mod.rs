//! Sliding sync: windows over the user's rooms instead of all of them. One engine, whatever dialect a client speaks.
//!
//! A position says where in the log an answer ended; what cannot be told from that (which rooms the client has been
//! sent, how far, and what it asked for of them) is the connection's state. It is written only when an answer changes
//! it: an idle poll, and one that brings a message of a room that the client has, write nothing. The state that the
//! position of a request names stays until the client comes with the next, so that it may ask again, also for
//! something else, and at any node.
//! <https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/4186-simplified-sliding-sync.md>

mod answer;
mod config;
mod connection;
mod ext;
mod facts;
mod list;
mod pos;
mod request;
mod room;
mod slide;
mod state;
mod sticky;

pub use answer::{
    AccountDataNews, ExtensionNews, Hero, KeyNews, News, SlidingAnswer, SlidingRoom, StateNews, StickyNews,
};
pub use config::{Pattern, StateConfig};
pub use request::{
    Extensions, Filters, ListRule, MAX_LISTED, MAX_NAME, MAX_PATTERNS, MAX_RULES, MAX_TIMELINE, Reach,
    RoomRule, SlidingRequest, StickyRule, ToDeviceRule,
};

pub(super) use connection::States;
pub(super) use facts::Facts;

use super::build::Build;
use super::response::StateWanted;
use super::{CATCH_UP, MAX_TIMEOUT, Sync, SyncFilter, SyncRequest, SyncToken};
use crate::notifier::Follower;
use connection::{Draft, State};
use pos::Pos;
use slide::Slide;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use waxwing_storage::{SlidingKey, StoreError};

/// After something that may be a step of a verification, a connection for keys alone is answered so late: by then the
/// client has had the step on its other connection.
const STEP_PAUSE: Duration = Duration::from_millis(700);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SlidingError {
    /// The position is none of this connection's, or the server has dropped it: the client begins anew.
    #[error("the connection has ended; begin anew without a position")]
    UnknownPos,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Sync {
    /// Answers at once when there is news, or when the connection begins; else when there is, or in time.
    ///
    /// # Errors
    /// [`SlidingError::UnknownPos`] for a position that was not given to this connection, or is no more.
    pub async fn sliding(&self, request: &SlidingRequest) -> Result<SlidingAnswer, SlidingError> {
        let started = Instant::now();
        let key = SlidingKey {
            user: request.viewer.user.clone(),
            device: request.viewer.device.clone().unwrap_or_default(),
            conn_id: request.conn_id.clone(),
        };
        let pos: Option<Pos> = match &request.pos {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| SlidingError::UnknownPos)?),
        };
        let state = match &pos {
            None => Arc::default(),
            Some(pos) => Box::pin(self.states.load(&self.core, &key, pos)).await?,
        };
        let mut deadline =
            started + if pos.is_some() { request.timeout.min(MAX_TIMEOUT) } else { Duration::ZERO };
        let follower = self.notifier.follow(&request.viewer.user);
        Box::pin(self.take_in(pos.as_ref().map(|pos| pos.position), started + CATCH_UP)).await?;
        if let Some(rule) = &request.extensions.to_device {
            Box::pin(self.acknowledge_to_device(&request.viewer, rule.since)).await?;
        }
        let v3 = v3_request(request, pos.as_ref());
        loop {
            let wakes = follower.wakes();
            let asked = Asked { request, v3: &v3, key: &key, pos: pos.as_ref(), state: &state };
            // On the heap, and gone while the client waits: thousands wait at a time.
            if let Some(answer) = Box::pin(self.attempt(&asked, &follower, &mut deadline)).await? {
                return Ok(answer);
            }
            tokio::select! {
                _ = follower.wait(wakes, deadline) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// The answer, when there is one to give now.
    async fn attempt(
        &self,
        asked: &Asked<'_>,
        follower: &Arc<Follower>,
        deadline: &mut Instant,
    ) -> Result<Option<SlidingAnswer>, SlidingError> {
        let build = Build::new(self, asked.v3, follower).await?;
        let parts = asked.pos.map_or(0, |pos| pos.parts);
        let slide = Slide::new(&build, asked.request, Arc::clone(asked.state), parts).await?;
        if slide.may_have_steps().await? {
            *deadline = (*deadline).min(Instant::now() + STEP_PAUSE);
        }
        let (mut answer, draft) = slide.run().await?;
        let late = *deadline <= Instant::now() || self.stop.is_cancelled();
        if asked.pos.is_some() && !late && answer.is_empty() {
            return Ok(None);
        }
        let pos = self.next_pos(asked.key.clone(), asked.request, asked.pos, &build, draft).await?;
        answer.pos = pos.to_string();
        Ok(Some(answer))
    }

    /// Writes what the connection is to remember, and names where it now stands.
    async fn next_pos(
        &self,
        key: SlidingKey,
        request: &SlidingRequest,
        pos: Option<&Pos>,
        build: &Build<'_>,
        draft: Draft,
    ) -> Result<Pos, SlidingError> {
        let owner = pos::owner(&key);
        let base = pos.map_or((0, 0), |pos| (pos.connection, pos.version));
        let (connection, version) = self.states.save(&self.core, key, base, draft).await?;
        Ok(Pos {
            position: build.upto,
            typing: build.clocks.0,
            parts: request.extensions.parts(),
            owner,
            connection,
            version,
        })
    }
}

/// One request, while it waits for news.
struct Asked<'a> {
    request: &'a SlidingRequest,
    v3: &'a SyncRequest,
    key: &'a SlidingKey,
    pos: Option<&'a Pos>,
    state: &'a Arc<State>,
}

/// What the parts that both kinds of sync share are asked.
fn v3_request(request: &SlidingRequest, pos: Option<&Pos>) -> SyncRequest {
    SyncRequest {
        viewer: request.viewer.clone(),
        since: pos.map(|pos| SyncToken::new(pos.position, pos.typing, 0)),
        filter: Arc::new(SyncFilter::default()),
        full_state: false,
        timeout: request.timeout,
        state: StateWanted::After,
    }
}
