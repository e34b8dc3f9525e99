//! To-device messages: straight to devices, outside all rooms, each delivered once.
//! <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>

use crate::Core;
use ruma::api::federation::transactions::edu::DirectDeviceContent;
use ruma::to_device::DeviceIdOrAllDevices;
use ruma::{DeviceId, OwnedServerName, OwnedUserId, UserId};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_rooms::sealed::{self, Plaintext, Refusal, SealPolicy};
use waxwing_storage::{Fact, Needs, NewRow, StoreError, StoreResult, TransactionKey, Tx};

/// Messages of one request: a key for each device of a large room.
const MAX_MESSAGES: usize = 50_000;
/// Bytes of messages in one EDU: other servers bound a whole transaction, and a small EDU can be sent beside others.
const EDU_BYTES: usize = 48 * 1024;
/// How long a message of another server is remembered after it was taken. Servers give up on a transaction before.
const SEEN_FOR: u64 = 30 * 24 * 60 * 60 * 1000;
/// Characters of a message's id. The specification says 32; nothing breaks with more.
const MAX_MESSAGE_ID: usize = 255;

/// Why a to-device message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ToDeviceError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server does not carry such messages in the clear.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// More than this server takes.
    #[error("at most {MAX_MESSAGES} messages at once")]
    TooMany,
    /// A message's content is not an object.
    #[error("the content of a message must be an object, of text and numbers that can be read")]
    BadContent,
}

/// The messages of one request: user, device or all devices, content (JSON).
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Box<RawValue>>>;

/// One request.
#[derive(Debug)]
pub struct Sending {
    /// The type of all its messages.
    pub kind: String,
    /// Repeats are recognised by it.
    pub txn_id: String,
    /// What goes to whom.
    pub messages: Messages,
}

/// The service.
#[derive(Clone)]
pub struct ToDevice {
    core: Core,
}

struct Prepared {
    key: TransactionKey,
    /// Device (`*` is all) and the whole event.
    local: Vec<(OwnedUserId, DeviceIdOrAllDevices, Arc<str>)>,
    remote: Vec<(OwnedServerName, Arc<str>)>,
}

impl ToDevice {
    /// The service.
    pub fn new(core: Core) -> ToDevice {
        ToDevice { core }
    }

    /// Sends messages; a repeated request does nothing. `exempt`: the sender may send keys in the clear (a bridge that
    /// the operator named).
    ///
    /// # Errors
    /// [`ToDeviceError::Refused`] for raw keys and secrets, unless the server accepts plaintext.
    pub async fn send(
        &self,
        sender: &UserId,
        device: Option<&DeviceId>,
        sending: Sending,
        exempt: bool,
    ) -> Result<(), ToDeviceError> {
        self.check(&sending, exempt)?;
        let prepared = Arc::new(self.prepare(sender, device, sending));
        let core = self.core.clone();
        let devices_of: BTreeSet<OwnedUserId> =
            prepared.local.iter().map(|(user, _, _)| user.clone()).collect();
        let needs = Needs {
            request: Some(prepared.key.clone()),
            devices_of: devices_of.into_iter().collect(),
            ..Needs::default()
        };
        self.core
            .store
            .write_needing("to_device.send", needs, move |tx| {
                let (core, prepared) = (core.clone(), Arc::clone(&prepared));
                Box::pin(async move {
                    if tx.transaction_get(&prepared.key).await?.is_some() {
                        return Ok(());
                    }
                    deliver(tx, &prepared.local).await?;
                    for (server, edu) in &prepared.remote {
                        let slot = tx.log_append(NewRow::new(Fact::Outbox).reference(server.as_str()));
                        tx.outbox_put(server.clone(), slot, None, None, Some(Arc::clone(edu)));
                    }
                    tx.transaction_put(prepared.key.clone(), "{}".to_owned(), core.now());
                    Ok(())
                })
            })
            .await
    }

