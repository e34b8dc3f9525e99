//! What a member of a group writes with: heavy rows are collected and written together at the end of the group, and
//! the room rows that it changes live in memory until then.

use crate::engine::Conn;
use crate::error::{StoreError, StoreResult};
use crate::events::{EventFlags, StoredEvent};
use crate::log::NewRow;
use crate::outgoing::{NewOutgoing, Outgoing, ServerSet};
use crate::redactions::Redacted;
use crate::repeats::{Answered, Forgotten, Repeats};
use crate::rooms::RoomRow;
use crate::state::NodeCache;
use crate::store::{EventCache, Inner, ServerCache};
use crate::thread_subscriptions::ThreadSubscriptionMark;
use crate::unfiled::{Taken, Unfiled};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::state_tree::{Node, NodeId};

/// Where an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the end of the timeline, seen by every reader of the log. Its log row is appended with it.
    Live,
    /// In the graph without being announced: soft-failed or rejected.
    Silent,
    /// In history, with a number of [`Tx::history_reserve`].
    History(i64),
    /// Nowhere: it only authorises others or is part of fetched state.
    Outlier,
}

/// A row of the log that will get its position at the end of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub(crate) usize);

#[derive(Clone)]
pub(crate) struct NewEvent {
    pub event: Arc<Event>,
    pub flags: EventFlags,
    pub state_before: Option<NodeId>,
    /// The log row that announces it.
    pub slot: Option<Slot>,
    /// Its number, if it was reserved.
    pub number: Option<i64>,
    /// The event of this group that redacted it.
    pub redacted_by: Option<OwnedEventId>,
}

pub(crate) struct OutboxRow {
    pub destination: OwnedServerName,
    pub slot: Slot,
    pub room: Option<OwnedRoomId>,
    pub reference: Option<OwnedEventId>,
    pub json: Option<Arc<str>>,
}

pub(crate) struct ToDeviceRow {
    pub user: OwnedUserId,
    pub device: String,
    pub slot: Slot,
    pub content: Arc<str>,
}

pub(crate) struct RelationRow {
    pub parent: OwnedEventId,
    pub child: usize,
    pub rel_type: String,
}

/// The key of a request that may be repeated: user, device, endpoint, transaction id.
pub type TransactionKey = (OwnedUserId, String, String, String);

/// Collected rows.
#[derive(Default)]
pub(crate) struct Buffers {
    pub log: Vec<NewRow>,
    pub events: Vec<NewEvent>,
    /// Which of these are written redacted.
    pub redacted: Vec<Redacted>,
    pub nodes: Vec<(NodeId, Arc<Node>)>,
    pub outbox: Vec<OutboxRow>,
    pub outgoing: Vec<NewOutgoing>,
    pub to_device: Vec<ToDeviceRow>,
    pub relations: Vec<RelationRow>,
    pub transactions: Vec<Answered>,
    pub forgotten: Vec<Forgotten>,
    pub thread_subscriptions: Vec<ThreadSubscriptionMark>,
    /// To-device messages that go.
    pub taken: Vec<Taken>,
}

struct Marks([usize; 12]);

impl Buffers {
    fn marks(&self) -> Marks {
        Marks([
            self.log.len(),
            self.events.len(),
            self.nodes.len(),
            self.outbox.len(),
            self.to_device.len(),
            self.relations.len(),
            self.transactions.len(),
            self.thread_subscriptions.len(),
            self.outgoing.len(),
            self.forgotten.len(),
            self.taken.len(),
            self.redacted.len(),
        ])
    }
    fn truncate(&mut self, Marks(lengths): &Marks) {
        self.log.truncate(lengths[0]);
        self.events.truncate(lengths[1]);
        self.nodes.truncate(lengths[2]);
        self.outbox.truncate(lengths[3]);
        self.to_device.truncate(lengths[4]);
        self.relations.truncate(lengths[5]);
        self.transactions.truncate(lengths[6]);
        self.thread_subscriptions.truncate(lengths[7]);
        self.outgoing.truncate(lengths[8]);
        self.forgotten.truncate(lengths[9]);
        self.taken.truncate(lengths[10]);
        self.redacted.truncate(lengths[11]);
    }
}

pub(crate) struct RoomSlot {
    pub row: RoomRow,
    pub new: bool,
    pub dirty: bool,
}

