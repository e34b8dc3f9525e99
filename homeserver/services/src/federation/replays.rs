use crate::Core;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::ports::{PortError, PortResult, ReplayKey};

/// How long an answer is kept. A server whose transaction went unanswered sends it again when its patience with us has
/// grown long: within hours, after an outage within days.
pub(crate) const KEPT_FOR: Duration = Duration::from_hours(7 * 24);

/// Keeps the answers to other servers' transactions in the database.
pub(super) struct Replays {
    pub(super) core: Core,
}

#[async_trait]
impl waxwing_federation::ports::Replays for Replays {
    async fn answer_load(&self, key: &ReplayKey) -> PortResult<Option<String>> {
        let mut conn = self.core.store.read().await.map_err(PortError::new)?;
        let found = conn.inbound_transaction_load(&key.origin, &key.txn_id, &key.content).await;
        found.map_err(PortError::new)
    }

    async fn answer_keep(&self, key: &ReplayKey, answer: &str) -> PortResult<()> {
        let (input, now) = (Arc::new((key.clone(), answer.to_owned())), self.core.now());
        self.core
            .store
            .write("inbound transaction", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (key, answer) = &*input;
                    tx.inbound_transaction_put(&key.origin, &key.txn_id, &key.content, answer, now).await
                })
            })
            .await
            .map_err(PortError::new)
    }
}
