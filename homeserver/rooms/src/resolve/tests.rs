use super::fixtures::{ALICE, BOB, CAROL, DAVE, Room, id};
use super::memory::split;
use super::*;
use crate::invariants::{self, resolution_is_sound};
use proptest::prelude::*;
use serde_json::json;

const VERSIONS: [RoomVersionId; 5] =
    [RoomVersionId::V1, RoomVersionId::V2, RoomVersionId::V6, RoomVersionId::V11, RoomVersionId::V12];

fn at<'a>(state: &'a StateMap, kind: &str, key: &str) -> Option<&'a str> {
    state.get(&(kind.into(), key.to_owned())).map(|id| id.as_str())
}

fn topic(state: &StateMap) -> &str {
    at(state, "m.room.topic", "").unwrap()
}

#[test]
fn a_ban_beats_what_the_banned_do_meanwhile() {
    for version in VERSIONS {
        let room = Room::new(version.clone());
        let state = room.resolve(&[room.after("ban_bob"), room.after("pl_by_bob topic_by_bob")]);
        assert_eq!(at(&state, "m.room.member", BOB), Some("$ban_bob:x"), "{version}");
        assert_eq!(at(&state, "m.room.power_levels", ""), Some("$pl:x"), "{version}");
        assert_eq!(topic(&state), "$topic:x", "{version}");
    }
}

#[test]
fn of_two_power_levels_the_more_powerful_sender_comes_first() {
    for version in [RoomVersionId::V2, RoomVersionId::V11, RoomVersionId::V12] {
        let room = Room::new(version.clone());
        // Bob's claims to be older, but Alice has demoted him.
        let state = room.resolve(&[room.after("pl_by_bob"), room.after("pl_by_alice")]);
        assert_eq!(at(&state, "m.room.power_levels", ""), Some("$pl_by_alice:x"), "{version}");
    }
}

#[test]
fn of_two_topics_version_1_takes_the_deeper_and_version_2_the_later() {
    for version in VERSIONS {
        let mut room = Room::new(version.clone());
        let early = json!({ "topic": "deep" });
        room.add(("deep", ALICE, "m.room.topic", "", 20, early, "create alice pl"));
        let deep = room.events.remove(&id("deep")).unwrap();
        let back_dated =
            Event { origin_server_ts: room.events[&id("topic")].origin_server_ts, ..(*deep).clone() };
        room.events.insert(id("deep"), Arc::new(back_dated));
        let state = room.resolve(&[room.after("deep"), room.after("topic_by_bob")]);
        let expected = if version == RoomVersionId::V1 { "$deep:x" } else { "$topic_by_bob:x" };
        assert_eq!(topic(&state), expected, "{version}");
    }
}

#[test]
fn a_topic_under_newer_power_levels_wins() {
    for version in [RoomVersionId::V2, RoomVersionId::V11, RoomVersionId::V12] {
        let mut room = Room::new(version.clone());
        let early = json!({ "topic": "early" });
        room.add(("under_new", ALICE, "m.room.topic", "", 13, early, "create alice pl_by_alice"));
        room.add(("late", ALICE, "m.room.topic", "", 30, json!({}), "create alice pl"));
        let state = room.resolve(&[room.after("pl_by_alice under_new"), room.after("late")]);
        assert_eq!(topic(&state), "$under_new:x", "{version}");
    }
}

#[test]
fn who_joins_while_the_room_is_closed_is_out_but_not_in_version_1() {
    for version in VERSIONS {
        let room = Room::new(version.clone());
        let state = room.resolve(&[room.after("jr_closed"), room.after("dave")]);
        let old = version == RoomVersionId::V1;
        // To version 1 an entry that one side lacks is no conflict.
        assert_eq!(at(&state, "m.room.member", DAVE), old.then_some("$dave:x"), "{version}");
        assert_eq!(at(&state, "m.room.join_rules", ""), Some("$jr_closed:x"), "{version}");
    }
}

#[test]
fn version_12_judges_by_the_time_of_the_event_not_by_what_all_agree_on_since() {
    for version in VERSIONS {
        let room = Room::new(version.clone());
        let state = room.resolve(&[room.after("bob_left"), room.after("topic_by_bob bob_left")]);
        let expected = if version == RoomVersionId::V12 { "$topic_by_bob:x" } else { "$topic:x" };
        assert_eq!(topic(&state), expected, "{version}");
        assert_eq!(at(&state, "m.room.member", BOB), Some("$bob_left:x"), "{version}");
    }
}

