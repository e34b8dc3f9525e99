//! The one way in for events that other servers made.

use super::effects;
use super::error::TimelineError;
use super::resolve::{resolve_roots, state_after, update};
use super::{Author, Timeline, partial};
use ruma::events::StateEventType;
use ruma::{OwnedEventId, RoomVersionId};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_federation::ports::{Outlier, Persisted, Received, Verdict};
use waxwing_federation::remote::JoinedRoom;
use waxwing_model::{Event, StateKey, state_key};
use waxwing_rooms::resolve::MAX_SIDES;
use waxwing_rooms::sealed;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{EventFlags, Fact, NewRow, Place, RoomRow, StoredEvent, Tx};

/// Attempts to take in one event while others change the room.
const ATTEMPTS: usize = 20;

/// Events at the end of a room among which those are looked for that follow one that came late.
const FOLLOWERS: i64 = 1000;

/// Ends of a room beyond which no event is accepted that adds one. The row of a room names them all, and is written with each
/// event; honest servers follow the ends that there are, so that a room has a handful, or some tens after a split.
const MOST_ENDS: usize = 1_000;

/// Events without a place in the graph stored at once: a large room's state comes with a hundred thousand, and others write
/// in between.
const OUTLIERS_AT_ONCE: usize = 2_000;

/// What the room becomes with a received event.
#[derive(Clone)]
struct Step {
    revision: i64,
    state_root: NodeId,
    extremities: Vec<(OwnedEventId, u64)>,
}

impl Timeline {
    /// The form in which another server's event is kept: redacted, if it is plaintext and this server refuses that.
    pub(crate) fn sealed_form(
        &self,
        event: &Arc<Event>,
        version: &RoomVersionId,
    ) -> Result<Arc<Event>, TimelineError> {
        let policy = self.seal_policy(&event.room_id, &Author::new(event.sender.clone()));
        let redacted = sealed::seal_remote(event, version, &policy)
            .map_err(|error| TimelineError::Internal(error.to_string()))?;
        Ok(redacted.map_or_else(|| Arc::clone(event), Arc::new))
    }

    /// Takes in a received event. Idempotent.
    pub(crate) async fn take_in(&self, mut received: Received) -> Result<Persisted, TimelineError> {
        let store = &self.core.store;
        let room = received.event.room_id.clone();
        for _ in 0..ATTEMPTS {
            let row = store.read().await?.room_load(&room).await?.ok_or(TimelineError::NoRoom)?;
            received.event = match store.event(&received.event.event_id).await? {
                Some(known) if !known.flags.outlier => return Ok(Persisted::Stored),
                // What is here is kept as it is: this time it may have come redacted, by whose author was erased where
                // it comes from, or who may not see it.
                Some(known) => Arc::clone(&known.event),
                None => self.sealed_form(&received.event, &row.version)?,
            };
            let quiet = received.history.is_some() || received.verdict != Verdict::Accepted;
            if !quiet && received.current_state.is_some_and(|checked| checked != row.state_root) {
                return Ok(Persisted::Raced);
            }
            let step = if quiet { None } else { self.step(&row, &received).await? };
            if !quiet && step.is_none() {
                tracing::warn!(%room, ends = row.extremities.len(), "a room has too many ends for one more");
                received.verdict = Verdict::SoftFailed("the room has too many ends".to_owned());
            }
            let missing = self.missing_before(&received).await?;
            let pending = store.read().await?.pending_redactions(&received.event.event_id).await?;
            let pending = store.events(&pending).await?.into_values().collect();
            let work = Work { version: row.version, received: received.clone(), step, missing, pending };
            if self.commit(Arc::new(work)).await? {
                return Ok(Persisted::Stored);
            }
        }
        Err(TimelineError::Raced)
    }

    /// Prev events that are not part of our graph.
    async fn missing_before(&self, received: &Received) -> Result<Vec<OwnedEventId>, TimelineError> {
        let known = self.core.store.events(&received.event.prev_events).await?;
        Ok(received
            .event
            .prev_events
            .iter()
            .filter(|id| known.get(*id).is_none_or(|stored| stored.flags.outlier))
            .cloned()
            .collect())
    }

