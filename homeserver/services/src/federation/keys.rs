use crate::Core;
use async_trait::async_trait;
use ruma::ServerName;
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_federation::ports::{KeyStore, PortError, PortResult, ServerKeyRecord, StoredKey};
use waxwing_storage::{ServerKeyRow, StoreError};

/// Keeps other servers' keys in the database.
pub(super) struct Keys {
    pub(super) core: Core,
}

impl Keys {
    async fn load(&self, server: &ServerName) -> Result<Option<ServerKeyRecord>, StoreError> {
        let mut conn = self.core.store.read().await?;
        let rows = conn.server_keys_load(server).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let document = conn.server_key_document(server).await?;
        let keys = rows
            .into_iter()
            .filter_map(|row| {
                let key_id = row.key_id.try_into().ok()?;
                Some(StoredKey { key_id, key: row.key, valid_until: row.valid_until })
            })
            .collect();
        let fetched_at = document.as_ref().map_or(0, |(_, at)| *at);
        let document = document.and_then(|(text, _)| RawValue::from_string(text).ok()).map(Arc::from);
        Ok(Some(ServerKeyRecord { keys, document, fetched_at }))
    }

    async fn save(&self, server: &ServerName, record: &ServerKeyRecord) -> Result<(), StoreError> {
        let input = Arc::new((server.to_owned(), record.clone()));
        self.core
            .store
            .write("server keys", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (server, record) = &*input;
                    for key in &record.keys {
                        let row = ServerKeyRow {
                            key_id: key.key_id.to_string(),
                            key: key.key.clone(),
                            valid_until: key.valid_until,
                        };
                        tx.server_key_save(server, &row).await?;
                    }
                    if let Some(document) = &record.document {
                        tx.server_key_document_save(server, document.get(), record.fetched_at).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

#[async_trait]
impl KeyStore for Keys {
    async fn server_keys_load(&self, server: &ServerName) -> PortResult<Option<ServerKeyRecord>> {
        self.load(server).await.map_err(PortError::new)
    }

    async fn server_keys_save(&self, server: &ServerName, record: &ServerKeyRecord) -> PortResult<()> {
        self.save(server, record).await.map_err(PortError::new)
    }
}
