use ruma::api::federation::transactions::edu::{
    Edu, PresenceContent, PresenceUpdate, ReceiptContent, ReceiptData, ReceiptMap, TypingContent,
};
use ruma::events::receipt::ReceiptThread;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Entries kept for one destination. Each is the latest value of something, so this is "how many users can have done
/// something since the last transaction"; beyond it new ones are dropped, which the protocol allows.
const MAX_ENTRIES: usize = 1000;
/// Presence updates in one EDU, receipts likewise: keeps a transaction small.
const PER_EDU: usize = 200;

/// Ephemeral data that may be lost: only its latest value counts.
#[derive(Clone, Debug)]
pub enum VolatileEdu {
    /// Somebody types, or stopped.
    Typing(TypingContent),
    /// A user's read receipt in a room or thread.
    Receipt(OwnedRoomId, OwnedUserId, ReceiptData),
    /// A user's presence.
    Presence(PresenceUpdate),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Typing(OwnedRoomId, OwnedUserId),
    Receipt(OwnedRoomId, OwnedUserId, Option<String>),
    Presence(OwnedUserId),
}

impl VolatileEdu {
    fn key(&self) -> Key {
        match self {
            VolatileEdu::Typing(typing) => Key::Typing(typing.room_id.clone(), typing.user_id.clone()),
            VolatileEdu::Receipt(room, user, receipt) => {
                let thread = match &receipt.data.thread {
                    ReceiptThread::Unthreaded => None,
                    thread => thread.as_str().map(ToOwned::to_owned),
                };
                Key::Receipt(room.clone(), user.clone(), thread)
            }
            VolatileEdu::Presence(update) => Key::Presence(update.user_id.clone()),
        }
    }
}

/// The volatile data waiting for one destination: the latest value wins.
#[derive(Clone, Debug, Default)]
pub struct VolatileQueue {
    entries: BTreeMap<Key, VolatileEdu>,
}

