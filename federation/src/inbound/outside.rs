use ruma::{OwnedEventId, RoomId, RoomVersionId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Context, parse, verify};
use crate::ports::PortResult;

/// Whether the event may take back an invitation, or refuse a knock: a first look at what nobody has verified.
pub(super) fn puts_out(json: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Member {
        #[serde(rename = "type")]
        kind: String,
        content: Content,
    }
    #[derive(Deserialize)]
    struct Content {
        membership: String,
    }
    serde_json::from_str::<Member>(json.get()).is_ok_and(|event| {
        event.kind == "m.room.member" && matches!(event.content.membership.as_str(), "leave" | "ban")
    })
}

impl Context {
    /// Events of a room that we are not in, but one of our users is invited to: only that the invitation is taken back
    /// means something to us. There is no state to authorise it by: that the inviter signed it has to do.
    pub(super) async fn receive_outside(
        &self,
        room: &RoomId,
        version: &RoomVersionId,
        pdus: &[Box<RawValue>],
        results: &mut Vec<(OwnedEventId, Result<(), String>)>,
    ) -> PortResult<()> {
        let parsed = pdus
            .iter()
            .filter(|json| puts_out(json))
            .filter_map(|json| parse::parse(json, room, version).ok())
            .collect();
        for (id, event) in verify::verify_all(&self.ring, version, parsed).await? {
            match event {
                Ok(event) => {
                    self.timeline.take_back(event).await?;
                    results.push((id, Ok(())));
                }
                Err(reason) => results.push((id, Err(reason))),
            }
        }
        Ok(())
    }
}
