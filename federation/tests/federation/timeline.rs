//! Rooms in memory, with last-one-wins for state resolution: enough for graphs that are nearly a line.

use async_trait::async_trait;
use parking_lot::Mutex;
use ruma::api::federation::transactions::edu::{
    DeviceListUpdateContent, DirectDeviceContent, PresenceContent, SigningKeyUpdateContent, TypingContent,
};
use ruma::{OwnedEventId, RoomId, RoomVersionId, ServerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_federation::ports::{
    EduSink, Extremities, Flags, Known, Outlier, Persisted, PortError, PortResult, ReadReceipt, Received,
    StateRoot, Timeline, Verdict,
};
use waxwing_model::{Event, StateKey};

type State = BTreeMap<StateKey, OwnedEventId>;

#[derive(Default)]
pub struct Rooms(pub Mutex<Inner>);

#[derive(Default)]
pub struct Inner {
    pub version: Option<RoomVersionId>,
    pub events: BTreeMap<OwnedEventId, Known>,
    pub order: Vec<OwnedEventId>,
    pub verdicts: BTreeMap<OwnedEventId, Verdict>,
    before: BTreeMap<OwnedEventId, StateRoot>,
    states: Vec<State>,
    forward: Vec<OwnedEventId>,
    current: Option<StateRoot>,
    /// How often `persist` answers that it lost a race.
    pub races: usize,
}

fn root(index: usize) -> StateRoot {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(index as u64).to_be_bytes());
    StateRoot::from_bytes(bytes)
}

fn index(root: StateRoot) -> usize {
    u64::from_be_bytes(root.as_bytes()[..8].try_into().unwrap()) as usize
}

impl Inner {
    fn store(&mut self, state: State) -> StateRoot {
        let at = self.states.iter().position(|known| *known == state).unwrap_or(self.states.len());
        if at == self.states.len() {
            self.states.push(state);
        }
        root(at)
    }

    fn after(&self, id: &OwnedEventId) -> Option<State> {
        let mut state = self.states[index(*self.before.get(id)?)].clone();
        let known = &self.events[id];
        if let Some(key) = known.event.state_entry().filter(|_| !known.flags.rejected) {
            state.insert(key, id.clone());
        }
        Some(state)
    }

    fn current_after(&mut self) -> StateRoot {
        let mut merged = State::new();
        for id in self.forward.clone() {
            merged.extend(self.after(&id).unwrap());
        }
        self.store(merged)
    }
}

impl Rooms {
    /// A room that we are in, with these events in it, the last being the forward extremity.
    pub fn with(version: RoomVersionId, events: &[Arc<Event>]) -> Rooms {
        let mut inner = Inner { version: Some(version), ..Inner::default() };
        let mut state = State::new();
        for event in events {
            let id = event.event_id.clone();
            let before = inner.store(state.clone());
            inner.before.insert(id.clone(), before);
            inner.events.insert(id.clone(), Known { event: Arc::clone(event), flags: Flags::default() });
            inner.order.push(id.clone());
            if let Some(key) = event.state_entry() {
                state.insert(key, id);
            }
        }
        inner.forward = inner.order.last().cloned().into_iter().collect();
        inner.current = Some(inner.store(state));
        Rooms(Mutex::new(inner))
    }

    pub fn order(&self) -> Vec<OwnedEventId> {
        self.0.lock().order.clone()
    }

    pub fn verdict(&self, event: &Event) -> Option<Verdict> {
        self.0.lock().verdicts.get(&event.event_id).cloned()
    }

    pub fn flags(&self, event: &Event) -> Option<Flags> {
        self.0.lock().events.get(&event.event_id).map(|known| known.flags)
    }
}

#[async_trait]
impl Timeline for Rooms {
    async fn room_version(&self, _: &RoomId) -> PortResult<Option<RoomVersionId>> {
        Ok(self.0.lock().version.clone())
    }

    async fn has_server(&self, _: &RoomId, _: &ServerName) -> PortResult<bool> {
        Ok(true)
    }