#[test]
fn version_12_follows_the_path_between_conflicting_events() {
    for version in [RoomVersionId::V11, RoomVersionId::V12] {
        let mut room = Room::new(version.clone());
        let mut levels = room.levels(&[(BOB, 50), (CAROL, 50)]);
        room.add(("pl2", ALICE, "m.room.power_levels", "", 10, levels.clone(), "create alice pl"));
        levels["invite"] = json!(50);
        room.add(("pl3", CAROL, "m.room.power_levels", "", 11, levels, "create carol pl2"));
        let join = json!({ "membership": "join" });
        room.add(("dave2", DAVE, "m.room.member", DAVE, 12, join, "create pl2 jr"));
        // All chains have what made Carol a moderator, so that it is in no difference.
        let state = room.resolve(&[room.after("dave2"), room.after("pl3 dave2")]);
        let expected = if version == RoomVersionId::V12 { "$pl3:x" } else { "$pl:x" };
        assert_eq!(at(&state, "m.room.power_levels", ""), Some(expected), "{version}");
    }
}

#[test]
fn a_line_of_profile_changes_survives_the_closing_of_the_room() {
    let mut room = Room::new(RoomVersionId::V12);
    let join = json!({ "membership": "join" });
    for (name, time, before) in [("c1", 21, "carol"), ("c2", 21, "c1"), ("c3", 21, "c2")] {
        let auth = format!("pl jr_closed {before}");
        room.add((name, CAROL, "m.room.member", CAROL, time, join.clone(), &auth));
    }
    room.add(("gone", ALICE, "m.room.member", ALICE, 15, json!({ "membership": "leave" }), "pl alice"));
    // One side claims that the room is still open; Alice, who closed it, is gone on both.
    let state = room.resolve(&[room.after("jr_closed gone"), room.after("gone c3")]);
    assert_eq!(at(&state, "m.room.member", CAROL), Some("$c3:x"));
    assert_eq!(at(&state, "m.room.join_rules", ""), Some("$jr_closed:x"));
}

#[test]
fn a_rejected_auth_event_does_not_help() {
    let room = Room::new(RoomVersionId::V12);
    let states = [room.after("bob_left"), room.after("topic_by_bob bob_left")];
    let rejected = |event: &Arc<Event>| event.event_id == id("bob");
    let memory = Memory::new(room.events.values().map(|event| (event.clone(), rejected(event))));
    assert_eq!(topic(&memory.resolve(&room.version, &states).unwrap()), "$topic:x");
}

#[test]
fn needs_little_of_a_large_room() {
    for version in VERSIONS {
        let mut room = Room::new(version.clone());
        let mut names = String::new();
        for n in 0..2_000 {
            let (name, user) = (format!("m{n}"), format!("@m{n}:x"));
            let join = json!({ "membership": "join" });
            room.add((&name, &user, "m.room.member", &user, 8, join, "create pl jr"));
            names.extend([name.as_str(), " "]);
        }
        let states = [room.after(&names), room.after(&format!("{names} dave"))];
        let (state, count) = room.resolve_counting(&states);
        assert_eq!(at(&state, "m.room.member", DAVE), Some("$dave:x"));
        assert_eq!(state.len(), 2_008);
        assert!(count < 30, "{version}: {count}");
    }
}

#[test]
fn events_that_do_not_exist_are_left_out() {
    for version in VERSIONS {
        let mut room = Room::new(version);
        let states = [room.after(""), room.after("topic_by_bob"), room.after("dave_again")];
        room.events.remove(&id("topic_by_bob"));
        room.events.remove(&id("dave"));
        assert_eq!(topic(&room.resolve(&states)), "$topic:x");
    }
}

#[test]
fn power_levels_that_authorise_themselves_end_the_resolution() {
    let mut room = Room::new(RoomVersionId::V2);
    let levels = room.levels(&[(BOB, 50)]);
    room.add(("round", ALICE, "m.room.power_levels", "", 9, levels.clone(), "create alice about"));
    room.add(("about", ALICE, "m.room.power_levels", "", 9, levels, "create alice round"));
    room.add(("topic_under", ALICE, "m.room.topic", "", 9, json!({}), "create alice about"));
    for states in [["topic_under", "topic_by_bob"], ["round", "about"]] {
        let states = states.map(|names| room.after(names));
        assert!(matches!(room.memory().resolve(&room.version, &states), Err(Need::Impossible(_))));
    }
}

