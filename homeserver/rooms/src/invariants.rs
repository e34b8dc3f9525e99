//! What holds of every event and state that this package makes: checked by its tests, and by `debug_assert!` where
//! others store or load.

use ruma::RoomVersionId;
use ruma::events::StateEventType;
use waxwing_model::{Event, StateKey};

use crate::canonical::lenient_object;
use crate::format::{self, Counts};
use crate::parse::pdu_from_object;
use crate::resolve::StateMap;
use crate::state_tree::{self, Node, NodeId, Nodes};

/// The fields of an event are those of its JSON, its id is that of its JSON, and it is within the limits.
pub fn event_is_sound(event: &Event, version: &RoomVersionId) -> Result<(), String> {
    let object = lenient_object(event.json.get()).map_err(|error| error.to_string())?;
    format::check(&object, version, Counts::Unlimited).map_err(|error| error.to_string())?;
    let again = pdu_from_object(object, version).map_err(|error| error.to_string())?.event;
    if again.event_id != event.event_id {
        return Err(format!("{} is the JSON of {}", event.event_id, again.event_id));
    }
    if again.kind != event.kind || again.sender != event.sender || again.state_key != event.state_key {
        return Err(format!("{} differs from its JSON", event.event_id));
    }
    Ok(())
}

/// An event is the one that a state entry may hold.
pub fn entry_is_sound(key: &StateKey, event: &Event) -> Result<(), String> {
    if event.is_state_of(&key.0, &key.1) {
        Ok(())
    } else {
        Err(format!("{} stands at ({}, {})", event.event_id, key.0, key.1))
    }
}

/// A room's state has a create event.
pub fn state_is_sound(state: &StateMap) -> Result<(), String> {
    if state.contains_key(&(StateEventType::RoomCreate, String::new())) {
        Ok(())
    } else {
        Err("state without a create event".to_owned())
    }
}

/// A node is read back from its bytes as it was.
pub fn node_is_sound(node: &Node) -> Result<(), String> {
    let bytes = node.encode();
    match Node::decode(&bytes) {
        Ok(again) if again == *node => Ok(()),
        Ok(_) => Err("node is read back as another".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A tree has the one shape that a tree with its entries has: without that, equal states have different roots. Looks at
/// all of its nodes.
pub fn tree_is_sound(nodes: &(impl Nodes + ?Sized), root: NodeId) -> Result<(), String> {
    let entries = state_tree::entries(nodes, root).map_err(|error| error.to_string())?;
    let expected = state_tree::build(entries).root;
    if expected == root { Ok(()) } else { Err(format!("the tree {root} should be {expected}")) }
}

/// What all states agree on is in the state that they resolve to.
pub fn resolution_is_sound(states: &[StateMap], resolved: &StateMap) -> Result<(), String> {
    let Some((first, others)) = states.split_first() else { return Ok(()) };
    let mut agreed = first.iter().filter(|(key, id)| others.iter().all(|state| state.get(*key) == Some(*id)));
    match agreed.find(|(key, id)| resolved.get(*key) != Some(*id)) {
        Some((key, id)) => {
            Err(format!("all states have {id} at ({}, {}), the resolved one has not", key.0, key.1))
        }
        None => Ok(()),
    }
}
