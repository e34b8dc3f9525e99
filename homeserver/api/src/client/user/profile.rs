//! `/profile`: <https://spec.matrix.org/v1.19/client-server-api/#profiles>

use super::plain::{JsonAnswer, body, id, plain_request, text};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use http::StatusCode;
use ruma::OwnedUserId;
use ruma::api::auth_scheme::{AccessToken, NoAccessToken};
use ruma::api::client::profile::delete_profile_field;
use serde_json::{Map, Value};
use waxwing_services::profiles::ProfileError;

plain_request!(
    /// `GET /profile/{userId}`
    Whole, GET, NoAccessToken, {
        1.0 => "/_matrix/client/r0/profile/{user_id}",
        1.1 => "/_matrix/client/v3/profile/{user_id}",
    }
);
plain_request!(
    /// `GET /profile/{userId}/{keyName}`
    Field, GET, NoAccessToken, {
        unstable("uk.tcpip.msc4133") => "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{field}",
        1.0 => "/_matrix/client/r0/profile/{user_id}/{field}",
        1.1 => "/_matrix/client/v3/profile/{user_id}/{field}",
    }
);
plain_request!(
    /// `PUT /profile/{userId}/{keyName}`
    SetField, PUT, AccessToken, {
        unstable("uk.tcpip.msc4133") => "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{field}",
        1.0 => "/_matrix/client/r0/profile/{user_id}/{field}",
        1.1 => "/_matrix/client/v3/profile/{user_id}/{field}",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(whole).ruma(field).ruma(set_field).ruma(delete_field)
}

async fn whole(api: Api, args: Args<Whole>) -> ApiResult<JsonAnswer> {
    let user: OwnedUserId = id(&args.request, 0)?;
    JsonAnswer::new(&api.profiles.whole(&user).await?)
}

async fn field(api: Api, args: Args<Field>) -> ApiResult<JsonAnswer> {
    let user: OwnedUserId = id(&args.request, 0)?;
    let name = text(&args.request, 1);
    let value = api.profiles.field(&user, name).await?;
    JsonAnswer::new(&Map::from_iter([(name.to_owned(), value)]))
}

async fn set_field(api: Api, args: Args<SetField>) -> ApiResult<JsonAnswer> {
    let user: OwnedUserId = id(&args.request, 0)?;
    let name = text(&args.request, 1);
    guests_have_only_a_name(&args.requester, name)?;
    let mut fields: Map<String, Value> = body(&args.json)?;
    let value =
        fields.remove(name).ok_or_else(|| ApiError::missing_param(format_args!("The body has no {name}")))?;
    api.profiles.set(&args.requester.user_id, &user, name, value).await?;
    Ok(JsonAnswer::empty())
}

async fn delete_field(
    api: Api,
    args: Args<delete_profile_field::v3::Request>,
) -> ApiResult<delete_profile_field::v3::Response> {
    let name = args.request.field.as_str();
    guests_have_only_a_name(&args.requester, name)?;
    api.profiles.remove(&args.requester.user_id, &args.request.user_id, name).await?;
    Ok(delete_profile_field::v3::Response::new())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#guest-access>
fn guests_have_only_a_name(requester: &waxwing_services::accounts::Requester, field: &str) -> ApiResult<()> {
    if requester.is_guest && field != "displayname" {
        return Err(ApiError::custom(
            StatusCode::FORBIDDEN,
            "M_GUEST_ACCESS_FORBIDDEN",
            "Guests have no more than a display name",
        ));
    }
    Ok(())
}

impl From<ProfileError> for ApiError {
    fn from(error: ProfileError) -> ApiError {
        let bad = StatusCode::BAD_REQUEST;
        match error {
            ProfileError::Store(error) => ApiError::from(error),
            ProfileError::NotFound => ApiError::not_found("There is no such profile or field"),
            ProfileError::NotYours => ApiError::forbidden("You may only change your own profile"),
            ProfileError::BadKey => ApiError::invalid_param("Invalid profile key"),
            ProfileError::KeyTooLarge => {
                ApiError::custom(bad, "M_KEY_TOO_LARGE", "The key is longer than 255 bytes")
            }
            ProfileError::TooLarge => {
                ApiError::custom(bad, "M_PROFILE_TOO_LARGE", "The profile would be larger than 64 KiB")
            }
            ProfileError::BadValue(why) => ApiError::invalid_param(why),
            ProfileError::Refused => ApiError::forbidden("The user's server does not disclose it"),
            ProfileError::Unreachable => {
                ApiError::custom(StatusCode::BAD_GATEWAY, "M_UNKNOWN", "The user's server did not answer")
            }
        }
    }
}
