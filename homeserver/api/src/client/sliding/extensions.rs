//! The extensions of sliding sync, alike in both dialects.

use crate::client::user::thread_subscriptions::shown;
use crate::error::{ApiError, ApiResult};
use ruma::{OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use waxwing_model::LogPosition;
use waxwing_services::sync::sliding::{
    ExtensionNews, Extensions, MAX_RULES, Reach, StickyRule, ToDeviceRule,
};
use waxwing_services::thread_subscriptions::{DEFAULT_LIMIT, SubscriptionPage};

/// To-device messages of an answer when the client does not say how many.
const DEFAULT_MESSAGES: usize = 100;
/// Sticky events of an answer when the client does not say how many: by MSC4480.
const DEFAULT_STICKY: usize = 100;

/// What is asked for.
#[derive(Default, Deserialize)]
pub(super) struct ExtensionsBody {
    to_device: Option<ToDeviceBody>,
    e2ee: Option<SwitchBody>,
    account_data: Option<ReachBody>,
    typing: Option<ReachBody>,
    receipts: Option<ReachBody>,
    #[serde(rename = "io.element.msc4308.thread_subscriptions")]
    thread_subscriptions: Option<ThreadSubscriptionsBody>,
    #[serde(rename = "org.matrix.msc4354.sticky_events")]
    sticky_events: Option<StickyEventsBody>,
}

#[derive(Deserialize)]
struct SwitchBody {
    enabled: Option<bool>,
}

#[derive(Deserialize)]
struct ThreadSubscriptionsBody {
    enabled: Option<bool>,
    limit: Option<u64>,
}

#[derive(Deserialize)]
struct StickyEventsBody {
    enabled: Option<bool>,
    limit: Option<u64>,
    since: Option<String>,
}

#[derive(Deserialize)]
struct ToDeviceBody {
    enabled: Option<bool>,
    limit: Option<u64>,
    since: Option<String>,
}

#[derive(Deserialize)]
struct ReachBody {
    enabled: Option<bool>,
    lists: Option<Vec<String>>,
    rooms: Option<Vec<String>>,
}

impl ReachBody {
    fn read(self) -> ApiResult<Option<Reach>> {
        if self.enabled != Some(true) {
            return Ok(None);
        }
        let sizes = [&self.lists, &self.rooms].map(|names| names.as_ref().map_or(0, Vec::len));
        if sizes.into_iter().any(|size| size > MAX_RULES) {
            return Err(ApiError::invalid_param(format_args!("more than {MAX_RULES} lists or rooms")));
        }
        // A star stands for all that the request names.
        let named = |names: Option<Vec<String>>| names.filter(|names| !names.iter().any(|name| name == "*"));
        let rooms = named(self.rooms)
            .map(|rooms| rooms.into_iter().filter_map(|room| OwnedRoomId::try_from(room).ok()).collect());
        let lists: Option<BTreeSet<String>> = named(self.lists).map(|lists| lists.into_iter().collect());
        Ok(Some(Reach { lists, rooms }))
    }
}

/// Up to where the client has what an extension tells of: the `next_batch` of an earlier answer.
fn position(since: Option<&str>) -> ApiResult<Option<LogPosition>> {
    let Some(since) = since.filter(|since| !since.is_empty()) else { return Ok(None) };
    let position = since.parse::<i64>().ok().filter(|position| *position >= 0);
    let wrong = || ApiError::invalid_param("not a token of this extension");
    position.map(LogPosition).ok_or_else(wrong).map(Some)
}

/// How many at most; a number too large for this machine is as good as none.
fn most(limit: Option<u64>, default: usize) -> usize {
    limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

impl StickyEventsBody {
    fn read(self) -> ApiResult<StickyRule> {
        let since = position(self.since.as_deref())?;
        Ok(StickyRule { since, limit: most(self.limit, DEFAULT_STICKY) })
    }
}

impl ExtensionsBody {
    pub(super) fn read(self) -> ApiResult<Extensions> {
        let reach = |body: Option<ReachBody>| body.map_or(Ok(None), ReachBody::read);
        let to_device = self.to_device.filter(|body| body.enabled == Some(true));
        let to_device = to_device.map(|body| {
            Ok::<_, ApiError>(ToDeviceRule {
                since: position(body.since.as_deref())?.unwrap_or(LogPosition::START),
                limit: most(body.limit, DEFAULT_MESSAGES),
            })
        });
        let threads = self.thread_subscriptions.filter(|body| body.enabled == Some(true));
        let sticky = self.sticky_events.filter(|body| body.enabled == Some(true));
        Ok(Extensions {
            to_device: to_device.transpose()?,
            e2ee: self.e2ee.is_some_and(|body| body.enabled == Some(true)),
            account_data: reach(self.account_data)?,
            typing: reach(self.typing)?,
            receipts: reach(self.receipts)?,
            thread_subscriptions: threads.map(|body| most(body.limit, DEFAULT_LIMIT)),
            sticky_events: sticky.map(StickyEventsBody::read).transpose()?,
        })
    }
}

/// What is answered.
#[derive(Default, Serialize)]
pub(super) struct ExtensionsAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    to_device: Option<ToDeviceAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e2ee: Option<KeysAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_data: Option<AccountDataAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts: Option<RoomsAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    typing: Option<RoomsAnswer>,
    #[serde(rename = "io.element.msc4308.thread_subscriptions", skip_serializing_if = "Option::is_none")]
    thread_subscriptions: Option<Map<String, Value>>,
    #[serde(rename = "org.matrix.msc4354.sticky_events", skip_serializing_if = "Option::is_none")]
    sticky_events: Option<StickyAnswer>,
}

#[derive(Serialize)]
struct StickyAnswer {
    next_batch: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rooms: BTreeMap<OwnedRoomId, EventsAnswer>,
}

#[derive(Serialize)]
struct EventsAnswer {
    events: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct ToDeviceAnswer {
    next_batch: String,
    events: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct KeysAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_lists: Option<DeviceListsAnswer>,
    #[serde(rename = "device_one_time_keys_count")]
    one_time: BTreeMap<String, u64>,
    #[serde(rename = "device_unused_fallback_key_types")]
    fallback: Vec<String>,
}

#[derive(Serialize)]
struct DeviceListsAnswer {
    changed: Vec<OwnedUserId>,
    left: Vec<OwnedUserId>,
}

#[derive(Serialize)]
struct AccountDataAnswer {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    global: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rooms: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
}

#[derive(Serialize)]
struct RoomsAnswer {
    rooms: BTreeMap<OwnedRoomId, Box<RawValue>>,
}

/// Subscriptions as a sync has them; older changes than these are to be had by `prev_batch`.
fn subscriptions(page: SubscriptionPage) -> Option<Map<String, Value>> {
    let end = page.end.clone();
    let mut answer = shown(page);
    answer.extend(end.map(|end| ("prev_batch".to_owned(), end.into())));
    Some(answer).filter(|answer| !answer.is_empty())
}

impl From<ExtensionNews> for ExtensionsAnswer {
    fn from(news: ExtensionNews) -> ExtensionsAnswer {
        let rooms = |rooms: Option<BTreeMap<OwnedRoomId, Box<RawValue>>>| {
            rooms.filter(|rooms| !rooms.is_empty()).map(|rooms| RoomsAnswer { rooms })
        };
        ExtensionsAnswer {
            to_device: news.to_device.map(|(events, next_batch)| ToDeviceAnswer { next_batch, events }),
            e2ee: news.e2ee.map(|keys| KeysAnswer {
                device_lists: (!keys.device_lists.is_empty()).then_some(DeviceListsAnswer {
                    changed: keys.device_lists.changed,
                    left: keys.device_lists.left,
                }),
                one_time: keys.one_time,
                fallback: keys.fallback,
            }),
            account_data: news
                .account_data
                .filter(|data| !data.global.is_empty() || !data.rooms.is_empty())
                .map(|data| AccountDataAnswer { global: data.global, rooms: data.rooms }),
            receipts: rooms(news.receipts),
            typing: rooms(news.typing),
            thread_subscriptions: news.thread_subscriptions.and_then(subscriptions),
            sticky_events: news.sticky_events.map(|news| StickyAnswer {
                next_batch: news.next_batch,
                rooms: news.rooms.into_iter().map(|(room, events)| (room, EventsAnswer { events })).collect(),
            }),
        }
    }
}