/// The transaction of a group, as one of its members sees it. Lookups come from [`Conn`].
pub struct Tx {
    pub(crate) conn: Conn,
    pub(crate) buffers: Buffers,
    pub(crate) rooms: BTreeMap<OwnedRoomId, RoomSlot>,
    /// Events of this group by id: an index into `buffers.events`.
    pub(crate) new_events: HashMap<OwnedEventId, usize>,
    /// Events that others relate to now, with their rooms; too many where a member was undone.
    pub(crate) related: Vec<(OwnedRoomId, OwnedEventId)>,
    pub(crate) nodes: Arc<NodeCache>,
    events: Arc<EventCache>,
    pub(crate) servers: Arc<ServerCache>,
    pub(crate) repeats: Arc<Repeats>,
    /// Events that this group changed: the cache still has them as they were.
    changed: HashSet<OwnedEventId>,
    /// Answers to requests of this group's members that were given before the group.
    pub(crate) answered: HashMap<TransactionKey, Option<String>>,
    /// Devices that members are about to ask for, as they were before the group; none once something was written.
    pub(crate) devices: HashMap<OwnedUserId, Vec<String>>,
    pub(crate) unfiled: Arc<Unfiled>,
    head: i64,
    /// Each member that writes has a savepoint, to which it goes back when it fails.
    careful: bool,
    savepoint: bool,
    /// The member has written something that is not in the buffers.
    wrote: bool,
    marks: Marks,
    undo_rooms: Vec<(OwnedRoomId, Option<(RoomRow, bool)>)>,
}

impl Deref for Tx {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.conn
    }
}
impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

impl Tx {
    /// Where it is not `careful`, a member that fails after it wrote takes the whole group with it.
    pub(crate) fn new(conn: Conn, inner: &Inner, careful: bool) -> Tx {
        Tx {
            conn,
            buffers: Buffers::default(),
            rooms: BTreeMap::new(),
            new_events: HashMap::new(),
            related: Vec::new(),
            nodes: Arc::clone(&inner.nodes),
            events: Arc::clone(&inner.events),
            servers: Arc::clone(&inner.servers),
            repeats: Arc::clone(&inner.repeats),
            changed: HashSet::new(),
            answered: HashMap::new(),
            devices: HashMap::new(),
            unfiled: Arc::clone(&inner.unfiled),
            head: inner.tail.head().0,
            careful,
            savepoint: false,
            wrote: false,
            marks: Marks([0; 12]),
            undo_rooms: Vec::new(),
        }
    }

    /// A member begins: remember what to go back to.
    pub(crate) fn member_begin(&mut self) {
        self.savepoint = false;
        self.wrote = false;
        self.conn.take_failed();
        self.marks = self.buffers.marks();
        self.undo_rooms.clear();
    }

    /// The member is done; its writes stay.
    pub(crate) async fn member_keep(&mut self) -> StoreResult<()> {
        if std::mem::take(&mut self.savepoint) {
            self.conn.execute("RELEASE SAVEPOINT member").await?;
        }
        if self.conn.take_failed() {
            return Err(StoreError::Commit("a statement failed, and the write went on".to_owned()));
        }
        Ok(())
    }

    /// The member failed; its writes go, its neighbours' stay. Not so (`false`) where it wrote without a savepoint: then
    /// the group must be undone as a whole.
    pub(crate) async fn member_undo(&mut self) -> StoreResult<bool> {
        if self.wrote && !self.savepoint {
            return Ok(false);
        }
        self.buffers.truncate(&self.marks);
        let events = self.buffers.events.len();
        self.new_events.retain(|_, index| *index < events);
        for (room, before) in std::mem::take(&mut self.undo_rooms).into_iter().rev() {
            match before {
                Some((row, dirty)) => {
                    if let Some(slot) = self.rooms.get_mut(&room) {
                        slot.row = row;
                        slot.dirty = dirty;
                    }
                }
                None => {
                    self.rooms.remove(&room);
                }
            }
        }
        if std::mem::take(&mut self.savepoint) {
            self.conn.execute("ROLLBACK TO SAVEPOINT member").await?;
            self.conn.execute("RELEASE SAVEPOINT member").await?;
        }
        Ok(true)
    }

