//! What answers have beside rooms: to-device messages, keys, account data, receipts, typing.

use super::super::account_data::entry;
use super::super::ephemeral::{receipt_event, typing_event};
use super::super::filter::SyncFilter;
use super::answer::{AccountDataNews, ExtensionNews, KeyNews};
use super::list::Relevant;
use super::request::{Extensions, Reach, ToDeviceRule};
use super::slide::{Base, Slide, Told};
use crate::thread_subscriptions::{SubscriptionPage, changes, is_change};
use ruma::OwnedRoomId;
use ruma::events::TimelineEventType;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use waxwing_model::Event;
use waxwing_storage::{Fact, ReceiptRow, StoreResult};

/// People verify each other in direct chats; this leaves room for a bot or two.
const FEW_MEMBERS: u64 = 4;

/// An extension that an answer had.
#[derive(Clone, Copy)]
enum Part {
    E2ee = 1,
    AccountData = 2,
    Receipts = 4,
    Typing = 8,
    ThreadSubscriptions = 16,
}

impl Extensions {
    /// Those whose answers go on from the last one, as bits.
    pub(super) fn parts(&self) -> u8 {
        let part = |there: bool, part: Part| if there { part as u8 } else { 0 };
        part(self.e2ee, Part::E2ee)
            | part(self.account_data.is_some(), Part::AccountData)
            | part(self.receipts.is_some(), Part::Receipts)
            | part(self.typing.is_some(), Part::Typing)
            | part(self.thread_subscriptions.is_some(), Part::ThreadSubscriptions)
    }
}

