//! Questions about users and rooms that are not there yet: an application service may make them when it is asked.
//! <https://spec.matrix.org/v1.19/application-service-api/#querying>

use super::link::Call;
use super::{Appservice, Appservices, Link, LinkError};
use ruma::{RoomAliasId, UserId};
use std::sync::Arc;
use std::time::Duration;

/// How often an application service that does not answer is asked.
const TRIES: u32 = 3;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// An application service that may have it did not answer, asked several times.
    #[error("the application service {0} does not answer")]
    Silent(Arc<str>),
}

/// Asks application services for users and rooms. A handle: clones share everything.
#[derive(Clone)]
pub struct Queries {
    appservices: Arc<Appservices>,
    link: Link,
}

impl Queries {
    /// Over the application services of this server.
    pub fn new(appservices: Arc<Appservices>, link: Link) -> Queries {
        Queries { appservices, link }
    }

    /// The application services.
    pub fn appservices(&self) -> &Arc<Appservices> {
        &self.appservices
    }

    /// What requests go through.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Asks for a user of this server that is not there. True: an application service says that it made it.
    ///
    /// # Errors
    /// [`QueryError::Silent`].
    pub async fn user(&self, user: &UserId) -> Result<bool, QueryError> {
        let path = ["users", user.as_str()];
        self.ask(|appservice| appservice.has_user(user), &path).await
    }

    /// Asks for an alias of this server that points at nothing. True: an application service says that it made it.
    ///
    /// # Errors
    /// [`QueryError::Silent`].
    pub async fn alias(&self, alias: &RoomAliasId) -> Result<bool, QueryError> {
        let path = ["rooms", alias.as_str()];
        self.ask(|appservice| appservice.has_alias(alias), &path).await
    }

    async fn ask(&self, concerns: impl Fn(&Appservice) -> bool, path: &[&str]) -> Result<bool, QueryError> {
        let mut silent = None;
        for appservice in self.appservices.all() {
            if appservice.url.is_none() || !concerns(appservice) {
                continue;
            }
            match self.ask_one(appservice, path).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => {
                    tracing::info!(appservice = %appservice.id, %error, "a question was not answered");
                    silent = Some(Arc::clone(&appservice.id));
                }
            }
        }
        silent.map_or(Ok(false), |id| Err(QueryError::Silent(id)))
    }

    async fn ask_one(&self, appservice: &Appservice, path: &[&str]) -> Result<bool, LinkError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.link.call(appservice, &Call::get(path, path)).await {
                Ok(answer) => return Ok(answer.status.is_success()),
                Err(error) if tries >= TRIES => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}