    /// The extremities and the state of the room with an accepted event at its end. `None` for one that would be an end
    /// too many: it is kept back until something follows it.
    async fn step(&self, row: &RoomRow, received: &Received) -> Result<Option<Step>, TimelineError> {
        if self.is_followed(row, &received.event.event_id).await? {
            let (state_root, extremities) = (row.state_root, row.extremities.clone());
            return Ok(Some(Step { revision: row.revision, state_root, extremities }));
        }
        let event = &received.event;
        let mut extremities = row.extremities.clone();
        extremities.retain(|(id, _)| !event.prev_events.contains(id));
        let others: Vec<OwnedEventId> = extremities.iter().map(|(id, _)| id.clone()).collect();
        extremities.push((event.event_id.clone(), u64::from(event.depth)));
        if extremities.len() > MOST_ENDS.max(row.extremities.len()) {
            return Ok(None);
        }
        let change = event.state_entry().map(|entry| (entry, Some(event.event_id.clone())));
        let state_root = if others.is_empty() {
            update(&self.core, received.state_before, change.into_iter().collect()).await?
        } else if change.is_none() && received.state_before == row.state_root {
            row.state_root
        } else {
            let mine = update(&self.core, received.state_before, change.into_iter().collect()).await?;
            let mut roots = BTreeSet::from([mine]);
            if others.len() < MAX_SIDES {
                for stored in self.core.store.events(&others).await?.values() {
                    roots.extend(state_after(&self.core, stored).await?);
                }
            } else {
                // What each of so many ends says has been resolved when it came. Before an event of ours follows them
                // they are joined, with all of their states.
                roots.insert(row.state_root);
            }
            resolve_roots(&self.core, row, &roots, Some(event)).await?
        };
        Ok(Some(Step { revision: row.revision, state_root, extremities }))
    }

    /// Whether others follow the event already: it was missing where history ends for us, so it is no end of the room,
    /// and what it changed is in the state by now.
    async fn is_followed(&self, row: &RoomRow, id: &OwnedEventId) -> Result<bool, TimelineError> {
        let mut conn = self.core.store.read().await?;
        if row.extremities.is_empty() || !conn.is_backward_extremity(&row.room_id, id).await? {
            return Ok(false);
        }
        // An event that is not accepted may name it, too, and such a one does not make it part of the room.
        let newest = conn.events_backward(&row.room_id, i64::MAX, FOLLOWERS).await?;
        Ok(newest.iter().any(|stored| stored.event.prev_events.contains(id)))
    }

    /// Whether the room was still as it had been.
    async fn commit(&self, work: Arc<Work>) -> Result<bool, TimelineError> {
        let core = self.core.clone();
        let rooms = vec![work.received.event.room_id.clone()];
        self.core
            .store
            .write("receive", rooms, move |tx| {
                let (core, work) = (core.clone(), Arc::clone(&work));
                Box::pin(async move { work.run(&core, tx).await })
            })
            .await
    }

    /// Stores events without a place in the graph, some at a time; those that are known are left as they are.
    pub(crate) async fn take_outliers(
        &self,
        version: &RoomVersionId,
        outliers: Vec<Outlier>,
    ) -> Result<(), TimelineError> {
        let mut sealed = Vec::with_capacity(outliers.len());
        for outlier in outliers {
            sealed.push((self.sealed_form(&outlier.event, version)?, outlier.rejected.is_some()));
        }
        for some in sealed.chunks(OUTLIERS_AT_ONCE) {
            let some: Arc<[(Arc<Event>, bool)]> = some.into();
            let written = self.core.store.write("outliers", Vec::new(), move |tx| {
                let some = Arc::clone(&some);
                Box::pin(async move { put_outliers(tx, &some).await })
            });
            written.await?;
        }
        Ok(())
    }

    /// Makes a room that one of our users has just joined through another server, or brings one up to date that we
    /// had left.
    ///
    /// # Errors
    /// [`TimelineError::Forbidden`] when the join follows what we know, and that does not allow it.
    pub async fn accept_joined(&self, joined: JoinedRoom) -> Result<(), TimelineError> {
        if self.follows_ours(&joined.join).await? {
            return self.accept_following(&joined).await;
        }
        let version = joined.version.clone();
        let mut outliers = Vec::new();
        for event in joined.state.values() {
            outliers.push((self.sealed_form(event, &version)?, false));
        }
        for outlier in &joined.auth_chain {
            outliers.push((self.sealed_form(&outlier.event, &version)?, outlier.rejected.is_some()));
        }
        let input = Arc::new((joined, outliers));
        let core = self.core.clone();
        let rooms = vec![input.0.join.room_id.clone()];
        self.core
            .store
            .write("joined room", rooms, move |tx| {
                let (core, input) = (core.clone(), Arc::clone(&input));
                Box::pin(async move { put_joined(&core, tx, &input.0, &input.1).await })
            })
            .await
    }
}