    fn check(&self, sending: &Sending, exempt: bool) -> Result<(), ToDeviceError> {
        if sending.messages.values().map(BTreeMap::len).sum::<usize>() > MAX_MESSAGES {
            return Err(ToDeviceError::TooMany);
        }
        let accept = exempt || self.core.settings.plaintext.accept;
        let plaintext = if accept { Plaintext::Accept } else { Plaintext::Refuse };
        let policy = SealPolicy { plaintext, ..SealPolicy::default() };
        for content in sending.messages.values().flat_map(BTreeMap::values) {
            if !is_readable(content) {
                return Err(ToDeviceError::BadContent);
            }
            sealed::check_to_device(&sending.kind, content, &policy)?;
        }
        Ok(())
    }

    /// Whom the messages go to, split by server.
    fn prepare(&self, sender: &UserId, device: Option<&DeviceId>, sending: Sending) -> Prepared {
        let device = device.map(ToString::to_string).unwrap_or_default();
        let endpoint = format!("sendToDevice/{}", sending.kind);
        let mut local = Vec::new();
        let mut remote: BTreeMap<OwnedServerName, Messages> = BTreeMap::new();
        for (user, devices) in sending.messages {
            if !self.core.is_local(&user) {
                remote.entry(user.server_name().to_owned()).or_default().insert(user, devices);
                continue;
            }
            for (device, content) in devices {
                local.push((user.clone(), device, event(&sending.kind, sender, &content)));
            }
        }
        if !self.core.settings.federation {
            remote.clear();
        }
        let remote = remote
            .into_iter()
            .flat_map(|(server, messages)| {
                edus(&sending.kind, sender, messages).into_iter().map(move |edu| (server.clone(), edu))
            })
            .collect();
        Prepared { key: (sender.to_owned(), device, endpoint, sending.txn_id), local, remote }
    }

