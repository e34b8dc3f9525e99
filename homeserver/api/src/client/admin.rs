//! <https://spec.matrix.org/v1.19/client-server-api/#server-administration>

use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::admin::get_user_info::v3::{ConnectionInfo, DeviceInfo, SessionInfo};
use ruma::api::client::admin::{get_user_info, is_user_locked, is_user_suspended, lock_user, suspend_user};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use waxwing_services::accounts::{DeviceRow, Standing};

/// `GET /_matrix/client/v3/admin/whois/{userId}`
pub(super) async fn whois(
    api: Api,
    args: Args<get_user_info::v3::Request>,
) -> ApiResult<get_user_info::v3::Response> {
    let rows = api.accounts.whois(&args.requester, &args.request.user_id).await?;
    let mut response = get_user_info::v3::Response::new();
    response.user_id = Some(args.request.user_id);
    response.devices = rows.into_iter().map(|row| (row.device_id.to_string(), device(row))).collect();
    Ok(response)
}

fn device(row: DeviceRow) -> DeviceInfo {
    let mut connection = ConnectionInfo::new();
    connection.ip = row.last_seen_ip;
    connection.last_seen = row.last_seen_at.map(|at| MilliSecondsSinceUnixEpoch(UInt::new_saturating(at)));
    connection.user_agent = row.user_agent;
    let mut session = SessionInfo::new();
    session.connections = vec![connection];
    let mut device = DeviceInfo::new();
    device.sessions = vec![session];
    device
}

/// `GET /_matrix/client/v1/admin/lock/{userId}`
pub(super) async fn locked(
    api: Api,
    args: Args<is_user_locked::v1::Request>,
) -> ApiResult<is_user_locked::v1::Response> {
    let locked = api.accounts.standing(&args.requester, &args.request.user_id, Standing::Locked).await?;
    Ok(is_user_locked::v1::Response::new(locked))
}

/// `PUT /_matrix/client/v1/admin/lock/{userId}`
pub(super) async fn lock(api: Api, args: Args<lock_user::v1::Request>) -> ApiResult<lock_user::v1::Response> {
    let on = args.request.locked;
    api.accounts.set_standing(&args.requester, &args.request.user_id, Standing::Locked, on).await?;
    Ok(lock_user::v1::Response::new(on))
}

/// `GET /_matrix/client/v1/admin/suspend/{userId}`
pub(super) async fn suspended(
    api: Api,
    args: Args<is_user_suspended::v1::Request>,
) -> ApiResult<is_user_suspended::v1::Response> {
    let suspended =
        api.accounts.standing(&args.requester, &args.request.user_id, Standing::Suspended).await?;
    Ok(is_user_suspended::v1::Response::new(suspended))
}

/// `PUT /_matrix/client/v1/admin/suspend/{userId}`
pub(super) async fn suspend(
    api: Api,
    args: Args<suspend_user::v1::Request>,
) -> ApiResult<suspend_user::v1::Response> {
    let on = args.request.suspended;
    api.accounts.set_standing(&args.requester, &args.request.user_id, Standing::Suspended, on).await?;
    Ok(suspend_user::v1::Response::new(on))
}
