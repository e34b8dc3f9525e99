//! Rooms as they grow: sending, creating, membership, and taking in what other servers send.

pub(crate) mod append;
mod check;
mod create;
pub(crate) mod effects;
mod ends;
mod error;
mod invite;
pub(crate) mod join;
mod later;
pub(crate) mod membership;
mod outside;
pub(crate) mod partial;
mod persist;
mod policy;
mod port;
mod preview;
mod redact_related;
pub(crate) mod resolve;
mod send;
mod successor;

pub use append::Draft;
pub(crate) use append::raw;
pub use create::{CreateRoom, Preset};
pub(crate) use create::{Origin, Plan as RoomPlan};
pub(crate) use effects::relation;
pub use error::TimelineError;
pub use join::JoinRoom;
pub use membership::Removal;
pub(crate) use policy::Approvals;
pub use policy::Unapproved;
pub use redact_related::WithRelations;
pub use send::Repeatable;
pub(crate) use send::must_be_joined;

use crate::Core;
use crate::appservices::Queries;
use ruma::{OwnedUserId, RoomAliasId, RoomId, UserId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use waxwing_federation::remote::RemoteMemberships;
use waxwing_rooms::sealed::{Plaintext, SealPolicy};

/// Who asks for an event.
#[derive(Clone, Debug)]
pub struct Author {
    /// The user.
    pub user: OwnedUserId,
    /// The application service that speaks for the user.
    pub appservice: Option<String>,
    /// The account is suspended: of events, it may redact its own alone.
    /// <https://spec.matrix.org/v1.19/client-server-api/#account-suspension>
    pub suspended: bool,
}

impl Author {
    /// A user that speaks for itself.
    pub fn new(user: impl Into<OwnedUserId>) -> Author {
        Author { user: user.into(), appservice: None, suspended: false }
    }
}

/// The rooms of this server.
#[derive(Clone)]
pub struct Timeline {
    pub(crate) core: Core,
    pub(crate) remote: Option<RemoteMemberships>,
    pub(crate) queries: Option<Queries>,
    /// Told when a room was joined whose members are to be fetched.
    pub(crate) members_wanted: Arc<Notify>,
    pub(crate) patience: Patience,
}

/// How long is waited for the members of a room that was joined without them, and how much is done at once when they are
/// here.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// By a join: most rooms are small, and then nobody sees that anything was missing.
    pub join: Duration,
    /// By a request that needs all members: about as long as clients wait for an answer.
    pub members: Duration,
    /// By a request of another server that needs them.
    pub elsewhere: Duration,
    /// Events since the join that are judged again, and written, at once.
    pub slice: u32,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            join: Duration::from_millis(300),
            members: partial::WAIT,
            elsewhere: Duration::from_secs(30),
            // A write of some ten milliseconds.
            slice: 200,
        }
    }
}

impl Timeline {
    /// Over the database of `core`; `remote` makes memberships in rooms that only other servers are in (none without
    /// federation).
    pub fn new(core: Core, remote: Option<RemoteMemberships>) -> Timeline {
        Timeline {
            core,
            remote,
            queries: None,
            members_wanted: Arc::default(),
            patience: Patience::default(),
        }
    }

    /// Waits for members as long as this, not as long as usual.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Timeline {
        self.patience = patience;
        self
    }

    /// Asks application services for users that are invited and are not there.
    #[must_use]
    pub fn with_appservices(mut self, queries: Queries) -> Timeline {
        self.queries = Some(queries);
        self
    }

    /// Before a user is invited: one of this server who is not there may be made by an application service.
    /// <https://spec.matrix.org/v1.19/application-service-api/#querying>
    ///
    /// # Errors
    /// [`TimelineError::Silent`].
    pub(crate) async fn ask_for_user(&self, user: &UserId) -> Result<(), TimelineError> {
        let Some(queries) = self.queries.as_ref().filter(|_| self.core.is_local(user)) else { return Ok(()) };
        if self.core.store.read().await?.user_load(user).await?.is_none() {
            queries.user(user).await?;
        }
        Ok(())
    }

    /// Whether the author may make this alias.
    pub(crate) fn may_make_alias(&self, author: &Author, alias: &RoomAliasId) -> bool {
        let Some(queries) = &self.queries else { return true };
        queries.appservices().may_use_alias(author.appservice.as_deref(), alias)
    }

    /// What sealing demands of this author in this room.
    pub(crate) fn seal_policy(&self, room: &RoomId, author: &Author) -> SealPolicy {
        let plaintext = &self.core.settings.plaintext;
        let excepted = plaintext.accept
            || plaintext.rooms.iter().any(|other| other == room)
            || author.appservice.as_ref().is_some_and(|id| plaintext.appservices.contains(id))
            || self.core.is_notices_user(&author.user);
        SealPolicy {
            plaintext: if excepted { Plaintext::Accept } else { Plaintext::Refuse },
            ..SealPolicy::default()
        }
    }
}
