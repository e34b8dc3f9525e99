use ruma::api::federation::transactions::edu::{
    DeviceListUpdateContent, DirectDeviceContent, PresenceContent, SigningKeyUpdateContent, TypingContent,
};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, ServerName, UInt, UserId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use super::Context;
use crate::ports::{PortResult, ReadReceipt};

/// Rooms in one receipt EDU that are looked at.
const MAX_RECEIPT_ROOMS: usize = 500;
/// Bytes of an event's id: <https://spec.matrix.org/v1.19/appendices/#event-ids>.
const MAX_EVENT_ID: usize = 255;

#[derive(Deserialize)]
struct Edu {
    edu_type: String,
    content: Box<RawValue>,
}

/// Takes the EDUs of one transaction, one after the other: device list updates depend on their order.
pub(super) struct EduIntake<'a> {
    context: &'a Context,
    origin: &'a ServerName,
    acls: BTreeMap<OwnedRoomId, bool>,
}

/// The receipts of one room.
#[derive(Deserialize)]
struct Receipts {
    #[serde(rename = "m.read", default)]
    read: BTreeMap<OwnedUserId, Read>,
}

#[derive(Deserialize)]
struct Read {
    event_ids: Vec<String>,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    ts: Option<UInt>,
    #[serde(default)]
    thread_id: Option<String>,
}

impl<'a> EduIntake<'a> {
    pub(super) fn new(context: &'a Context, origin: &'a ServerName) -> EduIntake<'a> {
        EduIntake { context, origin, acls: BTreeMap::new() }
    }

    /// Takes one. `Err` when it must not be lost and could not be stored; everything else is logged at most.
    pub(super) async fn take(&mut self, json: &RawValue) -> PortResult<()> {
        let Ok(edu) = serde_json::from_str::<Edu>(json.get()) else { return Ok(()) };
        let sink = &self.context.edus;
        let outcome = match edu.edu_type.as_str() {
            "m.direct_to_device" => {
                let content = read::<DirectDeviceContent>(&edu).filter(|it| self.is_theirs(&it.sender));
                return match content {
                    Some(content) => sink.direct_to_device(self.origin, content).await,
                    None => Ok(()),
                };
            }
            "m.device_list_update" => {
                let content = read::<DeviceListUpdateContent>(&edu).filter(|it| self.is_theirs(&it.user_id));
                return match content {
                    Some(content) => sink.device_list_update(self.origin, content).await,
                    None => Ok(()),
                };
            }
            "m.signing_key_update" | "org.matrix.signing_key_update" => {
                let content = read::<SigningKeyUpdateContent>(&edu).filter(|it| self.is_theirs(&it.user_id));
                return match content {
                    Some(content) => sink.signing_key_update(self.origin, content).await,
                    None => Ok(()),
                };
            }
            "m.typing" => self.typing(&edu).await,
            "m.receipt" => self.receipts(&edu).await,
            "m.presence" => self.presence(&edu).await,
            // Unknown types are ignored: <https://spec.matrix.org/v1.19/server-server-api/#edus>.
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::warn!(origin = %self.origin, kind = edu.edu_type, %error, "ephemeral data was lost");
        }
        Ok(())
    }

    async fn typing(&mut self, edu: &Edu) -> PortResult<()> {
        match read::<TypingContent>(edu).filter(|it| self.is_theirs(&it.user_id)) {
            Some(content) if self.permitted(&content.room_id).await? => {
                self.context.edus.typing(self.origin, content).await
            }
            _ => Ok(()),
        }
    }

    async fn receipts(&mut self, edu: &Edu) -> PortResult<()> {
        let Some(content) = read::<BTreeMap<OwnedRoomId, Receipts>>(edu) else { return Ok(()) };
        let mut kept = Vec::new();
        for (room, receipts) in content.into_iter().take(MAX_RECEIPT_ROOMS) {
            let theirs: Vec<_> = receipts.read.into_iter().filter(|(user, _)| self.is_theirs(user)).collect();
            if theirs.is_empty() || !self.permitted(&room).await? {
                continue;
            }
            kept.extend(theirs.into_iter().filter_map(|(user, read)| {
                let event_id = read.event_ids.into_iter().next().filter(|id| id.len() <= MAX_EVENT_ID)?;
                let Data { ts, thread_id } = read.data;
                Some(ReadReceipt { room: room.clone(), user, event_id, ts, thread: thread_id })
            }));
        }
        if kept.is_empty() {
            return Ok(());
        }
        self.context.edus.receipts(self.origin, kept).await
    }

    async fn presence(&mut self, edu: &Edu) -> PortResult<()> {
        let Some(mut content) = read::<PresenceContent>(edu) else { return Ok(()) };
        content.push.retain(|update| self.is_theirs(&update.user_id));
        if content.push.is_empty() { Ok(()) } else { self.context.edus.presence(self.origin, content).await }
    }

    /// A server speaks for its own users only.
    fn is_theirs(&self, user: &UserId) -> bool {
        user.server_name() == self.origin
    }

    async fn permitted(&mut self, room: &RoomId) -> PortResult<bool> {
        if let Some(permitted) = self.acls.get(room) {
            return Ok(*permitted);
        }
        let permitted = self.context.acl_permits(room, self.origin).await?;
        self.acls.insert(room.to_owned(), permitted);
        Ok(permitted)
    }
}

fn read<T: DeserializeOwned>(edu: &Edu) -> Option<T> {
    serde_json::from_str(edu.content.get()).ok()
}
