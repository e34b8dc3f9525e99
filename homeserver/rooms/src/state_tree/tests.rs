use super::*;
use crate::invariants::{node_is_sound, tree_is_sound};
use proptest::prelude::*;
use ruma::OwnedEventId;
use std::collections::BTreeMap;

type State = BTreeMap<StateKey, OwnedEventId>;
type Store = HashMap<NodeId, Arc<Node>>;

/// One step of a history: set or remove an entry.
type Step = (StateKey, Option<OwnedEventId>);

fn key() -> impl Strategy<Value = StateKey> {
    const KINDS: [&str; 6] =
        ["m.room.member", "m.room.member", "m.room.member", "m.room.topic", "m.room.name", "org.example"];
    let kind = prop_oneof![proptest::sample::select(&KINDS[..]).prop_map(str::to_owned), "[a-d.]{0,3}"];
    (kind, "[a-f]{0,2}").prop_map(|(kind, key)| (kind.into(), key))
}

fn event_id() -> impl Strategy<Value = OwnedEventId> {
    let text = prop_oneof![
        "[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]",
        "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]",
        "[A-Za-z0-9+/]{43}",
        "[a-z]{1,5}:[a-z]{1,5}",
    ];
    text.prop_map(|text| format!("${text}").try_into().unwrap())
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((key(), proptest::option::weighted(0.6, event_id())), 0..most)
}

fn apply(state: &mut State, steps: &[Step]) {
    for (key, event_id) in steps {
        match event_id {
            Some(event_id) => state.insert(key.clone(), event_id.clone()),
            None => state.remove(key),
        };
    }
}

/// Updates a tree that lies in `stored`, holding only what was asked for; returns the root and how often it asked.
fn update_stored(stored: &mut Store, root: NodeId, steps: &[Step]) -> NodeId {
    let mut at_hand = Store::new();
    loop {
        match update(&at_hand, root, steps) {
            Ok(update) => {
                for (id, node) in &update.new_nodes {
                    assert_eq!(*id, node.id());
                    assert!(
                        node.children().iter().all(|child| stored.contains_key(child)),
                        "children come first"
                    );
                    stored.insert(*id, node.clone());
                }
                return update.root;
            }
            Err(NeedNodes(ids)) => {
                assert!(!ids.is_empty());
                for id in ids {
                    assert!(at_hand.insert(id, stored[&id].clone()).is_none(), "asked twice");
                }
            }
        }
    }
}

fn stored(update: &Update) -> Store {
    update.new_nodes.iter().cloned().collect()
}

fn members(count: usize) -> State {
    let id = |n: usize| format!("$e{n}:x").try_into().unwrap();
    (0..count).map(|n| ((StateEventType::RoomMember, format!("@user{n}:example.org")), id(n))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn is_a_map_and_has_one_shape(batches in proptest::collection::vec(steps(40), 0..8), probes in steps(10)) {
        let (mut model, mut tree, mut root) = (State::new(), Store::new(), NodeId::EMPTY);
        for batch in &batches {
            apply(&mut model, batch);
            root = update_stored(&mut tree, root, batch);
        }
        prop_assert_eq!(&entries(&tree, root).unwrap(), &model);
        prop_assert_eq!(count(&tree, root).unwrap(), model.len() as u64);
        prop_assert_eq!(root, build(model.clone()).root, "the shape depends on the history");
        prop_assert_eq!(tree_is_sound(&tree, root), Ok(()));
        let mut keys: Vec<StateKey> = probes.into_iter().map(|(key, _)| key).collect();
        keys.extend(model.keys().cloned());
        let many = get_many(&tree, root, &keys).unwrap();
        for key in &keys {
            let one = get(&tree, root, key).unwrap();
            prop_assert_eq!(one.as_ref(), model.get(key));
            prop_assert_eq!(many.get(key), model.get(key));
            let others = model.iter().filter(|(other, _)| other.0 != key.0);
            let others: State = others.map(|(key, id)| (key.clone(), id.clone())).collect();
            for own in [0, (model.len() - others.len()) as u64] {
                prop_assert_eq!(&entries_besides(&tree, root, &key.0, own).unwrap(), &others);
            }
            let of_type = entries_of_type(&tree, root, &key.0).unwrap();
            let expected = model.iter().filter(|(other, _)| other.0 == key.0);
            let expected: BTreeMap<_, _> = expected.map(|(key, id)| (key.1.clone(), id.clone())).collect();
            prop_assert_eq!(of_type, expected);
        }
    }

    #[test]
    fn difference_is_exact(first in steps(80), then in steps(20)) {
        let (mut a, mut b) = (State::new(), State::new());
        apply(&mut a, &first);
        apply(&mut b, &first);
        apply(&mut b, &then);
        let (tree_a, tree_b) = (build(a.clone()), build(b.clone()));
        prop_assert_eq!(tree_a.root == tree_b.root, a == b);
        let mut nodes = stored(&tree_a);
        nodes.extend(stored(&tree_b));
        let changes = diff(&nodes, tree_a.root, tree_b.root).unwrap();
        let keys: BTreeSet<&StateKey> = a.keys().chain(b.keys()).collect();
        let expected: Vec<Change> = keys.into_iter().filter(|key| a.get(*key) != b.get(*key)).map(|key| {
            Change { key: key.clone(), before: a.get(key).cloned(), after: b.get(key).cloned() }
        }).collect();
        prop_assert_eq!(changes, expected);
    }

    #[test]
    fn conflicts_are_what_is_not_common(common in steps(40), branches in proptest::collection::vec(steps(8), 1..4)) {
        let (mut nodes, mut states, mut roots) = (Store::new(), Vec::new(), Vec::new());
        for branch in &branches {
            let mut state = State::new();
            apply(&mut state, &common);
            apply(&mut state, branch);
            let built = build(state.clone());
            nodes.extend(stored(&built));
            roots.push(built.root);
            states.push(state);
        }
        let common = |key: &StateKey| states.iter().all(|state| state.get(key) == states[0].get(key));
        let expected: Vec<State> = states.iter()
            .map(|state| state.clone().into_iter().filter(|(key, _)| !common(key)).collect()).collect();
        prop_assert_eq!(conflicts(&nodes, &roots).unwrap(), expected);
    }

    #[test]
    fn nodes_survive_encoding(steps in steps(60)) {
        let mut state = State::new();
        apply(&mut state, &steps);
        for (id, node) in build(state).new_nodes {
            let bytes = node.encode();
            prop_assert_eq!(&Node::decode(&bytes).unwrap(), &*node);
            prop_assert_eq!(node_is_sound(&node), Ok(()));
            prop_assert_eq!(NodeId::of_encoded(&bytes), id);
            prop_assert_eq!(Node::decode(&bytes[..bytes.len() - 1]).is_err(), true);
        }
    }

    #[test]
    fn what_decodes_is_canonical(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), form in 0..3_u8) {
        if form < 2 && bytes.len() > 2 {
            bytes[0] = 1;
            bytes[1] = form;
        }
        if let Ok(node) = Node::decode(&bytes) {
            prop_assert_eq!(node.encode(), bytes);
        }
    }

    #[test]
    fn damage_does_not_panic(at in any::<usize>(), byte in any::<u8>()) {
        for (_, node) in build(members(12)).new_nodes {
            let mut bytes = node.encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(node) = Node::decode(&bytes) {
                prop_assert_eq!(node.encode(), bytes);
            }
        }
    }
}

