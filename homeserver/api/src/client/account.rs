//! One's own account.

use super::uia;
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::UserId;
use ruma::api::client::account::{
    ThirdPartyIdRemovalStatus, change_password, deactivate, request_openid_token, whoami,
};
use ruma::authentication::TokenType;
use waxwing_services::accounts::{OPENID_LIFETIME, stage};

/// `GET /_matrix/client/v3/account/whoami`
pub(super) async fn whoami(_api: Api, args: Args<whoami::v3::Request>) -> ApiResult<whoami::v3::Response> {
    let mut response = whoami::v3::Response::new(args.requester.user_id.clone(), args.requester.is_guest);
    response.device_id = args.requester.device_id.clone();
    Ok(response)
}

/// `POST /_matrix/client/v3/account/password`. Without a token an address of the account must be shown.
pub(super) async fn password(
    api: Api,
    args: Args<change_password::v3::Request>,
) -> ApiResult<change_password::v3::Response> {
    let request = &args.request;
    let Some(requester) = args.requester.as_ref() else {
        let flows = [vec![stage::EMAIL]];
        let done = uia::go_on(&api, None, &args.parts, &args.json, &flows).await?;
        let proof = done.email.ok_or_else(ApiError::missing_token)?;
        api.accounts.reset_password(&proof, &request.new_password, request.logout_devices).await?;
        return Ok(change_password::v3::Response::new());
    };
    uia::require(&api, requester, &args.parts, &args.json).await?;
    let kept = requester.device_id.as_deref();
    api.accounts
        .change_password(&requester.user_id, &request.new_password, kept, request.logout_devices)
        .await?;
    Ok(change_password::v3::Response::new())
}

/// `POST /_matrix/client/v3/account/deactivate`. Without a token the password says whose account it is.
pub(super) async fn deactivate(
    api: Api,
    args: Args<deactivate::v3::Request>,
) -> ApiResult<deactivate::v3::Response> {
    let user = match args.requester.as_ref() {
        Some(requester) => {
            uia::require_of_people(&api, requester, &args.parts, &args.json).await?;
            requester.user_id.clone()
        }
        None => {
            let flows = [vec![stage::PASSWORD]];
            let done = uia::go_on(&api, None, &args.parts, &args.json, &flows).await?;
            done.user.ok_or_else(ApiError::missing_token)?
        }
    };
    close(&api, &user, args.request.erase).await?;
    // There is nothing on an identity server, which is a success.
    Ok(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::Success))
}

/// Closes an account and takes it out of its rooms.
pub(super) async fn close(api: &Api, user: &UserId, erase: bool) -> ApiResult<()> {
    api.accounts.deactivate(user, erase).await?;
    // The account is closed whatever becomes of the rooms: other servers may not answer, and it is tried again later.
    if let Err(error) = api.timeline.leave_all(user).await {
        tracing::warn!(%error, "a closed account could not leave all of its rooms");
    }
    if erase {
        api.media.erase(user).await?;
    }
    Ok(())
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