impl VolatileQueue {
    /// Adds a value, in the place of an older one.
    pub fn push(&mut self, edu: VolatileEdu) {
        let key = edu.key();
        if self.entries.len() < MAX_ENTRIES || self.entries.contains_key(&key) {
            self.entries.insert(key, edu);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets typing: it is long over when a destination comes back.
    pub fn forget_typing(&mut self) {
        self.entries.retain(|key, _| !matches!(key, Key::Typing(..)));
    }

    /// Takes up to `limit` EDUs' worth. What does not fit stays.
    pub fn take(&mut self, limit: usize) -> Vec<Arc<RawValue>> {
        let mut packer = Packer { limit, edus: Vec::new(), receipts: Vec::new(), presence: Vec::new() };
        let mut left = BTreeMap::new();
        for (key, edu) in std::mem::take(&mut self.entries) {
            if let Some(edu) = packer.add(edu) {
                left.insert(key, edu);
            }
        }
        self.entries = left;
        packer.finish()
    }
}

/// Packs values into few EDUs. A receipt EDU holds one receipt per user and room, so threads need several.
struct Packer {
    limit: usize,
    edus: Vec<Edu>,
    receipts: Vec<(usize, BTreeMap<OwnedRoomId, ReceiptMap>)>,
    presence: Vec<Vec<PresenceUpdate>>,
}

impl Packer {
    fn is_full(&self) -> bool {
        self.edus.len() + self.receipts.len() + self.presence.len() >= self.limit
    }

    /// Gives back what does not fit.
    fn add(&mut self, edu: VolatileEdu) -> Option<VolatileEdu> {
        let full = self.is_full();
        match edu {
            VolatileEdu::Typing(_) if full => return Some(edu),
            VolatileEdu::Typing(content) => self.edus.push(Edu::Typing(content)),
            VolatileEdu::Receipt(room, user, data) => {
                let free = self.receipts.iter().position(|(count, rooms)| {
                    *count < PER_EDU && !rooms.get(&room).is_some_and(|map| map.read.contains_key(&user))
                });
                let at = match free {
                    Some(at) => at,
                    None if full => return Some(VolatileEdu::Receipt(room, user, data)),
                    None => {
                        self.receipts.push((0, BTreeMap::new()));
                        self.receipts.len() - 1
                    }
                };
                let (count, rooms) = &mut self.receipts[at];
                *count += 1;
                rooms.entry(room).or_insert_with(|| ReceiptMap::new(BTreeMap::new())).read.insert(user, data);
            }
            VolatileEdu::Presence(update) => match self.presence.last_mut() {
                Some(list) if list.len() < PER_EDU => list.push(update),
                _ if full => return Some(VolatileEdu::Presence(update)),
                _ => self.presence.push(vec![update]),
            },
        }
        None
    }

    fn finish(self) -> Vec<Arc<RawValue>> {
        let receipts = self.receipts.into_iter().map(|(_, rooms)| Edu::Receipt(ReceiptContent::new(rooms)));
        let presence = self.presence.into_iter().map(|list| Edu::Presence(PresenceContent::new(list)));
        let edus = self.edus.into_iter().chain(receipts).chain(presence);
        edus.filter_map(|edu| serde_json::value::to_raw_value(&edu).ok()).map(Arc::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::events::receipt::Receipt;
    use ruma::presence::PresenceState;
    use ruma::{MilliSecondsSinceUnixEpoch, UInt};

    fn typing(user: &str, typing: bool) -> VolatileEdu {
        VolatileEdu::Typing(TypingContent::new(
            "!r:a.b".try_into().unwrap(),
            user.try_into().unwrap(),
            typing,
        ))
    }

    fn receipt(thread: Option<&str>, event: &str) -> VolatileEdu {
        let mut data = Receipt::new(MilliSecondsSinceUnixEpoch(UInt::from(1u32)));
        if let Some(thread) = thread {
            data.thread = ReceiptThread::Thread(thread.try_into().unwrap());
        }
        VolatileEdu::Receipt(
            "!r:a.b".try_into().unwrap(),
            "@u:a.b".try_into().unwrap(),
            ReceiptData::new(data, vec![event.try_into().unwrap()]),
        )
    }

    #[test]
    fn the_latest_value_wins() {
        let mut queue = VolatileQueue::default();
        queue.push(typing("@u:a.b", true));
        queue.push(typing("@u:a.b", false));
        queue.push(receipt(None, "$1"));
        queue.push(receipt(None, "$2"));
        let edus = queue.take(100);
        assert_eq!(edus.len(), 2);
        assert!(edus[0].get().contains(r#""typing":false"#), "{}", edus[0]);
        assert!(edus[1].get().contains("$2") && !edus[1].get().contains("$1"));
        assert!(queue.is_empty());
    }

    #[test]
    fn threads_take_several_receipt_edus_and_presence_shares_one() {
        let mut queue = VolatileQueue::default();
        queue.push(receipt(None, "$1"));
        queue.push(receipt(Some("$t"), "$2"));
        for user in ["@a:b.c", "@b:b.c"] {
            let update =
                PresenceUpdate::new(user.try_into().unwrap(), PresenceState::Online, UInt::from(0u32));
            queue.push(VolatileEdu::Presence(update));
        }
        assert_eq!(queue.take(100).len(), 3);
    }

    #[test]
    fn what_does_not_fit_stays_and_memory_is_bounded() {
        let mut queue = VolatileQueue::default();
        for n in 0..2 * MAX_ENTRIES {
            queue.push(typing(&format!("@u{n}:a.b"), true));
        }
        assert_eq!(queue.take(10).len(), 10);
        assert_eq!(queue.take(usize::MAX).len(), MAX_ENTRIES - 10);
        queue.push(typing("@u:a.b", true));
        queue.forget_typing();
        assert!(queue.is_empty());
    }
}
