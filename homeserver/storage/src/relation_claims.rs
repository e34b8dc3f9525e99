//! What other servers say of the relations of an event (MSC2836), and relations of events outside the timeline.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::EventId;

statements! {
    LOAD = "SELECT children, hash FROM relation_claims WHERE event_id = $1";
    SAVE = "INSERT INTO relation_claims (event_id, children, hash) VALUES ($1, $2, $3) ON CONFLICT (event_id) DO UPDATE SET children = excluded.children, hash = excluded.hash";
    RELATE = "INSERT INTO relations (parent_id, sn, child_id, room_id, rel_type, kind, sender) SELECT $1, sn, event_id, room_id, $3, $4, $5 FROM events WHERE event_id = $2 ON CONFLICT DO NOTHING";
}

impl Conn {
    /// The counts by relation type (JSON) and the hash of the children that another server named.
    pub async fn relation_claim(&mut self, event: &EventId) -> StoreResult<Option<(String, String)>> {
        Ok(on_engine!(self, |c| sqlx::query_as(LOAD).bind(event.as_str()).fetch_optional(c).await)?)
    }
}

impl crate::Tx {
    /// Keeps what another server says of the children of an event.
    pub async fn relation_claim_save(
        &mut self,
        event: &EventId,
        children: &str,
        hash: &str,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SAVE)
            .bind(event.as_str())
            .bind(children)
            .bind(hash)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Notes that a stored event relates to `parent`.
    pub async fn relation_note(
        &mut self,
        parent: &EventId,
        child: &waxwing_model::Event,
        rel_type: &str,
    ) -> StoreResult<()> {
        let kind = child.kind.to_string();
        self.related.push((child.room_id.clone(), parent.to_owned()));
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(RELATE)
            .bind(parent.as_str())
            .bind(child.event_id.as_str())
            .bind(rel_type)
            .bind(&kind)
            .bind(child.sender.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