    /// The connection, for a statement that writes at once.
    pub(crate) async fn writing(&mut self) -> StoreResult<&mut Conn> {
        if self.careful && !self.savepoint {
            self.conn.execute("SAVEPOINT member").await?;
            self.savepoint = true;
        }
        self.wrote = true;
        self.devices.clear();
        Ok(&mut self.conn)
    }

    /// About the position that the next row will get: an order, not a reference.
    pub(crate) fn position_hint(&self) -> i64 {
        self.head + self.buffers.log.len() as i64 + 1
    }

    /// The room's row, locked until the group ends. Name the room in [`crate::Store::write`], so that the rows of a
    /// group are locked in one order.
    pub async fn room(&mut self, id: &RoomId) -> StoreResult<Option<RoomRow>> {
        if !self.rooms.contains_key(id) {
            let lock = crate::dialect::for_update(self.conn.engine());
            let found = self.conn.rooms_load_with(&[id.to_owned()], lock).await?;
            for (room, row) in found {
                self.rooms.insert(room, RoomSlot { row, new: false, dirty: false });
            }
        }
        Ok(self.rooms.get(id).map(|slot| slot.row.clone()))
    }

    /// The room's row as this group has it, not locked: to look at another room than those that the write named.
    pub async fn room_peek(&mut self, id: &RoomId) -> StoreResult<Option<RoomRow>> {
        match self.rooms.get(id) {
            Some(slot) => Ok(Some(slot.row.clone())),
            None => self.conn.room_load(id).await,
        }
    }

    /// Replaces the room's row, or makes it. Its revision grows by one.
    pub async fn room_put(&mut self, mut row: RoomRow) -> StoreResult<()> {
        let before = self.room(&row.room_id).await?;
        row.revision = before.as_ref().map_or(1, |before| before.revision + 1);
        row.newest_ts = before.as_ref().map_or(row.newest_ts, |before| before.newest_ts.max(row.newest_ts));
        let id = row.room_id.clone();
        if let Some(slot) = self.rooms.get_mut(&id) {
            self.undo_rooms.push((id, Some((slot.row.clone(), slot.dirty))));
            slot.row = row;
            slot.dirty = true;
        } else {
            self.undo_rooms.push((id.clone(), None));
            self.rooms.insert(id, RoomSlot { row, new: true, dirty: true });
        }
        Ok(())
    }

    /// Appends a row to the log.
    pub fn log_append(&mut self, row: NewRow) -> Slot {
        self.buffers.log.push(row);
        Slot(self.buffers.log.len() - 1)
    }

    /// Adds `data` to the row of this transaction that announces the event.
    pub fn log_note(&mut self, event: &ruma::EventId, data: String) {
        let announces = |row: &&mut NewRow| {
            row.fact == crate::Fact::Event && row.reference.as_deref() == Some(event.as_str())
        };
        if let Some(row) = self.buffers.log.iter_mut().rev().find(announces) {
            row.data = Some(data);
        }
    }

    /// Stores an event. `row` announces it when it is [`Place::Live`] (and is ignored otherwise). `relates` is the
    /// event and relation type that its content names.
    pub fn event_put(
        &mut self,
        event: Arc<Event>,
        flags: EventFlags,
        state_before: Option<NodeId>,
        place: Place,
        row: NewRow,
        relates: Option<(OwnedEventId, String)>,
    ) -> Option<Slot> {
        let slot = (place == Place::Live).then(|| self.log_append(row));
        let index = self.buffers.events.len();
        self.new_events.insert(event.event_id.clone(), index);
        let room = event.room_id.clone();
        let number = match place {
            Place::History(number) => Some(number),
            Place::Live | Place::Silent | Place::Outlier => None,
        };
        self.buffers.events.push(NewEvent { event, flags, state_before, slot, number, redacted_by: None });
        if let Some((parent, rel_type)) = relates {
            self.related.push((room, parent.clone()));
            self.buffers.relations.push(RelationRow { parent, child: index, rel_type });
        }
        slot
    }

    /// Reserves `count` numbers below everything that there is; gives the lowest. The oldest event gets it.
    pub async fn history_reserve(&mut self, count: i64) -> StoreResult<i64> {
        let (_, lowest, _) = self.writing().await?.log_advance(0, count, 0).await?;
        Ok(lowest)
    }

