//! From rows of the log to what one transaction tells.

use super::interest::{Interest, event_of};
use crate::Core;
use crate::appservices::Appservice;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, MemberRow, ReceiptRow, StoreResult, StoredEvent};

/// Events of a transaction: a bridge takes in that many in a moment.
const MAX_EVENTS: usize = 100;
/// Rooms of which a transaction carries receipts.
const MAX_RECEIPT_ROOMS: usize = 100;
/// Messages to devices of a transaction.
const MAX_MESSAGES: usize = 100;
/// Bytes of events and messages after which a transaction takes no more.
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Users in device lists after which a transaction takes no more: one row may name all members of a large room.
const MAX_LISTED: usize = 5000;
/// Rows of the log that are looked at for one transaction.
pub(super) const MAX_ROWS: i64 = 1000;

/// An event that is told.
pub(super) enum Told {
    /// One of a room here.
    Stored(Arc<StoredEvent>),
    /// A membership of a room that this server is not in, as far as it is known.
    Outside(Box<MemberRow>),
}

/// A message to a device of one of its users.
pub(super) struct Message {
    pub user: OwnedUserId,
    pub device: String,
    pub position: LogPosition,
    /// `{type, sender, content}`
    pub json: Box<RawValue>,
}

/// The key of a receipt.
type ReceiptKey = (OwnedUserId, String, String);

/// What one transaction tells.
#[derive(Default)]
pub(super) struct Batch {
    /// Up to where the log is looked at.
    pub upto: LogPosition,
    pub events: Vec<Told>,
    pub receipts: BTreeMap<OwnedRoomId, BTreeMap<ReceiptKey, ReceiptRow>>,
    pub messages: Vec<Message>,
    /// Whose device lists changed.
    pub changed: BTreeSet<OwnedUserId>,
    /// Who shares no room any more.
    pub left: BTreeSet<OwnedUserId>,
    /// Devices of which the keys were counted anew.
    pub counted: BTreeSet<(OwnedUserId, String)>,
    bytes: usize,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.receipts.is_empty()
            && self.messages.is_empty()
            && self.changed.is_empty()
            && self.left.is_empty()
            && self.counted.is_empty()
    }

    fn is_full(&self) -> bool {
        self.events.len() >= MAX_EVENTS
            || self.receipts.len() >= MAX_RECEIPT_ROOMS
            || self.messages.len() >= MAX_MESSAGES
            || self.changed.len() + self.left.len() >= MAX_LISTED
            || self.bytes >= MAX_BYTES
    }
}

/// Collects what concerns one application service.
pub(super) struct Collector<'a> {
    core: &'a Core,
    appservice: &'a Appservice,
    interest: &'a mut Interest,
    batch: Batch,
}

/// What the rows after `after` up to `upto` tell, or the first of them if they are too many for one transaction. The
/// interest follows.
pub(super) async fn collect(
    core: &Core,
    appservice: &Appservice,
    interest: &mut Interest,
    after: LogPosition,
    upto: LogPosition,
) -> StoreResult<Batch> {
    let rows = core.store.log_rows(after, upto, MAX_ROWS).await?;
    interest.refresh();
    // Rows that are gone concern nobody any more.
    let batch = Batch { upto: if rows.is_empty() { upto } else { after }, ..Batch::default() };
    let mut collector = Collector { core, appservice, interest, batch };
    for row in &rows {
        if collector.batch.is_full() {
            break;
        }
        collector.row(row).await?;
        collector.batch.upto = row.position;
    }
    collector.settle_left().await?;
    Ok(collector.batch)
}

