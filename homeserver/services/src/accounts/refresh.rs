//! Refresh tokens: <https://spec.matrix.org/v1.19/client-server-api/#refreshing-access-tokens>.
//!
//! A refresh token stays good until what it was exchanged for (the new access token or the new refresh token) is used,
//! so that a lost answer costs nobody the session.

use super::sessions::{Session, Tokens};
use super::{AccountError, Accounts, token_hash};
use crate::Core;
use waxwing_storage::{Fact, NewRow, StoreError, StoreResult, TokenHash};

/// The first request with an access token: its predecessor and the refresh token that made it die now.
pub(super) async fn first_use(core: &Core, hash: TokenHash) -> StoreResult<()> {
    core.store
        .write("access token first used", Vec::new(), move |tx| {
            Box::pin(async move {
                if let Some((user, device, refresh)) = tx.access_token_used(&hash).await? {
                    tx.refresh_token_delete_before(&refresh, &user, &device).await?;
                    tx.log_append(NewRow::new(Fact::Account).user(user).reference(device.as_str()));
                }
                Ok::<(), StoreError>(())
            })
        })
        .await
}

impl Accounts {
    /// Exchanges a refresh token for a new pair of tokens.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Session, AccountError> {
        let hash = token_hash(refresh_token);
        let now = self.core.now();
        let new = Tokens::new(true, now);
        let stored = new.clone();
        let (user_id, device_id) = self
            .core
            .store
            .write("refresh", Vec::new(), move |tx| {
                let stored = stored.clone();
                Box::pin(async move {
                    let row = tx.refresh_token_load(&hash).await?.ok_or(AccountError::BadRefreshToken)?;
                    let user = tx.user_load(&row.user_id).await?.ok_or(AccountError::BadRefreshToken)?;
                    if user.locked {
                        return Err(AccountError::Locked);
                    }
                    // This one is used: what it replaced dies. What it was exchanged for before was never used.
                    tx.refresh_token_delete_before(&hash, &row.user_id, &row.device_id).await?;
                    if let Some(next) = &row.next_hash {
                        tx.refresh_token_delete(next, &row.user_id, &row.device_id).await?;
                    }
                    stored.insert(tx, &row.user_id, &row.device_id, now).await?;
                    if let Some(next) = stored.refresh_hash() {
                        tx.refresh_token_next(&hash, &next).await?;
                    }
                    let fact = NewRow::new(Fact::Account).user(row.user_id.clone());
                    tx.log_append(fact.reference(row.device_id.as_str()));
                    Ok((row.user_id, row.device_id))
                })
            })
            .await?;
        Ok(new.session(user_id, device_id))
    }
}
