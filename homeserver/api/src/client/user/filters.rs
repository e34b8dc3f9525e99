//! `/user/{userId}/filter`: <https://spec.matrix.org/v1.19/client-server-api/#filtering>

use super::plain::{JsonAnswer, body, id, plain_request, text};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::OwnedUserId;
use ruma::api::auth_scheme::AccessToken;
use serde_json::json;
use serde_json::value::RawValue;
use waxwing_services::filters::FilterError;

plain_request!(
    /// `POST /user/{userId}/filter`
    CreateFilter, POST, AccessToken, {
        1.0 => "/_matrix/client/r0/user/{user_id}/filter",
        1.1 => "/_matrix/client/v3/user/{user_id}/filter",
    }
);
plain_request!(
    /// `GET /user/{userId}/filter/{filterId}`
    GetFilter, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/user/{user_id}/filter/{filter_id}",
        1.1 => "/_matrix/client/v3/user/{user_id}/filter/{filter_id}",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(create).ruma(get)
}

async fn create(api: Api, args: Args<CreateFilter>) -> ApiResult<JsonAnswer> {
    let user: OwnedUserId = id(&args.request, 0)?;
    let json: Box<RawValue> = body(&args.json)?;
    let id = api.filters.create(&args.requester.user_id, &user, &json).await?;
    JsonAnswer::new(&json!({ "filter_id": id }))
}

async fn get(api: Api, args: Args<GetFilter>) -> ApiResult<JsonAnswer> {
    let user: OwnedUserId = id(&args.request, 0)?;
    JsonAnswer::new(&api.filters.get(&args.requester.user_id, &user, text(&args.request, 1)).await?)
}

impl From<FilterError> for ApiError {
    fn from(error: FilterError) -> ApiError {
        match error {
            FilterError::Store(error) => ApiError::from(error),
            FilterError::NotYours => ApiError::forbidden("You may only use your own filters"),
            FilterError::NotFound => ApiError::not_found("There is no such filter"),
            FilterError::Bad(why) => ApiError::bad_json(why),
            FilterError::TooLarge => ApiError::too_large("The filter is too large"),
        }
    }
}
