//! `POST /search`: <https://spec.matrix.org/v1.19/client-server-api/#server-side-search>

use super::plain::{JsonAnswer, body, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::auth_scheme::AccessToken;
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use waxwing_services::render::Viewer;
use waxwing_services::rooms_read::EventFilter;
use waxwing_services::search::{Around, Hit, Query, Results, SearchError, Surroundings};

plain_request!(
    /// `POST /search`
    SearchRequest, POST, AccessToken, {
        1.0 => "/_matrix/client/r0/search",
        1.1 => "/_matrix/client/v3/search",
    }
);

#[derive(Deserialize)]
struct Body {
    search_categories: Categories,
}

#[derive(Deserialize)]
struct Categories {
    #[serde(default)]
    room_events: Option<Criteria>,
}

#[derive(Deserialize)]
struct Criteria {
    search_term: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    filter: Option<Box<RawValue>>,
    #[serde(default)]
    order_by: Option<String>,
    #[serde(default)]
    event_context: Option<EventContext>,
    #[serde(default)]
    include_state: bool,
    #[serde(default)]
    groupings: Groupings,
}

#[derive(Deserialize)]
struct EventContext {
    #[serde(default = "five")]
    before_limit: usize,
    #[serde(default = "five")]
    after_limit: usize,
    #[serde(default)]
    include_profile: bool,
}

fn five() -> usize {
    5
}

#[derive(Deserialize, Default)]
struct Groupings {
    #[serde(default)]
    group_by: Vec<Grouping>,
}

#[derive(Deserialize)]
struct Grouping {
    #[serde(default)]
    key: String,
}

#[derive(Deserialize, Default)]
struct Scope {
    rooms: Option<Vec<OwnedRoomId>>,
    #[serde(default)]
    not_rooms: Vec<OwnedRoomId>,
    limit: Option<usize>,
}

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(search)
}

async fn search(api: Api, args: Args<SearchRequest>) -> ApiResult<JsonAnswer> {
    let body: Body = body(&args.json)?;
    let Some(criteria) = body.search_categories.room_events else {
        return JsonAnswer::new(&json!({ "search_categories": {} }));
    };
    let viewer = Viewer {
        user: args.requester.user_id.clone(),
        device: args.requester.device_id.as_ref().map(ToString::to_string),
    };
    let results = api.search.search(&viewer, query(&criteria, from(&args.parts))?).await?;
    let mut state = Map::new();
    if criteria.include_state {
        let rooms: BTreeSet<_> = results.hits.iter().map(|hit| &hit.stored.event.room_id).collect();
        for room in rooms {
            // A room whose state may not be read is left out.
            if let Ok(events) = api.reader.state(&viewer, room).await {
                state.insert(room.to_string(), serde_json::to_value(events)?);
            }
        }
    }
    let groups = groups(&results, &criteria.groupings);
    let mut answer = json!({
        "count": results.count,
        "highlights": results.words,
        "results": results.hits.into_iter().map(hit).collect::<Vec<_>>(),
        "groups": groups,
        "state": state,
    });
    if let (Some(next), Some(answer)) = (results.next, answer.as_object_mut()) {
        answer.insert("next_batch".to_owned(), next.into());
    }
    JsonAnswer::new(&json!({ "search_categories": { "room_events": answer } }))
}

fn from(parts: &http::request::Parts) -> Option<String> {
    #[derive(Deserialize)]
    struct Parameters {
        next_batch: Option<String>,
    }
    let parameters = axum::extract::Query::<Parameters>::try_from_uri(&parts.uri).ok()?;
    parameters.0.next_batch.filter(|next| !next.is_empty())
}

fn query(criteria: &Criteria, from: Option<String>) -> ApiResult<Query> {
    let mut filter = None;
    let mut scope = Scope::default();
    if let Some(json) = &criteria.filter {
        scope = serde_json::from_str(json.get())?;
        let parsed = EventFilter::parse(json.get());
        filter = Some(parsed.ok_or_else(|| ApiError::bad_json("The filter is none"))?);
    }
    Ok(Query {
        term: criteria.search_term.clone(),
        keys: criteria.keys.clone(),
        filter,
        rooms: scope.rooms,
        not_rooms: scope.not_rooms,
        limit: scope.limit,
        recent: criteria.order_by.as_deref() == Some("recent"),
        around: criteria.event_context.as_ref().map(|context| Around {
            before: context.before_limit,
            after: context.after_limit,
            profiles: context.include_profile,
        }),
        from,
    })
}

fn hit(hit: Hit) -> Value {
    let mut result = json!({ "rank": hit.rank, "result": hit.shown });
    if let (Some(around), Some(result)) = (hit.around, result.as_object_mut()) {
        result.insert("context".to_owned(), context(around));
    }
    result
}

fn context(around: Surroundings) -> Value {
    let mut context = json!({
        "events_before": around.before,
        "events_after": around.after,
        "start": around.start,
        "end": around.end,
    });
    if let (false, Some(context)) = (around.profiles.is_empty(), context.as_object_mut()) {
        let profile = |(user, (name, avatar)): (OwnedUserId, _)| {
            let mut profile = Map::new();
            let fields: [(&str, Option<String>); 2] = [("displayname", name), ("avatar_url", avatar)];
            for (field, value) in fields {
                if let Some(value) = value {
                    profile.insert(field.to_owned(), value.into());
                }
            }
            (user.to_string(), Value::Object(profile))
        };
        let profiles: Map<String, Value> = around.profiles.into_iter().map(profile).collect();
        context.insert("profile_info".to_owned(), profiles.into());
    }
    context
}

/// The results of this page by room or sender, as asked for.
fn groups(results: &Results, groupings: &Groupings) -> Map<String, Value> {
    let mut groups = Map::new();
    for grouping in groupings.group_by.iter().filter(|it| matches!(it.key.as_str(), "room_id" | "sender")) {
        let mut group: Vec<(String, Vec<String>)> = Vec::new();
        for hit in &results.hits {
            let event = &hit.stored.event;
            let of =
                if grouping.key == "sender" { event.sender.to_string() } else { event.room_id.to_string() };
            let id = event.event_id.to_string();
            match group.iter_mut().find(|(other, _)| *other == of) {
                Some((_, ids)) => ids.push(id),
                None => group.push((of, vec![id])),
            }
        }
        let group: Map<String, Value> = group
            .into_iter()
            .enumerate()
            .map(|(order, (of, ids))| (of, json!({ "order": order + 1, "results": ids })))
            .collect();
        groups.insert(grouping.key.clone(), group.into());
    }
    groups
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> ApiError {
        match error {
            SearchError::Store(error) => ApiError::from(error),
            SearchError::NoWords => ApiError::invalid_param("There is nothing to search for"),
            SearchError::BadToken => ApiError::invalid_param("The token is not valid"),
        }
    }
}
