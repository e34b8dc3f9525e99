//! Inviting by an address, as clients ask for it.

use crate::error::ApiError;
use http::StatusCode;
use ruma::api::client::membership::Invite3pid;
use ruma::api::error::ErrorCode;
use waxwing_federation::client::{ClientError, IdentityServer};
use waxwing_services::third_party::{ThirdPartyError, ThirdPartyInvite};

/// The invitation that a client asks for.
pub(super) fn wanted(invite: Invite3pid) -> ThirdPartyInvite {
    ThirdPartyInvite {
        server: IdentityServer { name: invite.id_server, token: invite.id_access_token },
        medium: invite.medium.to_string(),
        address: invite.address,
    }
}

/// Why nobody was invited, as clients and servers read it.
pub(crate) fn third_party_error(error: ThirdPartyError) -> ApiError {
    match error {
        ThirdPartyError::Timeline(error) => error.into(),
        ThirdPartyError::Disabled => ApiError::forbidden("This server uses no identity server"),
        ThirdPartyError::Invalid(why) => ApiError::invalid_param(why),
        ThirdPartyError::Forbidden(why) => ApiError::forbidden(why),
        ThirdPartyError::Identity(ClientError::Unwritable(_)) => {
            ApiError::invalid_param("id_server is not a host name")
        }
        ThirdPartyError::Identity(error) => {
            tracing::info!(%error, "an identity server did not help");
            ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, "The identity server did not help")
        }
    }
}
