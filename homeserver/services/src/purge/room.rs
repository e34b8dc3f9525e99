//! A room with all that belongs to it.

use super::run::{Job, Slice};
use super::{PurgeError, Purges, RoomPurge};
use crate::timeline::{Author, CreateRoom, JoinRoom, Preset};
use ruma::{OwnedUserId, RoomId};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Fact, NewRow, PURGED, PurgePhase, Tx};

/// Users put out in one slice.
const LEAVE_AT_ONCE: usize = 10;
/// How long other servers may take until they know that our users have left; who cannot be reached so long learns it
/// from others.
const TELL_FOR: Duration = Duration::from_mins(1);

impl Purges {
    /// The room is closed, and users of this server leave it.
    pub(super) async fn leave_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let wanted: RoomPurge = job.parameters()?;
        let room = job.row.room_id.clone();
        let by = if wanted.block { operator(&wanted.by) } else { String::new() };
        self.close(&room, by).await?;
        if let Some(creator) = wanted.new_room_user.as_ref().filter(|_| job.progress.new_room.is_none()) {
            job.progress.new_room = Some(self.new_room(creator, &wanted).await?);
        }
        let inside = self.inside(&room).await?;
        if !job.progress.listed {
            // Written down before anybody leaves: whoever goes on after a crash finds them out already.
            job.progress.kicked = inside;
            job.progress.listed = true;
            return self.stay(job).await;
        }
        let done: BTreeSet<&OwnedUserId> = job.progress.failed.iter().collect();
        let next: Vec<OwnedUserId> =
            inside.into_iter().filter(|user| !done.contains(user)).take(LEAVE_AT_ONCE).collect();
        if next.is_empty() {
            return self.all_left(job, &wanted).await;
        }
        for user in next {
            if let Err(error) = self.put_out(job, &room, &user).await {
                tracing::warn!(%room, %user, %error, "a user could not be put out of a room");
                job.progress.kicked.retain(|other| *other != user);
                job.progress.failed.push(user);
            }
        }
        self.stay(job).await
    }

    /// Writes down how far it is, without going on to another phase.
    async fn stay(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        self.commit(job, Slice::More, |_| Box::pin(async { Ok(()) })).await?;
        Ok(Slice::More)
    }

    /// Users of this server who are in the room, or invited to it.
    async fn inside(&self, room: &RoomId) -> Result<Vec<OwnedUserId>, PurgeError> {
        let mut conn = self.core.store.read().await?;
        let mut inside = Vec::new();
        for membership in ["join", "invite", "knock"] {
            inside.extend(conn.local_members_of(room, membership).await?);
        }
        Ok(inside)
    }

    async fn put_out(&self, job: &Job, room: &RoomId, user: &OwnedUserId) -> Result<(), PurgeError> {
        let author = Author::new(user.clone());
        self.timeline.leave(&author, room, None).await?;
        self.timeline.forget(user, room).await?;
        if let Some(new) = &job.progress.new_room {
            let join = JoinRoom { author, room: new.clone(), via: Vec::new(), content: Map::new() };
            self.timeline.join(join).await?;
        }
        Ok(())
    }

    async fn new_room(
        &self,
        creator: &OwnedUserId,
        wanted: &RoomPurge,
    ) -> Result<ruma::OwnedRoomId, PurgeError> {
        let silent: Map<String, Value> = match json!({ "users_default": -10 }) {
            Value::Object(levels) => levels,
            _ => Map::new(),
        };
        let room = CreateRoom {
            author: Author::new(creator.clone()),
            version: None,
            creation_content: Map::new(),
            preset: Preset::PublicChat,
            initial_state: Vec::new(),
            name: Some(
                wanted.room_name.clone().unwrap_or_else(|| "Content Violation Notification".to_owned()),
            ),
            topic: wanted.message.clone(),
            alias: None,
            power_levels: silent,
            invite: Vec::new(),
            is_direct: false,
            published: false,
        };
        Ok(self.timeline.create_room(room).await?)
    }

    async fn close(&self, room: &RoomId, by: String) -> Result<(), PurgeError> {
        let input = Arc::new((room.to_owned(), by));
        let now = self.core.now() as i64;
        self.core
            .store
            .write("close room", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { Ok(tx.room_block(&input.0, &input.1, now).await?) })
            })
            .await
    }

    async fn all_left(&self, job: &mut Job, wanted: &RoomPurge) -> Result<Slice, PurgeError> {
        let room = job.row.room_id.clone();
        job.progress.aliases = self.core.store.read().await?.aliases_of(&room).await?;
        if !wanted.purge {
            let next = PurgePhase::Complete;
            self.commit(job, Slice::Next(next), move |tx| {
                let room = room.clone();
                Box::pin(async move { Ok(tx.room_unblock(&room, true).await?) })
            })
            .await?;
            return Ok(Slice::Next(next));
        }
        if !job.progress.failed.is_empty() && !wanted.force {
            let next = PurgePhase::Failed;
            let row = job.saved(self.core.now(), Slice::Next(next))?;
            let error = Some("users of this server are still in the room".to_owned());
            let row = Arc::new(waxwing_storage::PurgeRow { error, ..row });
            self.core
                .store
                .write("purge failed", Vec::new(), move |tx| {
                    let row = Arc::clone(&row);
                    Box::pin(async move {
                        tx.purge_save(&row).await?;
                        Ok::<_, PurgeError>(tx.room_unblock(&row.room_id, true).await?)
                    })
                })
                .await?;
            return Ok(Slice::Next(next));
        }
        self.turn_page(job, PurgePhase::Telling).await
    }

    /// Other servers are told that our users have left: the events are still needed for that.
    pub(super) async fn tell_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let now = self.core.now();
        let until = job.progress.telling_until.unwrap_or(now + TELL_FOR.as_millis() as u64);
        job.progress.telling_until = Some(until);
        if now < until && self.core.store.read().await?.outgoing_has_room(&job.row.room_id).await? {
            self.stay(job).await?;
            return Ok(Slice::Wait);
        }
        let room = job.row.room_id.clone();
        let next = PurgePhase::Events;
        self.commit(job, Slice::Next(next), move |tx| {
            let room = room.clone();
            Box::pin(async move { forget_room(tx, &room).await })
        })
        .await?;
        Ok(Slice::Next(next))
    }

    /// The next events, whatever they are.
    pub(super) async fn room_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let room = job.row.room_id.clone();
        let limit = i64::from(self.settings.slice);
        let batch = self.core.store.read().await?.events_between(&room, i64::MIN, i64::MAX, limit).await?;
        if batch.is_empty() {
            return self.turn_page(job, PurgePhase::Rest).await;
        }
        job.progress.events += batch.len() as u64;
        metrics::counter!("waxwing_purged_events_total").increment(batch.len() as u64);
        let roots: Vec<NodeId> = batch.iter().filter_map(|stored| stored.state_before).collect();
        let named = self.named(&batch);
        let input = Arc::new((job.row.purge_id.clone(), self.core.server_name.clone(), batch, roots, named));
        self.commit(job, Slice::More, move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (purge, own, batch, roots, named) = &*input;
                named.note(tx, purge, own).await?;
                tx.purge_events(batch, &[]).await?;
                Ok(tx.purge_nodes_add(purge, roots.iter().copied()).await?)
            })
        })
        .await?;
        Ok(Slice::More)
    }

    /// Rows of the next table.
    pub(super) async fn rest_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let (room, table) = (job.row.room_id.clone(), job.progress.table);
        let limit = i64::from(self.settings.slice);
        let gone = self.core.store.write("purge rest", Vec::new(), move |tx| {
            let room = room.clone();
            Box::pin(async move { Ok::<_, PurgeError>(tx.purge_rest(table, &room, limit).await?) })
        });
        let Some(gone) = gone.await? else {
            let room = job.row.room_id.clone();
            let next = PurgePhase::Nodes;
            self.commit(job, Slice::Next(next), move |tx| {
                let room = room.clone();
                Box::pin(async move {
                    tx.log_append(NewRow::new(Fact::Room).room(room).data(PURGED));
                    Ok(())
                })
            })
            .await?;
            return Ok(Slice::Next(next));
        };
        job.progress.rows += gone;
        if gone == 0 || !Tx::purge_is_limited(table) {
            job.progress.table += 1;
        }
        self.stay(job).await
    }
}

/// From now on the room is not known here; its state is noted for the sweep.
async fn forget_room(tx: &mut Tx, room: &RoomId) -> Result<(), PurgeError> {
    if let Some(row) = tx.room(room).await? {
        let purges = tx.purges_under_way(i64::from(u16::MAX)).await?;
        if let Some(purge) = purges.into_iter().find(|purge| purge.room_id == room) {
            tx.purge_nodes_add(&purge.purge_id, [row.state_root]).await?;
        }
        tx.log_append(NewRow::new(Fact::Room).room(room.to_owned()).data(PURGED));
        tx.room_remove(room).await?;
    }
    Ok(())
}

/// Who is said to have blocked a room; never empty.
fn operator(by: &str) -> String {
    if by.is_empty() { "operator".to_owned() } else { by.to_owned() }
}