    async fn events_flags(
        &self,
        _: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Flags>> {
        let inner = self.0.lock();
        Ok(ids.iter().filter_map(|id| Some((id.clone(), inner.events.get(id)?.flags))).collect())
    }

    async fn events_load(
        &self,
        _: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Known>> {
        let inner = self.0.lock();
        Ok(ids.iter().filter_map(|id| Some((id.clone(), inner.events.get(id)?.clone()))).collect())
    }

    async fn extremities(&self, _: &RoomId) -> PortResult<Extremities> {
        Ok(Extremities { events: self.0.lock().forward.clone() })
    }

    async fn state_current(&self, _: &RoomId) -> PortResult<Option<StateRoot>> {
        Ok(self.0.lock().current)
    }

    async fn state_before(&self, _: &RoomId, prev: &[OwnedEventId]) -> PortResult<Option<StateRoot>> {
        let mut inner = self.0.lock();
        let mut merged = State::new();
        for id in prev {
            match inner.after(id) {
                Some(state) => merged.extend(state),
                None => return Ok(None),
            }
        }
        Ok(Some(inner.store(merged)))
    }

    async fn state_join(
        &self,
        _: &RoomId,
        known: &[OwnedEventId],
        fetched: &[StateRoot],
    ) -> PortResult<StateRoot> {
        let mut inner = self.0.lock();
        let mut merged = State::new();
        for root in fetched {
            merged.extend(inner.states[index(*root)].clone());
        }
        for id in known {
            merged.extend(inner.after(id).ok_or_else(|| PortError::new("not known"))?);
        }
        Ok(inner.store(merged))
    }

    async fn state_entries(
        &self,
        _: &RoomId,
        root: StateRoot,
        keys: &[StateKey],
    ) -> PortResult<BTreeMap<StateKey, OwnedEventId>> {
        let inner = self.0.lock();
        let state = &inner.states[index(root)];
        Ok(keys.iter().filter_map(|key| Some((key.clone(), state.get(key)?.clone()))).collect())
    }

    async fn state_build(&self, _: &RoomId, entries: Vec<(StateKey, OwnedEventId)>) -> PortResult<StateRoot> {
        Ok(self.0.lock().store(entries.into_iter().collect()))
    }

    async fn persist(&self, received: Received) -> PortResult<Persisted> {
        let mut inner = self.0.lock();
        if inner.races > 0 {
            inner.races -= 1;
            return Ok(Persisted::Raced);
        }
        let id = received.event.event_id.clone();
        let flags = Flags {
            outlier: false,
            rejected: matches!(received.verdict, Verdict::Rejected(_)),
            soft_failed: matches!(received.verdict, Verdict::SoftFailed(_)),
        };
        inner.before.insert(id.clone(), received.state_before);
        inner.events.insert(id.clone(), Known { event: Arc::clone(&received.event), flags });
        inner.order.push(id.clone());
        if received.verdict == Verdict::Accepted && received.history.is_none() {
            inner.forward.retain(|known| !received.event.prev_events.contains(known));
            inner.forward.push(id.clone());
            inner.current = Some(inner.current_after());
        }
        inner.verdicts.insert(id, received.verdict);
        Ok(Persisted::Stored)
    }

    async fn invited_version(&self, _: &RoomId) -> PortResult<Option<RoomVersionId>> {
        Ok(None)
    }

    async fn take_back(&self, _: Arc<Event>) -> PortResult<()> {
        Ok(())
    }

    async fn history_reserve(&self, _: &RoomId, _: usize) -> PortResult<i64> {
        Ok(-1)
    }

    async fn persist_outliers(&self, _: &RoomId, outliers: Vec<Outlier>) -> PortResult<()> {
        let mut inner = self.0.lock();
        for outlier in outliers {
            let flags = Flags { outlier: true, rejected: outlier.rejected.is_some(), soft_failed: false };
            let known = Known { event: outlier.event, flags };
            inner.events.entry(known.event.event_id.clone()).or_insert(known);
        }
        Ok(())
    }
}

/// Writes down what came, in a line each.
#[derive(Default)]
pub struct Edus {
    pub seen: Mutex<Vec<String>>,
    pub broken: Mutex<bool>,
}

impl Edus {
    fn note(&self, line: String) -> PortResult<()> {
        if *self.broken.lock() {
            return Err(PortError::new("broken"));
        }
        self.seen.lock().push(line);
        Ok(())
    }
}

#[async_trait]
impl EduSink for Edus {
    async fn typing(&self, _: &ServerName, content: TypingContent) -> PortResult<()> {
        self.note(format!("typing {}", content.user_id))
    }
    async fn receipts(&self, _: &ServerName, receipts: Vec<ReadReceipt>) -> PortResult<()> {
        let users: Vec<String> = receipts.iter().map(|receipt| receipt.user.to_string()).collect();
        self.note(format!("receipts {}", users.join(" ")))
    }
    async fn presence(&self, _: &ServerName, content: PresenceContent) -> PortResult<()> {
        let users: Vec<String> = content.push.iter().map(|update| update.user_id.to_string()).collect();
        self.note(format!("presence {}", users.join(" ")))
    }
    async fn device_list_update(&self, _: &ServerName, content: DeviceListUpdateContent) -> PortResult<()> {
        self.note(format!("devices {}", content.user_id))
    }
    async fn signing_key_update(&self, _: &ServerName, content: SigningKeyUpdateContent) -> PortResult<()> {
        self.note(format!("keys {}", content.user_id))
    }
    async fn direct_to_device(&self, _: &ServerName, content: DirectDeviceContent) -> PortResult<()> {
        self.note(format!("to-device {}", content.sender))
    }
}
