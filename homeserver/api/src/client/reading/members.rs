use super::{raw_all, viewer};
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::membership::{get_member_events, joined_members as joined, joined_rooms as rooms};
use serde::{Serialize, Serializer};
use std::sync::Arc;
use waxwing_services::rooms_read::{JoinedRow, MemberQuery, ReadError};

/// `GET /rooms/{roomId}/members`
pub(super) async fn members(
    api: Api,
    args: Args<get_member_events::v3::Request>,
) -> ApiResult<get_member_events::v3::Response> {
    let request = &args.request;
    let query = MemberQuery {
        at: request.at.clone(),
        membership: request.membership.as_ref().map(ToString::to_string),
        not_membership: request.not_membership.as_ref().map(ToString::to_string),
    };
    let members = api.reader.members(&viewer(&args.requester), &request.room_id, &query).await?;
    Ok(get_member_events::v3::Response::new(raw_all(members)))
}

/// The answer of `joined_members`. Old clients expect both fields, set or not.
#[derive(Serialize)]
pub(super) struct Joined {
    joined: Members,
}

/// Written from the list that requests share.
struct Members(Arc<[JoinedRow]>);

#[derive(Serialize)]
struct Member<'a> {
    display_name: Option<&'a str>,
    avatar_url: Option<&'a str>,
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let members = self.0.iter().map(|row| {
            let shown =
                Member { display_name: row.display_name.as_deref(), avatar_url: row.avatar_url.as_deref() };
            (&row.user_id, shown)
        });
        serializer.collect_map(members)
    }
}

/// `GET /rooms/{roomId}/joined_members`
pub(super) async fn joined_members(api: Api, args: Args<joined::v3::Request>) -> ApiResult<Joined> {
    let room = &args.request.room_id;
    let mut members = api.reader.joined_members(&args.requester.user_id, room).await;
    let appservice = args.requester.appservice.as_deref().and_then(|id| api.accounts.appservices().by_id(id));
    if let (Err(ReadError::Forbidden), Some(appservice)) = (&members, appservice)
        && let Some(user) = api.reader.joined_of(appservice, room).await?
    {
        members = api.reader.joined_members(&user, room).await;
    }
    Ok(Joined { joined: Members(members?) })
}

/// `GET /joined_rooms`
pub(super) async fn joined_rooms(api: Api, args: Args<rooms::v3::Request>) -> ApiResult<rooms::v3::Response> {
    Ok(rooms::v3::Response::new(api.reader.joined_rooms(&args.requester.user_id).await?))
}
