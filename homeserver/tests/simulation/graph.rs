//! Rooms in memory: what the receiving side of federation needs of a store, over our pure packages.

use async_trait::async_trait;
use parking_lot::Mutex;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_federation::ports::{
    Extremities, Flags, Known, Outlier, Persisted, PortError, PortResult, Received, StateRoot, Timeline,
    Verdict,
};
use waxwing_model::{Event, StateKey};
use waxwing_rooms::resolve::{Memory, StateMap};
use waxwing_rooms::state_tree::{self, Node as TreeNode, NodeId};

#[derive(Clone)]
pub struct Entry {
    pub event: Arc<Event>,
    pub flags: Flags,
    pub before: Option<NodeId>,
}

#[derive(Clone)]
pub struct Room {
    pub version: RoomVersionId,
    pub events: BTreeMap<OwnedEventId, Entry>,
    pub root: NodeId,
    pub extremities: Vec<(OwnedEventId, u64)>,
    pub backward: BTreeSet<OwnedEventId>,
}

#[derive(Default)]
pub struct Inner {
    pub rooms: BTreeMap<OwnedRoomId, Room>,
    nodes: HashMap<NodeId, Arc<TreeNode>>,
    pub outbox: BTreeMap<OwnedServerName, Vec<(i64, OwnedRoomId, OwnedEventId)>>,
    pub position: i64,
}

#[derive(Default)]
pub struct Graph(pub Mutex<Inner>);

impl Inner {
    pub fn entries(&self, root: NodeId) -> StateMap {
        state_tree::entries(&self.nodes, root).expect("all nodes are here").into_iter().collect()
    }

    pub fn build(&mut self, entries: impl IntoIterator<Item = (StateKey, OwnedEventId)>) -> NodeId {
        let built = state_tree::build(entries);
        self.nodes.extend(built.new_nodes);
        built.root
    }

    pub fn update(&mut self, root: NodeId, key: StateKey, id: OwnedEventId) -> NodeId {
        let update = state_tree::update(&self.nodes, root, &[(key, Some(id))]).expect("all nodes are here");
        self.nodes.extend(update.new_nodes);
        update.root
    }

    pub fn get(&self, root: NodeId, keys: &[StateKey]) -> BTreeMap<StateKey, OwnedEventId> {
        state_tree::get_many(&self.nodes, root, keys).expect("all nodes are here").into_iter().collect()
    }

    /// The state after an event; none for one that is not part of the graph.
    pub fn after(&mut self, room: &RoomId, id: &OwnedEventId) -> Option<NodeId> {
        let entry = self.rooms.get(room)?.events.get(id)?.clone();
        let before = entry.before?;
        match entry.event.state_entry() {
            Some(key) if !entry.flags.rejected => Some(self.update(before, key, id.clone())),
            _ => Some(before),
        }
    }

    pub fn resolve(&mut self, room: &RoomId, roots: &BTreeSet<NodeId>) -> NodeId {
        if roots.len() == 1 {
            return *roots.first().expect("one");
        }
        let states: Vec<StateMap> = roots.iter().map(|root| self.entries(*root)).collect();
        let of = &self.rooms[room];
        let events = of.events.values().map(|entry| (Arc::clone(&entry.event), entry.flags.rejected));
        match Memory::new(events).resolve(&of.version, &states) {
            Ok(state) => self.build(state),
            Err(why) => panic!("no state resolution: {why}"),
        }
    }

    pub fn state_of(&mut self, room: &RoomId, ids: &[OwnedEventId]) -> Option<NodeId> {
        if ids.is_empty() {
            return Some(NodeId::EMPTY);
        }
        let mut roots = BTreeSet::new();
        for id in ids {
            roots.insert(self.after(room, id)?);
        }
        Some(self.resolve(room, &roots))
    }

    pub fn joined(&self, room: &RoomId, root: NodeId) -> Vec<OwnedUserId> {
        let events = &self.rooms[room].events;
        let members = self.entries(root).into_iter().filter(|(key, _)| key.0 == StateEventType::RoomMember);
        members
            .filter(|(_, id)| {
                let entry = events.get(id);
                entry.is_some_and(|e| e.event.content_str("membership").as_deref() == Some("join"))
            })
            .filter_map(|(key, _)| OwnedUserId::try_from(key.1).ok())
            .collect()
    }

    /// Puts an accepted event at the end of the room.
    pub fn append(&mut self, room: &RoomId, event: &Arc<Event>) {
        let of = self.rooms.get_mut(room).expect("the room");
        of.extremities.retain(|(id, _)| !event.prev_events.contains(id));
        of.extremities.push((event.event_id.clone(), event.depth.into()));
        let ids: Vec<OwnedEventId> = of.extremities.iter().map(|(id, _)| id.clone()).collect();
        let root = self.state_of(room, &ids).expect("extremities are part of the graph");
        self.rooms.get_mut(room).expect("the room").root = root;
    }

