//! What a person sees of a room: events after decryption, in plain types.

use std::fmt;

use client_ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    events::{
        AnySyncMessageLikeEvent, AnySyncTimelineEvent,
        room::{
            MediaSource,
            message::{MessageType, Relation, RoomMessageEventContent},
        },
    },
    serde::Raw,
};
use serde::Deserialize;

/// One event of a room's timeline, decrypted when we hold the key.
#[derive(Clone, Debug)]
pub struct TimelineEvent {
    pub room_id: OwnedRoomId,
    pub event_id: OwnedEventId,
    pub sender: OwnedUserId,
    /// Milliseconds since 1970, as the sender's server said.
    pub timestamp: u64,
    /// Whether it reached us encrypted, and what we know of its author then.
    pub seal: Seal,
    pub content: Content,
}

/// How well an event's origin is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// Sent in the clear: state, reactions, or a room without encryption.
    Open,
    /// Encrypted, by a device of a person we have verified.
    Verified,
    /// Encrypted, by a device that nobody has vouched for to us yet.
    Unverified,
}

#[derive(Clone, Debug)]
pub enum Content {
    Text {
        body: String,
        replaces: Option<OwnedEventId>,
    },
    Attachment(Attachment),
    /// Encrypted with a key we do not hold (yet).
    Sealed {
        reason: String,
    },
    Redacted,
    State {
        event_type: String,
        state_key: String,
    },
    Other {
        event_type: String,
    },
}

/// A file that somebody sent: enough to fetch and decrypt it.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub name: String,
    pub media_type: Option<String>,
    pub size: Option<u64>,
    pub source: MediaSource,
}

impl TimelineEvent {
    pub fn body(&self) -> Option<&str> {
        match &self.content {
            Content::Text { body, .. } => Some(body),
            _ => None,
        }
    }

    pub fn attachment(&self) -> Option<&Attachment> {
        match &self.content {
            Content::Attachment(attachment) => Some(attachment),
            _ => None,
        }
    }

    pub fn is_sealed(&self) -> bool {
        matches!(self.content, Content::Sealed { .. })
    }

    pub fn is_encrypted(&self) -> bool {
        self.seal != Seal::Open
    }

    /// Reads an event; `None` for one without the fields every event has.
    pub(crate) fn read(room_id: &RoomId, raw: &Raw<AnySyncTimelineEvent>, seal: Seal) -> Option<Self> {
        #[derive(Deserialize)]
        struct Frame {
            #[serde(rename = "type")]
            event_type: String,
            event_id: OwnedEventId,
            sender: OwnedUserId,
            #[serde(default)]
            origin_server_ts: u64,
            state_key: Option<String>,
        }
        let frame: Frame = raw.deserialize_as_unchecked().ok()?;
        let content = match frame.state_key {
            Some(state_key) => Content::State { event_type: frame.event_type, state_key },
            None => message_content(raw, frame.event_type),
        };
        Some(Self {
            room_id: room_id.to_owned(),
            event_id: frame.event_id,
            sender: frame.sender,
            timestamp: frame.origin_server_ts,
            seal,
            content,
        })
    }

    pub(crate) fn sealed(
        room_id: &RoomId,
        raw: &Raw<AnySyncTimelineEvent>,
        reason: impl fmt::Display,
    ) -> Option<Self> {
        let mut event = Self::read(room_id, raw, Seal::Unverified)?;
        event.content = Content::Sealed { reason: reason.to_string() };
        Some(event)
    }
}

fn message_content(raw: &Raw<AnySyncTimelineEvent>, event_type: String) -> Content {
    let Ok(AnySyncTimelineEvent::MessageLike(event)) = raw.deserialize() else {
        return Content::Other { event_type };
    };
    if event.is_redacted() {
        return Content::Redacted;
    }
    match event {
        AnySyncMessageLikeEvent::RoomMessage(message) => match message.as_original() {
            Some(original) => room_message(original.content.clone(), event_type),
            None => Content::Redacted,
        },
        _ => Content::Other { event_type },
    }
}

