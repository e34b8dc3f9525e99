//! `/user/{userId}/account_data` and tags: <https://spec.matrix.org/v1.19/client-server-api/#client-config>

use super::plain::{JsonAnswer, body, id, plain_request, text};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use http::StatusCode;
use ruma::api::auth_scheme::AccessToken;
use ruma::api::client::config::{
    get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data,
};
use ruma::api::client::tag::delete_tag;
use ruma::serde::Raw;
use ruma::{OwnedRoomId, OwnedUserId};
use waxwing_services::account_data::AccountDataError;

plain_request!(
    /// `DELETE /user/{userId}/account_data/{type}` (MSC3391)
    DeleteGlobal, DELETE, AccessToken, {
        unstable("org.matrix.msc3391") => "/_matrix/client/unstable/org.matrix.msc3391/user/{user_id}/account_data/{event_type}",
    }
);
plain_request!(
    /// `DELETE /user/{userId}/rooms/{roomId}/account_data/{type}` (MSC3391)
    DeleteOfRoom, DELETE, AccessToken, {
        unstable("org.matrix.msc3391") => "/_matrix/client/unstable/org.matrix.msc3391/user/{user_id}/rooms/{room_id}/account_data/{event_type}",
    }
);
plain_request!(
    /// `GET /user/{userId}/rooms/{roomId}/tags`
    GetTags, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/user/{user_id}/rooms/{room_id}/tags",
        1.1 => "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags",
    }
);
plain_request!(
    /// `PUT /user/{userId}/rooms/{roomId}/tags/{tag}`
    SetTag, PUT, AccessToken, {
        1.0 => "/_matrix/client/r0/user/{user_id}/rooms/{room_id}/tags/{tag}",
        1.1 => "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(get_global)
        .ruma(set_global)
        .ruma(delete_global)
        .ruma(get_of_room)
        .ruma(set_of_room)
        .ruma(delete_of_room)
        .ruma(get_tags)
        .ruma(set_tag)
        .ruma(remove_tag)
}

async fn get_global(
    api: Api,
    args: Args<get_global_account_data::v3::Request>,
) -> ApiResult<get_global_account_data::v3::Response> {
    let (request, asking) = (&args.request, &args.requester.user_id);
    let kind = request.event_type.to_string();
    let content = api.account_data.get(asking, &request.user_id, None, &kind).await?;
    Ok(get_global_account_data::v3::Response::new(Raw::from_json(content)))
}

async fn set_global(
    api: Api,
    args: Args<set_global_account_data::v3::Request>,
) -> ApiResult<set_global_account_data::v3::Response> {
    let (request, asking) = (&args.request, &args.requester.user_id);
    let kind = request.event_type.to_string();
    api.account_data.set(asking, &request.user_id, None, &kind, request.data.json()).await?;
    Ok(set_global_account_data::v3::Response::new())
}

async fn delete_global(api: Api, args: Args<DeleteGlobal>) -> ApiResult<JsonAnswer> {
    let user: OwnedUserId = id(&args.request, 0)?;
    let kind = text(&args.request, 1);
    api.account_data.remove(&args.requester.user_id, &user, None, kind).await?;
    Ok(JsonAnswer::empty())
}

async fn get_of_room(
    api: Api,
    args: Args<get_room_account_data::v3::Request>,
) -> ApiResult<get_room_account_data::v3::Response> {
    let (request, asking) = (&args.request, &args.requester.user_id);
    let kind = request.event_type.to_string();
    let content = api.account_data.get(asking, &request.user_id, Some(&request.room_id), &kind).await?;
    Ok(get_room_account_data::v3::Response::new(Raw::from_json(content)))
}

async fn set_of_room(
    api: Api,
    args: Args<set_room_account_data::v3::Request>,
) -> ApiResult<set_room_account_data::v3::Response> {
    let (request, asking) = (&args.request, &args.requester.user_id);
    let (kind, room) = (request.event_type.to_string(), Some(&*request.room_id));
    api.account_data.set(asking, &request.user_id, room, &kind, request.data.json()).await?;
    Ok(set_room_account_data::v3::Response::new())
}

async fn delete_of_room(api: Api, args: Args<DeleteOfRoom>) -> ApiResult<JsonAnswer> {
    let (user, room): (OwnedUserId, OwnedRoomId) = (id(&args.request, 0)?, id(&args.request, 1)?);
    let kind = text(&args.request, 2);
    api.account_data.remove(&args.requester.user_id, &user, Some(&room), kind).await?;
    Ok(JsonAnswer::empty())
}

async fn get_tags(api: Api, args: Args<GetTags>) -> ApiResult<JsonAnswer> {
    let (user, room): (OwnedUserId, OwnedRoomId) = (id(&args.request, 0)?, id(&args.request, 1)?);
    let tags = api.account_data.tags(&args.requester.user_id, &user, &room).await?;
    JsonAnswer::new(&serde_json::json!({ "tags": tags }))
}

async fn set_tag(api: Api, args: Args<SetTag>) -> ApiResult<JsonAnswer> {
    let (user, room): (OwnedUserId, OwnedRoomId) = (id(&args.request, 0)?, id(&args.request, 1)?);
    let tag = text(&args.request, 2);
    api.account_data.tag_set(&args.requester.user_id, &user, &room, tag, body(&args.json)?).await?;
    Ok(JsonAnswer::empty())
}

async fn remove_tag(api: Api, args: Args<delete_tag::v3::Request>) -> ApiResult<delete_tag::v3::Response> {
    let request = &args.request;
    let asking = &args.requester.user_id;
    api.account_data.tag_remove(asking, &request.user_id, &request.room_id, &request.tag).await?;
    Ok(delete_tag::v3::Response::new())
}

impl From<AccountDataError> for ApiError {
    fn from(error: AccountDataError) -> ApiError {
        match error {
            AccountDataError::Store(error) => ApiError::from(error),
            AccountDataError::NotYours => ApiError::forbidden("You may only use your own account data"),
            AccountDataError::NotFound => ApiError::not_found("There is no such account data"),
            AccountDataError::ServerControlled(kind) => ApiError::custom(
                StatusCode::METHOD_NOT_ALLOWED,
                "M_BAD_JSON",
                format_args!("{kind} cannot be set through this endpoint"),
            ),
            AccountDataError::TooLarge => ApiError::too_large("The content is too large"),
            AccountDataError::Bad(why) => ApiError::bad_json(why),
        }
    }
}
