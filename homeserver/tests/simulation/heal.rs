//! After the storm: everything arrives, everybody speaks once more, and then all honest servers must agree.

use crate::node::{Act, View};
use crate::world::{Kind, World, users_of};
use ruma::{OwnedEventId, OwnedRoomId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Rounds in which every server speaks once. Each joins up to twenty branches.
const ROUNDS: usize = 12;
/// After an outage servers that speak to nobody are tried again within hours: so long is passed at a time, so often.
const PAUSE: u64 = 30 * 60 * 1000;
const PAUSES: usize = 24;
/// Requests for history of one server.
const BACKFILLS: usize = 40;

/// What was compared, so that a simulation that compares nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    /// Pairs of servers that are in one room, as both see it.
    pub pairs: usize,
    /// Events that both have.
    pub events: usize,
}

type Views = BTreeMap<usize, View>;

impl World {
    pub async fn heal(&mut self) {
        self.net.heal();
        // The longest pause that a server is left alone after failures.
        self.pass(10 * 60 * 1000);
        self.note("healed");
        // Who is left alone for longer is tried again in time.
        for _ in 0..PAUSES {
            self.flush().await;
            if self.kind == Kind::Pure || !self.anything_waits().await {
                break;
            }
            self.pass(PAUSE);
        }
        for round in 0..ROUNDS {
            self.flush().await;
            self.take_staged().await;
            self.take_members(false).await;
            for room in self.rooms.clone() {
                for index in self.honest() {
                    self.speak(index, &room).await;
                    self.pass(1000);
                    self.flush().await;
                }
            }
            if round > 0 && self.settled().await {
                break;
            }
        }
        for room in self.rooms.clone() {
            for index in self.honest() {
                let node = Arc::clone(&self.nodes[index]);
                let mut left = BACKFILLS;
                while left > 0 && node.backfill(&room).await {
                    left -= 1;
                }
            }
        }
    }

    async fn anything_waits(&self) -> bool {
        for node in &self.nodes {
            if !node.waiting().await.is_empty() {
                return true;
            }
        }
        false
    }

    async fn speak(&mut self, index: usize, room: &OwnedRoomId) {
        let Some(view) = self.nodes[index].view(room).await else { return };
        let joined = view.joined();
        let mut spoken = false;
        for user in users_of(index).into_iter().filter(|user| joined.contains(user)) {
            let body = format!("peace {}", self.next_number());
            spoken = spoken || self.act(index, Act::Say { room: room.clone(), user, body }).await;
        }
        let speaker = (index, room.clone());
        if spoken {
            self.speechless.remove(&speaker)
        } else {
            self.speechless.insert(speaker)
        };
    }

    async fn views(&self, room: &OwnedRoomId) -> Views {
        let mut views = Views::new();
        for index in self.honest() {
            if !self.speechless.contains(&(index, room.clone()))
                && let Some(view) = self.nodes[index].view(room).await
                && view.has_server(self.nodes[index].name())
            {
                views.insert(index, view);
            }
        }
        views
    }

