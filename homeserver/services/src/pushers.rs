//! Pushers: where a user's notifications go. Delivering is another's business.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3pushersset>

use crate::Core;
use ruma::UserId;
use ruma::api::client::push::{Pusher, PusherIds, PusherKind};
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_storage::{PusherRow, StoreError};

/// By the specification.
const MAX_APP_ID_CHARS: usize = 64;
/// By the specification.
const MAX_PUSHKEY_BYTES: usize = 512;
/// A pusher as JSON.
const MAX_BYTES: usize = 16 << 10;
/// Pushers of one user: each costs a request for each notification.
const MAX_PUSHERS: usize = 100;
/// The only path that a gateway may have.
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";

/// Why a pusher was not made.
#[derive(Debug, thiserror::Error)]
pub enum PusherError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is wrong with it.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Reads and changes pushers.
#[derive(Clone)]
pub struct Pushers {
    core: Core,
}

impl Pushers {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Pushers {
        Pushers { core }
    }

    /// A user's pushers, as clients see them.
    pub async fn list(&self, user: &UserId) -> Result<Vec<Box<RawValue>>, PusherError> {
        let rows = self.core.store.read().await?.pushers_of(user).await?;
        Ok(rows.into_iter().filter_map(|row| RawValue::from_string(row.json).ok()).collect())
    }

    /// Makes or changes a pusher. Without `append`, other users' pushers of the same app and key go: the device has
    /// changed hands.
    ///
    /// # Errors
    /// [`PusherError::Invalid`] for a gateway that is not `https` with the path of the specification, and sizes.
    pub async fn set(
        &self,
        user: &UserId,
        device: Option<&str>,
        pusher: &Pusher,
        append: bool,
    ) -> Result<(), PusherError> {
        check(pusher)?;
        let json = serde_json::to_string(pusher).map_err(|_| PusherError::Invalid("it cannot be stored"))?;
        if json.len() > MAX_BYTES {
            return Err(PusherError::Invalid("the pusher is too large"));
        }
        let row = Arc::new(PusherRow {
            user_id: user.to_owned(),
            app_id: pusher.ids.app_id.clone(),
            pushkey: pusher.ids.pushkey.clone(),
            device_id: device.map(str::to_owned),
            json,
            position: self.core.store.tail().head().0,
            failing_since: None,
        });
        self.core
            .store
            .write("set pusher", Vec::new(), move |tx| {
                let row = Arc::clone(&row);
                Box::pin(async move {
                    if !append {
                        tx.pushers_remove_others(&row.app_id, &row.pushkey, &row.user_id).await?;
                    }
                    if tx.pushers_of(&row.user_id).await?.len() >= MAX_PUSHERS {
                        return Err(PusherError::Invalid("too many pushers"));
                    }
                    Ok(tx.pusher_set(&row).await?)
                })
            })
            .await
    }

    /// Removes a pusher. One that is not there stays away.
    pub async fn remove(&self, user: &UserId, ids: &PusherIds) -> Result<(), PusherError> {
        let (user, ids) = (user.to_owned(), ids.clone());
        self.core
            .store
            .write("remove pusher", Vec::new(), move |tx| {
                let (user, ids) = (user.clone(), ids.clone());
                Box::pin(async move {
                    tx.pusher_remove(&user, &ids.app_id, &ids.pushkey).await?;
                    Ok(())
                })
            })
            .await
    }
}

fn check(pusher: &Pusher) -> Result<(), PusherError> {
    if pusher.ids.app_id.chars().count() > MAX_APP_ID_CHARS {
        return Err(PusherError::Invalid("the app_id is longer than 64 characters"));
    }
    if pusher.ids.pushkey.len() > MAX_PUSHKEY_BYTES {
        return Err(PusherError::Invalid("the pushkey is longer than 512 bytes"));
    }
    match &pusher.kind {
        PusherKind::Http(data) => {
            let url = url::Url::parse(&data.url).map_err(|_| PusherError::Invalid("the url is none"))?;
            if url.scheme() != "https" {
                return Err(PusherError::Invalid("the url must be https"));
            }
            if url.path() != GATEWAY_PATH {
                return Err(PusherError::Invalid("the path of the url must be /_matrix/push/v1/notify"));
            }
            Ok(())
        }
        PusherKind::Email(_) => Err(PusherError::Invalid("this server sends no notifications by e-mail")),
        _ => Err(PusherError::Invalid("this server does not know this kind of pusher")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pusher(url: &str, app_id: &str) -> Pusher {
        serde_json::from_value(serde_json::json!({
            "kind": "http", "app_id": app_id, "pushkey": "k", "lang": "en", "app_display_name": "a",
            "device_display_name": "d", "data": { "url": url },
        }))
        .unwrap()
    }

    #[test]
    fn only_gateways_are_told() {
        let good = "https://push.example/_matrix/push/v1/notify";
        assert!(check(&pusher(good, "app")).is_ok());
        assert!(check(&pusher(good, &"a".repeat(65))).is_err());
        for bad in ["http://push.example/_matrix/push/v1/notify", "https://push.example/x", "nonsense"] {
            assert!(check(&pusher(bad, "app")).is_err(), "{bad}");
        }
    }
}
