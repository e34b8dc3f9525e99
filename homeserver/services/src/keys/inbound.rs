//! What other servers tell of their users' keys. Idempotent: a transaction may come twice.
//! <https://spec.matrix.org/v1.19/server-server-api/#device-management>

use super::remote::{cross_rows, device_row};
use super::{Keys, KeysError, announce};
use ruma::api::federation::transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent};
use ruma::{OwnedUserId, UserId};
use std::sync::Arc;

impl Keys {
    /// A device of another server's user changed. The change is put on our copy of the list when it connects to it;
    /// otherwise the copy is stale, and the list is fetched when someone asks for it.
    pub async fn device_list_update(&self, update: DeviceListUpdateContent) -> Result<(), KeysError> {
        let user = update.user_id.clone();
        if !self.concerns_us(&user).await? {
            return self.hold(&user).await;
        }
        let (server, update) = (self.core.server_name.clone(), Arc::new(update));
        self.core
            .store
            .write("keys.remote_device", Vec::new(), move |tx| {
                let (server, update) = (server.clone(), Arc::clone(&update));
                Box::pin(async move {
                    let user = &update.user_id;
                    let kept = tx.remote_lists_valid(&server, std::slice::from_ref(user)).await?;
                    let have = kept.first().map(|(_, stream)| *stream);
                    let stream = i64::try_from(u64::from(update.stream_id)).unwrap_or(i64::MAX);
                    if have == Some(stream) && stream > 0 {
                        return Ok(());
                    }
                    let connects = have.is_some_and(|have| {
                        have > 0
                            && !update.prev_id.is_empty()
                            && update
                                .prev_id
                                .iter()
                                .all(|before| i64::try_from(u64::from(*before)) == Ok(have))
                    });
                    // What a server tells when its user joins: clients know of the join, and have not asked since.
                    let known = update.prev_id.is_empty() && !tx.remote_list_fresh(user).await?;
                    if !connects || !apply(tx, &update).await? {
                        tx.remote_list_stale(user).await?;
                    } else {
                        tx.remote_list_advance(user, stream).await?;
                    }
                    if !known {
                        announce::remote_changed(tx, user);
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Cross-signing keys of another server's user changed.
    pub async fn signing_key_update(&self, update: SigningKeyUpdateContent) -> Result<(), KeysError> {
        let user = update.user_id.clone();
        if !self.concerns_us(&user).await? {
            return self.hold(&user).await;
        }
        let rows = cross_rows(&user, update.master_key.as_ref(), update.self_signing_key.as_ref());
        let (server, rows) = (self.core.server_name.clone(), Arc::new(rows));
        self.core
            .store
            .write("keys.remote_signing", Vec::new(), move |tx| {
                let (server, user, rows) = (server.clone(), user.clone(), Arc::clone(&rows));
                Box::pin(async move {
                    if let Some((_, stream)) =
                        tx.remote_lists_valid(&server, std::slice::from_ref(&user)).await?.pop()
                    {
                        for row in rows.iter() {
                            tx.cross_signing_put(row).await?;
                        }
                        tx.remote_list_advance(&user, stream).await?;
                    } else {
                        tx.remote_list_stale(&user).await?;
                    }
                    announce::remote_changed(tx, &user);
                    Ok(())
                })
            })
            .await
    }

    /// The user may be in a room whose members are being fetched: who shares it is told when they are here.
    async fn hold(&self, user: &OwnedUserId) -> Result<(), KeysError> {
        if self.core.is_local(user) {
            return Ok(());
        }
        let rooms = self.core.store.read().await?.partial_rooms_of(user.server_name()).await?;
        if rooms.is_empty() {
            return Ok(());
        }
        let user = user.clone();
        self.core
            .store
            .write("keys.hold", Vec::new(), move |tx| {
                let (rooms, user) = (rooms.clone(), user.clone());
                Box::pin(async move {
                    for room in &rooms {
                        tx.device_list_hold(room, &user).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Whether one of our users shares a room with this user of another server.
    async fn concerns_us(&self, user: &UserId) -> Result<bool, KeysError> {
        if self.core.is_local(user) {
            return Ok(false);
        }
        let mut conn = self.core.store.read().await?;
        let known = conn.users_known_to(&self.core.server_name, &[user.to_owned()]).await?;
        Ok(!known.is_empty())
    }
}

/// Puts a change on the copy; `false` when it makes no sense.
async fn apply(tx: &mut waxwing_storage::Tx, update: &DeviceListUpdateContent) -> Result<bool, KeysError> {
    let (user, device) = (&update.user_id, update.device_id.as_str());
    match &update.keys {
        Some(keys) if update.deleted != Some(true) => {
            let Some(row) = device_row(user, device, keys, update.device_display_name.clone()) else {
                return Ok(false);
            };
            tx.device_keys_put(&row).await?;
        }
        _ => tx.device_keys_delete(user, device).await?,
    }
    Ok(true)
}
