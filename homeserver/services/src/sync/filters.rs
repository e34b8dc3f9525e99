//! Filters in memory: each different one once, however many clients use it.

use super::{SyncError, SyncFilter};
use crate::Core;
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, UserId};
use std::sync::Arc;

/// Filters of different content that are kept: the apps in use and their versions. Some 2 KB each.
const DIFFERENT: usize = 1000;
/// Longer ones, which name thousands of rooms, are read each time (bytes).
const LONGEST: usize = 4096;
/// Stored filters, by user and id, that are kept: of those who sync at the same time. About 150 bytes each.
const STORED: usize = 50_000;

/// The filters that requests name.
pub(super) struct Filters {
    by_json: Cache<Box<str>, Arc<SyncFilter>>,
    /// Stored ones never change: their ids are hashes of what they say.
    stored: Cache<(OwnedUserId, Box<str>), Arc<SyncFilter>>,
    none: Arc<SyncFilter>,
}

impl Default for Filters {
    fn default() -> Filters {
        Filters { by_json: Cache::new(DIFFERENT), stored: Cache::new(STORED), none: Arc::default() }
    }
}

impl Filters {
    /// The filter of a request that names none.
    pub fn none(&self) -> Arc<SyncFilter> {
        Arc::clone(&self.none)
    }

    /// The filter that a request names: JSON, or the id of a stored one.
    ///
    /// # Errors
    /// [`SyncError::BadFilter`].
    pub async fn named(&self, core: &Core, user: &UserId, named: &str) -> Result<Arc<SyncFilter>, SyncError> {
        if named.starts_with('{') {
            return self.parsed(named);
        }
        let key = (user.to_owned(), Box::from(named));
        if let Some(known) = self.stored.get(&key) {
            return Ok(known);
        }
        let json = core.store.read().await?.filter_load(user, named).await?;
        let json = json.ok_or_else(|| SyncError::BadFilter("unknown id".to_owned()))?;
        let filter = self.parsed(&json)?;
        if json.len() <= LONGEST {
            self.stored.insert(key, Arc::clone(&filter));
        }
        Ok(filter)
    }

    fn parsed(&self, json: &str) -> Result<Arc<SyncFilter>, SyncError> {
        if let Some(known) = self.by_json.get(json) {
            return Ok(known);
        }
        let filter = SyncFilter::parse(json).map_err(|error| SyncError::BadFilter(error.to_string()))?;
        let filter = Arc::new(filter);
        if json.len() <= LONGEST {
            self.by_json.insert(json.into(), Arc::clone(&filter));
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_filters_are_one() {
        let filters = Filters::default();
        let json = r#"{"room":{"timeline":{"limit":3}}}"#;
        let (one, other) = (filters.parsed(json).unwrap(), filters.parsed(json).unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(one.timeline_limit(), 3);
        assert!(matches!(filters.parsed("{"), Err(SyncError::BadFilter(_))));
    }
}
