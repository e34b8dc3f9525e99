//! Where two devices of a person meet while one signs the other in by a QR code (MSC4108 and its successor MSC4388).
//! The server passes on what they encrypt for each other, and forgets it after a minute or two.

use crate::Core;
use std::time::Duration;
use waxwing_model::opaque_id;
pub use waxwing_storage::RendezvousRow;
use waxwing_storage::StoreError;

/// How long a session lives: scanning a code and agreeing on two screens.
const LIFETIME: Duration = Duration::from_mins(5);
/// What may be left at once: the proposals' own limit.
pub const MAX_BODY: usize = 4096;
/// Sessions at once: nobody needs a token to begin one.
const MAX_SESSIONS: i64 = 10_000;
/// The name of a session is all that keeps strangers out of it.
const ID_LENGTH: usize = 32;

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    /// There is none, or it has ended.
    #[error("there is no such session")]
    NotFound,
    /// Somebody else has written meanwhile.
    #[error("the session has changed")]
    Changed,
    /// More than may be left.
    #[error("at most 4096 bytes may be left")]
    TooLarge,
    /// Too many sessions.
    #[error("too many sessions")]
    Busy,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is left for the other device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// What the body is, as its writer said.
    pub content_type: String,
    /// What was written last.
    pub body: Vec<u8>,
}

/// The service.
#[derive(Clone)]
pub struct Rendezvous {
    core: Core,
}

impl Rendezvous {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Rendezvous {
        Rendezvous { core }
    }

    /// Begins a session.
    ///
    /// # Errors
    /// [`RendezvousError::TooLarge`], [`RendezvousError::Busy`].
    pub async fn create(&self, left: Left) -> Result<RendezvousRow, RendezvousError> {
        if left.body.len() > MAX_BODY {
            return Err(RendezvousError::TooLarge);
        }
        let now = self.core.now();
        let row = RendezvousRow {
            id: opaque_id(ID_LENGTH),
            content_type: left.content_type,
            body: left.body,
            revision: 1,
            created_at: now,
            changed_at: now,
            expires_at: now + LIFETIME.as_millis() as u64,
        };
        let kept = row.clone();
        self.core
            .store
            .write("rendezvous", Vec::new(), move |tx| {
                let row = kept.clone();
                Box::pin(async move {
                    tx.rendezvous_prune(now).await?;
                    if tx.rendezvous_count(now).await? >= MAX_SESSIONS {
                        return Err(RendezvousError::Busy);
                    }
                    Ok(tx.rendezvous_insert(&row).await?)
                })
            })
            .await?;
        Ok(row)
    }

    /// What is left at the moment.
    ///
    /// # Errors
    /// [`RendezvousError::NotFound`].
    pub async fn get(&self, id: &str) -> Result<RendezvousRow, RendezvousError> {
        let found = self.core.store.read().await?.rendezvous_load(id, self.core.now()).await?;
        found.ok_or(RendezvousError::NotFound)
    }

    /// Writes over what is left, if that is still revision `seen`.
    ///
    /// # Errors
    /// [`RendezvousError::Changed`], [`RendezvousError::NotFound`], [`RendezvousError::TooLarge`].
    pub async fn put(&self, id: &str, seen: i64, left: Left) -> Result<RendezvousRow, RendezvousError> {
        if left.body.len() > MAX_BODY {
            return Err(RendezvousError::TooLarge);
        }
        let (id, now) = (id.to_owned(), self.core.now());
        self.core
            .store
            .write("rendezvous", Vec::new(), move |tx| {
                let (id, left) = (id.clone(), left.clone());
                Box::pin(async move {
                    let written =
                        tx.rendezvous_replace(&id, seen, &left.content_type, &left.body, now).await?;
                    let row = tx.rendezvous_load(&id, now).await?.ok_or(RendezvousError::NotFound)?;
                    if written { Ok(row) } else { Err(RendezvousError::Changed) }
                })
            })
            .await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// [`RendezvousError::NotFound`].
    pub async fn delete(&self, id: &str) -> Result<(), RendezvousError> {
        let id = id.to_owned();
        let gone = self
            .core
            .store
            .write("rendezvous ended", Vec::new(), move |tx| {
                let id = id.clone();
                Box::pin(async move { Ok::<_, RendezvousError>(tx.rendezvous_delete(&id).await?) })
            })
            .await?;
        if gone { Ok(()) } else { Err(RendezvousError::NotFound) }
    }
}
