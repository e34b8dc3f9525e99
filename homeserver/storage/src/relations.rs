//! Which events relate to which, and what a viewer's own requests made: the lookups behind bundled aggregations,
//! `/relations` and `/threads`.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{EventId, OwnedEventId, OwnedUserId, RoomId, UserId};
use sqlx::AssertSqlSafe;
use std::collections::{BTreeMap, BTreeSet};

statements! {
    THREADS_OF = "SELECT parent_id, sender, COUNT(*), MAX(sn) FROM relations WHERE rel_type = 'm.thread' AND sn <= $1 AND parent_id IN ($list) GROUP BY parent_id, sender";
    CHILDREN_AT = "SELECT parent_id, child_id FROM relations WHERE rel_type = 'm.thread' AND parent_id = $1 AND sn = $2";
    OF_PARENTS = "SELECT parent_id, child_id, rel_type, kind, sender FROM relations WHERE rel_type IN ('m.replace', 'm.reference') AND parent_id IN ($list) ORDER BY sn LIMIT 5000";
    BACKWARD = "SELECT child_id, sn, rel_type, kind FROM relations WHERE parent_id = $1 AND sn < $2 AND ($3 = '' OR rel_type = $3) AND ($4 = '' OR kind = $4) ORDER BY sn DESC LIMIT $5";
    FORWARD = "SELECT child_id, sn, rel_type, kind FROM relations WHERE parent_id = $1 AND sn > $2 AND ($3 = '' OR rel_type = $3) AND ($4 = '' OR kind = $4) ORDER BY sn LIMIT $5";
    DESCENDANTS = "SELECT child_id, sn, rel_type, kind FROM relations WHERE parent_id IN ($list) ORDER BY sn LIMIT 5000";
    THREADS = "SELECT parent_id, MAX(sn), COUNT(CASE WHEN sender = $3 THEN 1 END) FROM relations WHERE room_id = $1 AND rel_type = 'm.thread' GROUP BY parent_id HAVING MAX(sn) < $2 ORDER BY MAX(sn) DESC LIMIT $4";
    SENDERS = "SELECT DISTINCT sender, rel_type FROM relations WHERE parent_id = $1 LIMIT 1000";
    FORGET_CHILD = "DELETE FROM relations WHERE child_id = $1";
}

/// The children of one thread, taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadRow {
    /// The thread's root.
    pub root: OwnedEventId,
    /// How many events it has.
    pub count: i64,
    /// The number of its newest event.
    pub latest: i64,
    /// Whether the viewer has sent one of them.
    pub participated: bool,
}

/// One event that relates to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationChild {
    /// The event.
    pub event_id: OwnedEventId,
    /// Its number.
    pub sn: i64,
    /// How it relates.
    pub rel_type: String,
    /// Its type.
    pub kind: String,
}

/// An edit or a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EditRow {
    /// What it relates to.
    pub parent: OwnedEventId,
    /// The event.
    pub child: OwnedEventId,
    /// `m.replace` or `m.reference`.
    pub rel_type: String,
    /// Its type.
    pub kind: String,
    /// Its sender.
    pub sender: String,
}

/// Which children of an event are asked for.
#[derive(Clone, Debug, Default)]
pub struct RelationQuery {
    /// This relation type only; empty for all.
    pub rel_type: String,
    /// This event type only; empty for all.
    pub kind: String,
    /// Numbers beyond this, in the direction asked for.
    pub beyond: i64,
    /// Oldest first.
    pub forward: bool,
    /// At most so many.
    pub limit: i64,
}

type ChildColumns = (String, i64, String, String);

fn children(found: Vec<ChildColumns>) -> Vec<RelationChild> {
    found
        .into_iter()
        .filter_map(|(id, sn, rel_type, kind)| {
            Some(RelationChild { event_id: id.try_into().ok()?, sn, rel_type, kind })
        })
        .collect()
}

