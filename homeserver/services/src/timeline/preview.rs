//! What can be known of a room elsewhere before one of our users is in it: whether it is one that this server joins.

use super::{JoinRoom, Timeline, TimelineError};
use ruma::{OwnedServerName, RoomId};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;
use waxwing_rooms::sealed::{Plaintext, Refusal};

/// Servers asked about a room. The first usually answers; a join must not wait for all that are down.
const MAX_SERVERS: usize = 3;
/// How long they may take together. Without an answer the join goes on, and the room is judged by its state.
const PATIENCE: Duration = Duration::from_secs(8);

/// Whether messages in a room are encrypted, or it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealing {
    Sealed,
    Open,
}

/// What an invitation's stripped state says. Servers put the encryption event in, if there is one, beside the create
/// event and the join rules; where those are missing the state is too poor to tell.
/// <https://spec.matrix.org/v1.19/client-server-api/#stripped-state>
fn of_stripped(state: &str) -> Option<Sealing> {
    #[derive(Deserialize)]
    struct Stripped {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        content: Map<String, Value>,
    }
    let events: Vec<Value> = serde_json::from_str(state).ok()?;
    let events: Vec<Stripped> =
        events.into_iter().filter_map(|event| serde_json::from_value(event).ok()).collect();
    let find = |kind: &str| events.iter().find(|event| event.kind == kind).map(|event| &event.content);
    let says = |content: Option<&Map<String, Value>>, field: &str| {
        content.and_then(|content| content.get(field)).and_then(Value::as_str).map(str::to_owned)
    };
    let create = find("m.room.create");
    let encrypted = says(find("m.room.encryption"), "algorithm").is_some_and(|name| !name.is_empty());
    if encrypted || says(create, "type").as_deref() == Some("m.space") {
        return Some(Sealing::Sealed);
    }
    (create.is_some() && find("m.room.join_rules").is_some()).then_some(Sealing::Open)
}

/// What a summary says. Servers that tell the room's version tell its encryption, too; older ones tell neither.
/// <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1hierarchyroomid>
fn of_summary(summary: &Map<String, Value>) -> Option<Sealing> {
    let says = |fields: [&str; 2]| {
        let text = |field: &str| summary.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        fields.into_iter().find_map(text)
    };
    let encrypted = says(["encryption", "im.nheko.summary.encryption"]).is_some();
    if encrypted || says(["room_type", "room_type"]) == Some("m.space") {
        return Some(Sealing::Sealed);
    }
    says(["room_version", "im.nheko.summary.version"]).map(|_| Sealing::Open)
}

impl Timeline {
    /// Refuses a join of a room elsewhere that is known not to be encrypted, before anything is sent that makes the
    /// user a member. What cannot be known now is judged when the state is here.
    ///
    /// # Errors
    /// [`TimelineError::Sealed`].
    pub(super) async fn check_before_join(
        &self,
        join: &JoinRoom,
        servers: &[OwnedServerName],
    ) -> Result<(), TimelineError> {
        if self.seal_policy(&join.room, &join.author).plaintext == Plaintext::Accept {
            return Ok(());
        }
        let member = self.core.store.read().await?.member_load(&join.room, &join.author.user).await?;
        let invited = member.and_then(|member| member.stripped).as_deref().and_then(of_stripped);
        let sealing = match invited {
            Some(Sealing::Sealed) => invited,
            // The inviter's word may be old, or its server old-fashioned: the room's servers know better.
            _ => self.ask_for_sealing(&join.room, servers).await.or(invited),
        };
        match sealing {
            Some(Sealing::Open) => Err(Refusal::UnencryptedRoom.into()),
            Some(Sealing::Sealed) | None => Ok(()),
        }
    }

    async fn ask_for_sealing(&self, room: &RoomId, servers: &[OwnedServerName]) -> Option<Sealing> {
        let client = self.remote.as_ref()?.client();
        let ask = async {
            for server in servers.iter().take(MAX_SERVERS) {
                match client.hierarchy(server, room, false).await {
                    Ok(answer) => {
                        let summary = serde_json::to_value(&answer.room.summary).ok()?;
                        let summary = summary.as_object().filter(|_| answer.room.summary.room_id == room);
                        if let Some(sealing) = summary.and_then(of_summary) {
                            return Some(sealing);
                        }
                    }
                    Err(error) => tracing::debug!(%server, %room, %error, "no word of a room"),
                }
            }
            None
        };
        tokio::time::timeout(PATIENCE, ask).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_state_that_would_tell_says_that_a_room_is_open() {
        let create = r#"{"type":"m.room.create","content":{}}"#;
        let rules = r#"{"type":"m.room.join_rules","content":{"join_rule":"invite"}}"#;
        let sealed = r#"{"type":"m.room.encryption","content":{"algorithm":"m.megolm.v1.aes-sha2"}}"#;
        let broken = r#"{"type":"m.room.encryption","content":{}}"#;
        let space = r#"{"type":"m.room.create","content":{"type":"m.space"}}"#;
        for (state, said) in [
            (vec![create, rules, sealed], Some(Sealing::Sealed)),
            (vec![sealed], Some(Sealing::Sealed)),
            (vec![create, rules], Some(Sealing::Open)),
            (vec![create, rules, broken], Some(Sealing::Open)),
            (vec![space, rules], Some(Sealing::Sealed)),
            (vec![create], None),
            (vec![rules], None),
            (vec!["7"], None),
        ] {
            assert_eq!(of_stripped(&format!("[{}]", state.join(","))), said, "{state:?}");
        }
        assert_eq!(of_stripped("nonsense"), None);
    }

    #[test]
    fn only_a_summary_with_a_version_says_that_a_room_is_open() {
        let of = |value: Value| of_summary(value.as_object().unwrap());
        assert_eq!(of(json!({"room_version": "11"})), Some(Sealing::Open));
        assert_eq!(
            of(json!({"room_version": "11", "encryption": "m.megolm.v1.aes-sha2"})),
            Some(Sealing::Sealed)
        );
        assert_eq!(of(json!({"room_version": "11", "room_type": "m.space"})), Some(Sealing::Sealed));
        assert_eq!(of(json!({"name": "Tea"})), None);
    }
}