    fn persist(&mut self, received: Received) -> Persisted {
        let room = received.event.room_id.clone();
        let of = self.rooms.get_mut(&room).expect("the room");
        let id = received.event.event_id.clone();
        if of.events.get(&id).is_some_and(|entry| !entry.flags.outlier) {
            return Persisted::Stored;
        }
        let accepted = received.verdict == Verdict::Accepted;
        let live = accepted && received.history.is_none();
        if live && received.current_state.is_some_and(|checked| checked != of.root) {
            return Persisted::Raced;
        }
        let flags = Flags {
            outlier: false,
            rejected: matches!(received.verdict, Verdict::Rejected(_)),
            soft_failed: matches!(received.verdict, Verdict::SoftFailed(_)),
        };
        let event = received.event;
        let before = Some(received.state_before);
        of.events.insert(id.clone(), Entry { event: Arc::clone(&event), flags, before });
        let referenced = of.backward.remove(&id)
            && of.events.values().any(|e| e.flags == Flags::default() && e.event.prev_events.contains(&id));
        for prev in &event.prev_events {
            if of.events.get(prev).is_none_or(|entry| entry.flags.outlier) {
                of.backward.insert(prev.clone());
            }
        }
        if live && (!referenced || of.extremities.is_empty()) {
            self.append(&room, &event);
        }
        Persisted::Stored
    }

    pub fn keep(&mut self, room: &RoomId, outliers: Vec<Outlier>) {
        let of = self.rooms.get_mut(room).expect("the room");
        for Outlier { event, rejected } in outliers {
            let flags = Flags { outlier: true, rejected: rejected.is_some(), soft_failed: false };
            of.events.entry(event.event_id.clone()).or_insert(Entry { event, flags, before: None });
        }
    }
}

#[async_trait]
impl Timeline for Graph {
    async fn room_version(&self, room: &RoomId) -> PortResult<Option<RoomVersionId>> {
        Ok(self.0.lock().rooms.get(room).map(|room| room.version.clone()))
    }

    async fn has_server(&self, room: &RoomId, server: &ServerName) -> PortResult<bool> {
        let inner = self.0.lock();
        let Some(of) = inner.rooms.get(room) else { return Ok(false) };
        Ok(inner.joined(room, of.root).iter().any(|user| user.server_name() == server))
    }

    async fn events_flags(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Flags>> {
        let known = self.events_load(room, ids).await?;
        Ok(known.into_iter().map(|(id, known)| (id, known.flags)).collect())
    }

    async fn events_load(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Known>> {
        let inner = self.0.lock();
        let Some(room) = inner.rooms.get(room) else { return Ok(BTreeMap::new()) };
        let known = |id: &OwnedEventId| {
            let entry = room.events.get(id)?;
            Some((id.clone(), Known { event: Arc::clone(&entry.event), flags: entry.flags }))
        };
        Ok(ids.iter().filter_map(known).collect())
    }

    async fn extremities(&self, room: &RoomId) -> PortResult<Extremities> {
        let inner = self.0.lock();
        let Some(room) = inner.rooms.get(room) else { return Ok(Extremities::default()) };
        let events = room.extremities.iter().map(|(id, _)| id.clone()).collect();
        Ok(Extremities { events })
    }

    async fn state_current(&self, room: &RoomId) -> PortResult<Option<StateRoot>> {
        Ok(self.0.lock().rooms.get(room).map(|room| room.root))
    }

    async fn state_before(&self, room: &RoomId, prev: &[OwnedEventId]) -> PortResult<Option<StateRoot>> {
        Ok(self.0.lock().state_of(room, prev))
    }

    async fn state_join(
        &self,
        room: &RoomId,
        known: &[OwnedEventId],
        fetched: &[StateRoot],
    ) -> PortResult<StateRoot> {
        let mut inner = self.0.lock();
        let mut roots: BTreeSet<NodeId> = fetched.iter().copied().collect();
        for id in known {
            roots.extend(inner.after(room, id));
        }
        Ok(inner.resolve(room, &roots))
    }

    async fn state_entries(
        &self,
        _: &RoomId,
        root: StateRoot,
        keys: &[StateKey],
    ) -> PortResult<BTreeMap<StateKey, OwnedEventId>> {
        Ok(self.0.lock().get(root, keys))
    }

    async fn state_build(&self, _: &RoomId, entries: Vec<(StateKey, OwnedEventId)>) -> PortResult<StateRoot> {
        Ok(self.0.lock().build(entries))
    }

    async fn persist(&self, received: Received) -> PortResult<Persisted> {
        Ok(self.0.lock().persist(received))
    }

    async fn invited_version(&self, _: &RoomId) -> PortResult<Option<RoomVersionId>> {
        Ok(None)
    }

    async fn take_back(&self, _: Arc<Event>) -> PortResult<()> {
        Err(PortError::new("nobody is invited from outside"))
    }

    async fn history_reserve(&self, _: &RoomId, _: usize) -> PortResult<i64> {
        Ok(0)
    }

    async fn persist_outliers(&self, room: &RoomId, outliers: Vec<Outlier>) -> PortResult<()> {
        self.0.lock().keep(room, outliers);
        Ok(())
    }
}
