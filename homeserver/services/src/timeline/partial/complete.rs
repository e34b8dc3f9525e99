//! The members of a room are here: what changes by that in its current state, in one transaction against the room's
//! revision. The events since the join were judged before, a slice at a time.

use super::plan::{KEPT_BACK, Pending, Plan};
use crate::timeline::error::TimelineError;
use crate::timeline::persist::state_moved;
use crate::timeline::{Timeline, effects};
use crate::{Core, keys};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedServerName, RoomId, UserId};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_rooms::state_tree::Change;
use waxwing_storage::{EventFlags, Fact, MemberRow, NewRow, PartialRow, Place, RoomRow, Tx};

/// How often events may come between working out the states and committing them. Each time it is only those that came
/// meanwhile that take time.
const ATTEMPTS: usize = 100;
/// Member events loaded at once.
const CHUNK: usize = 1000;

impl Timeline {
    /// The whole states before our joins are noted: brings the room up to them. `false` when nothing was missing any more,
    /// or something is still.
    ///
    /// # Errors
    /// [`TimelineError::Raced`] when events come faster than they can be judged.
    pub(crate) async fn complete(&self, partial: &PartialRow) -> Result<bool, TimelineError> {
        for _ in 0..ATTEMPTS {
            let row = self.core.store.read().await?.room_load(&partial.room_id).await?;
            let Some(row) = row.filter(|row| row.partial) else { return Ok(false) };
            while self.judge_slice(&row).await? {}
            // As it is after the last slice.
            let row = self.core.store.read().await?.room_load(&partial.room_id).await?;
            let Some(row) = row.filter(|row| row.partial) else { return Ok(false) };
            let Some(mut plan) = self.plan(&row, partial).await? else { return Ok(false) };
            plan.members = self.members_ahead(&plan).await?;
            let plan = Arc::new(plan);
            let (core, partial) = (self.core.clone(), partial.clone());
            let rooms = vec![row.room_id.clone()];
            let done = self.core.store.write("complete room", rooms, move |tx| {
                let (core, plan, partial) = (core.clone(), Arc::clone(&plan), partial.clone());
                Box::pin(async move { commit(&core, tx, &plan, &partial).await })
            });
            match done.await? {
                Committed::Yes => return Ok(true),
                Committed::Another => return Ok(false),
                Committed::Raced => {}
            }
        }
        Err(TimelineError::Raced)
    }

    /// Members of other servers that are new to us go into the table before the commit, some at a time: however large the
    /// room, nobody else's writes wait long, and after a crash those that are there are not written again. Gives the
    /// events of the members that the table has.
    async fn members_ahead(&self, plan: &Plan) -> Result<BTreeSet<OwnedEventId>, TimelineError> {
        let (store, room) = (&self.core.store, &plan.row.room_id);
        let known = store.read().await?.member_events(room).await?;
        let new = plan.changes.iter().filter(|change| is_new_member(&self.core, change));
        let new: Vec<OwnedEventId> =
            new.filter_map(|change| change.after.clone()).filter(|id| !known.contains(id)).collect();
        if new.is_empty() {
            return Ok(known);
        }
        for ids in new.chunks(CHUNK) {
            let events = store.events(ids).await?;
            let members: Arc<Vec<MemberRow>> =
                Arc::new(events.values().filter_map(|stored| effects::member_row(&stored.event)).collect());
            let core = self.core.clone();
            let written: Result<(), TimelineError> = store
                .write("members ahead", Vec::new(), move |tx| {
                    let (core, members) = (core.clone(), Arc::clone(&members));
                    Box::pin(async move { Ok(tx.members_add(&members, |user| core.is_local(user)).await?) })
                })
                .await;
            written?;
        }
        Ok(store.read().await?.member_events(room).await?)
    }
}

enum Committed {
    Yes,
    /// The room was joined anew, or completed by somebody else.
    Another,
    /// Something happened in the room meanwhile.
    Raced,
}

async fn commit(
    core: &Core,
    tx: &mut Tx,
    plan: &Plan,
    partial: &PartialRow,
) -> Result<Committed, TimelineError> {
    let room = &partial.room_id;
    let Some(mut row) = tx.room(room).await?.filter(|row| row.partial) else { return Ok(Committed::Another) };
    if tx.partial_room(room).await?.as_ref().map(|now| &now.join_id) != Some(&partial.join_id) {
        return Ok(Committed::Another);
    }
    if row.revision != plan.row.revision || !tx.partial_unjudged(room, 1).await?.is_empty() {
        return Ok(Committed::Raced);
    }
    let told = tx.partial_servers(room).await?;
    let changed = tx.device_lists_changed_in(room, partial.since).await?;
    let held = tx.device_lists_held(room).await?;
    kept_back(tx, plan).await?;
    row.state_root = plan.current;
    row.extremities.clone_from(&plan.extremities);
    row.partial = false;
    move_state(core, tx, &mut row, plan).await?;
    let encrypted = row.encrypted;
    tx.room_put(row).await?;
    show(tx, plan).await?;
    tx.partial_end(room).await?;
    tx.log_append(NewRow::new(Fact::Room).room(room.clone()).data("complete"));
    if encrypted {
        // As if our users had joined now: with whom they share the room is known only now.
        for user in tx.local_members_of(room, "join").await? {
            tx.log_append(NewRow::new(Fact::DeviceList).user(user).room(room.clone()).data("join"));
        }
    }
    for user in held {
        if tx.member_load(room, &user).await?.is_some_and(|member| member.membership == "join") {
            keys::remote_list_changed(tx, &user).await?;
        }
    }
    let missed = |server: &&OwnedServerName| !told.contains(server) && **server != core.server_name;
    let servers: BTreeSet<OwnedServerName> =
        plan.servers_before.union(&plan.servers_since).filter(missed).cloned().collect();
    for user in changed {
        keys::list_told_again(core, tx, &user, &servers).await?;
    }
    let late: Vec<&OwnedServerName> = plan.servers_before.iter().filter(missed).collect();
    newest_of_ours(core, tx, plan, room, &late).await?;
    Ok(Committed::Yes)
}