#[test]
fn a_change_of_a_large_state_writes_little() {
    let members = members(20_000);
    let built = build(members.clone());
    let mut tree = stored(&built);
    let (key, id) =
        ((StateEventType::RoomMember, "@new:example.org".to_owned()), "$new:x".try_into().unwrap());
    let after = update(&tree, built.root, &[(key.clone(), Some(id))]).unwrap();
    let bytes: usize = after.new_nodes.iter().map(|(_, node)| node.encode().len()).sum();
    assert!(after.new_nodes.len() <= 9, "{} nodes", after.new_nodes.len());
    assert!(bytes < 2_000, "{bytes} bytes");

    tree.extend(after.new_nodes);
    let back = update(&tree, after.root, &[(key.clone(), None)]).unwrap();
    assert_eq!(back.root, built.root);
    let changes = diff(&tree, built.root, after.root).unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].key, key);
}

#[test]
fn a_difference_needs_only_what_differs() {
    let a = build(members(5_000));
    let mut changed = members(5_000);
    changed.insert((StateEventType::RoomName, String::new()), "$name:x".try_into().unwrap());
    let b = build(changed);
    let (mut stored_nodes, mut at_hand) = (stored(&a), Store::new());
    stored_nodes.extend(stored(&b));
    let changes = loop {
        match diff(&at_hand, a.root, b.root) {
            Ok(changes) => break changes,
            Err(NeedNodes(ids)) => at_hand.extend(ids.into_iter().map(|id| (id, stored_nodes[&id].clone()))),
        }
    };
    assert_eq!(changes.len(), 1);
    assert!(at_hand.len() < 8, "{} nodes", at_hand.len());
}

#[test]
fn a_change_to_what_is_already_there_writes_nothing() {
    let state = members(100);
    let built = build(state.clone());
    let (key, id) = state.into_iter().next().unwrap();
    let gone = ((StateEventType::RoomMember, "@nobody:example.org".to_owned()), None);
    let same = update(&stored(&built), built.root, &[(key, Some(id)), gone]).unwrap();
    assert_eq!(same.root, built.root);
    assert!(same.new_nodes.is_empty());
}

#[test]
fn the_empty_state_needs_no_node() {
    let nodes = Store::new();
    assert!(entries(&nodes, NodeId::EMPTY).unwrap().is_empty());
    assert_eq!(count(&nodes, NodeId::EMPTY), Ok(0));
    assert_eq!(build(State::new()).root, NodeId::EMPTY);
    let built = build(members(30));
    let none: Vec<Step> = members(30).into_keys().map(|key| (key, None)).collect();
    let emptied = update(&stored(&built), built.root, &none).unwrap();
    assert_eq!((emptied.root, emptied.new_nodes.len()), (NodeId::EMPTY, 0));
}

/// Roots are stored and compared between versions of this program: they must never change.
#[test]
fn the_format_is_pinned() {
    assert_eq!(
        build(members(100)).root.to_string(),
        "3e60c12805270e6e7bfbb965e850d9f91915d0db0b87ace9edde7000f8ad05b2"
    );
    let id = "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg".try_into().unwrap();
    let small = build([((StateEventType::RoomTopic, "k".to_owned()), id)]);
    assert_eq!(small.new_nodes[0].1.encode()[..6], [1, 0, 1, 9, 1, b'k']);
    assert_eq!(small.new_nodes[0].1.encode().len(), 6 + 1 + 32);
}

#[test]
fn ids_are_32_bytes_and_hex() {
    assert_eq!(NodeId::try_from(&[1_u8; 31][..]), Err(BadNodeId(31)));
    let id = NodeId::try_from(&[0xab_u8; 32][..]).unwrap();
    assert_eq!(id.to_string(), "ab".repeat(32));
    assert_eq!(id.as_bytes(), &[0xab; 32]);
}
