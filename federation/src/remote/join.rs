use ruma::canonical_json::CanonicalJsonObject;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::{Event, StateKey};
use waxwing_rooms::auth::check_state_dependent;
use waxwing_rooms::{AuthMap, Pdu, version};

use super::{Membership, RemoteError, RemoteMemberships};
use crate::client::SendJoin;
use crate::inbound::judge::judge;
use crate::inbound::{parse, verify};
use crate::ports::{Outlier, PortError};

/// Events of state and auth chain that are looked at: several times what the largest public rooms have.
const MAX_EVENTS: usize = 1_000_000;

/// A join of one of our users.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// The room.
    pub room: OwnedRoomId,
    /// The user.
    pub user: OwnedUserId,
    /// Servers that are in the room, the best first.
    pub servers: Vec<OwnedServerName>,
    /// More content of the membership event: display name, avatar, reason.
    pub content: CanonicalJsonObject,
    /// Whether members may be left out of the state, to be completed later.
    pub omit_members: bool,
}

/// A room as a resident server described it, all of it verified: every event is signed by its sender's server and
/// judged by its auth events, the join is allowed by the state.
#[derive(Clone, Debug)]
pub struct JoinedRoom {
    /// The room's version.
    pub version: RoomVersionId,
    /// Its create event.
    pub create: Arc<Event>,
    /// The state before the join: accepted state events, one for each key.
    pub state: BTreeMap<StateKey, Arc<Event>>,
    /// Everything else that authorises it, judged. To be stored as outliers, together with the state.
    pub auth_chain: Vec<Outlier>,
    /// The join, with all signatures.
    pub join: Arc<Event>,
    /// The server that let us in.
    pub resident: OwnedServerName,
    /// Whether `state` lacks members.
    pub members_omitted: bool,
    /// Servers in the room before, if the resident server said.
    pub servers_in_room: Vec<OwnedServerName>,
}