impl Collector<'_> {
    async fn row(&mut self, row: &LogRow) -> StoreResult<()> {
        match row.fact {
            Fact::Event => self.event(row).await,
            Fact::State => {
                if row.user.as_ref().is_some_and(|user| self.appservice.has_user(user)) {
                    let stored = event_of(self.core, row).await?;
                    self.interest.take_in(row, stored.as_deref());
                }
                Ok(())
            }
            Fact::Outside => self.outside(row).await,
            Fact::Receipt if self.appservice.ephemeral => self.receipt(row).await,
            Fact::ToDevice if self.appservice.ephemeral || self.appservice.encryption => {
                self.message(row).await
            }
            Fact::DeviceList if self.appservice.encryption => self.device_list(row).await,
            Fact::OneTimeKeys if self.appservice.encryption => {
                self.counted(row);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn event(&mut self, row: &LogRow) -> StoreResult<()> {
        let Some(room) = &row.room else { return Ok(()) };
        let of_user = row.user.as_ref().is_some_and(|user| self.appservice.has_user(user));
        if !of_user && !self.interest.has_room(room).await? {
            return Ok(());
        }
        let Some(stored) = event_of(self.core, row).await? else { return Ok(()) };
        if of_user {
            self.interest.take_in(row, Some(&stored));
        }
        self.batch.bytes += stored.event.json.get().len();
        self.batch.events.push(Told::Stored(stored));
        Ok(())
    }

    /// One of its users is invited to a room elsewhere, or is so no longer.
    async fn outside(&mut self, row: &LogRow) -> StoreResult<()> {
        let (Some(room), Some(user)) = (&row.room, &row.user) else { return Ok(()) };
        if !self.appservice.has_user(user) {
            return Ok(());
        }
        let member = self.core.store.read().await?.member_load(room, user).await?;
        // What has changed again since is told by a later row.
        let Some(member) = member.filter(|member| row.data.as_deref() == Some(member.membership.as_str()))
        else {
            return Ok(());
        };
        self.batch.bytes += member.stripped.as_ref().map_or(0, String::len);
        self.batch.events.push(Told::Outside(Box::new(member)));
        Ok(())
    }

    async fn receipt(&mut self, row: &LogRow) -> StoreResult<()> {
        let (Some(room), Some(user), Some(kind)) = (&row.room, &row.user, &row.reference) else {
            return Ok(());
        };
        let private = kind != "m.read";
        let concerns =
            if private { self.appservice.has_user(user) } else { self.interest.has_room(room).await? };
        if !concerns {
            return Ok(());
        }
        let thread = row.data.clone().unwrap_or_default();
        let receipt = self.core.store.read().await?.receipt_load(room, user, kind, &thread).await?;
        if let Some(receipt) = receipt {
            let key = (user.clone(), kind.clone(), thread);
            self.batch.receipts.entry(room.clone()).or_default().insert(key, receipt);
        }
        Ok(())
    }

    async fn message(&mut self, row: &LogRow) -> StoreResult<()> {
        let (Some(user), Some(device)) = (&row.user, &row.reference) else { return Ok(()) };
        if !self.appservice.has_user(user) {
            return Ok(());
        }
        let (position, before) = (row.position, LogPosition(row.position.0 - 1));
        let found = self.core.store.to_device_load(user, device, before, position, 1).await?;
        for (position, json) in found {
            self.batch.bytes += json.get().len();
            self.batch.messages.push(Message { user: user.clone(), device: device.clone(), position, json });
        }
        if self.appservice.encryption {
            self.batch.counted.insert((user.clone(), device.clone()));
        }
        Ok(())
    }

    fn counted(&mut self, row: &LogRow) {
        if let (Some(user), Some(device)) = (&row.user, &row.reference)
            && self.appservice.has_user(user)
        {
            self.batch.counted.insert((user.clone(), device.clone()));
        }
    }

    /// The application service follows the lists of everyone in its users' rooms, as one client would.
    async fn device_list(&mut self, row: &LogRow) -> StoreResult<()> {
        let Some(user) = &row.user else { return Ok(()) };
        match (&row.room, &row.reference) {
            (Some(room), _) => {
                let joined = row.data.as_deref() == Some("join");
                self.sharing(room, user, joined).await
            }
            (None, Some(other)) => {
                if self.appservice.has_user(user) {
                    self.batch.changed.extend(OwnedUserId::try_from(other.as_str()));
                }
                Ok(())
            }
            (None, None) => {
                if !self.batch.changed.contains(user) && self.interest.knows(user).await? {
                    self.batch.changed.insert(user.clone());
                }
                Ok(())
            }
        }
    }

    /// Someone came into a room, or went. When the first of its users comes or the last goes, that concerns everyone in
    /// the room.
    async fn sharing(&mut self, room: &OwnedRoomId, user: &OwnedUserId, joined: bool) -> StoreResult<()> {
        let there = self.interest.users_in(room);
        let own = self.appservice.has_user(user);
        let everyone =
            own && if joined { there.is_some_and(|users| users.len() == 1) } else { there.is_none() };
        if !everyone && there.is_none() {
            return Ok(());
        }
        let mut concerned = vec![user.clone()];
        if everyone {
            let members = self.core.store.read().await?.members_of(room, "join").await?;
            concerned.extend(members.into_iter().map(|member| member.user_id));
        }
        if joined {
            self.batch.changed.extend(concerned);
        } else {
            self.batch.left.extend(concerned);
        }
        Ok(())
    }

    /// Who left one room may be in another.
    async fn settle_left(&mut self) -> StoreResult<()> {
        for user in std::mem::take(&mut self.batch.left) {
            if !self.batch.changed.contains(&user) && !self.interest.knows(&user).await? {
                self.batch.left.insert(user);
            }
        }
        Ok(())
    }
}
