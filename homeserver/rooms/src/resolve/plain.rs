//! The three algorithms, fed with what they ask for, against their plain definition: whole states, whole auth chains.
//! The rooms are random, with forks, merges, and people who contradict each other.

use super::fixtures::{ALICE, BOB, CAROL, DAVE};
use super::memory::split;
use super::*;
use crate::auth::{check_state_dependent, state_to_load};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

const USERS: [&str; 4] = [ALICE, BOB, CAROL, DAVE];

/// What somebody tries at a place of the graph.
#[derive(Debug, Clone)]
struct Step {
    at: Index,
    /// A second place, of which this one is the merge with the first.
    and: Option<Index>,
    who: usize,
    whom: usize,
    what: u8,
    number: i64,
    time: u32,
}

fn step() -> impl Strategy<Value = Step> {
    let and = proptest::option::weighted(0.15, any::<Index>());
    (any::<Index>(), and, 0..4_usize, 0..4_usize, 0..9_u8, 0..4_i64, 0..50_u32)
        .prop_map(|(at, and, who, whom, what, number, time)| Step { at, and, who, whom, what, number, time })
}

struct Grown {
    version: RoomVersionId,
    events: Vec<Arc<Event>>,
    /// The state at each place.
    states: Vec<StateMap>,
}

impl Grown {
    fn new(version: RoomVersionId, steps: &[Step]) -> Grown {
        let mut room = Grown { version, events: Vec::new(), states: vec![StateMap::new()] };
        room.put(0, ALICE, "m.room.create", "", &json!({ "creator": ALICE }), 0);
        room.put(1, ALICE, "m.room.member", ALICE, &json!({ "membership": "join" }), 1);
        let users = if room.version == RoomVersionId::V12 { json!({}) } else { json!({ ALICE: 100 }) };
        room.put(2, ALICE, "m.room.power_levels", "", &json!({ "users": users }), 2);
        room.put(3, ALICE, "m.room.join_rules", "", &json!({ "join_rule": "public" }), 3);
        for step in steps {
            let mut at = 4 + step.at.index(room.states.len() - 4);
            if let Some(and) = step.and {
                let states =
                    [room.states[at].clone(), room.states[4 + and.index(room.states.len() - 4)].clone()];
                room.states.push(room.memory().resolve(&room.version, &states).unwrap());
                at = room.states.len() - 1;
            }
            let (who, whom) = (USERS[step.who], USERS[step.whom]);
            let member =
                |membership: &str| json!({ "membership": membership, "displayname": step.time.to_string() });
            let (kind, key, content) = match step.what {
                0..=2 => ("m.room.member", who, member("join")),
                3 => ("m.room.member", whom, member("leave")),
                4 => ("m.room.member", whom, member("ban")),
                5 => {
                    ("m.room.power_levels", "", room.levels(at, whom, [0, 40, 50, 60][step.number as usize]))
                }
                6 => {
                    let rule = if step.number == 0 { "invite" } else { "public" };
                    ("m.room.join_rules", "", json!({ "join_rule": rule }))
                }
                7 => ("m.room.member", whom, member("invite")),
                _ => ("m.room.topic", "", json!({ "topic": step.time.to_string() })),
            };
            room.put(at, who, kind, key, &content, 10 + step.time);
        }
        room
    }

    fn levels(&self, at: usize, whom: &str, level: i64) -> serde_json::Value {
        let now = &self.states[at][&("m.room.power_levels".into(), String::new())];
        let now = self.events.iter().find(|event| event.event_id == *now).unwrap();
        let mut content: serde_json::Value = now.content_as().unwrap();
        content["users"][whom] = level.into();
        content
    }

