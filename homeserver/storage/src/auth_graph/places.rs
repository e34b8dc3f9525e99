//! Where events stand in the auth graph, and how a node is written.

use super::room_key;
use crate::error::{StoreError, StoreResult};
use ruma::{EventId, OwnedEventId};
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::resolve::AuthNode;

/// Number, event, auth events.
pub(super) type NodeColumns = (i64, String, Vec<u8>);

/// What is known of an event's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It has one; 0: it is none of a state event.
    Number(i64),
    /// The event is stored without.
    Unplaced,
}

/// An auth event: one that has its number, or one that gets it at the same time.
#[derive(Clone, Copy, Debug)]
enum Auth {
    Number(i64),
    New(usize),
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Outside of the graph.
    Outside,
    Number(i64),
    New(usize),
    Unplaced,
    /// On the way to its auth events.
    Entered,
}

/// Where some events stand in the graph, those among them that get a number counted from zero.
#[derive(Debug, Default)]
pub(crate) struct Places {
    of_events: Vec<Place>,
    new: Vec<(i64, OwnedEventId, Vec<Auth>)>,
}

/// The same with numbers.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    /// Of each event; none for one that cannot be placed yet.
    pub of_events: Vec<Option<i64>>,
    /// The new nodes, with the keys of their rooms.
    pub new: Vec<(i64, AuthNode)>,
}

impl Places {
    /// How many numbers they take.
    pub fn new_ones(&self) -> i64 {
        self.new.len() as i64
    }

    /// With the numbers from `first` on.
    pub fn number_from(self, first: i64) -> Numbered {
        let number = |new: usize| first + new as i64;
        let place = |place: &Place| match place {
            Place::Outside => Some(0),
            Place::Number(known) => Some(*known),
            Place::New(new) => Some(number(*new)),
            Place::Unplaced | Place::Entered => None,
        };
        let of_events = self.of_events.iter().map(place).collect();
        let node = |(index, (room, event_id, auth)): (usize, (i64, OwnedEventId, Vec<Auth>))| {
            let auth = auth.into_iter().map(|auth| match auth {
                Auth::Number(known) => known as u64,
                Auth::New(new) => number(new) as u64,
            });
            (room, AuthNode { number: number(index) as u64, event_id, auth: auth.collect() })
        };
        Numbered { of_events, new: self.new.into_iter().enumerate().map(node).collect() }
    }
}

/// Puts events after their auth events. One of whose auth events something is unplaced, or not here, has to wait, unless
/// `forced`: then that one is left out.
pub(super) fn arrange(events: &[&Arc<Event>], known: &HashMap<OwnedEventId, Known>, forced: bool) -> Places {
    let by_id: HashMap<&EventId, &Arc<Event>> =
        events.iter().map(|event| (&*event.event_id, *event)).collect();
    let mut places = Places::default();
    let mut done: HashMap<&EventId, Place> = HashMap::with_capacity(events.len());
    for start in events {
        let mut stack: Vec<&Arc<Event>> = vec![start];
        while let Some(event) = stack.last().copied() {
            let id = &*event.event_id;
            match done.get(id) {
                Some(Place::Entered) => {
                    stack.pop();
                    let place = settle(event, known, &done, forced, &mut places);
                    done.insert(id, place);
                }
                Some(_) => drop(stack.pop()),
                None => {
                    done.insert(id, Place::Entered);
                    let ahead = event.auth_events.iter().filter_map(|auth| by_id.get(&**auth));
                    stack.extend(ahead.filter(|auth| !done.contains_key(&*auth.event_id)));
                }
            }
        }
    }
    places.of_events =
        events.iter().map(|event| done.get(&*event.event_id).copied().unwrap_or(Place::Unplaced)).collect();
    places
}

fn settle(
    event: &Arc<Event>,
    known: &HashMap<OwnedEventId, Known>,
    done: &HashMap<&EventId, Place>,
    forced: bool,
    places: &mut Places,
) -> Place {
    if !event.is_state() {
        return Place::Outside;
    }
    if let Some(Known::Number(number)) =
        known.get(&event.event_id).filter(|known| **known != Known::Number(0))
    {
        return Place::Number(*number);
    }
    let mut auth = Vec::with_capacity(event.auth_events.len());
    for id in &event.auth_events {
        let at = match (done.get(&**id), known.get(id)) {
            // What authorises itself, by whatever way round, does not (room versions 1 and 2, whose senders choose ids).
            (Some(Place::Outside | Place::Entered), _) | (None, Some(Known::Number(0))) => continue,
            (Some(Place::Number(number)), _) | (None, Some(Known::Number(number))) => Auth::Number(*number),
            (Some(Place::New(new)), _) => Auth::New(*new),
            (Some(Place::Unplaced) | None, _) if forced => continue,
            (Some(Place::Unplaced) | None, _) => return Place::Unplaced,
        };
        auth.push(at);
    }
    places.new.push((room_key(&event.room_id), event.event_id.clone(), auth));
    Place::New(places.new.len() - 1)
}

