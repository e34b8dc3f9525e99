//! One's own account.

use super::uia;
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::account::{
    ThirdPartyIdRemovalStatus, change_password, deactivate, request_openid_token, whoami,
};
use ruma::authentication::TokenType;
use waxwing_services::accounts::OPENID_LIFETIME;

/// `GET /_matrix/client/v3/account/whoami`
pub(super) async fn whoami(_api: Api, args: Args<whoami::v3::Request>) -> ApiResult<whoami::v3::Response> {
    let mut response = whoami::v3::Response::new(args.requester.user_id.clone(), args.requester.is_guest);
    response.device_id = args.requester.device_id.clone();
    Ok(response)
}

/// `POST /_matrix/client/v3/account/password`. Without a token it would need an address that can be written to.
pub(super) async fn password(
    api: Api,
    args: Args<change_password::v3::Request>,
) -> ApiResult<change_password::v3::Response> {
    let requester = args.requester.as_ref().ok_or_else(ApiError::missing_token)?;
    uia::require(&api, requester, &args.parts, &args.json).await?;
    let request = &args.request;
    let kept = requester.device_id.as_deref();
    api.accounts
        .change_password(&requester.user_id, &request.new_password, kept, request.logout_devices)
        .await?;
    Ok(change_password::v3::Response::new())
}

/// `POST /_matrix/client/v3/account/deactivate`
pub(super) async fn deactivate(
    api: Api,
    args: Args<deactivate::v3::Request>,
) -> ApiResult<deactivate::v3::Response> {
    let requester = args.requester.as_ref().ok_or_else(ApiError::missing_token)?;
    uia::require_of_people(&api, requester, &args.parts, &args.json).await?;
    api.accounts.deactivate(&requester.user_id).await?;
    // The account is closed whatever becomes of the rooms: other servers may not answer.
    if let Err(error) = api.timeline.leave_all(&requester.user_id).await {
        tracing::warn!(%error, "a closed account could not leave all of its rooms");
    }
    Ok(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`
pub(super) async fn openid(
    api: Api,
    args: Args<request_openid_token::v3::Request>,
) -> ApiResult<request_openid_token::v3::Response> {
    if args.request.user_id != args.requester.user_id {
        return Err(ApiError::forbidden("That is another user"));
    }
    let token = api.accounts.openid_token(&args.requester.user_id).await?;
    Ok(request_openid_token::v3::Response::new(
        token,
        TokenType::Bearer,
        api.core.server_name.clone(),
        OPENID_LIFETIME,
    ))
}