impl Slide<'_> {
    /// Whether the client has nothing of an extension.
    fn begins(&self, part: Part) -> bool {
        self.build.since.is_none() || self.parts & part as u8 == 0
    }

    /// All of them. `told` are the rooms of the answer.
    pub(super) async fn extensions(&self, told: &BTreeMap<OwnedRoomId, Told>) -> StoreResult<ExtensionNews> {
        let wanted = &self.request.extensions;
        let mut news = ExtensionNews::default();
        if let Some(rule) = &wanted.to_device {
            news.to_device = self.to_device(*rule).await?;
        }
        if wanted.e2ee {
            news.e2ee = self.keys().await?;
        }
        if let Some(reach) = &wanted.account_data {
            news.account_data = Some(self.account_data(reach, told).await?);
        }
        if let Some(reach) = &wanted.receipts {
            news.receipts = Some(self.receipts(reach, told).await?);
        }
        if let Some(reach) = &wanted.typing {
            news.typing = Some(self.typing(reach, told));
        }
        if let Some(limit) = wanted.thread_subscriptions {
            news.thread_subscriptions = Some(self.thread_subscriptions(limit).await?);
        }
        if let Some(rule) = wanted.sticky_events {
            news.sticky_events = Some(self.sticky_events(rule).await?);
        }
        Ok(news)
    }

    /// The threads that the user began or ceased to follow, the newest change first.
    async fn thread_subscriptions(&self, limit: usize) -> StoreResult<SubscriptionPage> {
        let build = self.build;
        let after = match build.since.filter(|_| !self.begins(Part::ThreadSubscriptions)) {
            None => 0,
            Some(since) if self.window.own.iter().any(|row| is_change(row)) => since.0,
            Some(_) => return Ok(SubscriptionPage::default()),
        };
        changes(build.core(), build.user(), after, build.upto.0, Some(limit)).await
    }

    async fn to_device(&self, rule: ToDeviceRule) -> StoreResult<Option<(Vec<Box<RawValue>>, String)>> {
        let Some(device) = &self.request.viewer.device else { return Ok(None) };
        let (messages, upto) = self.build.to_device(device, rule.since, rule.limit).await?;
        Ok(Some((messages, upto.to_string())))
    }

    /// Whether the connection is one for keys alone, and something was said in a room of few that may be a step of a
    /// verification. Clients on matrix-sdk answer such a step when this connection comes back, and at no other time:
    /// left alone they would take half a minute for each.
    pub(super) async fn may_have_steps(&self) -> StoreResult<bool> {
        let request = self.request;
        if !request.extensions.e2ee || !request.lists.is_empty() || !request.subscriptions.is_empty() {
            return Ok(false);
        }
        let is_step = |event: &Event| {
            let kind = event.kind.to_string();
            event.sender != self.build.user()
                && (event.kind == TimelineEventType::RoomEncrypted || kind.starts_with("m.key.verification."))
        };
        for (room, rows) in &self.window.rooms {
            let mut events = rows.rows().iter().filter_map(|row| row.event.as_ref());
            if events.any(|stored| is_step(&stored.event))
                && self.build.member_counts(room).await?.joined <= FEW_MEMBERS
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn keys(&self) -> StoreResult<Option<KeyNews>> {
        let Some(device) = &self.request.viewer.device else { return Ok(None) };
        let build = self.build;
        let device_lists = build.device_lists(&self.window, &self.shown).await?;
        let counts = build.sync.devices.counts(build.core(), build.user(), device, build.upto).await?;
        let changed = self.window.own.iter().any(|row| {
            row.fact == Fact::OneTimeKeys && row.reference.as_deref().is_none_or(|other| other == device)
        });
        Ok(Some(KeyNews {
            device_lists,
            one_time: counts.one_time.clone(),
            fallback: counts.fallback.clone(),
            changed,
        }))
    }

    /// The rooms that an extension tells of.
    fn covered<'s>(&'s self, reach: &'s Reach) -> impl Iterator<Item = (&'s OwnedRoomId, &'s Relevant)> {
        let rooms = self.matched.rooms.iter();
        rooms.filter(|(room, relevant)| reach.covers(room, relevant.subscribed, &relevant.lists))
    }

    async fn account_data(
        &self,
        reach: &Reach,
        told: &BTreeMap<OwnedRoomId, Told>,
    ) -> StoreResult<AccountDataNews> {
        let begins = self.begins(Part::AccountData);
        let global = self.build.global_account_data(&self.window, begins, &SyncFilter::default()).await?;
        let mut news = AccountDataNews { global, rooms: BTreeMap::new() };
        let mut whole = BTreeSet::new();
        for (room, _) in self.covered(reach) {
            if begins || told.get(room).is_some_and(|told| told.anew) {
                whole.insert(room);
            } else if let Base::Rows(rows) = self.base(room) {
                let events = self.build.room_account_data(room, rows, false).await?;
                if !events.is_empty() {
                    news.rooms.insert(room.clone(), events);
                }
            }
        }
        if !whole.is_empty() {
            let all = self.build.core().store.read().await?.account_data_all(self.build.user()).await?;
            for (room, kind, content) in all {
                let Some(room) = room.filter(|room| whole.contains(room)) else { continue };
                news.rooms.entry(room).or_default().extend(entry(&kind, &content));
            }
        }
        Ok(news)
    }

    async fn receipts(
        &self,
        reach: &Reach,
        told: &BTreeMap<OwnedRoomId, Told>,
    ) -> StoreResult<BTreeMap<OwnedRoomId, Box<RawValue>>> {
        let begins = self.begins(Part::Receipts);
        let mut news = BTreeMap::new();
        for (room, relevant) in self.covered(reach) {
            if relevant.membership != "join" {
                continue;
            }
            let told = told.get(room);
            let receipts: Vec<ReceiptRow> = if begins || told.is_some_and(|told| told.anew) {
                // Of a room as a whole, only those at what is shown matter, and the user's own.
                let shown = told.map_or(&[][..], |told| &told.events);
                let ahead = self.build.ahead();
                if ahead.rows.contains_key(room) {
                    let read = ahead.receipts.get(room).into_iter().flatten();
                    let user = self.build.user();
                    read.filter(|row| row.user_id == user || shown.iter().any(|id| *id == row.event_id))
                        .cloned()
                        .collect()
                } else {
                    let mut conn = self.build.core().store.read().await?;
                    conn.receipts_at(room, self.build.user(), shown).await?
                }
            } else if let Base::Rows(rows) = self.base(room) {
                self.build.receipts_of_rows(room, rows).await?
            } else {
                continue;
            };
            if let Some(event) = receipt_event(&receipts) {
                news.insert(room.clone(), event);
            }
        }
        Ok(news)
    }

    fn typing(
        &self,
        reach: &Reach,
        told: &BTreeMap<OwnedRoomId, Told>,
    ) -> BTreeMap<OwnedRoomId, Box<RawValue>> {
        let begins = self.begins(Part::Typing);
        let changed = self.build.typing_rooms();
        let mut news = BTreeMap::new();
        for (room, _) in self.covered(reach).filter(|(_, relevant)| relevant.membership == "join") {
            let anew = begins || told.get(room).is_some_and(|told| told.anew);
            if !anew && !changed.contains(room) {
                continue;
            }
            let mut typists = self.build.sync.typing.typists(room);
            typists.retain(|user| !self.build.ignored.contains(user));
            if !typists.is_empty() || !anew {
                news.extend(typing_event(&typists).map(|event| (room.clone(), event)));
            }
        }
        news
    }
}
