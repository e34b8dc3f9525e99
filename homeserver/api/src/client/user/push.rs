//! `/pushrules` and `/pushers`: <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>

use super::plain::{JsonAnswer, body, plain_request, text};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use http::StatusCode;
use ruma::api::auth_scheme::AccessToken;
use ruma::api::client::push::{
    delete_pushrule, get_pushrule_actions, get_pushrule_enabled, set_pushrule_actions, set_pushrule_enabled,
};
use ruma::api::error::ErrorCode;
use ruma::push::{
    Action, AnyPushRule, NewConditionalPushRule, NewPatternedPushRule, NewPushRule, NewSimplePushRule,
    PushCondition,
};
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use waxwing_services::push_rules::{PushRuleError, kind};
use waxwing_services::pushers::PusherError;

plain_request!(
    /// `GET /pushrules/`
    AllRules, GET, AccessToken, {
        unstable("without.slash") => "/_matrix/client/v3/pushrules",
        1.0 => "/_matrix/client/r0/pushrules/",
        1.1 => "/_matrix/client/v3/pushrules/",
    }
);
plain_request!(
    /// `GET /pushrules/global/`
    GlobalRules, GET, AccessToken, {
        unstable("without.slash") => "/_matrix/client/v3/pushrules/global",
        1.0 => "/_matrix/client/r0/pushrules/global/",
        1.1 => "/_matrix/client/v3/pushrules/global/",
    }
);
plain_request!(
    /// `PUT /pushrules/global/{kind}/{ruleId}`
    PutRule, PUT, AccessToken, {
        1.0 => "/_matrix/client/r0/pushrules/global/{kind}/{rule_id}",
        1.1 => "/_matrix/client/v3/pushrules/global/{kind}/{rule_id}",
    }
);
plain_request!(
    /// `GET /pushrules/global/{kind}/{ruleId}`
    GetRule, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/pushrules/global/{kind}/{rule_id}",
        1.1 => "/_matrix/client/v3/pushrules/global/{kind}/{rule_id}",
    }
);
plain_request!(
    /// `GET /pushers`
    Pushers, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/pushers",
        1.1 => "/_matrix/client/v3/pushers",
    }
);

plain_request!(
    /// `POST /pushers/set`
    SetPusher, POST, AccessToken, {
        1.0 => "/_matrix/client/r0/pushers/set",
        1.1 => "/_matrix/client/v3/pushers/set",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(all_rules)
        .ruma(global_rules)
        .ruma(rule)
        .ruma(put_rule)
        .ruma(delete_rule)
        .ruma(rule_enabled)
        .ruma(set_rule_enabled)
        .ruma(rule_actions)
        .ruma(set_rule_actions)
        .ruma(pushers)
        .ruma(change_pusher)
}

async fn all_rules(api: Api, args: Args<AllRules>) -> ApiResult<JsonAnswer> {
    JsonAnswer::new(&api.push_rules.content(&args.requester.user_id).await?)
}

async fn global_rules(api: Api, args: Args<GlobalRules>) -> ApiResult<JsonAnswer> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        global: &'a RawValue,
    }
    let content = api.push_rules.content(&args.requester.user_id).await?;
    let content: Content<'_> = serde_json::from_str(content.get()).map_err(ApiError::internal)?;
    JsonAnswer::new(&content.global)
}

/// ruma's answer knows no rules of MSC4306.
async fn rule(api: Api, args: Args<GetRule>) -> ApiResult<JsonAnswer> {
    let (kind, id) = (kind(text(&args.request, 0)), text(&args.request, 1));
    match api.push_rules.rule(&args.requester.user_id, kind, id).await? {
        AnyPushRule::Override(rule) | AnyPushRule::Underride(rule) | AnyPushRule::PostContent(rule) => {
            JsonAnswer::new(&rule)
        }
        AnyPushRule::Content(rule) => JsonAnswer::new(&rule),
        AnyPushRule::Room(rule) => JsonAnswer::new(&rule),
        AnyPushRule::Sender(rule) => JsonAnswer::new(&rule),
        _ => Err(PushRuleError::NotFound.into()),
    }
}

async fn put_rule(api: Api, args: Args<PutRule>) -> ApiResult<JsonAnswer> {
    let rule = new_rule(text(&args.request, 0), text(&args.request, 1), body(&args.json)?)?;
    let place = axum::extract::Query::<Place>::try_from_uri(&args.parts.uri);
    let axum::extract::Query(place) = place.map_err(ApiError::invalid_param)?;
    api.push_rules.put(&args.requester.user_id, rule, place.before, place.after).await?;
    Ok(JsonAnswer::empty())
}

/// Where a new rule stands: beside one of these.
#[derive(Deserialize)]
struct Place {
    before: Option<String>,
    after: Option<String>,
}