    /// Takes an `m.direct_to_device` of another server, whose user the sender is. A repeated message does nothing.
    /// <https://spec.matrix.org/v1.19/server-server-api/#send-to-device-messaging>
    pub async fn receive(&self, content: DirectDeviceContent) -> Result<(), ToDeviceError> {
        let id = content.message_id.to_string();
        let count = content.messages.values().map(BTreeMap::len).sum::<usize>();
        if id.chars().count() > MAX_MESSAGE_ID || count > MAX_MESSAGES {
            tracing::debug!(sender = %content.sender, "a to-device message of another server is beyond all bounds");
            return Ok(());
        }
        let kind = content.ev_type.to_string();
        let mut local = Vec::new();
        for (user, devices) in content.messages {
            if !self.core.is_local(&user) {
                continue;
            }
            for (device, body) in devices.into_iter().filter(|(_, body)| is_readable(body.json())) {
                local.push((user.clone(), device, event(&kind, &content.sender, body.json())));
            }
        }
        let (local, sender, now) = (Arc::new(local), content.sender, self.core.now());
        self.core
            .store
            .write("to_device.receive", Vec::new(), move |tx| {
                let (local, sender, id) = (Arc::clone(&local), sender.clone(), id.clone());
                Box::pin(async move {
                    if tx.to_device_seen(&sender, &id, now).await? {
                        deliver(tx, &local).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Forgets which messages of other servers were taken long ago. [`crate::housekeeping`] calls it.
    pub async fn prune(&self) -> StoreResult<u64> {
        let before = self.core.now().saturating_sub(SEEN_FOR);
        self.core
            .store
            .write("to_device.prune", Vec::new(), move |tx| {
                Box::pin(async move { tx.to_device_seen_prune(before).await })
            })
            .await
    }
}

/// Queues events for devices of our users; devices that do not exist get nothing.
async fn deliver(tx: &mut Tx, messages: &[(OwnedUserId, DeviceIdOrAllDevices, Arc<str>)]) -> StoreResult<()> {
    let users: BTreeSet<OwnedUserId> = messages.iter().map(|(user, _, _)| user.clone()).collect();
    let users: Vec<OwnedUserId> = users.into_iter().collect();
    let mut devices: BTreeMap<OwnedUserId, BTreeSet<String>> = BTreeMap::new();
    for (user, device) in tx.devices_of_all(&users).await? {
        devices.entry(user).or_default().insert(device);
    }
    for (user, device, event) in messages {
        let Some(of_user) = devices.get(user) else { continue };
        match device {
            DeviceIdOrAllDevices::AllDevices => {
                for device in of_user {
                    tx.to_device_put(user.clone(), device.clone(), Arc::clone(event));
                }
            }
            DeviceIdOrAllDevices::DeviceId(device) if of_user.contains(device.as_str()) => {
                tx.to_device_put(user.clone(), device.to_string(), Arc::clone(event));
            }
            DeviceIdOrAllDevices::DeviceId(_) => {}
        }
    }
    Ok(())
}

/// The event as `/sync` gives it.
fn event(kind: &str, sender: &UserId, content: &RawValue) -> Arc<str> {
    #[derive(serde::Serialize)]
    struct Event<'a> {
        content: &'a RawValue,
        sender: &'a UserId,
        #[serde(rename = "type")]
        kind: &'a str,
    }
    serde_json::to_string(&Event { content, sender, kind }).unwrap_or_default().into()
}

/// Whether a content is an object of which every string and number can be read. It goes into the recipient's sync as it
/// is, and one that cannot be read would make all of that answer unreadable.
fn is_readable(content: &RawValue) -> bool {
    content.get().trim_start().starts_with('{') && serde_json::from_str::<Readable>(content.get()).is_ok()
}

/// Anything; read, and not kept.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Readable, D::Error> {
        deserializer.deserialize_any(Readable)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = Readable;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_str<E>(self, _: &str) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Readable, A::Error> {
        while access.next_element::<Readable>()?.is_some() {}
        Ok(Readable)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Readable, A::Error> {
        while access.next_entry::<Readable, Readable>()?.is_some() {}
        Ok(Readable)
    }
}

/// The EDUs that carry messages to one server: as few as fit the bound.
fn edus(kind: &str, sender: &UserId, messages: Messages) -> Vec<Arc<str>> {
    let mut edus = Vec::new();
    let mut part: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>> = BTreeMap::new();
    let mut bytes = 0;
    let mut flush = |part: &mut BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>| {
        if part.is_empty() {
            return;
        }
        let content = json!({
            "sender": sender,
            "type": kind,
            "message_id": waxwing_model::opaque_id(24),
            "messages": std::mem::take(part),
        });
        edus.push(json!({ "edu_type": "m.direct_to_device", "content": content }).to_string().into());
    };
    for (user, devices) in messages {
        for (device, content) in devices {
            let size = content.get().len() + user.as_str().len() + 64;
            if bytes + size > EDU_BYTES {
                flush(&mut part);
                bytes = 0;
            }
            bytes += size;
            part.entry(user.clone()).or_default().insert(device.to_string(), content);
        }
    }
    flush(&mut part);
    edus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_that_cannot_be_read_are_not_taken() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        for text in [r#"{"a":["x",{"b":"\ud83d\ude00"},1.5,-1,true,null]}"#, " {} "] {
            assert!(is_readable(&raw(text)), "{text}");
        }
        for text in [r#"{"a":"\ud800"}"#, r#"{"\ud800":1}"#, r#"{"a":1e999}"#, "[]", "1"] {
            assert!(!is_readable(&raw(text)), "{text}");
        }
    }

    #[test]
    fn an_event_has_its_content_as_it_came() {
        let content = RawValue::from_string(r#"{"b": 1.50,"a":"x"}"#.to_owned()).unwrap();
        let event = event("m.\"kind", ruma::user_id!("@a:x"), &content);
        assert_eq!(&*event, r#"{"content":{"b": 1.50,"a":"x"},"sender":"@a:x","type":"m.\"kind"}"#);
    }
}
