//! State at events, and several states made one.

use super::error::TimelineError;
use crate::Core;
use ruma::{OwnedEventId, RoomId, RoomVersionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::{Event, StateKey};
use waxwing_rooms::resolve::{AuthNode, Loaded, MAX_SIDES, Need, StateMap, resolve_conflicts};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{RoomRow, StoreError, StoredEvent};

/// The root of the state after an event; `None` for an outlier.
pub(crate) async fn state_after(core: &Core, stored: &StoredEvent) -> Result<Option<NodeId>, TimelineError> {
    let Some(before) = stored.state_before else { return Ok(None) };
    match stored.event.state_entry() {
        Some(entry) if !stored.flags.rejected => {
            Ok(Some(update(core, before, vec![(entry, Some(stored.event.event_id.clone()))]).await?))
        }
        _ => Ok(Some(before)),
    }
}

/// Changes entries of a state, gives the new root.
pub(crate) async fn update(
    core: &Core,
    root: NodeId,
    changes: Vec<(StateKey, Option<OwnedEventId>)>,
) -> Result<NodeId, TimelineError> {
    Ok(core.store.state_update(root, &changes).await?)
}

/// Resolves the states at `roots` of a room to one and stores it. `arriving` is an event that some of them hold and that
/// is not stored yet. More than can be resolved at once (somebody makes branches without end) are resolved in steps, in
/// an order that is the same everywhere.
pub(crate) async fn resolve_roots(
    core: &Core,
    row: &RoomRow,
    roots: &BTreeSet<NodeId>,
    arriving: Option<&Arc<Event>>,
) -> Result<NodeId, TimelineError> {
    let mut left = roots.clone();
    while left.len() > MAX_SIDES {
        let some: BTreeSet<NodeId> = left.iter().take(MAX_SIDES).copied().collect();
        left.retain(|root| !some.contains(root));
        left.insert(resolve_few(core, row, &some, arriving).await?);
    }
    resolve_few(core, row, &left, arriving).await
}

async fn resolve_few(
    core: &Core,
    row: &RoomRow,
    roots: &BTreeSet<NodeId>,
    arriving: Option<&Arc<Event>>,
) -> Result<NodeId, TimelineError> {
    let Some(first) = roots.first().copied() else { return Ok(NodeId::EMPTY) };
    if roots.len() == 1 {
        return Ok(first);
    }
    let roots: Vec<NodeId> = roots.iter().copied().collect();
    let sides = core.store.state_conflicts(&roots).await?;
    let here = Here { core, room: &row.room_id, agreed: Entries::Of(first) };
    let base = sides.first().cloned().unwrap_or_default();
    let keys: BTreeSet<StateKey> = sides.iter().flat_map(BTreeMap::keys).cloned().collect();
    let mut resolved = here.resolve(&row.version, sides, arriving).await?;
    let changes = keys.into_iter().filter_map(|key| {
        let winner = resolved.remove(&key);
        (base.get(&key) != winner.as_ref()).then_some((key, winner))
    });
    update(core, first, changes.collect()).await
}

/// Resolves entries of states of a room, of which the rest is not looked at.
pub(super) async fn resolve_entries(
    core: &Core,
    room: &RoomId,
    version: &RoomVersionId,
    states: [StateMap; 2],
) -> Result<StateMap, TimelineError> {
    let [mut one, mut other] = states;
    let agrees = |key: &StateKey, id: &OwnedEventId| other.get(key) == Some(id);
    let agreed: StateMap =
        one.iter().filter(|(key, id)| agrees(key, id)).map(|(key, id)| (key.clone(), id.clone())).collect();
    one.retain(|key, _| !agreed.contains_key(key));
    other.retain(|key, _| !agreed.contains_key(key));
    let here = Here { core, room, agreed: Entries::Are(agreed.clone()) };
    let resolved = here.resolve(version, vec![one, other], None).await?;
    Ok(agreed.into_iter().chain(resolved).collect())
}

/// The entries on which states agree.
enum Entries {
    /// Those of this state.
    Of(NodeId),
    /// These.
    Are(StateMap),
}

/// Loads what a resolution asks for.
struct Here<'a> {
    core: &'a Core,
    room: &'a RoomId,
    agreed: Entries,
}