/// ruma's type insists on conditions, which the specification does not.
#[derive(Deserialize)]
struct NewRule {
    actions: Vec<Action>,
    #[serde(default)]
    conditions: Vec<PushCondition>,
    pattern: Option<String>,
}

fn new_rule(kind: &str, id: &str, rule: NewRule) -> ApiResult<NewPushRule> {
    let NewRule { actions, conditions, pattern } = rule;
    let id = id.to_owned();
    Ok(match kind {
        "postcontent" | "io.element.msc4306.postcontent" => {
            NewPushRule::PostContent(NewConditionalPushRule::new(id, conditions, actions))
        }
        "override" => NewPushRule::Override(NewConditionalPushRule::new(id, conditions, actions)),
        "underride" => NewPushRule::Underride(NewConditionalPushRule::new(id, conditions, actions)),
        "content" => {
            let pattern = pattern.ok_or_else(|| ApiError::missing_param("The rule has no pattern"))?;
            NewPushRule::Content(NewPatternedPushRule::new(id, pattern, actions))
        }
        "room" => {
            let room = OwnedRoomId::try_from(id).map_err(ApiError::invalid_param)?;
            NewPushRule::Room(NewSimplePushRule::new(room, actions))
        }
        "sender" => {
            let sender = OwnedUserId::try_from(id).map_err(ApiError::invalid_param)?;
            NewPushRule::Sender(NewSimplePushRule::new(sender, actions))
        }
        _ => return Err(ApiError::invalid_param("There is no such kind of push rule")),
    })
}

async fn delete_rule(
    api: Api,
    args: Args<delete_pushrule::v3::Request>,
) -> ApiResult<delete_pushrule::v3::Response> {
    let request = args.request;
    api.push_rules.remove(&args.requester.user_id, kind(request.kind.as_str()), request.rule_id).await?;
    Ok(delete_pushrule::v3::Response::new())
}

async fn rule_enabled(
    api: Api,
    args: Args<get_pushrule_enabled::v3::Request>,
) -> ApiResult<get_pushrule_enabled::v3::Response> {
    let request = args.request;
    let rule =
        api.push_rules.rule(&args.requester.user_id, kind(request.kind.as_str()), &request.rule_id).await?;
    Ok(get_pushrule_enabled::v3::Response::new(rule.enabled()))
}

async fn set_rule_enabled(
    api: Api,
    args: Args<set_pushrule_enabled::v3::Request>,
) -> ApiResult<set_pushrule_enabled::v3::Response> {
    let request = args.request;
    let user = &args.requester.user_id;
    api.push_rules.set_enabled(user, kind(request.kind.as_str()), request.rule_id, request.enabled).await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

async fn rule_actions(
    api: Api,
    args: Args<get_pushrule_actions::v3::Request>,
) -> ApiResult<get_pushrule_actions::v3::Response> {
    let request = args.request;
    let rule =
        api.push_rules.rule(&args.requester.user_id, kind(request.kind.as_str()), &request.rule_id).await?;
    Ok(get_pushrule_actions::v3::Response::new(rule.actions().to_vec()))
}

async fn set_rule_actions(
    api: Api,
    args: Args<set_pushrule_actions::v3::Request>,
) -> ApiResult<set_pushrule_actions::v3::Response> {
    let request = args.request;
    let user = &args.requester.user_id;
    api.push_rules.set_actions(user, kind(request.kind.as_str()), request.rule_id, request.actions).await?;
    Ok(set_pushrule_actions::v3::Response::new())
}

async fn pushers(api: Api, args: Args<Pushers>) -> ApiResult<JsonAnswer> {
    let pushers = api.pushers.list(&args.requester.user_id).await?;
    JsonAnswer::new(&serde_json::json!({ "pushers": pushers }))
}

async fn change_pusher(api: Api, args: Args<SetPusher>) -> ApiResult<JsonAnswer> {
    let requester = &args.requester;
    let device = requester.device_id.as_ref().map(|device| device.as_str());
    api.pushers.change(&requester.user_id, device, &body(&args.json)?).await?;
    Ok(JsonAnswer::empty())
}

impl From<PushRuleError> for ApiError {
    fn from(error: PushRuleError) -> ApiError {
        match error {
            PushRuleError::Store(error) => ApiError::from(error),
            PushRuleError::NotFound => ApiError::not_found("There is no such push rule"),
            PushRuleError::NoNeighbour => {
                ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, "before/after rule not found")
            }
            PushRuleError::Invalid(why) => ApiError::invalid_param(why),
            PushRuleError::TooMany => ApiError::invalid_param("You have too many push rules"),
        }
    }
}

impl From<PusherError> for ApiError {
    fn from(error: PusherError) -> ApiError {
        match error {
            PusherError::Store(error) => ApiError::from(error),
            PusherError::Missing(_) => ApiError::missing_param(error),
            PusherError::Type(_) => ApiError::bad_json(error),
            PusherError::Invalid(why) => ApiError::invalid_param(why),
        }
    }
}