impl Conn {
    /// The threads that start at these events, as far as their events have numbers up to `upto` and are not by one of
    /// `ignored`.
    pub async fn threads_of(
        &mut self,
        roots: &[OwnedEventId],
        viewer: &UserId,
        ignored: &BTreeSet<OwnedUserId>,
        upto: i64,
    ) -> StoreResult<Vec<ThreadRow>> {
        let mut threads: BTreeMap<OwnedEventId, ThreadRow> = BTreeMap::new();
        for chunk in roots.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(THREADS_OF, 2, chunk.len());
            let found: Vec<(String, String, i64, i64)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(upto);
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (root, sender, count, latest) in found {
                let Ok(root) = OwnedEventId::try_from(root) else { continue };
                if ignored.iter().any(|user| *user == *sender) {
                    continue;
                }
                let thread = threads.entry(root.clone()).or_insert_with(|| ThreadRow {
                    root,
                    count: 0,
                    latest,
                    participated: false,
                });
                thread.count += count;
                thread.latest = thread.latest.max(latest);
                thread.participated |= viewer == sender.as_str();
            }
        }
        Ok(threads.into_values().collect())
    }

    /// The event of a thread with this number.
    pub async fn thread_event_at(&mut self, root: &EventId, sn: i64) -> StoreResult<Option<OwnedEventId>> {
        let found: Option<(String, String)> = on_engine!(self, |c| sqlx::query_as(CHILDREN_AT)
            .bind(root.as_str())
            .bind(sn)
            .fetch_optional(c)
            .await)?;
        Ok(found.and_then(|(_, child)| child.try_into().ok()))
    }

    /// Edits of and references to these events, oldest first, at most 5000 for each 500 of them.
    pub async fn edits_and_references(&mut self, parents: &[OwnedEventId]) -> StoreResult<Vec<EditRow>> {
        let mut edits = Vec::new();
        for chunk in parents.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(OF_PARENTS, 1, chunk.len());
            let found: Vec<(String, String, String, String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.fetch_all(c).await
            })?;
            edits.extend(found.into_iter().filter_map(|(parent, child, rel_type, kind, sender)| {
                Some(EditRow {
                    parent: parent.try_into().ok()?,
                    child: child.try_into().ok()?,
                    rel_type,
                    kind,
                    sender,
                })
            }));
        }
        Ok(edits)
    }

    /// Events that relate to `parent`.
    pub async fn relations_page(
        &mut self,
        parent: &EventId,
        query: &RelationQuery,
    ) -> StoreResult<Vec<RelationChild>> {
        let text = if query.forward { FORWARD } else { BACKWARD };
        let found: Vec<ChildColumns> = on_engine!(self, |c| sqlx::query_as(text)
            .bind(parent.as_str())
            .bind(query.beyond)
            .bind(&query.rel_type)
            .bind(&query.kind)
            .bind(query.limit)
            .fetch_all(c)
            .await)?;
        Ok(children(found))
    }

    /// Who relates to `parent`, and how: distinct pairs of sender and relation type, at most 1000.
    pub async fn relation_senders(&mut self, parent: &EventId) -> StoreResult<Vec<(String, String)>> {
        Ok(on_engine!(self, |c| sqlx::query_as(SENDERS).bind(parent.as_str()).fetch_all(c).await)?)
    }

    /// Everything that relates to one of `parents`, at most 5000 events for each 500 of them.
    pub async fn relations_of_all(&mut self, parents: &[OwnedEventId]) -> StoreResult<Vec<RelationChild>> {
        let mut all = Vec::new();
        for chunk in parents.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(DESCENDANTS, 1, chunk.len());
            let found: Vec<ChildColumns> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(children(found));
        }
        Ok(all)
    }

    /// The threads of a room whose newest event has a number below `before`, those with the newest first.
    pub async fn threads_page(
        &mut self,
        room: &RoomId,
        before: i64,
        viewer: &UserId,
        limit: i64,
    ) -> StoreResult<Vec<ThreadRow>> {
        let found: Vec<(String, i64, i64)> = on_engine!(self, |c| sqlx::query_as(THREADS)
            .bind(room.as_str())
            .bind(before)
            .bind(viewer.as_str())
            .bind(limit)
            .fetch_all(c)
            .await)?;
        Ok(found
            .into_iter()
            .filter_map(|(root, latest, own)| {
                Some(ThreadRow { root: root.try_into().ok()?, count: 0, latest, participated: own > 0 })
            })
            .collect())
    }
}

impl crate::Tx {
    /// An event relates to nothing any more: it was redacted.
    pub async fn relation_forget(&mut self, child: &EventId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FORGET_CHILD).bind(child.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
