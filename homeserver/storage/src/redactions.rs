//! Events that are replaced by their redacted form: those that are stored, and those of the group that is being written.

use crate::StoreResult;
use crate::engine::on_engine;
use crate::sql::statements;
use crate::tx::Buffers;
use ruma::{EventId, OwnedEventId};
use std::collections::HashSet;
use std::sync::Arc;
use waxwing_model::Event;

statements! {
    SET_REDACTED = "UPDATE events SET redacted_by = $2, json = $3 WHERE event_id = $1";
}

/// An event of the group is written in its redacted form.
pub(crate) struct Redacted {
    /// Which of the group's events.
    pub index: usize,
    /// Its redacted form.
    pub event: Arc<Event>,
    /// What redacted it.
    pub by: OwnedEventId,
}

impl Buffers {
    /// What the group redacts of its own is written redacted, and relates to nothing.
    pub(crate) fn redact(&mut self) {
        let indexes: HashSet<usize> = self.redacted.iter().map(|redacted| redacted.index).collect();
        self.relations.retain(|relation| !indexes.contains(&relation.child));
        for Redacted { index, event, by } in std::mem::take(&mut self.redacted) {
            let new = &mut self.events[index];
            (new.event, new.redacted_by) = (event, Some(by));
        }
    }
}

impl crate::Tx {
    /// Replaces an event by its redacted form, whether it is stored or of this group; it relates to nothing any more. The
    /// caller appends [`crate::Fact::EventChanged`].
    pub async fn event_redact(&mut self, redacted: &Event, by: &EventId) -> StoreResult<()> {
        self.event_changed(&redacted.event_id);
        if let Some(index) = self.new_event(&redacted.event_id) {
            let (event, by) = (Arc::new(redacted.clone()), by.to_owned());
            self.buffers.redacted.push(Redacted { index, event, by });
        }
        // One that was stored as an outlier is of this group and in the table.
        let conn = self.writing().await?;
        conn.media_uses_redact(redacted).await?;
        on_engine!(conn, |c| sqlx::query(SET_REDACTED)
            .bind(redacted.event_id.as_str())
            .bind(by.as_str())
            .bind(redacted.json.get())
            .execute(c)
            .await
            .map(|_| ()))?;
        self.search_forget(&redacted.event_id).await?;
        self.relation_forget(&redacted.event_id).await
    }
}