    /// Adds an event at a place, if it is allowed there.
    fn put(&mut self, at: usize, who: &str, kind: &str, key: &str, content: &serde_json::Value, time: u32) {
        let state = self.states[at].clone();
        let raw = serde_json::value::to_raw_value(content).unwrap();
        let sender = ruma::UserId::parse(who).unwrap();
        let keys = state_to_load(&kind.into(), &sender, Some(key), &raw, &self.version).unwrap();
        let newest = self.version == RoomVersionId::V12;
        let named = keys.iter().filter(|key| !newest || key.0 != StateEventType::RoomCreate);
        let auth: Vec<&OwnedEventId> = named.filter_map(|key| state.get(key)).collect();
        let id =
            if kind == "m.room.create" { "create:x".to_owned() } else { format!("e{}:x", self.events.len()) };
        // The creator's own join follows nothing but the room's creation.
        let prev: Vec<&OwnedEventId> = self.events.last().iter().map(|event| &event.event_id).collect();
        let pdu = json!({
            "type": kind, "sender": who, "state_key": key, "depth": self.events.len() + 1,
            "origin_server_ts": time, "content": content, "prev_events": prev, "auth_events": auth,
        });
        let raw = serde_json::value::to_raw_value(&pdu).unwrap();
        let id = OwnedEventId::try_from(format!("${id}")).unwrap();
        let event = Event::parse(id.clone(), "!create:x".try_into().unwrap(), raw).unwrap();
        let find =
            |id: &OwnedEventId| self.events.iter().find(|event| event.event_id == *id).cloned().unwrap();
        let map = keys.iter().filter_map(|key| Some((key.clone(), find(state.get(key)?)))).collect();
        if kind != "m.room.create" && check_state_dependent(&event, &self.version, &map).is_err() {
            return;
        }
        let mut after = state;
        after.insert(event.state_entry().unwrap(), id);
        self.events.push(Arc::new(event));
        self.states.push(after);
    }

    fn memory(&self) -> Memory {
        Memory::new(self.events.iter().map(|event| (Arc::clone(event), false)))
    }

    fn chain(&self, of: impl IntoIterator<Item = OwnedEventId>) -> EventIdSet<OwnedEventId> {
        let mut chain = EventIdSet::new();
        let mut stack: Vec<OwnedEventId> = of.into_iter().collect();
        while let Some(id) = stack.pop() {
            if chain.insert(id.clone()) {
                let event = self.events.iter().find(|event| event.event_id == id).unwrap();
                stack.extend(event.auth_events.iter().cloned());
            }
        }
        chain
    }

    /// By the letter: ruma's algorithm over everything.
    fn plainly(&self, states: &[StateMap]) -> StateMap {
        let rules = rules_or_unknown(&self.version).unwrap();
        let v2 = rules.state_res.v2_rules().unwrap();
        let view = |event: &Arc<Event>| Arc::new(PduView::new(Arc::clone(event), false, &self.version));
        let views: HashMap<OwnedEventId, View> =
            self.events.iter().map(|event| (event.event_id.clone(), view(event))).collect();
        let maps: Vec<state_res::StateMap<OwnedEventId>> =
            states.iter().map(|state| state.clone().into_iter().collect()).collect();
        let chains = states.iter().map(|state| self.chain(state.values().cloned())).collect();
        let resolved = state_res::resolve(
            &rules.authorization,
            v2,
            &maps,
            chains,
            |id| views.get(id).cloned(),
            |conflicted| {
                let ends: BTreeSet<&OwnedEventId> = conflicted.values().flatten().collect();
                let above = self.chain(ends.iter().map(|id| (*id).clone()));
                let ids = self.events.iter().map(|event| event.event_id.clone());
                let between = ids.filter(|id| {
                    let below = self.chain([id.clone()]);
                    above.contains(id) && ends.iter().any(|end| below.contains(end))
                });
                Some(between.collect())
            },
        );
        resolved.unwrap().into_iter().collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_asked_for_suffices(
        steps in proptest::collection::vec(step(), 1..60),
        version in proptest::sample::select(&[RoomVersionId::V1, RoomVersionId::V2, RoomVersionId::V10, RoomVersionId::V12][..]),
        places in proptest::collection::vec(any::<Index>(), 2..5),
    ) {
        let room = Grown::new(version.clone(), &steps);
        let states: Vec<StateMap> =
            places.iter().map(|place| room.states[4 + place.index(room.states.len() - 4)].clone()).collect();
        let found = room.memory().resolve(&version, &states).unwrap();
        let expected = if version == RoomVersionId::V1 {
            let (agreed, sides) = split(&states).unwrap();
            let mut loaded = Loaded::new();
            room.events.iter().for_each(|event| loaded.insert(Arc::clone(event), false));
            let keys = room.events.iter().filter_map(|event| event.state_entry());
            keys.for_each(|key| loaded.insert_entry(key.clone(), agreed.get(&key).cloned()));
            let disputed = resolve_v1::resolve(&version, &Agreed::new(&sides, &loaded), &sides, &loaded);
            agreed.into_iter().chain(disputed.unwrap()).collect()
        } else {
            room.plainly(&states)
        };
        prop_assert_eq!(found, expected);
    }
}