async fn put_outliers(tx: &mut Tx, outliers: &[(Arc<Event>, bool)]) -> Result<(), TimelineError> {
    let ids: Vec<OwnedEventId> = outliers.iter().map(|(event, _)| event.event_id.clone()).collect();
    let mut known: BTreeSet<OwnedEventId> =
        tx.events_known(&ids).await?.into_iter().map(|stored| stored.event.event_id.clone()).collect();
    for (event, rejected) in outliers {
        if known.insert(event.event_id.clone()) {
            let flags = EventFlags { outlier: true, rejected: *rejected, soft_failed: false };
            tx.event_put(Arc::clone(event), flags, None, Place::Outlier, NewRow::new(Fact::Event), None);
        }
    }
    Ok(())
}

async fn put_joined(
    core: &crate::Core,
    tx: &mut Tx,
    joined: &JoinedRoom,
    outliers: &[(Arc<Event>, bool)],
) -> Result<(), TimelineError> {
    put_outliers(tx, outliers).await?;
    let before =
        tx.state_build(joined.state.iter().map(|(key, event)| (key.clone(), event.event_id.clone())));
    let join = &joined.join;
    let mut row = match tx.room(&join.room_id).await? {
        Some(row) => row,
        None => RoomRow {
            room_id: join.room_id.clone(),
            version: joined.version.clone(),
            state_root: before,
            extremities: Vec::new(),
            revision: 0,
            published: false,
            encrypted: false,
            partial: false,
            newest_ts: 0,
        },
    };
    partial::mark(core, tx, &mut row, joined, before).await?;
    let entry =
        join.state_entry().ok_or_else(|| TimelineError::Internal("a join that is no state".to_owned()))?;
    row.state_root = tx.state_update(before, &[(entry, Some(join.event_id.clone()))]).await?;
    row.extremities = vec![(join.event_id.clone(), u64::from(join.depth))];
    for event in joined.state.values() {
        effects::room_flags(&mut row, event);
    }
    let members: Vec<_> = joined.state.values().filter_map(|event| effects::member_row(event)).collect();
    tx.members_save(&members, |user| core.is_local(user)).await?;
    tx.event_put(Arc::clone(join), EventFlags::NONE, Some(before), Place::Live, effects::log_row(join), None);
    for missing in &join.prev_events {
        tx.backward_extremity_add(&join.room_id, missing).await?;
    }
    let (version, root) = (row.version.clone(), row.state_root);
    tx.room_put(row).await?;
    effects::apply(core, tx, &version, root, join).await
}

/// A received event, and all that was found out before the transaction.
struct Work {
    version: RoomVersionId,
    received: Received,
    step: Option<Step>,
    missing: Vec<OwnedEventId>,
    pending: Vec<Arc<StoredEvent>>,
}

impl Work {
    async fn run(&self, core: &crate::Core, tx: &mut Tx) -> Result<bool, TimelineError> {
        let event = &self.received.event;
        let Some(row) = tx.room(&event.room_id).await? else { return Err(TimelineError::NoRoom) };
        if self.step.as_ref().is_some_and(|step| step.revision != row.revision) {
            return Ok(false);
        }
        let (flags, place) = match (&self.received.verdict, self.received.history) {
            (Verdict::Accepted, None) => (EventFlags::NONE, Place::Live),
            (Verdict::Accepted, Some(number)) => (EventFlags::NONE, Place::History(number)),
            (Verdict::SoftFailed(why), _) => {
                tracing::info!(event = %event.event_id, why, "soft-failed");
                (EventFlags { soft_failed: true, ..EventFlags::NONE }, Place::Silent)
            }
            (Verdict::Rejected(why), _) => {
                tracing::info!(event = %event.event_id, why, "rejected");
                (EventFlags { rejected: true, ..EventFlags::NONE }, Place::Silent)
            }
        };
        tx.event_put(
            Arc::clone(event),
            flags,
            Some(self.received.state_before),
            place,
            effects::log_row(event),
            effects::relation(event).filter(|_| flags.visible()),
        );
        if row.partial && self.received.history.is_none() {
            tx.partial_event_put(&event.room_id, &event.event_id, &self.received.fetched).await?;
        }
        tx.backward_extremity_remove(&event.room_id, &event.event_id).await?;
        for missing in &self.missing {
            tx.backward_extremity_add(&event.room_id, missing).await?;
        }
        if let Some(step) = &self.step {
            self.move_room(core, tx, row.clone(), step).await?;
        } else if flags == EventFlags::NONE {
            // History: its redactions count, its memberships are long past.
            if event.kind == ruma::events::TimelineEventType::RoomRedaction {
                effects::redaction(tx, &self.version, self.received.state_before, event).await?;
            }
        }
        if flags.visible() {
            self.pending_redactions(tx).await?;
        }
        Ok(true)
    }

