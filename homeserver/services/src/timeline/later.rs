//! Sending what was asked for earlier (MSC4140): the event and the end of its waiting are one transaction, so that it is
//! sent once, whoever does it.

use super::append::{Draft, append};
use super::error::TimelineError;
use super::send::{check_relation, must_be_joined, unchanged};
use super::{Author, Timeline};
use ruma::OwnedEventId;
use ruma::events::TimelineEventType;
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_rooms::sealed;
use waxwing_storage::DelayedRow;

/// What an event that waits will be.
pub(crate) fn draft_of(row: &DelayedRow) -> Result<Draft, TimelineError> {
    let content = RawValue::from_string(row.content.clone())
        .map_err(|error| TimelineError::Internal(error.to_string()))?;
    let kind = TimelineEventType::from(row.kind.as_str());
    let mut draft = Draft::message(row.user.clone(), kind, content);
    draft.state_key.clone_from(&row.state_key);
    draft.sticky_ms = row.sticky_ms.and_then(|duration| u32::try_from(duration).ok());
    Ok(draft)
}

impl Timeline {
    /// Sends an event that waited, if it still waits and its time has come by `by` (milliseconds since the epoch).
    /// Gives its id; `None` when there was nothing to do any more.
    ///
    /// # Errors
    /// As for sending it now: then it still waits.
    pub(crate) async fn send_delayed(
        &self,
        row: &DelayedRow,
        by: i64,
    ) -> Result<Option<OwnedEventId>, TimelineError> {
        let author = Author { appservice: row.appservice.clone(), ..Author::new(row.user.clone()) };
        let mut draft = draft_of(row)?;
        let policy = self.seal_policy(&row.room, &author);
        sealed::check_local_send(&draft.kind, &draft.content, draft.state_key.as_deref(), &policy)?;
        if draft.state_key.is_some() {
            super::check::state_content(&self.core, &row.room, &draft).await?;
        } else {
            self.settle_redaction(&row.room, &mut draft).await?;
        }
        let input = Arc::new((self.core.clone(), row.clone(), draft));
        self.with_policy(|| {
            let input = Arc::clone(&input);
            self.core.store.write("send delayed", vec![row.room.clone()], move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (core, row, draft) = &*input;
                    if !tx.delayed_event_take(&row.delay_id, by).await? {
                        return Ok(None);
                    }
                    let user = tx.user_load(&row.user).await?;
                    if user.is_none_or(|user| user.deactivated || user.locked) {
                        return Err(TimelineError::Forbidden("the account is not in use".to_owned()));
                    }
                    must_be_joined(tx, &row.room, &row.user).await?;
                    if let Some(same) = unchanged(tx, &row.room, draft).await? {
                        return Ok(Some(same));
                    }
                    check_relation(tx, &row.room, draft).await?;
                    Ok(Some(append(core, tx, &row.room, draft).await?.event_id.clone()))
                })
            })
        })
        .await
    }
}