impl Here<'_> {
    /// The entries at the keys at which the sides differ.
    async fn resolve(
        &self,
        version: &RoomVersionId,
        sides: Vec<StateMap>,
        arriving: Option<&Arc<Event>>,
    ) -> Result<StateMap, TimelineError> {
        metrics::counter!("waxwing_state_resolutions").increment(1);
        fill_graph(self.core, self.room).await?;
        let mut loaded = Loaded::new();
        if let Some(event) = arriving {
            self.insert_arriving(event, &mut loaded).await?;
        }
        let sides = Arc::new(sides);
        let mut stretch = STRETCH;
        for _ in 0..MAX_ROUNDS {
            let (version, input) = (version.clone(), Arc::clone(&sides));
            // Much CPU, no waiting: not on the threads that serve requests.
            let (answer, back) = tokio::task::spawn_blocking(move || {
                let answer = resolve_conflicts(&version, &input, &loaded);
                (answer, loaded)
            })
            .await
            .map_err(|error| TimelineError::Internal(error.to_string()))?;
            loaded = back;
            match answer {
                Ok(resolved) => return Ok(resolved),
                Err(Need::Later { of, after }) => {
                    let nodes = self.core.store.auth_nodes_later(self.room, after, stretch).await?;
                    let complete = (nodes.len() as i64) < stretch;
                    loaded.insert_later(of, after, nodes, complete);
                    stretch = (stretch * 2).min(LONGEST_STRETCH);
                }
                Err(need) => self.answer(need, &mut loaded).await?,
            }
        }
        Err(TimelineError::Internal("state resolution needs too many events".to_owned()))
    }

    /// What is not stored yet comes after everything that is. It could not be found, and would be left out of account.
    async fn insert_arriving(&self, event: &Arc<Event>, loaded: &mut Loaded) -> Result<(), TimelineError> {
        let own = std::iter::once(&event.event_id);
        let ids: Vec<OwnedEventId> = event.auth_events.iter().chain(own).cloned().collect();
        self.nodes_of(&ids, loaded).await?;
        loaded.insert(Arc::clone(event), false);
        if loaded.number_of(&event.event_id).is_some() {
            // It was known before it had a place in the graph of events.
            return Ok(());
        }
        let auth = event.auth_events.iter().filter_map(|id| loaded.number_of(id)).collect();
        loaded.insert_node(AuthNode { number: ARRIVING, event_id: event.event_id.clone(), auth });
        Ok(())
    }

    async fn answer(&self, need: Need, loaded: &mut Loaded) -> Result<(), TimelineError> {
        match need {
            Need::Events(ids) => self.events(ids.into_iter().collect(), loaded).await,
            Need::Entries(keys) => self.entries(keys.into_iter().collect(), loaded).await,
            Need::NodesOf(ids) => self.nodes_of(&ids.into_iter().collect::<Vec<_>>(), loaded).await,
            Need::Nodes(numbers) => self.nodes(numbers.into_iter().collect(), loaded).await,
            Need::Later { .. } | Need::Impossible(_) => Err(TimelineError::Internal(need.to_string())),
        }
    }

    async fn events(&self, mut wanted: Vec<OwnedEventId>, loaded: &mut Loaded) -> Result<(), TimelineError> {
        for level in 0..LOOK_AHEAD {
            let found = self.core.store.events(&wanted).await?;
            let mut next: BTreeSet<OwnedEventId> = BTreeSet::new();
            for id in wanted {
                match found.get(&id) {
                    Some(stored) => {
                        let auth_events = stored.event.auth_events.iter();
                        next.extend(auth_events.filter(|auth| loaded.event(auth).is_none()).cloned());
                        loaded.insert(Arc::clone(&stored.event), stored.flags.rejected);
                    }
                    // Ahead of the question an absent event is left for the question itself.
                    None if level == 0 => loaded.insert_absent(id),
                    None => {}
                }
            }
            if next.is_empty() || next.len() > MOST_AHEAD {
                return Ok(());
            }
            wanted = next.into_iter().collect();
        }
        Ok(())
    }

    async fn entries(&self, keys: Vec<StateKey>, loaded: &mut Loaded) -> Result<(), TimelineError> {
        let found = match &self.agreed {
            Entries::Of(root) => self.core.store.state_get_many(*root, &keys).await?,
            Entries::Are(entries) => keys.iter().map(|key| entries.get(key).cloned()).collect(),
        };
        for (key, id) in keys.into_iter().zip(found) {
            loaded.insert_entry(key, id);
        }
        Ok(())
    }

    async fn nodes_of(&self, ids: &[OwnedEventId], loaded: &mut Loaded) -> Result<(), TimelineError> {
        let store = &self.core.store;
        let (mut nodes, unplaced) = store.auth_nodes_of(self.room, ids).await?;
        if !unplaced.is_empty() {
            let forced = Arc::new(unplaced.clone());
            let written = store.write("auth graph", Vec::new(), move |tx| {
                let forced = Arc::clone(&forced);
                Box::pin(async move { Ok::<_, TimelineError>(tx.auth_graph_force(&forced).await?) })
            });
            written.await?;
            nodes.extend(store.auth_nodes_of(self.room, &unplaced).await?.0);
        }
        for node in nodes {
            loaded.insert_node((*node).clone());
        }
        for id in ids {
            loaded.insert_outside(id.clone());
        }
        Ok(())
    }

    /// Some of what authorises them, too: what is asked for next.
    async fn nodes(&self, mut wanted: Vec<u64>, loaded: &mut Loaded) -> Result<(), TimelineError> {
        for level in 0..NODES_AHEAD {
            let found = self.core.store.auth_nodes(self.room, &wanted).await?;
            if level == 0 && found.len() < wanted.len() {
                return Err(TimelineError::Internal("a node of the auth graph is missing".to_owned()));
            }
            let mut next: BTreeSet<u64> = BTreeSet::new();
            for node in found {
                next.extend(node.auth.iter().filter(|auth| !loaded.has_node(**auth)));
                loaded.insert_node((*node).clone());
            }
            next.retain(|number| !loaded.has_node(*number));
            if next.is_empty() || next.len() > MOST_AHEAD {
                return Ok(());
            }
            wanted = next.into_iter().collect();
        }
        Ok(())
    }
}

