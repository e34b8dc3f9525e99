//! `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`: what clients speak today.

use super::extensions::{ExtensionsAnswer, ExtensionsBody};
use super::{
    Count, Field, FiltersBody, HeroBody, Texts, check_rules, conn_id, counts, heroes, lists, patience, read,
    subscriptions, timeline_limit,
};
use crate::client::reading::viewer;
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::sync::sync_events::v5::Request;
use ruma::{OwnedRoomId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use waxwing_services::sync::sliding::{
    ListRule, MAX_LISTED, MAX_PATTERNS, Pattern, RoomRule, SlidingAnswer, SlidingRequest, SlidingRoom,
    StateConfig, StateNews,
};

#[derive(Deserialize)]
struct Body {
    conn_id: Option<String>,
    /// Some clients have it here and not in the query.
    pos: Option<String>,
    txn_id: Option<String>,
    #[serde(default)]
    lists: BTreeMap<String, ListBody>,
    #[serde(default)]
    room_subscriptions: BTreeMap<String, RoomBody>,
    #[serde(default)]
    extensions: ExtensionsBody,
}

#[derive(Deserialize)]
struct ListBody {
    #[serde(default)]
    ranges: Vec<(u64, u64)>,
    #[serde(flatten)]
    room: RoomBody,
    #[serde(default)]
    filters: Option<FiltersBody>,
}

#[derive(Deserialize)]
struct RoomBody {
    #[serde(default)]
    required_state: Vec<(String, String)>,
    timeline_limit: u64,
}

impl ListBody {
    fn read(self, user: &UserId) -> ApiResult<ListRule> {
        if self.ranges.len() > MAX_LISTED {
            return Err(ApiError::invalid_param(format_args!("more than {MAX_LISTED} ranges")));
        }
        let place = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
        Ok(ListRule {
            ranges: Some(self.ranges.into_iter().map(|(first, last)| (place(first), place(last))).collect()),
            filters: self.filters.unwrap_or_default().read()?,
            room: self.room.read(user)?,
        })
    }
}

impl RoomBody {
    fn read(self, user: &UserId) -> ApiResult<RoomRule> {
        if self.required_state.len() > MAX_PATTERNS {
            return Err(ApiError::invalid_param(format_args!("more than {MAX_PATTERNS} kinds of state")));
        }
        let mut state = StateConfig::default();
        for (kind, key) in self.required_state {
            if key == "$LAZY" {
                state.lazy_members |= kind == "m.room.member";
                continue;
            }
            let key = if key == "$ME" { user.as_str().to_owned() } else { key };
            let any = |text: String| (text != "*").then_some(text);
            state.include.insert(Pattern::new(any(kind), any(key)));
        }
        Ok(RoomRule { timeline_limit: timeline_limit(self.timeline_limit), state })
    }
}

/// What is answered.
#[derive(Serialize)]
pub(in crate::client) struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    txn_id: Option<String>,
    pos: String,
    lists: BTreeMap<String, Count>,
    rooms: BTreeMap<OwnedRoomId, RoomAnswer>,
    extensions: ExtensionsAnswer,
}

#[derive(Serialize)]
struct RoomAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Field>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<Field>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    initial: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unstable_expanded_timeline: bool,
    membership: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite_state: Option<Texts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    highlight_count: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timeline: Texts,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required_state: Texts,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
    num_live: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heroes: Option<Vec<HeroBody>>,
}

impl From<SlidingRoom> for RoomAnswer {
    fn from(room: SlidingRoom) -> RoomAnswer {
        let outside = matches!(room.membership, "invite" | "knock");
        // This dialect cannot say that an entry is gone.
        let event = |news| match news {
            StateNews::Event(event) => Some(event),
            StateNews::Gone(..) => None,
        };
        RoomAnswer {
            name: Field::of(room.name),
            avatar: Field::of(room.avatar),
            initial: room.initial,
            unstable_expanded_timeline: room.expanded,
            membership: room.membership,
            is_dm: room.is_dm,
            invite_state: room.stripped.filter(|_| outside),
            notification_count: room.unread.map(|unread| unread.notification_count),
            highlight_count: room.unread.map(|unread| unread.highlight_count),
            timeline: room.timeline,
            required_state: room.state.into_iter().filter_map(event).collect(),
            prev_batch: room.prev_batch,
            limited: room.limited,
            joined_count: room.joined_count,
            invited_count: room.invited_count,
            num_live: room.live,
            bump_stamp: room.bump_stamp,
            heroes: heroes(room.heroes),
        }
    }
}

/// `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`
pub(in crate::client) async fn sync(api: Api, args: Args<Request>) -> ApiResult<Answer> {
    let (wanted, txn_id) = wanted(&api, args)?;
    let SlidingAnswer { pos, lists, rooms, extensions } = api.sync.sliding(&wanted).await?;
    Ok(Answer {
        txn_id,
        pos,
        lists: counts(lists),
        rooms: rooms.into_iter().map(|(id, room)| (id, room.into())).collect(),
        extensions: extensions.into(),
    })
}

/// What is asked for, and what the answer repeats. Of the request nothing is held on to: thousands wait at a time.
fn wanted(api: &Api, args: Args<Request>) -> ApiResult<(SlidingRequest, Option<String>)> {
    let Args { request, requester, json: text, .. } = args;
    let body: Body = read(&text)?;
    check_rules(&body.lists, &body.room_subscriptions)?;
    api.presence.syncing(&requester.user_id, &request.set_presence);
    let user = &requester.user_id;
    let timeout = request.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    let wanted = SlidingRequest {
        viewer: viewer(&requester),
        conn_id: conn_id(body.conn_id)?,
        pos: request.pos.or(body.pos).filter(|pos| !pos.is_empty()),
        timeout: patience(timeout),
        lists: lists(body.lists, |list| list.read(user))?,
        subscriptions: subscriptions(body.room_subscriptions, |room| room.read(user))?,
        extensions: body.extensions.read()?,
        counts: true,
    };
    Ok((wanted, body.txn_id))
}