#[test]
fn refuses_unknown_versions_and_too_many_states() {
    let one = |n: usize| StateMap::from([(("t".into(), String::new()), id(&format!("e{n}")))]);
    let unknown = Memory::default().resolve(&"org.example.unknown".try_into().unwrap(), &[one(1), one(2)]);
    assert!(matches!(unknown, Err(Need::Impossible(_))));
    let states: Vec<StateMap> = (0..=MAX_SIDES).map(one).collect();
    let many = Memory::default().resolve(&RoomVersionId::V11, &states);
    assert!(matches!(many, Err(Need::Impossible(_))));
}

/// What may be in one of the states beside the beginning.
const LATER: [&str; 10] = [
    "ban_bob",
    "bob_left",
    "pl_by_bob",
    "pl_by_alice",
    "topic_by_bob",
    "topic_by_alice",
    "jr_closed",
    "dave",
    "dave_again",
    "topic",
];

fn histories() -> impl Strategy<Value = Vec<Vec<&'static str>>> {
    let names = proptest::collection::vec(proptest::sample::select(&LATER[..]), 0..6);
    proptest::collection::vec(names, 1..5)
}

/// A random graph of auth events and states over it.
#[derive(Debug, Clone)]
struct Graph {
    auth: Vec<BTreeSet<usize>>,
    states: Vec<BTreeMap<u8, usize>>,
}

fn graph() -> impl Strategy<Value = Graph> {
    let picks =
        proptest::collection::vec(proptest::collection::vec(any::<proptest::sample::Index>(), 0..4), 1..60);
    let states = proptest::collection::vec(
        proptest::collection::btree_map(0..6_u8, any::<proptest::sample::Index>(), 1..6),
        2..4,
    );
    (picks, states).prop_map(|(picks, states)| {
        let auth = picks
            .iter()
            .enumerate()
            .map(|(n, picks)| picks.iter().filter(|_| n > 0).map(|pick| pick.index(n)).collect());
        let auth: Vec<BTreeSet<usize>> = auth.collect();
        let events = auth.len();
        // Each key has its own events: those with its number modulo six.
        let own = |key: u8, pick: proptest::sample::Index| {
            let candidates: Vec<usize> = (0..events).filter(|n| n % 6 == usize::from(key)).collect();
            (!candidates.is_empty()).then(|| candidates[pick.index(candidates.len())])
        };
        let states = states
            .into_iter()
            .map(|state| state.into_iter().filter_map(|(key, pick)| Some((key, own(key, pick)?))).collect());
        Graph { states: states.collect(), auth }
    })
}

impl Graph {
    fn chain(&self, event: usize) -> BTreeSet<usize> {
        let below = self.auth[event].iter().flat_map(|auth| self.chain(*auth));
        below.chain(self.auth[event].iter().copied()).collect()
    }

    fn ids(events: impl IntoIterator<Item = usize>) -> BTreeSet<OwnedEventId> {
        events.into_iter().map(|n| id(&format!("e{n}"))).collect()
    }

    /// The key at which an event stands: all can authorise others.
    fn key(event: usize) -> StateKey {
        let (kind, key) = [
            ("m.room.member", "@a:x"),
            ("m.room.member", "@b:x"),
            ("m.room.power_levels", ""),
            ("m.room.join_rules", ""),
            ("m.room.member", "@c:x"),
            ("m.room.third_party_invite", "x"),
        ][event % 6];
        (kind.into(), key.to_owned())
    }

    fn memory(&self) -> Memory {
        let event = |n: usize| {
            let (kind, key) = Graph::key(n);
            let pdu = json!({
                "type": kind, "sender": ALICE, "state_key": key, "depth": 1, "origin_server_ts": 1, "content": {},
                "prev_events": [], "auth_events": Graph::ids(self.auth[n].iter().copied()), "room_id": "!create:x",
            });
            let raw = serde_json::value::to_raw_value(&pdu).unwrap();
            Event::parse(id(&format!("e{n}")), "!create:x".try_into().unwrap(), raw).unwrap()
        };
        Memory::new((0..self.auth.len()).map(|n| (Arc::new(event(n)), false)))
    }

    /// The full chain of each state, as implementations understand it: with the state's own events.
    fn full_chains(&self) -> Vec<BTreeSet<usize>> {
        let with_own = |event: &usize| self.chain(*event).into_iter().chain([*event]).collect::<Vec<_>>();
        self.states.iter().map(|state| state.values().flat_map(with_own).collect()).collect()
    }

