//! Receipts and read markers: how far users have read.
//! <https://spec.matrix.org/v1.19/client-server-api/#receipts>

use crate::Core;
use crate::outgoing::Volatile;
use crate::timeline::relation;
use ruma::api::federation::transactions::edu::ReceiptData;
use ruma::events::receipt::{Receipt, ReceiptThread};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UInt, UserId};
use serde::Deserialize;
use std::sync::Arc;
use waxwing_federation::outbound::VolatileEdu;
use waxwing_federation::ports::ReadReceipt;
use waxwing_storage::{ReceiptRow, StoreError, StoreResult, StoredEvent};

/// Relations followed from an event to its thread: by the specification.
const MAX_HOPS: usize = 3;
/// Receipts taken from one EDU: other servers send far fewer.
const MAX_INCOMING: usize = 500;

/// The type of the read marker among the account data.
const FULLY_READ: &str = "m.fully_read";

/// A kind of receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptKind {
    /// `m.read`: everybody sees it.
    Read,
    /// `m.read.private`: only its user sees it.
    ReadPrivate,
}

impl ReceiptKind {
    /// As the protocol writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            ReceiptKind::Read => "m.read",
            ReceiptKind::ReadPrivate => "m.read.private",
        }
    }
}

/// Why a receipt was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Only who is in the room has read something there.
    #[error("you are not in this room")]
    NotInRoom,
    /// There is no such event in the room.
    #[error("event not found")]
    NoEvent,
    /// The thread does not fit the event.
    #[error("{0}")]
    BadThread(&'static str),
}

/// Takes receipts.
#[derive(Clone)]
pub struct Receipts {
    core: Core,
    outgoing: Arc<dyn Volatile>,
}

impl Receipts {
    /// `outgoing` takes what other servers are told.
    pub fn new(core: Core, outgoing: Arc<dyn Volatile>) -> Receipts {
        Receipts { core, outgoing }
    }