/// Gives all events of a room their place in the auth graph that have none: an older program stored them, or they came
/// before what authorises them. Nothing to do in almost every room.
pub(crate) async fn fill_graph(core: &Core, room: &RoomId) -> Result<(), StoreError> {
    if !core.store.read().await?.auth_graph_lacks(room).await? {
        return Ok(());
    }
    let mut after = i64::MIN;
    loop {
        let room = room.to_owned();
        let written = core.store.write("auth graph", Vec::new(), move |tx| {
            let room = room.clone();
            Box::pin(async move { tx.auth_graph_fill(&room, after, FILL_SLICE).await })
        });
        match written.await? {
            Some(last) => after = last,
            None => return Ok(()),
        }
    }
}

/// The number of an event that is not stored yet: no other has it, and none that is stored can lead to it.
const ARRIVING: u64 = i64::MAX as u64;
/// Rounds of loading in one resolution: each loads what the last one lacked, some levels of auth chains at a time.
const MAX_ROUNDS: usize = 10_000;
/// Levels of whole events loaded ahead of the question: saves as many rounds.
const LOOK_AHEAD: usize = 3;
/// Levels of nodes loaded ahead of the question. They are small.
const NODES_AHEAD: usize = 12;
/// A level of more than these is not loaded ahead: most of it would not be asked for.
const MOST_AHEAD: usize = 200;
/// Nodes that are looked through at once for descendants of others: the first few mostly settle the question. Each
/// further stretch is twice as long.
const STRETCH: i64 = 256;
/// No stretch is longer: some megabytes while they are looked through.
const LONGEST_STRETCH: i64 = 16_384;
/// Events that are placed in one write: some ten milliseconds.
const FILL_SLICE: i64 = 500;