    fn state_maps(&self) -> Vec<StateMap> {
        let entry = |(_, event): (&u8, &usize)| (Graph::key(*event), id(&format!("e{event}")));
        self.states.iter().map(|state| state.iter().map(entry).collect()).collect()
    }
}

/// What a walk finds, loading what it asks for.
fn asked(
    memory: &Memory,
    agreed: &StateMap,
    walk: impl Fn(&Loaded) -> Result<BTreeSet<u64>, Need>,
) -> BTreeSet<OwnedEventId> {
    let mut loaded = Loaded::new();
    loop {
        match walk(&loaded) {
            Ok(found) => {
                return found.iter().map(|n| loaded.node(*n).unwrap().event_id.clone()).collect();
            }
            Err(need) => memory.answer(need, agreed, &mut loaded).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sets_are_what_the_specification_says(graph in graph(), witnesses in any::<bool>()) {
        let memory = graph.memory();
        let (agreed, sides) = split(&graph.state_maps()).unwrap();
        let conflicted: BTreeSet<OwnedEventId> = sides.iter().flat_map(BTreeMap::values).cloned().collect();

        let chains = graph.full_chains();
        let union: BTreeSet<usize> = chains.iter().flatten().copied().collect();
        let differing = union.into_iter().filter(|event| !chains.iter().all(|chain| chain.contains(event)));
        let expected = &Graph::ids(differing) | &conflicted;
        let found = asked(&memory, &agreed, |loaded| {
            let witnesses = agreed.values().filter(|_| witnesses).map(|id| &**id).collect();
            difference(&sides, witnesses, &Agreed::new(&sides, loaded))
        });
        prop_assert_eq!(&found | &conflicted, expected);

        let end = |n: usize| conflicted.contains(&id(&format!("e{n}")));
        let on_path = |event: &usize| {
            let below = end(*event) || graph.chain(*event).into_iter().any(end);
            let above = (0..graph.auth.len()).any(|n| end(n) && graph.chain(n).contains(event));
            end(*event) || (below && above)
        };
        let expected = Graph::ids((0..graph.auth.len()).filter(on_path));
        let found = asked(&memory, &agreed, |loaded| conflicted_subgraph(&sides, loaded));
        prop_assert_eq!(&found | &conflicted, expected);
    }

    #[test]
    fn order_repetition_and_what_else_is_loaded_do_not_matter(
        histories in histories(),
        version in proptest::sample::select(&VERSIONS[..]),
        turn in 0..4_usize,
    ) {
        let room = Room::new(version);
        let states: Vec<StateMap> = histories.iter().map(|names| room.after(&names.join(" "))).collect();
        let resolved = room.resolve(&states);
        prop_assert_eq!(resolution_is_sound(&states, &resolved), Ok(()));
        prop_assert_eq!(invariants::state_is_sound(&resolved), Ok(()));
        for (key, id) in &resolved {
            prop_assert_eq!(invariants::entry_is_sound(key, &room.events[id]), Ok(()));
        }
        prop_assert_eq!(&room.resolve_counting(&states).0, &resolved);

        let mut turned = states.clone();
        turned.rotate_left(turn % states.len());
        turned.push(states[0].clone());
        prop_assert_eq!(&room.resolve(&turned), &resolved);
        turned.reverse();
        let (memory, (agreed, sides)) = (room.memory(), split(&turned).unwrap());
        let mut all = Loaded::new();
        let ids: BTreeSet<OwnedEventId> = room.events.keys().cloned().collect();
        let keys = room.events.values().filter_map(|event| event.state_entry()).collect();
        for need in [Need::Events(ids.clone()), Need::Entries(keys), Need::NodesOf(ids)] {
            memory.answer(need, &agreed, &mut all).unwrap();
        }
        let of = (0..=room.events.len() as u64).collect();
        all.insert_later(of, 0, memory.nodes().cloned(), true);
        let again = resolve_conflicts(&room.version, &sides, &all).unwrap();
        prop_assert_eq!(&agreed.into_iter().chain(again).collect::<StateMap>(), &resolved);
    }

    #[test]
    fn equal_states_resolve_to_themselves_without_any_event(
        names in proptest::sample::subsequence(&LATER[..], 0..6),
        version in proptest::sample::select(&VERSIONS[..]),
    ) {
        let room = Room::new(version);
        let state = room.after(&names.join(" "));
        let resolved = Memory::default().resolve(&room.version, &[state.clone(), state.clone(), state.clone()]);
        prop_assert_eq!(resolved.unwrap(), state);
    }
}