fn room_message(content: RoomMessageEventContent, event_type: String) -> Content {
    let (kind, replaces) = match content.relates_to {
        Some(Relation::Replacement(replacement)) => {
            (replacement.new_content.msgtype, Some(replacement.event_id))
        }
        _ => (content.msgtype, None),
    };
    let attachment = |name: String, media_type: Option<String>, size: Option<u64>, source: MediaSource| {
        Content::Attachment(Attachment { name, media_type, size, source })
    };
    match kind {
        MessageType::Text(text) => Content::Text { body: text.body, replaces },
        MessageType::Notice(notice) => Content::Text { body: notice.body, replaces },
        MessageType::Emote(emote) => Content::Text { body: format!("* {}", emote.body), replaces },
        MessageType::File(file) => {
            let info = file.info.unwrap_or_default();
            let name = file.filename.unwrap_or(file.body);
            attachment(name, info.mimetype, info.size.map(Into::into), file.source)
        }
        MessageType::Image(image) => {
            let info = image.info.unwrap_or_default();
            let name = image.filename.unwrap_or(image.body);
            attachment(name, info.mimetype, info.size.map(Into::into), image.source)
        }
        MessageType::Audio(audio) => {
            let info = audio.info.unwrap_or_default();
            let name = audio.filename.unwrap_or(audio.body);
            attachment(name, info.mimetype, info.size.map(Into::into), audio.source)
        }
        MessageType::Video(video) => {
            let info = video.info.unwrap_or_default();
            let name = video.filename.unwrap_or(video.body);
            attachment(name, info.mimetype, info.size.map(Into::into), video.source)
        }
        _ => Content::Other { event_type },
    }
}

#[cfg(test)]
mod tests {
    use client_ruma::room_id;
    use serde_json::json;

    use super::*;

    fn read(content: serde_json::Value) -> TimelineEvent {
        let raw = Raw::new(&json!({
            "type": "m.room.message", "event_id": "$e", "sender": "@alice:example.org",
            "origin_server_ts": 5, "content": content,
        }))
        .unwrap()
        .cast_unchecked();
        TimelineEvent::read(room_id!("!room:example.org"), &raw, Seal::Unverified).unwrap()
    }

    #[test]
    fn text_and_its_edit() {
        let plain = read(json!({"msgtype": "m.text", "body": "hello"}));
        assert_eq!(plain.body(), Some("hello"));
        assert_eq!(plain.timestamp, 5);
        let edit = read(json!({
            "msgtype": "m.text", "body": "* hello!",
            "m.new_content": {"msgtype": "m.text", "body": "hello!"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": "$e"},
        }));
        assert_eq!(edit.body(), Some("hello!"));
        assert!(matches!(edit.content, Content::Text { replaces: Some(id), .. } if id == "$e"));
    }

    #[test]
    fn an_attachment_keeps_its_name_and_size() {
        let file = read(json!({
            "msgtype": "m.file", "body": "minutes.txt", "url": "mxc://example.org/abc",
            "info": {"mimetype": "text/plain", "size": 12},
        }));
        let attachment = file.attachment().unwrap();
        assert_eq!(attachment.name, "minutes.txt");
        assert_eq!(attachment.size, Some(12));
    }

    #[test]
    fn redacted_state_and_broken_events() {
        assert!(matches!(read(json!({})).content, Content::Other { .. }));
        let raw = Raw::new(&json!({
            "type": "m.room.name", "state_key": "", "event_id": "$s", "sender": "@alice:example.org",
            "content": {"name": "Aviary"},
        }))
        .unwrap()
        .cast_unchecked();
        let state = TimelineEvent::read(room_id!("!room:example.org"), &raw, Seal::Open).unwrap();
        assert!(matches!(state.content, Content::State { event_type, .. } if event_type == "m.room.name"));
        let raw = Raw::new(&json!({"type": "m.room.message"})).unwrap().cast_unchecked();
        assert!(TimelineEvent::read(room_id!("!room:example.org"), &raw, Seal::Open).is_none());
    }
}
