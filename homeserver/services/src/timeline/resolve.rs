//! State at events, and several states made one.

use super::error::TimelineError;
use crate::Core;
use ruma::{OwnedEventId, RoomVersionId};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::{Event, StateKey};
use waxwing_rooms::resolve::{Loaded, MAX_SIDES, Need, StateMap, resolve};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::StoredEvent;

/// Rounds of loading in one resolution: each loads what the last one lacked, a level of auth chains at a time.
const MAX_ROUNDS: usize = 10_000;

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

/// Changes entries of a state, stores the new nodes, gives the new root.
pub(crate) async fn update(
    core: &Core,
    root: NodeId,
    changes: Vec<(StateKey, Option<OwnedEventId>)>,
) -> Result<NodeId, TimelineError> {
    if changes.is_empty() {
        return Ok(root);
    }
    let changes = Arc::new(changes);
    core.store
        .write("state", Vec::new(), move |tx| {
            let changes = Arc::clone(&changes);
            Box::pin(async move { Ok(tx.state_update(root, &changes).await?) })
        })
        .await
}

/// Resolves the states at `roots` to one and stores it. `arriving` is an event that some of them hold and that is not
/// stored yet. More than can be resolved at once (somebody makes branches without end) are resolved in steps, in an
/// order that is the same everywhere.
pub(crate) async fn resolve_roots(
    core: &Core,
    version: &RoomVersionId,
    roots: &BTreeSet<NodeId>,
    arriving: Option<&Arc<Event>>,
) -> Result<NodeId, TimelineError> {
    let mut left = roots.clone();
    while left.len() > MAX_SIDES {
        let some: BTreeSet<NodeId> = left.iter().take(MAX_SIDES).copied().collect();
        left.retain(|root| !some.contains(root));
        left.insert(resolve_few(core, version, &some, arriving).await?);
    }
    resolve_few(core, version, &left, arriving).await
}

async fn resolve_few(
    core: &Core,
    version: &RoomVersionId,
    roots: &BTreeSet<NodeId>,
    arriving: Option<&Arc<Event>>,
) -> Result<NodeId, TimelineError> {
    let Some(first) = roots.first().copied() else { return Ok(NodeId::EMPTY) };
    if roots.len() == 1 {
        return Ok(first);
    }
    metrics::counter!("waxwing_state_resolutions").increment(1);
    let mut states: Vec<StateMap> = Vec::with_capacity(roots.len());
    {
        let mut conn = core.store.read().await?;
        for root in roots {
            states.push(core.store.state(&mut conn).entries(*root).await?.into_iter().collect());
        }
    }
    let base = states[0].clone();
    let resolved = resolve_loading(core, version, states, arriving).await?;
    let mut changes: Vec<(StateKey, Option<OwnedEventId>)> = Vec::new();
    for (key, id) in &resolved {
        if base.get(key) != Some(id) {
            changes.push((key.clone(), Some(id.clone())));
        }
    }
    changes.extend(base.into_keys().filter(|key| !resolved.contains_key(key)).map(|key| (key, None)));
    update(core, first, changes).await
}

pub(super) async fn resolve_loading(
    core: &Core,
    version: &RoomVersionId,
    states: Vec<StateMap>,
    arriving: Option<&Arc<Event>>,
) -> Result<StateMap, TimelineError> {
    let mut loaded = Loaded::new();
    if let Some(event) = arriving {
        // What cannot be found would be left out of account.
        loaded.insert(Arc::clone(event), false);
    }
    let states = Arc::new(states);
    for _ in 0..MAX_ROUNDS {
        let (version, input) = (version.clone(), Arc::clone(&states));
        // Much CPU, no waiting: not on the threads that serve requests.
        let (answer, back) = tokio::task::spawn_blocking(move || {
            let answer = resolve(&version, &input, &loaded);
            (answer, loaded)
        })
        .await
        .map_err(|error| TimelineError::Internal(error.to_string()))?;
        loaded = back;
        let wanted: Vec<OwnedEventId> = match answer {
            Ok(resolved) => return Ok(resolved),
            Err(Need::Events(ids) | Need::Edges(ids)) => ids.into_iter().collect(),
            Err(Need::Impossible(why)) => return Err(TimelineError::Internal(why)),
        };
        load_with_chains(core, &mut loaded, wanted).await?;
    }
    Err(TimelineError::Internal("state resolution needs too many events".to_owned()))
}

/// Levels of auth chain loaded ahead of the question: saves as many rounds.
const LOOK_AHEAD: usize = 4;

async fn load_with_chains(
    core: &Core,
    loaded: &mut Loaded,
    mut wanted: Vec<OwnedEventId>,
) -> Result<(), TimelineError> {
    for level in 0..LOOK_AHEAD {
        let found = core.store.events(&wanted).await?;
        let mut next: BTreeSet<OwnedEventId> = BTreeSet::new();
        for id in wanted {
            match found.get(&id) {
                Some(stored) => {
                    for auth in &stored.event.auth_events {
                        if loaded.event(auth).is_none() {
                            next.insert(auth.clone());
                        }
                    }
                    loaded.insert(Arc::clone(&stored.event), stored.flags.rejected);
                }
                // Ahead of the question an absent event is left for the question itself.
                None if level == 0 => loaded.insert_absent(id),
                None => {}
            }
        }
        if next.is_empty() {
            return Ok(());
        }
        wanted = next.into_iter().collect();
    }
    Ok(())
}
