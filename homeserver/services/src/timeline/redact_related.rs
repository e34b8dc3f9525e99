//! Redacting an event with what relates to it: its edits, its thread, its reactions (MSC3912).
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/3912>

use super::append::{Draft, append};
use super::error::TimelineError;
use super::send::{check_redaction, must_be_joined};
use super::{Author, Timeline};
use ruma::{OwnedEventId, RoomId};
use std::sync::Arc;
use waxwing_storage::RelationQuery;

/// Related events redacted with one request: each is an event of one transaction.
const MAX_RELATED: i64 = 500;
/// Relation types of one request.
const MAX_TYPES: usize = 20;

/// What is redacted together with an event.
#[derive(Clone, Debug)]
pub struct WithRelations {
    /// The event.
    pub parent: OwnedEventId,
    /// The ways in which others relate to it; `*` for all.
    pub rel_types: Vec<String>,
}

impl Timeline {
    /// Redacts the events that relate to one, those that the author may redact. `draft` is a redaction like that of the
    /// event itself.
    ///
    /// # Errors
    /// [`TimelineError::NotInRoom`]. What the author may not redact is left alone.
    pub async fn redact_relations(
        &self,
        author: &Author,
        room: &RoomId,
        draft: Draft,
        with: &WithRelations,
    ) -> Result<(), TimelineError> {
        let mut drafts = Vec::new();
        for child in self.related(room, with).await? {
            let mut draft = draft.clone();
            draft.redacts = Some(child);
            self.settle_redaction(room, &mut draft).await?;
            drafts.push(draft);
        }
        if drafts.is_empty() {
            return Ok(());
        }
        match self.redact_all(author, room, drafts.clone()).await {
            // The room has a policy server, which is asked for each; meanwhile the room lives on.
            Err(TimelineError::Unapproved(_)) => self.redact_each(author, room, drafts).await,
            done => done,
        }
    }

    async fn redact_each(
        &self,
        author: &Author,
        room: &RoomId,
        drafts: Vec<Draft>,
    ) -> Result<(), TimelineError> {
        for draft in drafts {
            let one = || self.redact_all(author, room, vec![draft.clone()]);
            match self.with_policy(one).await {
                // One that is refused is left alone like one that the author may not redact.
                Err(error @ TimelineError::Remote { .. }) => {
                    tracing::info!(%room, %error, "a related event is not redacted");
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Appends redactions in one transaction, those that the author may make.
    async fn redact_all(
        &self,
        author: &Author,
        room: &RoomId,
        drafts: Vec<Draft>,
    ) -> Result<(), TimelineError> {
        let input = Arc::new((self.core.clone(), author.clone(), room.to_owned(), drafts));
        self.core
            .store
            .write("redact relations", vec![room.to_owned()], move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (core, author, room, drafts) = &*input;
                    must_be_joined(tx, room, &author.user).await?;
                    for draft in drafts {
                        match check_redaction(tx, room, draft, author.suspended).await {
                            Ok(()) => {
                                append(core, tx, room, draft).await?;
                            }
                            Err(
                                TimelineError::Forbidden(_)
                                | TimelineError::NotFound(_)
                                | TimelineError::Suspended,
                            ) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn related(&self, room: &RoomId, with: &WithRelations) -> Result<Vec<OwnedEventId>, TimelineError> {
        let all = with.rel_types.iter().any(|rel_type| rel_type == "*");
        let rel_types: Vec<String> =
            if all { vec![String::new()] } else { with.rel_types.iter().take(MAX_TYPES).cloned().collect() };
        let mut ids = Vec::new();
        for rel_type in rel_types {
            let limit = MAX_RELATED - ids.len() as i64;
            let query =
                RelationQuery { rel_type, beyond: i64::MIN, forward: true, limit, kind: String::new() };
            let mut conn = self.core.store.read().await?;
            let found = conn.relations_page(&with.parent, &query).await?;
            ids.extend(found.into_iter().map(|child| child.event_id));
        }
        let events = self.core.store.events(&ids).await?;
        ids.retain(|id| {
            events.get(id).is_some_and(|stored| {
                stored.event.room_id == *room && stored.redacted_by.is_none() && !stored.event.is_state()
            })
        });
        Ok(ids)
    }
}