    /// Pairs of servers each of which thinks that both are in the room.
    fn pairs<'a>(&self, views: &'a Views) -> Vec<(usize, &'a View, usize, &'a View)> {
        let mut pairs = Vec::new();
        for (a, view_a) in views {
            for (b, view_b) in views.range(a + 1..) {
                if view_a.has_server(self.nodes[*b].name()) && view_b.has_server(self.nodes[*a].name()) {
                    pairs.push((*a, view_a, *b, view_b));
                }
            }
        }
        pairs
    }

    async fn settled(&self) -> bool {
        for room in &self.rooms {
            let views = self.views(room).await;
            let same = |(_, a, _, b): &(usize, &View, usize, &View)| {
                a.extremities.len() == 1 && a.extremities == b.extremities
            };
            if !self.pairs(&views).iter().all(same) {
                return false;
            }
        }
        true
    }

    /// All honest servers agree, and nothing is lost.
    pub async fn compare(&self) -> Result<Compared, String> {
        let mut compared = Compared::default();
        for room in &self.rooms {
            let views = self.views(room).await;
            for (a, view_a, b, view_b) in self.pairs(&views) {
                compared.pairs += 1;
                let differ = |what: &str| format!("s{a} and s{b} differ in {room}: {what}");
                let tips = |view: &View| view.extremities.iter().cloned().collect::<BTreeSet<_>>();
                if tips(view_a) != tips(view_b) {
                    return Err(differ(&format!("ends {:?} {:?}", view_a.extremities, view_b.extremities)));
                }
                same_state(view_a, view_b)
                    .map_err(|why| differ(&format!("{why}{}", first_difference(view_a, view_b))))?;
                compared.events += same_verdicts(view_a, view_b).map_err(|why| differ(&why))?;
                for (own, (server, view)) in [(view_a, (b, view_b)), (view_b, (a, view_a))] {
                    let whose = if server == b { a } else { b };
                    self.nothing_lost(whose, own, view, &|id| self.owners(&views, view, id))
                        .map_err(|why| format!("s{server} in {room}: {why}"))?;
                }
            }
        }
        Ok(compared)
    }

    /// Which servers have an event as part of their graph, and how. Only of those that are in the room as `asker` sees
    /// it: nobody else can be asked for it. Who was thrown out while the network was cut may not even know.
    fn owners(&self, views: &Views, asker: &View, id: &OwnedEventId) -> Vec<String> {
        let asked = views.iter().filter(|(index, _)| asker.has_server(self.nodes[**index].name()));
        let has = asked.filter_map(|(index, view)| {
            let seen = view.events.get(id).filter(|seen| !seen.flags.outlier)?;
            Some(format!("s{index}: {:?}, {}", seen.flags, seen.event.json.get()))
        });
        has.collect()
    }

    /// What the server `index` (which sees the room as `own`) sent and accepted is in another's history.
    fn nothing_lost(
        &self,
        index: usize,
        own: &View,
        other: &View,
        had: &dyn Fn(&OwnedEventId) -> Vec<String>,
    ) -> Result<(), String> {
        let history = history(other, had)?;
        for (id, seen) in &own.events {
            let accepted = !seen.flags.outlier && !seen.flags.rejected && !seen.flags.soft_failed;
            let ours = seen.event.sender.server_name() == self.nodes[index].name();
            if ours && accepted && !history.contains(id) {
                return Err(format!("{id} of s{index} is lost: {}", seen.event.json.get()));
            }
        }
        Ok(())
    }
}

/// All that the ends of a room follow from: none of it may be missing that any server in the room still has (`had`
/// tells which have it, and how).
fn history(
    view: &View,
    had: &dyn Fn(&OwnedEventId) -> Vec<String>,
) -> Result<BTreeSet<OwnedEventId>, String> {
    let mut found = BTreeSet::new();
    let mut next = view.extremities.clone();
    while let Some(id) = next.pop() {
        let Some(seen) = view.events.get(&id).filter(|seen| !seen.flags.outlier) else {
            let others = had(&id);
            if others.is_empty() {
                continue;
            }
            let others = others.join("\n  ");
            return Err(format!(
                "{id} is missing in the history (ends: {:?}); had by\n  {others}",
                view.backward
            ));
        };
        if found.insert(id) {
            next.extend(seen.event.prev_events.iter().cloned());
        }
    }
    Ok(found)
}

/// Where two servers began to differ, for whoever looks for the reason.
fn first_difference(a: &View, b: &View) -> String {
    let mut both: Vec<_> =
        a.events.iter().filter_map(|(id, seen)| Some((id, seen, b.events.get(id)?))).collect();
    both.sort_by_key(|(_, seen, _)| seen.event.depth);
    let first = both.iter().find(|(_, one, other)| {
        one.before.is_some()
            && other.before.is_some()
            && (one.before != other.before || one.flags != other.flags)
    });
    first.map_or(String::new(), |(id, one, other)| {
        let (json, states) = (one.event.json.get(), one.before != other.before);
        format!("\n  first at {id} (state: {states}, {:?}, {:?}): {json}", one.flags, other.flags)
    })
}

fn same_state(a: &View, b: &View) -> Result<(), String> {
    let keys: BTreeSet<_> = a.state.keys().chain(b.state.keys()).collect();
    for key in keys {
        if a.state.get(key) != b.state.get(key) {
            return Err(format!("state {key:?}: {:?} and {:?}", a.state.get(key), b.state.get(key)));
        }
    }
    Ok(())
}

/// Both think the same of each event that is part of both graphs. Soft failure depends on when an event came.
fn same_verdicts(a: &View, b: &View) -> Result<usize, String> {
    let mut both = 0;
    for (id, seen) in a.events.iter().filter(|(_, seen)| !seen.flags.outlier) {
        let Some(other) = b.events.get(id).filter(|other| !other.flags.outlier) else { continue };
        both += 1;
        if seen.flags.rejected != other.flags.rejected {
            return Err(format!("{id} is rejected by one only: {}", seen.event.json.get()));
        }
    }
    Ok(both)
}
