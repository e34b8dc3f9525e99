use http::Method;
use ruma::api::Direction;
use ruma::api::federation::event::get_event_by_timestamp;
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName, UInt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{Call, Client, ClientError, LIST_BODY, path, to_body, with_query};

/// The state of the largest public rooms is about 100 MB.
const STATE_BODY: usize = 256 << 20;
/// Servers take minutes to put such a state together.
const STATE_TIMEOUT: Duration = Duration::from_mins(5);
/// A receiver may have to fetch missing events before it answers.
const SEND_TIMEOUT: Duration = Duration::from_mins(1);
/// Ids read of one list.
const MAX_IDS: usize = 500_000;
/// Events read of one list of history.
const MAX_EVENTS: usize = 1000;

/// `state_ids`: what a room's state before an event consists of.
#[derive(Debug, Default)]
pub struct StateIds {
    /// The state.
    pub state: Vec<OwnedEventId>,
    /// What authorises it.
    pub auth_chain: Vec<OwnedEventId>,
}

/// `state`: the same with the events.
#[derive(Debug, Default)]
pub struct WholeState {
    /// The state.
    pub state: Vec<Box<RawValue>>,
    /// What authorises it.
    pub auth_chain: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Pdus {
    pdus: Vec<Box<RawValue>>,
    #[serde(default)]
    auth_chain: Vec<Box<RawValue>>,
}

/// What another server answers about the relations of an event (MSC2836).
#[derive(Debug, Deserialize)]
pub struct Related {
    /// Events around it.
    #[serde(default)]
    pub events: Vec<Box<RawValue>>,
    /// What authorises them.
    #[serde(default)]
    pub auth_chain: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Events {
    #[serde(default)]
    events: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct AuthChain {
    auth_chain: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Ids {
    pdu_ids: Vec<String>,
    #[serde(default)]
    auth_chain_ids: Vec<String>,
}

#[derive(Serialize)]
struct MissingEvents<'a> {
    limit: usize,
    min_depth: u64,
    earliest_events: &'a [OwnedEventId],
    latest_events: &'a [OwnedEventId],
}

#[derive(Deserialize)]
struct Sent {
    #[serde(default)]
    pdus: BTreeMap<String, PduResult>,
}

#[derive(Deserialize)]
struct PduResult {
    #[serde(default)]
    error: Option<String>,
}

impl Client {
    /// `PUT /send/{txnId}`. Gives the ids that the receiver did not like, with its words.
    pub async fn send_transaction(
        &self,
        destination: &ServerName,
        txn_id: &str,
        body: &RawValue,
    ) -> Result<Vec<(String, String)>, ClientError> {
        let path = path(&["_matrix", "federation", "v1", "send", txn_id]);
        let call = Call::new(destination, Method::PUT, path).body(body);
        let sent: Sent = self.json(call.timeout(SEND_TIMEOUT).insistent()).await?;
        Ok(sent.pdus.into_iter().filter_map(|(id, result)| Some((id, result.error?))).collect())
    }

    /// `GET /state_ids/{roomId}`: the state before an event.
    pub async fn state_ids(
        &self,
        destination: &ServerName,
        room: &RoomId,
        event: &EventId,
    ) -> Result<StateIds, ClientError> {
        let path = path(&["_matrix", "federation", "v1", "state_ids", room.as_str()]);
        let path = with_query(path, &[("event_id", event.as_str())]);
        let ids: Ids =
            self.json(Call::get(destination, path).limit(STATE_BODY).timeout(STATE_TIMEOUT)).await?;
        Ok(StateIds { state: parse_ids(ids.pdu_ids), auth_chain: parse_ids(ids.auth_chain_ids) })
    }

    /// `GET /state/{roomId}`: the same with the events.
    pub async fn state(
        &self,
        destination: &ServerName,
        room: &RoomId,
        event: &EventId,
    ) -> Result<WholeState, ClientError> {
        let path = path(&["_matrix", "federation", "v1", "state", room.as_str()]);
        let path = with_query(path, &[("event_id", event.as_str())]);
        let pdus: Pdus =
            self.json(Call::get(destination, path).limit(STATE_BODY).timeout(STATE_TIMEOUT)).await?;
        Ok(WholeState { state: pdus.pdus, auth_chain: pdus.auth_chain })
    }

    /// `GET /event/{eventId}`.
    pub async fn event(
        &self,
        destination: &ServerName,
        event: &EventId,
    ) -> Result<Box<RawValue>, ClientError> {
        let path = path(&["_matrix", "federation", "v1", "event", event.as_str()]);
        let answer: Pdus = self.json(Call::get(destination, path)).await?;
        answer.pdus.into_iter().next().ok_or_else(|| ClientError::Nonsense("no event".into()))
    }

    /// `GET /event_auth/{roomId}/{eventId}`: the auth chain of an event.
    pub async fn event_auth(
        &self,
        destination: &ServerName,
        room: &RoomId,
        event: &EventId,
    ) -> Result<Vec<Box<RawValue>>, ClientError> {
        let path = path(&["_matrix", "federation", "v1", "event_auth", room.as_str(), event.as_str()]);
        let answer: AuthChain = self.json(Call::get(destination, path).limit(LIST_BODY)).await?;
        Ok(answer.auth_chain)
    }

    /// `GET /backfill/{roomId}`: events before (and including) `from`.
    pub async fn backfill(
        &self,
        destination: &ServerName,
        room: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Box<RawValue>>, ClientError> {
        let path = path(&["_matrix", "federation", "v1", "backfill", room.as_str()]);
        let limit = limit.min(MAX_EVENTS).to_string();
        let mut query: Vec<(&str, &str)> = from.iter().map(|id| ("v", id.as_str())).collect();
        query.push(("limit", &limit));
        let answer: Pdus =
            self.json(Call::get(destination, with_query(path, &query)).limit(LIST_BODY)).await?;
        Ok(answer.pdus.into_iter().take(MAX_EVENTS).collect())
    }

    /// `POST /get_missing_events/{roomId}`: the events between `earliest` and `latest`, both excluded.
    pub async fn get_missing_events(
        &self,
        destination: &ServerName,
        room: &RoomId,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
        min_depth: u64,
    ) -> Result<Vec<Box<RawValue>>, ClientError> {
        let path = path(&["_matrix", "federation", "v1", "get_missing_events", room.as_str()]);
        let body =
            to_body(&MissingEvents { limit, min_depth, earliest_events: earliest, latest_events: latest })?;
        let call = Call::new(destination, Method::POST, path).body(&body).limit(LIST_BODY);
        let answer: Events = self.json(call).await?;
        Ok(answer.events.into_iter().take(limit).collect())
    }

    /// `POST unstable/event_relationships` (MSC2836): events around one, by what they relate to.
    pub async fn event_relationships(
        &self,
        destination: &ServerName,
        query: &RawValue,
    ) -> Result<Related, ClientError> {
        let path = path(&["_matrix", "federation", "unstable", "event_relationships"]);
        let call = Call::new(destination, Method::POST, path).body(query).limit(LIST_BODY);
        let mut related: Related = self.json(call).await?;
        related.events.truncate(MAX_EVENTS);
        Ok(related)
    }

    /// `GET /timestamp_to_event/{roomId}`.
    pub async fn timestamp_to_event(
        &self,
        destination: &ServerName,
        room: &RoomId,
        at: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Result<(OwnedEventId, UInt), ClientError> {
        let request = get_event_by_timestamp::v1::Request::new(room.to_owned(), at, direction);
        let answer = self.typed(destination, request, |call| call).await?;
        Ok((answer.event_id, answer.origin_server_ts.0))
    }
}

/// Reads ids, leaving out what is none: one bad entry must not make a state unusable.
fn parse_ids(ids: Vec<String>) -> Vec<OwnedEventId> {
    ids.into_iter().take(MAX_IDS).filter_map(|id| OwnedEventId::try_from(id).ok()).collect()
}
