//! Invitations by an address: <https://spec.matrix.org/v1.19/server-server-api/#third-party-invites>

use super::signed::{SMALL, Signed, SignedExt, empty};
use crate::client::room::third_party_error;
use crate::error::{ApiError, ApiResult};
use crate::extract::read_body;
use crate::state::Api;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, put};
use ruma::OwnedRoomId;
use waxwing_services::federation::Federation;
use waxwing_services::third_party::{Binding, PartialInvite};

/// Invitations of one binding that are looked at: each may be a request to another server.
const MAX_INVITES: usize = 50;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .signed(MethodFilter::PUT, "/_matrix/federation/v1/exchange_third_party_invite/{room}", exchange)
        .route("/_matrix/federation/v1/3pid/onbind", put(bound))
}

async fn exchange(_: Federation, request: Signed) -> ApiResult<Response> {
    let room: OwnedRoomId = request.path(0, "the room id")?;
    let invite: PartialInvite = request.json()?;
    if invite.room_id != room || invite.state_key.server_name() != request.origin {
        return Err(ApiError::forbidden("The invitation is of another room, or of a user of another server"));
    }
    let signed = invite.signed().map_err(third_party_error)?;
    let done = request.api.third_party.exchange(&room, &invite.sender, &signed).await;
    done.map_err(third_party_error)?;
    empty()
}

/// Whoever calls this: what counts is what the identity server of each invitation has signed.
async fn bound(State(api): State<Api>, request: Request) -> Response {
    let served = async {
        super::signed::federation(&api)?;
        let (parts, body) = request.into_parts();
        api.limits.check_server(&crate::extract::address(&parts).to_string())?;
        let binding: Binding = crate::extract::json(&read_body(body, SMALL).await?)?;
        for invite in binding.invites.iter().take(MAX_INVITES) {
            if invite.signed.mxid != binding.mxid {
                continue;
            }
            // Each for itself: one that is out of date does not keep the others.
            if let Err(error) = api.third_party.bound(&invite.room_id, &invite.sender, &invite.signed).await {
                tracing::info!(room = %invite.room_id, %error, "an invitation by an address could not be taken up");
            }
        }
        empty()
    };
    served.await.unwrap_or_else(ApiError::into_response)
}
