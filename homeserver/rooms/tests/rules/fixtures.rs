//! State resolution against the cases that ruma's own library is tested with. They come with its source, which Cargo
//! has where it has the library; nothing of them is copied here.

use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, OwnedRoomId, RoomVersionId};
use serde::Deserialize;
use serde_json::value::to_raw_value;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use waxwing_model::Event;
use waxwing_rooms::resolve::{Memory, StateMap};

/// Where the source of the library is. Asked for once: Cargo waits while another of it is at work.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(library);

fn library() -> PathBuf {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        manifest_path: PathBuf,
    }
    let told = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told: Metadata = serde_json::from_slice(&told.stdout).expect("metadata");
    let found = told.packages.into_iter().find(|package| package.name == "ruma-state-res");
    found.expect("the library").manifest_path.parent().expect("its folder").join("tests/it/resolve")
}

struct Case {
    version: RoomVersionId,
    events: BTreeMap<OwnedEventId, Arc<Event>>,
    order: Vec<OwnedEventId>,
}

fn load(files: &[&str]) -> Case {
    let mut case = Case { version: RoomVersionId::V1, events: BTreeMap::new(), order: Vec::new() };
    let mut room = None;
    for file in files {
        let text = std::fs::read_to_string(LIBRARY.join("fixtures").join(file)).expect("a fixture");
        for mut event in serde_json::from_str::<Vec<Map<String, Value>>>(&text).expect("events") {
            let id = OwnedEventId::try_from(event["event_id"].as_str().expect("an id")).expect("an id");
            if event["type"] == "m.room.create" {
                let version = event["content"]["room_version"].as_str().expect("a version");
                case.version = RoomVersionId::try_from(version).expect("a version");
                let of = event.get("room_id").and_then(Value::as_str);
                let implied = format!("!{}", &id.as_str()[1..]);
                room = Some(OwnedRoomId::try_from(of.unwrap_or(&implied)).expect("a room id"));
            }
            event.entry("depth").or_insert(1.into());
            let raw = to_raw_value(&event).expect("JSON");
            let event =
                Event::parse(id.clone(), room.clone().expect("create comes first"), raw).expect("an event");
            case.order.push(id.clone());
            case.events.insert(id, Arc::new(event));
        }
    }
    case
}

impl Case {
    fn resolve(&self, states: &[StateMap]) -> StateMap {
        let memory = Memory::new(self.events.values().map(|event| (Arc::clone(event), false)));
        memory.resolve(&self.version, states).expect("a state")
    }

    /// Event by event, as a server that receives them; joined where branches come together, and at the end.
    fn one_by_one(&self) -> StateMap {
        let mut after: BTreeMap<OwnedEventId, StateMap> = BTreeMap::new();
        let mut left: Vec<&Arc<Event>> = self.order.iter().map(|id| &self.events[id]).collect();
        while !left.is_empty() {
            let before = left.len();
            left.retain(|event| {
                let Some(states) = event.prev_events.iter().map(|id| after.get(id).cloned()).collect() else {
                    return true;
                };
                let states: Vec<StateMap> = states;
                let mut state = if states.is_empty() { StateMap::new() } else { self.resolve(&states) };
                state.extend(event.state_entry().map(|entry| (entry, event.event_id.clone())));
                after.insert(event.event_id.clone(), state);
                false
            });
            assert!(left.len() < before, "a circle");
        }
        let inner: BTreeSet<&OwnedEventId> =
            self.events.values().flat_map(|event| &event.prev_events).collect();
        let ends: Vec<StateMap> =
            after.iter().filter(|(id, _)| !inner.contains(id)).map(|(_, state)| state.clone()).collect();
        self.resolve(&ends)
    }

    fn state_of(&self, file: &str) -> StateMap {
        let text = std::fs::read_to_string(LIBRARY.join("fixtures").join(file)).expect("a state");
        let ids: Vec<OwnedEventId> = serde_json::from_str(&text).expect("ids");
        ids.into_iter().map(|id| (self.events[&id].state_entry().expect("state"), id)).collect()
    }
}

/// What the library's own tests expect.
fn expected(name: &str) -> StateMap {
    #[derive(Deserialize)]
    struct Entry {
        r#type: String,
        state_key: String,
        event_id: OwnedEventId,
    }
    let path = LIBRARY.join("snapshots").join(format!("{name}@resolved_state.snap"));
    let text = std::fs::read_to_string(path).expect("a snapshot");
    let (_, json) = text.split_once("\n---\n").expect("a head");
    let entries: Vec<Entry> = serde_json::from_str(json).expect("entries");
    entries
        .into_iter()
        .map(|e| ((TimelineEventType::from(e.r#type).to_string().into(), e.state_key), e.event_id))
        .collect()
}

#[test]
fn rooms_that_grow() {
    let (private, public) = ("bootstrap-private-chat.json", "bootstrap-public-chat.json");
    let cases: [(&str, &[&str]); 9] = [
        ("minimal_private_chat", &[private]),
        ("minimal_public_chat", &[public]),
        ("origin_server_ts_tiebreak", &[private, "origin-server-ts-tiebreak.json"]),
        ("ban_vs_power_levels", &[public, "ban-vs-power-levels-alice.json", "ban-vs-power-levels-bob.json"]),
        (
            "topic_vs_power_levels",
            &[public, "topic-vs-power-levels-alice.json", "topic-vs-power-levels-bob.json"],
        ),
        (
            "power_levels_admin_vs_mod",
            &[public, "power-levels-admin-vs-mod-alice.json", "power-levels-admin-vs-mod-bob.json"],
        ),
        (
            "topic_vs_ban",
            &[public, "topic-vs-ban-common.json", "topic-vs-ban-alice.json", "topic-vs-ban-bob.json"],
        ),
        (
            "join_rules_vs_join",
            &[
                public,
                "join-rules-vs-join-common.json",
                "join-rules-vs-join-alice.json",
                "join-rules-vs-join-ella.json",
            ],
        ),
        ("concurrent_joins", &[public, "concurrent-joins-charlie.json", "concurrent-joins-ella.json"]),
    ];
    for (name, files) in cases {
        assert_eq!(load(files).one_by_one(), expected(name), "{name}");
    }
}

/// The two problems that MSC4297 (state resolution 2.1) describes, in the version before and in its own.
#[test]
fn states_that_meet() {
    for (problem, a, b) in [("A", "bob", "charlie"), ("B", "eve", "zara")] {
        for (version, algorithm) in [("v11", "2_0"), ("v12", "2_1")] {
            let file = |name: &str| format!("MSC4297-problem-{problem}/{name}.json");
            let case = load(&[&file(&format!("pdus-{version}"))]);
            let states = [a, b].map(|whose| case.state_of(&file(&format!("state-{whose}"))));
            let name = format!("msc4297_problem_{}_state_res_v{algorithm}", problem.to_lowercase());
            assert_eq!(case.resolve(&states), expected(&name), "{name}");
        }
    }
}
