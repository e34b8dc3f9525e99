//! What a closed account leaves behind beside its events, devices and keys.

use crate::engine::on_engine;
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::UserId;

statements! {
    BACKUP_KEYS = "DELETE FROM backup_keys WHERE user_id = $1";
    // The numbers stay, so that none is given twice.
    BACKUP_VERSIONS = "UPDATE backup_versions SET deleted = TRUE, auth_data = '{}' WHERE user_id = $1";
    FILTERS = "DELETE FROM filters WHERE user_id = $1";
    THREADS = "DELETE FROM thread_subscriptions WHERE user_id = $1";
    ADDRESSES = "DELETE FROM threepids WHERE user_id = $1";
    ACCOUNT_DATA = "DELETE FROM account_data WHERE user_id = $1";
    SIGNATURES = "DELETE FROM key_signatures WHERE signer_id = $1";
    DELAYED = "DELETE FROM delayed_events WHERE user_id = $1";
    TRANSACTIONS = "DELETE FROM transactions WHERE user_id = $1";
}

impl crate::Tx {
    /// Deletes what is kept for a user beside events, memberships, devices, keys and the profile.
    pub async fn leavings_delete(&mut self, user: &UserId) -> StoreResult<()> {
        self.transactions_forget(user, None);
        let conn = self.writing().await?;
        for text in [
            BACKUP_KEYS,
            BACKUP_VERSIONS,
            FILTERS,
            THREADS,
            ADDRESSES,
            ACCOUNT_DATA,
            SIGNATURES,
            DELAYED,
            TRANSACTIONS,
        ] {
            on_engine!(&mut *conn, |c| sqlx::query(text).bind(user.as_str()).execute(c).await.map(|_| ()))?;
        }
        Ok(())
    }
}
