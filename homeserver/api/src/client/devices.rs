//! <https://spec.matrix.org/v1.19/client-server-api/#device-management>

use super::uia;
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::extract::{Received, typed};
use crate::routes::answer;
use crate::state::Api;
use axum::response::Response;
use http::StatusCode;
use ruma::api::client::device::{
    Device, delete_device, delete_devices, get_device, get_devices, update_device,
};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use waxwing_services::accounts::DeviceRow;

fn device(row: DeviceRow) -> Device {
    let mut device = Device::new(row.device_id);
    device.display_name = row.display_name;
    device.last_seen_ip = row.last_seen_ip;
    device.last_seen_ts = row.last_seen_at.map(|at| MilliSecondsSinceUnixEpoch(UInt::new_saturating(at)));
    device
}

/// `GET /_matrix/client/v3/devices`
pub(super) async fn list(
    api: Api,
    args: Args<get_devices::v3::Request>,
) -> ApiResult<get_devices::v3::Response> {
    let rows = api.accounts.devices(&args.requester.user_id).await?;
    Ok(get_devices::v3::Response::new(rows.into_iter().map(device).collect()))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`
pub(super) async fn get(
    api: Api,
    args: Args<get_device::v3::Request>,
) -> ApiResult<get_device::v3::Response> {
    let row = api.accounts.device(&args.requester.user_id, &args.request.device_id).await?;
    Ok(get_device::v3::Response::new(device(row)))
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`: renames it; an application service makes it so.
pub(super) async fn put(api: Api, received: Received) -> ApiResult<Response> {
    let args: Args<update_device::v3::Request> = typed(received)?;
    let user = &args.requester.user_id;
    let request = args.request;
    // A device that is there is renamed, and one that is not is made.
    if args.requester.appservice.is_some() {
        let made = api.accounts.put_appservice_device(user, &request.device_id, request.display_name).await?;
        let mut response = answer(update_device::v3::Response::new())?;
        if made {
            *response.status_mut() = StatusCode::CREATED;
        }
        return Ok(response);
    }
    if request.display_name.is_some() {
        api.accounts.rename_device(user, &request.device_id, request.display_name).await?;
    } else {
        api.accounts.device(user, &request.device_id).await?;
    }
    answer(update_device::v3::Response::new())
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
pub(super) async fn delete(
    api: Api,
    args: Args<delete_device::v3::Request>,
) -> ApiResult<delete_device::v3::Response> {
    uia::require_of_people(&api, &args.requester, &args.parts, &args.json).await?;
    // A device that is gone already is what was asked for.
    api.accounts.logout(&args.requester.user_id, &args.request.device_id).await?;
    Ok(delete_device::v3::Response::new())
}

/// `POST /_matrix/client/v3/delete_devices`
pub(super) async fn delete_many(
    api: Api,
    args: Args<delete_devices::v3::Request>,
) -> ApiResult<delete_devices::v3::Response> {
    /// More devices than anyone has; each costs a few statements.
    const MOST: usize = 1000;
    if args.request.devices.len() > MOST {
        return Err(ApiError::invalid_param("Too many devices"));
    }
    uia::require_of_people(&api, &args.requester, &args.parts, &args.json).await?;
    for device in &args.request.devices {
        api.accounts.logout(&args.requester.user_id, device).await?;
    }
    Ok(delete_devices::v3::Response::new())
}