    /// Those of `ids` that are known, this group's own among them (with `sn` 0: it is not decided yet).
    pub async fn events_known(&mut self, ids: &[OwnedEventId]) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let mut known = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        for id in ids {
            match self.new_events.get(id) {
                Some(index) => {
                    let new = &self.buffers.events[*index];
                    let redacted = self.buffers.redacted.iter().rfind(|redacted| redacted.index == *index);
                    known.push(Arc::new(StoredEvent {
                        event: Arc::clone(redacted.map_or(&new.event, |redacted| &redacted.event)),
                        sn: 0,
                        flags: new.flags,
                        state_before: new.state_before,
                        redacted_by: redacted.map(|redacted| redacted.by.clone()),
                    }));
                }
                None => match self.events.get(id).filter(|_| !self.changed.contains(id)) {
                    Some(stored) => known.push(stored),
                    None => missing.push(id.clone()),
                },
            }
        }
        for stored in self.conn.events_load(&missing).await? {
            if !self.changed.contains(&stored.event.event_id) {
                self.events.insert(stored.event.event_id.clone(), Arc::clone(&stored));
            }
            known.push(stored);
        }
        Ok(known)
    }

    /// Where in the group's events this one is.
    pub(crate) fn new_event(&self, id: &ruma::EventId) -> Option<usize> {
        self.new_events.get(id).copied()
    }

    /// The event is not as the cache has it any more.
    pub(crate) fn event_changed(&mut self, id: &ruma::EventId) {
        self.changed.insert(id.to_owned());
    }

    /// Queues an event for these servers, in the order of the log.
    pub fn outgoing_put(&mut self, slot: Slot, room: OwnedRoomId, event: OwnedEventId, servers: ServerSet) {
        self.buffers.outgoing.push(NewOutgoing { slot, what: Outgoing::Event { room, event }, servers });
    }

    /// Queues an EDU, `{edu_type, content}`, for these servers, in the order of the log.
    pub fn outgoing_edu_put(&mut self, slot: Slot, edu: Arc<str>, servers: ServerSet) {
        self.buffers.outgoing.push(NewOutgoing { slot, what: Outgoing::Edu(edu), servers });
    }

    /// Queues a PDU (`reference`) or an EDU (`json`) for a destination, in the order of the log.
    pub fn outbox_put(
        &mut self,
        destination: OwnedServerName,
        slot: Slot,
        room: Option<OwnedRoomId>,
        reference: Option<OwnedEventId>,
        json: Option<Arc<str>>,
    ) {
        self.buffers.outbox.push(OutboxRow { destination, slot, room, reference, json });
    }

    /// Makes sure that rooms are locked in one order, whoever else writes.
    pub(crate) async fn lock_rooms(&mut self, ids: &[OwnedRoomId]) -> StoreResult<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let lock = crate::dialect::for_update(self.conn.engine());
        for (room, row) in self.conn.rooms_load_with(ids, lock).await? {
            self.rooms.insert(room, RoomSlot { row, new: false, dirty: false });
        }
        Ok(())
    }

    /// Which of the group's events stand in their room's timeline in the order of their times; the rooms' rows are told.
    pub(crate) fn in_time(&mut self, events: &[NewEvent]) -> Vec<bool> {
        events
            .iter()
            .map(|new| {
                let slot = self.rooms.get_mut(&new.event.room_id).filter(|slot| slot.dirty);
                let (Some(slot), Some(_)) = (slot, new.slot) else { return false };
                let at = new.event.sent_at();
                let in_time = at >= slot.row.newest_ts;
                slot.row.newest_ts = slot.row.newest_ts.max(at);
                in_time
            })
            .collect()
    }

    /// Writes the room rows that changed. A room that another node made meanwhile fails the group.
    pub(crate) async fn rooms_flush(&mut self) -> StoreResult<()> {
        for slot in self.rooms.values().filter(|slot| slot.dirty && slot.new) {
            if !self.conn.room_insert(&slot.row).await? {
                return Err(StoreError::Commit(format!("room {} was made elsewhere", slot.row.room_id)));
            }
        }
        let changed = self.rooms.values().filter(|slot| slot.dirty && !slot.new);
        let changed: Vec<&RoomRow> = changed.map(|slot| &slot.row).collect();
        self.conn.rooms_replace(&changed).await
    }
}
