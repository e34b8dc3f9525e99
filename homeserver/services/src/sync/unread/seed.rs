//! Counting what is unread from what was read of many rooms together.

use super::super::ahead::Newest;
use super::super::build::Build;
use super::{Room, Unread};
use crate::push::rules::RuleContext;
use ruma::events::StateEventType;
use ruma::{OwnedUserId, RoomId, UserId};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{ReceiptRow, RoomRow, StoreResult};

/// What is known of a room.
struct Known<'a> {
    row: &'a RoomRow,
    joined: u64,
    newest: &'a Newest,
    receipts: Vec<ReceiptRow>,
}

impl Build<'_> {
    /// Counts from what was read ahead of the room, if it was.
    pub(super) async fn seed_unread(&self, room: &RoomId) -> StoreResult<()> {
        let ahead = self.ahead();
        let (Some(row), Some(newest)) = (ahead.rows.get(room), ahead.newest(room)) else { return Ok(()) };
        let receipts = ahead.receipts.get(room).into_iter().flatten();
        let receipts = receipts.filter(|receipt| receipt.user_id == self.user()).cloned().collect();
        let joined = self.member_counts(room).await?.joined;
        let known = Known { row, joined, newest: &newest, receipts };
        self.sync.unread.seed(self.user(), &self.ignored, self.upto, known).await
    }
}

impl Unread {
    async fn seed(
        &self,
        user: &UserId,
        ignored: &Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
        known: Known<'_>,
    ) -> StoreResult<()> {
        let room = &known.row.room_id;
        if self.rooms.has(user, room) {
            return Ok(());
        }
        let rules = self.rules.of(user, upto).await?;
        let mut looked = Room::new(rules.source.clone(), Arc::clone(ignored), upto);
        self.raise_to(known.receipts.clone(), &mut looked.bounds).await?;
        let mut ended = known.newest.complete;
        for stored in &known.newest.events {
            if looked.bounds.everything.is_some_and(|bound| stored.sn <= bound) {
                ended = true;
                break;
            }
            if looked.context.is_none() {
                looked.context = Some(self.seed_context(user, &known, upto).await?);
            }
            if self.take(user, &mut looked, stored, &rules, upto).await? {
                ended = true;
                break;
            }
        }
        if ended {
            let weight = looked.rest();
            self.rooms.put(user, room, looked, weight);
        }
        Ok(())
    }

    /// What rules ask about the user in the room, from the room's state.
    async fn seed_context(
        &self,
        user: &UserId,
        known: &Known<'_>,
        upto: LogPosition,
    ) -> StoreResult<RuleContext> {
        let (store, row) = (&self.core.store, known.row);
        self.rules.seed(row, known.joined, upto).await?;
        let member = store.state_get(row.state_root, StateEventType::RoomMember, user.as_str()).await?;
        let member = match member {
            Some(id) => store.event(&id).await?,
            None => None,
        };
        let name = member.and_then(|member| member.event.content_str("displayname"));
        self.rules.context_named(user, &row.room_id, name, upto).await
    }
}
