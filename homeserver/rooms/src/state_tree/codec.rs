//! The bytes of a node. Ids of nodes are hashes of them: a change of format needs a new version byte, and the old
//! versions must stay readable.
//!
//! `1, 0, n, n × (type, state key, event id)` is a leaf; `1, 1, count, bitmap, 32 × bits` is a branch. Numbers are
//! LEB128; a string is its length and its bytes.

use super::node::{Branch, Entry, Kind, Node, NodeId};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ruma::OwnedEventId;
use ruma::events::StateEventType;
use std::cmp::Ordering;

const VERSION: u8 = 1;
const LEAF: u8 = 0;
const BRANCH: u8 = 1;

/// An event type that is not in `TYPES`: a string follows.
const OTHER_TYPE: u8 = 0;

/// Event types written as one byte: 1 + their place here. Append only.
const TYPES: [&str; 24] = [
    "m.room.create",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.canonical_alias",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.third_party_invite",
    "m.room.tombstone",
    "m.room.pinned_events",
    "m.room.aliases",
    "m.space.child",
    "m.space.parent",
    "m.policy.rule.user",
    "m.policy.rule.room",
    "m.policy.rule.server",
    "im.vector.modular.widgets",
    "org.matrix.msc3401.call.member",
    "m.bridge",
];

/// The id is `$` and this hash in base64 for URLs (room version 4 on).
const HASH_URL: u8 = 0;
/// The id is `$` and this hash in standard base64 (room version 3).
const HASH_STANDARD: u8 = 1;
/// The id is this string (room versions 1 and 2).
const TEXT: u8 = 2;

/// Bytes that [`Node::encode`] did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a state node: {0}")]
pub struct Corrupt(&'static str);

pub(super) fn encode(node: &Node) -> Vec<u8> {
    let mut out = vec![VERSION];
    match &node.0 {
        Kind::Leaf(entries) => {
            out.push(LEAF);
            write_number(&mut out, entries.len() as u64);
            for entry in entries {
                write_type(&mut out, &entry.key.0);
                write_text(&mut out, &entry.key.1);
                write_event_id(&mut out, &entry.event_id);
            }
        }
        Kind::Branch(branch) => {
            out.push(BRANCH);
            write_number(&mut out, branch.count);
            let bits = branch.children.iter().enumerate().filter(|(_, child)| child.is_some());
            out.push(bits.fold(0, |bitmap, (slot, _)| bitmap | (1 << slot)));
            branch.children.iter().flatten().for_each(|child| out.extend_from_slice(child.as_bytes()));
        }
    }
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<Node, Corrupt> {
    let mut input = Input(bytes);
    if input.byte()? != VERSION {
        return Err(Corrupt("unknown version"));
    }
    let node = match input.byte()? {
        LEAF => Node(Kind::Leaf(read_leaf(&mut input)?)),
        BRANCH => Node(Kind::Branch(Box::new(read_branch(&mut input)?))),
        _ => return Err(Corrupt("neither leaf nor branch")),
    };
    if !input.0.is_empty() {
        return Err(Corrupt("bytes after the end"));
    }
    // One value, one encoding: otherwise equal states could have two roots.
    if encode(&node) == bytes { Ok(node) } else { Err(Corrupt("not the shortest form")) }
}

/// The order of entries in a leaf. By text, so that it does not hang on how an enum happens to be ordered.
pub(super) fn entry_order(a: &Entry, b: &Entry) -> Ordering {
    (a.key.0.to_string(), &a.key.1).cmp(&(b.key.0.to_string(), &b.key.1))
}

fn read_leaf(input: &mut Input<'_>) -> Result<Vec<Entry>, Corrupt> {
    let count = input.number()?;
    if count == 0 {
        return Err(Corrupt("an empty leaf"));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..count {
        let key = (read_type(input)?, input.text()?.to_owned());
        let entry = Entry { key, event_id: read_event_id(input)? };
        if entries.last().is_some_and(|last| entry_order(last, &entry) != Ordering::Less) {
            return Err(Corrupt("entries out of order"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn read_branch(input: &mut Input<'_>) -> Result<Branch, Corrupt> {
    let mut branch = Branch { count: input.number()?, ..Branch::default() };
    let bitmap = input.byte()?;
    for (slot, child) in branch.children.iter_mut().enumerate() {
        if bitmap & (1 << slot) != 0 {
            *child = Some(NodeId::try_from(input.take(32)?).map_err(|_| Corrupt("a child id"))?);
        }
    }
    if bitmap == 0 || branch.count < u64::from(bitmap.count_ones()) {
        return Err(Corrupt("a branch with too little below it"));
    }
    Ok(branch)
}

fn write_type(out: &mut Vec<u8>, kind: &StateEventType) {
    let kind = kind.to_string();
    match TYPES.iter().position(|known| *known == kind) {
        Some(place) => out.push(place as u8 + 1),
        None => {
            out.push(OTHER_TYPE);
            write_text(out, &kind);
        }
    }
}

fn read_type(input: &mut Input<'_>) -> Result<StateEventType, Corrupt> {
    match input.byte()? {
        OTHER_TYPE => Ok(input.text()?.into()),
        code => match TYPES.get(usize::from(code) - 1) {
            Some(kind) => Ok((*kind).into()),
            None => Err(Corrupt("unknown event type code")),
        },
    }
}

fn write_event_id(out: &mut Vec<u8>, id: &OwnedEventId) {
    let text = id.as_str();
    let hash = text.strip_prefix('$').filter(|hash| hash.len() == 43);
    for (tag, engine) in [(HASH_URL, URL_SAFE_NO_PAD), (HASH_STANDARD, STANDARD_NO_PAD)] {
        // Strict engines: whatever they decode, they encode to the same text.
        if let Some(bytes) = hash.and_then(|hash| engine.decode(hash).ok()) {
            out.push(tag);
            out.extend_from_slice(&bytes);
            return;
        }
    }
    out.push(TEXT);
    write_text(out, text);
}

fn read_event_id(input: &mut Input<'_>) -> Result<OwnedEventId, Corrupt> {
    let text = match input.byte()? {
        HASH_URL => format!("${}", URL_SAFE_NO_PAD.encode(input.take(32)?)),
        HASH_STANDARD => format!("${}", STANDARD_NO_PAD.encode(input.take(32)?)),
        TEXT => input.text()?.to_owned(),
        _ => return Err(Corrupt("unknown form of event id")),
    };
    text.try_into().map_err(|_| Corrupt("not an event id"))
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    write_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// What is still unread.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Corrupt("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Corrupt> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64, Corrupt> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Corrupt("a number too long"))
    }

    fn text(&mut self) -> Result<&'a str, Corrupt> {
        let length = usize::try_from(self.number()?).map_err(|_| Corrupt("cut short"))?;
        std::str::from_utf8(self.take(length)?).map_err(|_| Corrupt("not UTF-8"))
    }
}
