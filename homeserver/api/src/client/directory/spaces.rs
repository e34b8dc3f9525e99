use crate::client::reading::size;
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::OwnedRoomId;
use ruma::api::IncomingRequest;
use ruma::api::auth_scheme::AccessTokenOptional;
use ruma::api::client::room::get_summary;
use ruma::api::client::space::get_hierarchy;
use ruma::api::error::{DeserializationError, Error};
use serde::Serialize;
use waxwing_services::accounts::Requester;
use waxwing_services::directory::{HierarchyQuery, SpaceRoom, Summary};

/// A room's summary. The names of MSC3266 stand beside those of the specification.
#[derive(Serialize)]
pub(super) struct SummaryAnswer {
    #[serde(flatten)]
    summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<String>,
    #[serde(rename = "im.nheko.summary.room_version", skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(rename = "im.nheko.summary.encryption", skip_serializing_if = "Option::is_none")]
    encryption: Option<String>,
}

/// The request for a summary at the path of MSC3266 that matrix-js-sdk asks; ruma knows another.
pub struct SummaryByOlderName(get_summary::v1::Request);

ruma::metadata! { @for SummaryByOlderName,
    method: GET,
    rate_limited: false,
    authentication: AccessTokenOptional,
    history: {
        unstable("im.nheko.summary") => "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
    }
}

impl IncomingRequest for SummaryByOlderName {
    type EndpointError = Error;
    type OutgoingResponse = get_summary::v1::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<SummaryByOlderName, DeserializationError> {
        get_summary::v1::Request::try_from_http_request_inner(request, path).map(SummaryByOlderName)
    }
}

/// `GET /_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}`
pub(super) async fn summary_by_older_name(
    api: Api,
    args: Args<SummaryByOlderName>,
) -> ApiResult<SummaryAnswer> {
    summarise(&api, args.requester.as_deref(), args.request.0).await
}

/// `GET /room_summary/{roomIdOrAlias}`
pub(super) async fn summary(api: Api, args: Args<get_summary::v1::Request>) -> ApiResult<SummaryAnswer> {
    summarise(&api, args.requester.as_deref(), args.request).await
}

async fn summarise(
    api: &Api,
    requester: Option<&Requester>,
    request: get_summary::v1::Request,
) -> ApiResult<SummaryAnswer> {
    let mut via = request.via;
    let room = match OwnedRoomId::try_from(request.room_id_or_alias) {
        Ok(room) => room,
        Err(alias) => {
            let (room, servers) = api.directory.resolve_alias(&alias).await?;
            via.extend(servers);
            room
        }
    };
    let user = requester.map(|requester| &*requester.user_id);
    let (summary, membership) = api.directory.summary(user, &room, &via).await?;
    Ok(SummaryAnswer {
        version: summary.room_version.clone(),
        encryption: summary.encryption.clone(),
        summary,
        membership,
    })
}

/// A page of a space's tree.
#[derive(Serialize)]
pub(super) struct HierarchyAnswer {
    rooms: Vec<SpaceRoom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

/// `GET /rooms/{roomId}/hierarchy`
pub(super) async fn hierarchy(
    api: Api,
    args: Args<get_hierarchy::v1::Request>,
) -> ApiResult<HierarchyAnswer> {
    let request = args.request;
    let query = HierarchyQuery {
        from: request.from,
        limit: request.limit.map(size),
        max_depth: request.max_depth.map(Into::into),
        suggested_only: request.suggested_only,
    };
    let page = api.directory.hierarchy(&args.requester.user_id, &request.room_id, &query).await?;
    Ok(HierarchyAnswer { rooms: page.rooms, next_batch: page.next })
}