    /// Puts the event at the end of the room.
    async fn move_room(
        &self,
        core: &crate::Core,
        tx: &mut Tx,
        mut row: RoomRow,
        step: &Step,
    ) -> Result<(), TimelineError> {
        let event = &self.received.event;
        let before = row.state_root;
        row.state_root = step.state_root;
        row.extremities.clone_from(&step.extremities);
        let changes = tx.state().diff(before, step.state_root).await?;
        let changed: Vec<StateKey> = changes.iter().map(|change| change.key.clone()).collect();
        let own = event.state_entry();
        let mut won = own.is_none();
        for change in changes {
            if change.after.as_ref() == Some(&event.event_id) {
                won = true;
                effects::room_flags(&mut row, event);
                continue;
            }
            state_moved(core, tx, &mut row, change.key, change.after).await?;
        }
        if own.is_some() && !won {
            // The event is in the timeline, but another one holds its entry: say so after it.
            let key = own.unwrap_or_else(|| state_key(StateEventType::RoomCreate, ""));
            let holds = tx.state().get(step.state_root, key.0.clone(), &key.1).await?;
            if holds.as_ref() == Some(&event.event_id) {
                won = true;
            } else {
                state_moved(core, tx, &mut row, key, holds).await?;
            }
        }
        tx.room_put(row).await?;
        if won {
            effects::apply(core, tx, &self.version, step.state_root, event).await?;
        }
        effects::servers_follow(core, tx, (before, step.state_root), event, &changed).await
    }

    /// Redactions that came before this event.
    async fn pending_redactions(&self, tx: &mut Tx) -> Result<(), TimelineError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let event = &self.received.event;
        let target = StoredEvent {
            event: Arc::clone(event),
            sn: 0,
            flags: EventFlags::NONE,
            state_before: Some(self.received.state_before),
            redacted_by: None,
        };
        for redaction in &self.pending {
            let root = redaction.state_before.unwrap_or(self.received.state_before);
            effects::redact_target(tx, &self.version, root, &redaction.event, &target).await?;
        }
        tx.pending_redactions_remove(&event.event_id).await?;
        Ok(())
    }
}

/// An event that is part of the room's state is no longer kept back, whatever was thought of it when it came.
/// <https://spec.matrix.org/v1.19/server-server-api/#soft-failure>
async fn let_in(tx: &mut Tx, stored: &StoredEvent) -> Result<(), TimelineError> {
    if !stored.flags.soft_failed {
        return Ok(());
    }
    let (event, flags) = (&stored.event, EventFlags { soft_failed: false, ..stored.flags });
    tracing::info!(event = %event.event_id, "soft-failed before, and let in by state resolution");
    tx.event_set_flags(&event.event_id, flags).await?;
    let row = NewRow::new(Fact::EventChanged).room(event.room_id.clone());
    tx.log_append(row.reference(event.event_id.as_str()).data("state"));
    Ok(())
}

/// State changed without a timeline event that says so: a row of its own, and the tables in step.
pub(super) async fn state_moved(
    core: &crate::Core,
    tx: &mut Tx,
    row: &mut RoomRow,
    key: StateKey,
    after: Option<OwnedEventId>,
) -> Result<(), TimelineError> {
    let mut fact = NewRow::new(Fact::State)
        .room(row.room_id.clone())
        .data(serde_json::json!([key.0.to_string(), key.1]).to_string());
    if let Some(id) = &after {
        fact = fact.reference(id.as_str());
    }
    let user = (key.0 == StateEventType::RoomMember).then(|| ruma::UserId::parse(&key.1).ok()).flatten();
    if let Some(user) = &user {
        fact = fact.user(user.clone());
    }
    tx.log_append(fact);
    match after {
        Some(id) => {
            if let Some(stored) = tx.events_known(std::slice::from_ref(&id)).await?.pop() {
                let_in(tx, &stored).await?;
                effects::room_flags(row, &stored.event);
                if let Some(member) = effects::member_row(&stored.event) {
                    effects::member_save(core, tx, &member).await?;
                }
            }
        }
        None => {
            if let Some(user) = user {
                effects::member_remove(core, tx, &row.room_id, &user).await?;
            }
        }
    }
    Ok(())
}