impl RemoteMemberships {
    /// Joins a room through one of its servers: <https://spec.matrix.org/v1.19/server-server-api/#joining-rooms>.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinedRoom, RemoteError> {
        self.try_each(&request.servers, |server| self.join_through(server, request)).await
    }

    async fn join_through(
        &self,
        server: &OwnedServerName,
        request: &JoinRequest,
    ) -> Result<JoinedRoom, RemoteError> {
        let (room, user) = (&request.room, &request.user);
        let template = self.client.make_join(server, room, user, &version::joinable()).await?;
        let wanted = Membership {
            room: room.clone(),
            user: user.clone(),
            kind: "join",
            content: request.content.clone(),
        };
        let (room_version, join) = self.finish(&template, wanted)?;
        let id = &join.event_id;
        let answer = self.client.send_join(server, room, id, &join.json, request.omit_members).await?;
        self.check(server, &room_version, join, answer).await
    }

    async fn check(
        &self,
        server: &OwnedServerName,
        room_version: &RoomVersionId,
        join: Event,
        answer: SendJoin,
    ) -> Result<JoinedRoom, RemoteError> {
        let SendJoin { state, auth_chain, event, members_omitted, servers_in_room } = answer;
        if state.len() + auth_chain.len() > MAX_EVENTS {
            return Err(RemoteError::invalid("more events than any room has"));
        }
        let join = self.countersigned(room_version, join, event).await?;
        let (state_ids, pdus) = parse_state(state, auth_chain, &join, room_version).await?;
        let verified = verify::verify_all(&self.ring, room_version, pdus).await?;
        let events: Vec<Arc<Event>> = verified
            .into_iter()
            .filter_map(|(id, event)| {
                let dropped =
                    |error: &String| tracing::debug!(%id, error, "an event of a joined room is dropped");
                event.inspect_err(dropped).ok()
            })
            .collect();
        let version = room_version.clone();
        let judging = tokio::task::spawn_blocking(move || judge(events, &version, |_| None));
        let judged = judging.await.map_err(PortError::new)?;

        let mut room_state: BTreeMap<StateKey, Arc<Event>> = BTreeMap::new();
        let mut chain = Vec::new();
        for outlier in judged {
            match outlier.event.state_entry() {
                Some(key) if outlier.rejected.is_none() && state_ids.contains(&outlier.event.event_id) => {
                    room_state.insert(key, outlier.event);
                }
                _ => chain.push(outlier),
            }
        }
        let create = room_state.get(&(StateEventType::RoomCreate, String::new()));
        let create = Arc::clone(create.ok_or_else(|| RemoteError::invalid("a room without create event"))?);
        if version::of_create(&create).as_ref() != Some(room_version) {
            return Err(RemoteError::invalid("the create event names another room version"));
        }
        let mut auth_map: AuthMap = room_state.clone();
        if members_omitted {
            // Who authorises the join may be one of the members that were left out.
            let named = chain.iter().filter(|outlier: &&Outlier| {
                outlier.rejected.is_none() && join.auth_events.contains(&outlier.event.event_id)
            });
            for event in named.map(|outlier| &outlier.event) {
                if let Some(key) = event.state_entry() {
                    auth_map.entry(key).or_insert_with(|| Arc::clone(event));
                }
            }
        }
        check_state_dependent(&join, room_version, &auth_map).map_err(RemoteError::invalid)?;
        Ok(JoinedRoom {
            version: room_version.clone(),
            create,
            state: room_state,
            auth_chain: chain,
            join,
            resident: server.clone(),
            members_omitted,
            servers_in_room: servers_in_room.unwrap_or_default(),
        })
    }

    /// The join as the resident server returned it, with its signature, when it did and it is the same event; a
    /// restricted join needs that signature. Otherwise ours.
    async fn countersigned(
        &self,
        room_version: &RoomVersionId,
        ours: Event,
        returned: Option<Box<RawValue>>,
    ) -> Result<Arc<Event>, RemoteError> {
        let json = returned.unwrap_or_else(|| (*ours.json).to_owned());
        let pdu = parse::parse(&json, &ours.room_id, room_version).map_err(RemoteError::Invalid)?;
        if pdu.event.event_id != ours.event_id {
            return Err(RemoteError::invalid("another event came back for the join"));
        }
        let mut verified = verify::verify_all(&self.ring, room_version, vec![pdu]).await?;
        let (_, event) = verified.pop().ok_or_else(|| RemoteError::invalid("the join was not verified"))?;
        event.map_err(RemoteError::Invalid)
    }
}

/// Parses state and auth chain, each event once; gives the ids of the state beside. On a blocking thread: it is tens
/// of thousands of events.
async fn parse_state(
    state: Vec<Box<RawValue>>,
    auth_chain: Vec<Box<RawValue>>,
    join: &Event,
    version: &RoomVersionId,
) -> Result<(BTreeSet<OwnedEventId>, Vec<Pdu>), RemoteError> {
    let (room, version, own) = (join.room_id.clone(), version.clone(), join.event_id.clone());
    let parsing = tokio::task::spawn_blocking(move || {
        let mut state_ids = BTreeSet::new();
        let mut pdus: BTreeMap<OwnedEventId, Pdu> = BTreeMap::new();
        let read = |json: &RawValue| {
            parse::parse_old(json, &room, &version).ok().filter(|pdu| pdu.event.event_id != own)
        };
        for pdu in state.iter().filter_map(|json| read(json)) {
            state_ids.insert(pdu.event.event_id.clone());
            pdus.insert(pdu.event.event_id.clone(), pdu);
        }
        for pdu in auth_chain.iter().filter_map(|json| read(json)) {
            pdus.insert(pdu.event.event_id.clone(), pdu);
        }
        (state_ids, pdus.into_values().collect())
    });
    Ok(parsing.await.map_err(PortError::new)?)
}