    /// A user of this server has read up to `event`. A receipt never moves back: one that would is ignored.
    ///
    /// # Errors
    /// [`ReceiptError::BadThread`] when the event does not belong to `thread`.
    pub async fn read(
        &self,
        user: &UserId,
        room: &RoomId,
        kind: ReceiptKind,
        thread: &ReceiptThread,
        event: OwnedEventId,
    ) -> Result<(), ReceiptError> {
        self.must_be_joined(user, room).await?;
        let stored = self.event_in(room, &event).await?;
        self.check_thread(&stored, thread).await?;
        let receipt = Receipt::new(MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.core.now())));
        let row = ReceiptRow {
            room_id: room.to_owned(),
            user_id: user.to_owned(),
            kind: kind.as_str().to_owned(),
            thread: thread.as_str().unwrap_or_default().to_owned(),
            event_id: event.to_string(),
            event_sn: Some(stored.sn),
            data: data_of(&receipt),
        };
        if self.put(row).await? && kind == ReceiptKind::Read {
            self.tell_servers(user, room, thread, receipt, event).await?;
        }
        Ok(())
    }

    /// Moves the read marker, which is room account data. It never moves back.
    ///
    /// # Errors
    /// [`ReceiptError::NoEvent`] for an event that is not in the room.
    pub async fn mark_fully_read(
        &self,
        user: &UserId,
        room: &RoomId,
        event: OwnedEventId,
    ) -> Result<(), ReceiptError> {
        #[derive(Deserialize)]
        struct Content {
            event_id: OwnedEventId,
        }
        self.must_be_joined(user, room).await?;
        let sn = self.event_in(room, &event).await?.sn;
        let input = Arc::new((user.to_owned(), room.to_owned(), event));
        self.core
            .store
            .write("read marker", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (user, room, event) = &*input;
                    let before = tx.account_data_load(user, Some(room), FULLY_READ).await?;
                    if let Some(before) = before.and_then(|text| serde_json::from_str::<Content>(&text).ok())
                    {
                        let before = tx.events_load(&[before.event_id]).await?;
                        if before.first().is_some_and(|before| before.sn >= sn) {
                            return Ok(());
                        }
                    }
                    let content = serde_json::json!({ "event_id": event }).to_string();
                    Ok(tx.account_data_set(user, Some(room), FULLY_READ, &content).await?)
                })
            })
            .await
    }

    /// Takes the receipts of another server's users. Those of users who are not in the room are dropped.
    pub async fn take(&self, receipts: Vec<ReadReceipt>) -> Result<(), ReceiptError> {
        if receipts.len() > MAX_INCOMING {
            tracing::debug!("an EDU with too many receipts was cut");
        }
        for receipt in receipts.into_iter().take(MAX_INCOMING) {
            let (user, room) = (&receipt.user, &receipt.room);
            if !self.core.is_local(user) && self.must_be_joined(user, room).await.is_ok() {
                self.take_one(receipt).await?;
            }
        }
        Ok(())
    }

    async fn take_one(&self, receipt: ReadReceipt) -> Result<(), ReceiptError> {
        let stored = match EventId::parse(&receipt.event_id) {
            Ok(id) => self.core.store.event(&id).await?,
            Err(_) => None,
        };
        let stored = stored.filter(|stored| stored.event.room_id == receipt.room);
        let mut data = Receipt::new(MilliSecondsSinceUnixEpoch(receipt.ts.unwrap_or_default()));
        if receipt.ts.is_none() {
            data.ts = None;
        }
        let row = ReceiptRow {
            room_id: receipt.room,
            user_id: receipt.user,
            kind: ReceiptKind::Read.as_str().to_owned(),
            thread: receipt.thread.unwrap_or_default(),
            event_id: receipt.event_id,
            event_sn: stored.map(|stored| stored.sn),
            data: data_of(&data),
        };
        self.put(row).await.map(|_| ())
    }

    /// Keeps it unless it would move back. Returns whether it was kept.
    async fn put(&self, row: ReceiptRow) -> Result<bool, ReceiptError> {
        let row = Arc::new(row);
        self.core
            .store
            .write("receipt", Vec::new(), move |tx| {
                let row = Arc::clone(&row);
                Box::pin(async move {
                    let before = tx.receipt_load(&row.room_id, &row.user_id, &row.kind, &row.thread).await?;
                    if let Some(before) = before {
                        let back = match (before.event_sn, row.event_sn) {
                            (Some(before), Some(now)) => now <= before,
                            _ => before.event_id == row.event_id,
                        };
                        if back {
                            return Ok(false);
                        }
                    }
                    tx.receipt_set(&row).await?;
                    Ok(true)
                })
            })
            .await
    }

    async fn tell_servers(
        &self,
        user: &UserId,
        room: &RoomId,
        thread: &ReceiptThread,
        mut receipt: Receipt,
        event: OwnedEventId,
    ) -> Result<(), ReceiptError> {
        let servers = self.core.store.read().await?.servers_in(room).await?;
        receipt.thread = thread.clone();
        let data = ReceiptData::new(receipt, vec![event]);
        for server in servers.iter().filter(|server| **server != self.core.server_name) {
            let edu = VolatileEdu::Receipt(room.to_owned(), user.to_owned(), data.clone());
            self.outgoing.push(server, edu);
        }
        Ok(())
    }

    async fn must_be_joined(&self, user: &UserId, room: &RoomId) -> Result<(), ReceiptError> {
        let mut conn = self.core.store.read().await?;
        match conn.member_load(room, user).await? {
            Some(member) if member.membership == "join" => Ok(()),
            // The room's members may be still to come.
            None if !self.core.is_local(user)
                && conn.partial_servers(room).await?.iter().any(|server| server == user.server_name()) =>
            {
                Ok(())
            }
            _ => Err(ReceiptError::NotInRoom),
        }
    }

    async fn event_in(&self, room: &RoomId, event: &OwnedEventId) -> Result<Arc<StoredEvent>, ReceiptError> {
        let stored = self.core.store.event(event).await?;
        stored.filter(|stored| stored.event.room_id == room).ok_or(ReceiptError::NoEvent)
    }

    /// <https://spec.matrix.org/v1.19/client-server-api/#threaded-read-receipts>
    async fn check_thread(
        &self,
        stored: &Arc<StoredEvent>,
        thread: &ReceiptThread,
    ) -> Result<(), ReceiptError> {
        match thread {
            ReceiptThread::Unthreaded => Ok(()),
            ReceiptThread::Main => match thread_of(&self.core, stored).await? {
                None => Ok(()),
                Some(_) => Err(ReceiptError::BadThread("the event is not in the main timeline")),
            },
            ReceiptThread::Thread(root) => match thread_of(&self.core, stored).await? {
                Some(other) if other == *root => Ok(()),
                None if self.hangs_on(stored, root).await? => Ok(()),
                _ => Err(ReceiptError::BadThread("the event is not in this thread")),
            },
            _ => Err(ReceiptError::BadThread("thread_id must be `main` or the id of an event")),
        }
    }

    /// Whether an event is the root of a thread, or relates to it over at most so many others. Such events are in the
    /// main timeline, and may be read in the thread all the same.
    async fn hangs_on(&self, stored: &Arc<StoredEvent>, root: &EventId) -> Result<bool, ReceiptError> {
        let mut at = Arc::clone(stored);
        for _ in 0..=MAX_HOPS {
            if at.event.event_id == *root {
                return Ok(true);
            }
            let Some((parent, _)) = relation(&at.event) else { return Ok(false) };
            match self.core.store.event(&parent).await? {
                Some(parent) if parent.event.room_id == stored.event.room_id => at = parent,
                _ => return Ok(false),
            }
        }
        Ok(false)
    }
}

/// The root of the thread that an event is in: it may relate to an event of the thread over a few others.
/// <https://spec.matrix.org/v1.19/client-server-api/#threading>
pub(crate) async fn thread_of(core: &Core, stored: &StoredEvent) -> StoreResult<Option<OwnedEventId>> {
    let room = &stored.event.room_id;
    let mut related = relation(&stored.event);
    for _ in 0..MAX_HOPS {
        let Some((parent, rel_type)) = related else { return Ok(None) };
        if rel_type == "m.thread" {
            return Ok(Some(parent));
        }
        let parent = core.store.event(&parent).await?;
        related = parent.filter(|parent| parent.event.room_id == *room).and_then(|it| relation(&it.event));
    }
    Ok(related.filter(|(_, rel_type)| rel_type == "m.thread").map(|(root, _)| root))
}

/// What is kept of a receipt beside its key.
fn data_of(receipt: &Receipt) -> String {
    match receipt.ts {
        Some(ts) => serde_json::json!({ "ts": ts }).to_string(),
        None => "{}".to_owned(),
    }
}
