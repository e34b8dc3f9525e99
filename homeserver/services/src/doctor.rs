//! Whether what is stored is whole: tables agree with each other, every room's state can be read and is the one that its
//! events lead to. Works beside a running server; changes nothing; reports ids and counts, never content.

use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedRoomId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use waxwing_model::StateKey;
use waxwing_storage::{RoomRow, Store, StoreError, StoredEvent};

/// Rooms read at once.
const ROOMS: i64 = 200;
/// A room that changes while it is looked at is looked at again, so often.
const TRIES: usize = 5;
/// Faults that are listed; the rest are counted.
const LISTED: usize = 100;

/// What a doctor looked at and found. Its text is what `waxwing doctor` prints.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// Questions that were asked, and how many rows were at fault.
    questions: Vec<(&'static str, u64)>,
    rooms: u64,
    partial: u64,
    entries: u64,
    faults: Vec<String>,
    found: u64,
}

impl Diagnosis {
    /// Whether everything is whole.
    pub fn is_healthy(&self) -> bool {
        self.found == 0
    }

    /// The first faults.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    fn fault(&mut self, text: String) {
        self.found += 1;
        if self.faults.len() < LISTED {
            self.faults.push(text);
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.questions {
            writeln!(f, "{count:>8}  {what}")?;
        }
        writeln!(f, "{:>8}  rooms whose state was read and compared with its events", self.rooms)?;
        writeln!(f, "{:>8}  entries of state in them", self.entries)?;
        writeln!(f, "{:>8}  rooms that still wait for their members, which were left out", self.partial)?;
        for fault in &self.faults {
            writeln!(f, "FAULT: {fault}")?;
        }
        match self.found {
            0 => write!(f, "the database is whole"),
            count => write!(f, "{count} faults"),
        }
    }
}

/// Looks through the whole database.
///
/// # Errors
/// A row that cannot be read ends it.
pub async fn examine(store: &Store) -> Result<Diagnosis, StoreError> {
    let mut diagnosis = Diagnosis::default();
    let found = store.read().await?.disagreements().await?;
    for disagreement in found {
        diagnosis.questions.push((disagreement.what, disagreement.count));
        if disagreement.count > 0 {
            let example = disagreement.example.unwrap_or_default();
            diagnosis.fault(format!("{} {}, {example} among them", disagreement.count, disagreement.what));
        }
    }
    let mut after = String::new();
    loop {
        let rooms = store.read().await?.rooms_scan(&after, ROOMS).await?;
        let Some(last) = rooms.last() else { return Ok(diagnosis) };
        last.as_str().clone_into(&mut after);
        for room in rooms {
            examine_room(store, &room, &mut diagnosis).await?;
        }
    }
}

async fn examine_room(
    store: &Store,
    room: &OwnedRoomId,
    diagnosis: &mut Diagnosis,
) -> Result<(), StoreError> {
    let mut faults = Vec::new();
    for _ in 0..TRIES {
        let Some(row) = store.read().await?.room_load(room).await? else { return Ok(()) };
        if row.partial {
            diagnosis.partial += 1;
            return Ok(());
        }
        let (count, found) = faults_of(store, &row).await?;
        faults = found;
        let unchanged =
            store.read().await?.room_load(room).await?.is_some_and(|now| now.revision == row.revision);
        if faults.is_empty() || unchanged {
            diagnosis.entries += count;
            break;
        }
    }
    diagnosis.rooms += 1;
    for fault in faults {
        diagnosis.fault(format!("{room}: {fault}"));
    }
    Ok(())
}

/// How many entries the room's state has, and what is wrong with it.
async fn faults_of(store: &Store, row: &RoomRow) -> Result<(u64, Vec<String>), StoreError> {
    let state: BTreeMap<StateKey, OwnedEventId> = match entries(store, row.state_root).await? {
        Ok(state) => state,
        Err(why) => return Ok((0, vec![format!("its state cannot be read: {why}")])),
    };
    let mut faults = Vec::new();
    let ids: Vec<OwnedEventId> =
        state.values().cloned().chain(row.extremities.iter().map(|(id, _)| id.clone())).collect();
    let events = store.events(&ids).await?;
    for ((kind, key), id) in &state {
        let fits = events.get(id).is_some_and(|stored| {
            stored.event.kind == TimelineEventType::from(kind.to_string())
                && stored.event.state_key.as_deref() == Some(key)
                && stored.event.room_id == row.room_id
        });
        if !fits {
            faults.push(format!("its state names {id} as its {kind}, which it is not"));
        }
    }
    members(store, row, &state, &mut faults).await?;
    extremities(store, row, &state, &events, &mut faults).await?;
    Ok((state.len() as u64, faults))
}

async fn entries(
    store: &Store,
    root: waxwing_rooms::state_tree::NodeId,
) -> Result<Result<BTreeMap<StateKey, OwnedEventId>, StoreError>, StoreError> {
    match store.state_entries(root).await {
        Ok(entries) => Ok(Ok(entries.into_iter().collect())),
        Err(error @ StoreError::Corrupt { .. }) => Ok(Err(error)),
        Err(error) => Err(error),
    }
}

/// The table of members says what the state says.
async fn members(
    store: &Store,
    row: &RoomRow,
    state: &BTreeMap<StateKey, OwnedEventId>,
    faults: &mut Vec<String>,
) -> Result<(), StoreError> {
    let known: HashMap<String, OwnedEventId> = store
        .read()
        .await?
        .member_events(&row.room_id)
        .await?
        .into_iter()
        .map(|(user, event)| (user.to_string(), event))
        .collect();
    for ((_, user), id) in state.iter().filter(|((kind, _), _)| *kind == StateEventType::RoomMember) {
        match known.get(user) {
            Some(other) if other == id => {}
            Some(_) => {
                faults.push(format!("the members' table has another membership of {user} than the state"));
            }
            None => faults.push(format!("{user} is in the state and not in the members' table")),
        }
    }
    Ok(())
}

/// The newest events have a place in the graph, and where there is one, the state is the one after it.
async fn extremities(
    store: &Store,
    row: &RoomRow,
    state: &BTreeMap<StateKey, OwnedEventId>,
    events: &HashMap<OwnedEventId, Arc<StoredEvent>>,
    faults: &mut Vec<String>,
) -> Result<(), StoreError> {
    for (id, _) in &row.extremities {
        let placed = events.get(id).is_some_and(|stored| !stored.flags.outlier && !stored.flags.rejected);
        if !placed {
            faults.push(format!("its newest event {id} is not there, or not in the graph"));
        }
    }
    let [(only, _)] = row.extremities.as_slice() else { return Ok(()) };
    let Some(stored) = events.get(only) else { return Ok(()) };
    let Some(before) = stored.state_before else {
        faults.push(format!("the state before {only} is not known"));
        return Ok(());
    };
    let mut after = match entries(store, before).await? {
        Ok(after) => after,
        Err(why) => {
            faults.push(format!("the state before {only} cannot be read: {why}"));
            return Ok(());
        }
    };
    if let Some(key) = &stored.event.state_key {
        after.insert((stored.event.kind.to_string().into(), key.clone()), only.clone());
    }
    // What others decided by resolution is in the state alone; only a room of this server is sure to have none.
    if after != *state && row.extremities.len() == 1 && stored.event.prev_events.len() == 1 {
        faults.push(format!("its state is not the one after {only}"));
    }
    Ok(())
}
