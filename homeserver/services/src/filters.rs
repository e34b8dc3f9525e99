//! Filters that clients store: <https://spec.matrix.org/v1.19/client-server-api/#filtering>

use crate::Core;
use crate::sync::SyncFilter;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ruma::UserId;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use waxwing_storage::StoreError;

/// A filter: lists of thousands of rooms fit.
const MAX_BYTES: usize = 64 << 10;
/// Bytes of the hash that names a filter: enough that two filters of one user never meet.
const ID_BYTES: usize = 15;

/// Why a filter was not stored or given.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else's.
    #[error("you may only use your own filters")]
    NotYours,
    /// There is no such filter.
    #[error("filter not found")]
    NotFound,
    /// It is no filter.
    #[error("not a filter: {0}")]
    Bad(String),
    /// It is too large.
    #[error("the filter is too large")]
    TooLarge,
}

/// Stores filters.
#[derive(Clone)]
pub struct Filters {
    core: Core,
}

impl Filters {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Filters {
        Filters { core }
    }

    /// Stores a filter and gives its id: the same for the same filter.
    ///
    /// # Errors
    /// [`FilterError::Bad`] for what `/sync` could not use.
    pub async fn create(
        &self,
        asking: &UserId,
        user: &UserId,
        json: &RawValue,
    ) -> Result<String, FilterError> {
        if asking != user {
            return Err(FilterError::NotYours);
        }
        if json.get().len() > MAX_BYTES {
            return Err(FilterError::TooLarge);
        }
        SyncFilter::parse(json.get()).map_err(|error| FilterError::Bad(error.to_string()))?;
        let hash = Sha256::digest(json.get().as_bytes());
        // No id begins with a brace: `/sync` tells an id from a filter by that.
        let id = URL_SAFE_NO_PAD.encode(&hash[..ID_BYTES]);
        let input = std::sync::Arc::new((user.to_owned(), id.clone(), json.get().to_owned()));
        self.core
            .store
            .write("store filter", Vec::new(), move |tx| {
                let input = std::sync::Arc::clone(&input);
                Box::pin(
                    async move { Ok::<_, FilterError>(tx.filter_put(&input.0, &input.1, &input.2).await?) },
                )
            })
            .await?;
        Ok(id)
    }

    /// A stored filter.
    ///
    /// # Errors
    /// [`FilterError::NotFound`].
    pub async fn get(&self, asking: &UserId, user: &UserId, id: &str) -> Result<Box<RawValue>, FilterError> {
        if asking != user {
            return Err(FilterError::NotYours);
        }
        let json = self.core.store.read().await?.filter_load(user, id).await?.ok_or(FilterError::NotFound)?;
        RawValue::from_string(json).map_err(|error| StoreError::corrupt("filters", id, error).into())
    }
}