/// By how much each number is lower, seven bits to a byte, the lowest first.
pub(super) fn encode(number: u64, auth: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(auth.len() * 3);
    for auth in auth {
        let mut left = number - auth;
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
    }
    bytes
}

/// A node from its row.
pub(super) fn node_of((number, event_id, bytes): NodeColumns) -> StoreResult<AuthNode> {
    let corrupt = || StoreError::corrupt("auth_graph", event_id.clone(), "no node of the auth graph");
    let number = u64::try_from(number).map_err(|_| corrupt())?;
    let mut auth = Vec::new();
    let (mut value, mut shift) = (0_u64, 0_u32);
    for byte in &bytes {
        value |= u64::from(byte & 0x7f).checked_shl(shift).ok_or_else(corrupt)?;
        shift += 7;
        if byte & 0x80 == 0 {
            auth.push(number.checked_sub(value).filter(|auth| *auth < number).ok_or_else(corrupt)?);
            (value, shift) = (0, 0);
        }
    }
    if shift != 0 {
        return Err(corrupt());
    }
    let event_id = OwnedEventId::try_from(event_id.as_str()).map_err(|_| corrupt())?;
    Ok(AuthNode { number, event_id, auth })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(name: &str, state: bool, auth: &[&str]) -> Arc<Event> {
        let id = |name: &str| OwnedEventId::try_from(format!("${name}:x")).unwrap();
        let mut pdu = json!({
            "type": "m.room.member", "sender": "@a:x", "depth": 1, "origin_server_ts": 1, "content": {},
            "prev_events": [], "auth_events": auth.iter().map(|name| id(name)).collect::<Vec<_>>(),
        });
        if state {
            pdu["state_key"] = json!("");
        }
        let raw = serde_json::value::to_raw_value(&pdu).unwrap();
        Arc::new(Event::parse(id(name), "!r:x".try_into().unwrap(), raw).unwrap())
    }

    fn numbers(
        events: &[Arc<Event>],
        known: &[(&str, Known)],
        forced: bool,
    ) -> (Vec<Option<i64>>, Vec<Vec<u64>>) {
        let known =
            known.iter().map(|(name, known)| (format!("${name}:x").try_into().unwrap(), *known)).collect();
        let events: Vec<&Arc<Event>> = events.iter().collect();
        let numbered = arrange(&events, &known, forced).number_from(100);
        (numbered.of_events, numbered.new.into_iter().map(|(_, node)| node.auth).collect())
    }

    #[test]
    fn auth_events_come_first_in_whatever_order_they_are_stored() {
        let all = [
            event("c", true, &["b", "a"]),
            event("m", false, &["a"]),
            event("b", true, &["a"]),
            event("a", true, &[]),
        ];
        let (of, auth) = numbers(&all, &[], false);
        assert_eq!(of, [Some(102), Some(0), Some(101), Some(100)]);
        assert_eq!(auth, [vec![], vec![100], vec![101, 100]]);
    }

    #[test]
    fn what_cannot_be_placed_waits_with_all_that_rests_on_it() {
        let all = [event("c", true, &["b"]), event("b", true, &["gone", "a"]), event("d", true, &["a", "m"])];
        let known = [("a", Known::Number(7)), ("m", Known::Number(0))];
        let (of, auth) = numbers(&all, &known, false);
        assert_eq!((of, auth), (vec![None, None, Some(100)], vec![vec![7]]));
        let (of, auth) = numbers(&all, &known, true);
        assert_eq!(of, [Some(101), Some(100), Some(102)]);
        assert_eq!(auth, [vec![7], vec![100], vec![7]]);
        // One that has its number keeps it.
        let (of, auth) = numbers(&all[2..], &[("d", Known::Number(9)), ("a", Known::Unplaced)], false);
        assert_eq!((of, auth), (vec![Some(9)], vec![]));
    }

    #[test]
    fn circles_are_cut() {
        let (of, auth) = numbers(&[event("a", true, &["b"]), event("b", true, &["a"])], &[], false);
        assert_eq!((of, auth), (vec![Some(101), Some(100)], vec![vec![], vec![100]]));
    }

    #[test]
    fn nodes_are_read_back_as_they_were() {
        for auth in [vec![], vec![1], vec![299, 1, 172, 171], vec![1, 300 - 0x80]] {
            let bytes = encode(300, &auth);
            assert_eq!(node_of((300, "$e:x".to_owned(), bytes)).unwrap().auth, auth);
        }
        for wrong in [vec![0x80], vec![0], vec![0xff; 12], vec![0xad, 0x02]] {
            assert!(node_of((300, "$e:x".to_owned(), wrong.clone())).is_err(), "{wrong:?}");
        }
    }
}
