//! The user directory and mutual rooms: <https://spec.matrix.org/v1.19/client-server-api/#user-directory>

use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::UInt;
use ruma::api::client::membership::get_mutual_rooms;
use ruma::api::client::user_directory::search_users;
use waxwing_services::people::PeopleError;

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(search).ruma(mutual_rooms).ruma(mutual_rooms_unstable)
}

async fn search(api: Api, args: Args<search_users::v3::Request>) -> ApiResult<search_users::v3::Response> {
    let limit = usize::try_from(args.request.limit).unwrap_or(usize::MAX);
    let found = api.people.search(&args.requester.user_id, &args.request.search_term, limit).await?;
    let people = found.people.into_iter().map(|(user, listed)| {
        let mut person = search_users::v3::User::new(user);
        person.display_name = listed.display_name;
        person.avatar_url = listed.avatar_url.map(Into::into);
        person
    });
    Ok(search_users::v3::Response::new(people.collect(), found.limited))
}

async fn mutual_rooms(
    api: Api,
    args: Args<get_mutual_rooms::v1::Request>,
) -> ApiResult<get_mutual_rooms::v1::Response> {
    let request = args.request;
    let shared =
        api.people.shared_rooms(&args.requester.user_id, &request.user_id, request.from.as_deref()).await?;
    let count = UInt::try_from(shared.count).unwrap_or(UInt::MAX);
    let mut response = get_mutual_rooms::v1::Response::new(count, shared.rooms);
    response.next_batch = shared.next;
    Ok(response)
}

async fn mutual_rooms_unstable(
    api: Api,
    args: Args<get_mutual_rooms::unstable::Request>,
) -> ApiResult<get_mutual_rooms::unstable::Response> {
    let request = args.request;
    let shared =
        api.people.shared_rooms(&args.requester.user_id, &request.user_id, request.from.as_deref()).await?;
    let mut response = get_mutual_rooms::unstable::Response::new(shared.rooms);
    response.next_batch = shared.next;
    Ok(response)
}

impl From<PeopleError> for ApiError {
    fn from(error: PeopleError) -> ApiError {
        match error {
            PeopleError::Store(error) => ApiError::from(error),
            PeopleError::Oneself => ApiError::invalid_param("You share all rooms with yourself"),
            PeopleError::BadToken => ApiError::invalid_param("The token is not valid"),
        }
    }
}
