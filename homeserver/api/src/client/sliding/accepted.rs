//! `POST /_matrix/client/v4/sync`, as MSC4186 was accepted.

use super::extensions::{ExtensionsAnswer, ExtensionsBody};
use super::{
    Count, Field, FiltersBody, HeroBody, Texts, check_rules, conn_id, counts, heroes, lists, patience, read,
    subscriptions, timeline_limit,
};
use crate::client::reading::viewer;
use crate::error::{ApiError, ApiResult};
use crate::extract::Received;
use crate::state::Api;
use axum::response::{IntoResponse, Response};
use ruma::OwnedRoomId;
use ruma::presence::PresenceState;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use waxwing_services::sync::sliding::{
    ListRule, MAX_PATTERNS, Pattern, RoomRule, SlidingAnswer, SlidingRequest, SlidingRoom, StateConfig,
    StateNews,
};

#[derive(Deserialize)]
struct Body {
    conn_id: Option<String>,
    pos: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<String>,
    #[serde(default)]
    lists: BTreeMap<String, ListBody>,
    #[serde(default)]
    room_subscriptions: BTreeMap<String, RoomBody>,
    #[serde(default)]
    extensions: ExtensionsBody,
}

#[derive(Deserialize)]
struct ListBody {
    timeline_limit: u64,
    required_state: StateBody,
    range: Option<(u64, u64)>,
    filters: Option<FiltersBody>,
}

#[derive(Deserialize)]
struct RoomBody {
    timeline_limit: u64,
    required_state: StateBody,
}

#[derive(Deserialize)]
struct StateBody {
    #[serde(default)]
    include: Vec<PatternBody>,
    #[serde(default)]
    exclude: Vec<PatternBody>,
    #[serde(default)]
    lazy_members: bool,
}

#[derive(Deserialize)]
struct PatternBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    state_key: Option<String>,
}

impl StateBody {
    fn read(self) -> ApiResult<StateConfig> {
        if self.include.len() + self.exclude.len() > MAX_PATTERNS {
            return Err(ApiError::invalid_param(format_args!("more than {MAX_PATTERNS} kinds of state")));
        }
        let patterns = |all: Vec<PatternBody>| -> BTreeSet<Pattern> {
            all.into_iter().map(|one| Pattern::new(one.kind, one.state_key)).collect()
        };
        Ok(StateConfig {
            include: patterns(self.include),
            exclude: patterns(self.exclude),
            lazy_members: self.lazy_members,
        })
    }
}

fn room_rule(limit: u64, state: StateBody) -> ApiResult<RoomRule> {
    Ok(RoomRule { timeline_limit: timeline_limit(limit), state: state.read()? })
}

impl ListBody {
    fn read(self) -> ApiResult<ListRule> {
        let place = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
        Ok(ListRule {
            ranges: self.range.map(|(first, last)| vec![(place(first), place(last))]),
            filters: self.filters.unwrap_or_default().read()?,
            room: room_rule(self.timeline_limit, self.required_state)?,
        })
    }
}

#[derive(Serialize)]
struct Answer {
    pos: String,
    lists: BTreeMap<String, Count>,
    rooms: BTreeMap<OwnedRoomId, RoomAnswer>,
    extensions: ExtensionsAnswer,
}

/// An entry of the state, or that there is none any more.
#[derive(Serialize)]
#[serde(untagged)]
enum StateAnswer {
    Event(Box<RawValue>),
    Stub {
        #[serde(rename = "type")]
        kind: String,
        state_key: String,
    },
}

impl From<StateNews> for StateAnswer {
    fn from(news: StateNews) -> StateAnswer {
        match news {
            StateNews::Event(event) => StateAnswer::Event(event),
            StateNews::Gone(kind, state_key) => StateAnswer::Stub { kind, state_key },
        }
    }
}

#[derive(Serialize)]
struct RoomAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<i64>,
    membership: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lists: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Field>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<Field>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heroes: Option<Vec<HeroBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    initial: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expanded_timeline: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required_state: Vec<StateAnswer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timeline: Texts,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    limited: bool,
    num_live: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripped_state: Option<Texts>,
}

impl From<SlidingRoom> for RoomAnswer {
    fn from(room: SlidingRoom) -> RoomAnswer {
        // Of a room that the user never was in there is nothing but the stripped state.
        let outside = room.stripped.is_some();
        RoomAnswer {
            bump_stamp: room.bump_stamp,
            membership: room.membership,
            lists: room.lists,
            name: Field::of(room.name),
            avatar: Field::of(room.avatar),
            heroes: heroes(room.heroes),
            is_dm: room.is_dm,
            initial: room.initial,
            expanded_timeline: room.expanded,
            required_state: room.state.into_iter().filter(|_| !outside).map(Into::into).collect(),
            timeline: room.timeline,
            prev_batch: room.prev_batch,
            limited: room.limited,
            num_live: room.live,
            joined_count: room.joined_count,
            invited_count: room.invited_count,
            stripped_state: room.stripped,
        }
    }
}

/// `POST /_matrix/client/v4/sync`
pub(in crate::client) async fn sync(api: Api, received: Received) -> ApiResult<Response> {
    let wanted = wanted(&api, received)?;
    let SlidingAnswer { pos, lists, rooms, extensions } = api.sync.sliding(&wanted).await?;
    let answer = Answer {
        pos,
        lists: counts(lists),
        rooms: rooms.into_iter().map(|(id, room)| (id, room.into())).collect(),
        extensions: extensions.into(),
    };
    Ok(axum::Json(answer).into_response())
}

/// What is asked for. Of the request nothing is held on to: thousands wait at a time.
fn wanted(api: &Api, received: Received) -> ApiResult<SlidingRequest> {
    let requester = received.requester.ok_or_else(ApiError::missing_token)?;
    let body: Body = read(&received.body)?;
    check_rules(&body.lists, &body.room_subscriptions)?;
    let presence = match body.set_presence.as_deref() {
        None | Some("online") => PresenceState::Online,
        Some("offline") => PresenceState::Offline,
        Some("unavailable") => PresenceState::Unavailable,
        Some(_) => {
            return Err(ApiError::invalid_param("set_presence is none of online, offline, unavailable"));
        }
    };
    let wanted = SlidingRequest {
        viewer: viewer(&requester),
        conn_id: conn_id(body.conn_id)?,
        pos: body.pos,
        timeout: patience(body.timeout),
        lists: lists(body.lists, ListBody::read)?,
        subscriptions: subscriptions(body.room_subscriptions, |room| {
            room_rule(room.timeline_limit, room.required_state)
        })?,
        extensions: body.extensions.read()?,
        counts: false,
    };
    api.presence.syncing(&requester.user_id, &presence);
    Ok(wanted)
}
