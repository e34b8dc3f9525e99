//! Reports of events, rooms and users. Administrators read them.
//! <https://spec.matrix.org/v1.19/client-server-api/#reporting-content>

use crate::Core;
use ruma::{EventId, RoomId, UserId};
use std::sync::Arc;
use waxwing_model::opaque_id;
use waxwing_storage::StoreError;

/// A reason longer than this is cut: it is read by a person.
const MAX_REASON_BYTES: usize = 8192;

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The event is not there, or the reporter is not in its room.
    #[error("event or room not found")]
    NotFound,
}

/// Takes reports.
#[derive(Clone)]
pub struct Reports {
    core: Core,
}

impl Reports {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Reports {
        Reports { core }
    }

    /// An event is reported by somebody in its room.
    ///
    /// # Errors
    /// [`ReportError::NotFound`] when the reporter is not in the room or the event not known there.
    pub async fn event(
        &self,
        reporter: &UserId,
        room: &RoomId,
        event: &EventId,
        reason: Option<String>,
    ) -> Result<(), ReportError> {
        let member = self.core.store.read().await?.member_load(room, reporter).await?;
        let stored = self.core.store.event(event).await?;
        let joined = member.is_some_and(|member| member.membership == "join");
        if !joined || stored.is_none_or(|stored| stored.event.room_id != room) {
            return Err(ReportError::NotFound);
        }
        self.keep(reporter, event.as_str(), Some(room), reason).await
    }

    /// A room is reported, by somebody who need not be in it.
    ///
    /// # Errors
    /// [`ReportError::NotFound`] for a room that this server does not know.
    pub async fn room(&self, reporter: &UserId, room: &RoomId, reason: String) -> Result<(), ReportError> {
        if self.core.store.read().await?.room_load(room).await?.is_none() {
            return Err(ReportError::NotFound);
        }
        self.keep(reporter, room.as_str(), Some(room), Some(reason)).await
    }

    /// A user is reported. Whether the user exists is not told.
    pub async fn user(&self, reporter: &UserId, user: &UserId, reason: String) -> Result<(), ReportError> {
        self.keep(reporter, user.as_str(), None, Some(reason)).await
    }

    async fn keep(
        &self,
        reporter: &UserId,
        target: &str,
        room: Option<&RoomId>,
        reason: Option<String>,
    ) -> Result<(), ReportError> {
        let reason = reason.map(|mut reason| {
            reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
            reason
        });
        let now = self.core.now();
        let input = Arc::new((
            opaque_id(16),
            reporter.to_owned(),
            target.to_owned(),
            room.map(ToOwned::to_owned),
            reason,
        ));
        self.core
            .store
            .write("report", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (id, reporter, target, room, reason) = &*input;
                    Ok(tx.report_add(id, reporter, target, room.as_deref(), reason.as_deref(), now).await?)
                })
            })
            .await
    }
}