/// The verdicts on the events that had been kept back. Those that are to be shown are unplaced, for [`show`].
async fn kept_back(tx: &mut Tx, plan: &Plan) -> Result<(), TimelineError> {
    for pending in &plan.pending {
        let (stored, id) = (&pending.stored, &pending.stored.event.event_id);
        let flags = if pending.appears { EventFlags::OUTLIER } else { KEPT_BACK };
        if flags != stored.flags {
            tx.event_set_flags(id, flags).await?;
            tx.log_append(
                NewRow::new(Fact::EventChanged).room(plan.row.room_id.clone()).reference(id.as_str()),
            );
        }
    }
    Ok(())
}

/// Brings the tables that are derived from state in step. Members of other servers that are new to us are the many: nothing
/// is logged for each, that the room is complete says so, and hardly any is not in the table yet.
async fn move_state(core: &Core, tx: &mut Tx, row: &mut RoomRow, plan: &Plan) -> Result<(), TimelineError> {
    debug_assert!(plan.row.room_id == row.room_id, "one room");
    let mut found: Vec<OwnedEventId> = Vec::new();
    for change in &plan.changes {
        match &change.after {
            Some(id) if is_new_member(core, change) => {
                if !plan.members.contains(id) {
                    found.push(id.clone());
                }
            }
            after => state_moved(core, tx, row, change.key.clone(), after.clone()).await?,
        }
    }
    for ids in found.chunks(CHUNK) {
        let stored = tx.events_known(ids).await?;
        let members: Vec<_> = stored.iter().filter_map(|stored| effects::member_row(&stored.event)).collect();
        tx.members_save(&members, |user| core.is_local(user)).await?;
    }
    Ok(())
}

/// Whether a member of another server appears of whom the state said nothing.
fn is_new_member(core: &Core, change: &Change) -> bool {
    change.before.is_none()
        && change.key.0 == StateEventType::RoomMember
        && UserId::parse(&change.key.1).is_ok_and(|user| !core.is_local(&user))
}

/// Puts events that had been kept back at the end of the timeline. Where another event holds the entry of one of them
/// by now, a row after it says so.
async fn show(tx: &mut Tx, plan: &Plan) -> Result<(), TimelineError> {
    for Pending { stored, .. } in plan.pending.iter().filter(|pending| pending.appears) {
        let event = &stored.event;
        let before = stored.state_before.unwrap_or(plan.current);
        let log_row = effects::log_row(event);
        let relation = effects::relation(event);
        tx.event_put(Arc::clone(event), EventFlags::NONE, Some(before), Place::Live, log_row, relation);
        if event.kind == TimelineEventType::RoomRedaction && !event.is_state() {
            effects::redaction(tx, &plan.row.version, before, event).await?;
        }
        let Some(key) = event.state_entry() else { continue };
        let holds = tx.state().get(plan.current, key.0.clone(), &key.1).await?;
        if holds.as_ref() != Some(&event.event_id) {
            let mut fact = NewRow::new(Fact::State)
                .room(event.room_id.clone())
                .data(serde_json::json!([key.0.to_string(), key.1]).to_string());
            fact.reference = holds.map(|id| id.to_string());
            fact.user = effects::member_target(event);
            tx.log_append(fact);
        }
    }
    Ok(())
}

/// Servers that we did not know to be in the room get the newest event of ours, and fetch from there what they missed.
async fn newest_of_ours(
    core: &Core,
    tx: &mut Tx,
    plan: &Plan,
    room: &RoomId,
    servers: &[&OwnedServerName],
) -> Result<(), TimelineError> {
    let newest = plan.newest_of_ours.as_ref();
    let Some(newest) = newest.filter(|_| !servers.is_empty() && core.settings.federation) else {
        return Ok(());
    };
    let now = tx.servers_in(room).await?;
    for server in servers.iter().filter(|server| now.contains(server)) {
        let slot = tx.log_append(NewRow::new(Fact::Outbox).reference(server.as_str()));
        let id = newest.clone();
        tx.outbox_put((*server).clone(), slot, Some(room.to_owned()), Some(id), None);
    }
    Ok(())
}
