//! `/_matrix/client/v3/room_keys/version`: versions of a backup.

use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::UInt;
use ruma::api::client::backup::{
    BackupAlgorithm, create_backup_version, delete_backup_version, get_backup_info, get_latest_backup_info,
    update_backup_version,
};
use ruma::serde::Raw;
use serde_json::json;
use waxwing_services::backups::BackupInfo;

/// `POST /room_keys/version`.
pub(super) async fn create(
    api: Api,
    args: Args<create_backup_version::v3::Request>,
) -> ApiResult<create_backup_version::v3::Response> {
    let version = api.backups.create(&args.requester.user_id, args.request.algorithm.json()).await?;
    Ok(create_backup_version::v3::Response::new(version))
}

/// `GET /room_keys/version`: the current version.
pub(super) async fn latest(
    api: Api,
    args: Args<get_latest_backup_info::v3::Request>,
) -> ApiResult<get_latest_backup_info::v3::Response> {
    let info = api.backups.info(&args.requester.user_id, None).await?;
    let (algorithm, count) = shown(&info)?;
    Ok(get_latest_backup_info::v3::Response::new(algorithm, count, info.etag, info.version))
}

/// `GET /room_keys/version/{version}`.
pub(super) async fn info(
    api: Api,
    args: Args<get_backup_info::v3::Request>,
) -> ApiResult<get_backup_info::v3::Response> {
    let info = api.backups.info(&args.requester.user_id, Some(&args.request.version)).await?;
    let (algorithm, count) = shown(&info)?;
    Ok(get_backup_info::v3::Response::new(algorithm, count, info.etag, info.version))
}

/// `PUT /room_keys/version/{version}`.
pub(super) async fn update(
    api: Api,
    args: Args<update_backup_version::v3::Request>,
) -> ApiResult<update_backup_version::v3::Response> {
    let request = args.request;
    api.backups.update(&args.requester.user_id, &request.version, request.algorithm.json()).await?;
    Ok(update_backup_version::v3::Response::new())
}

/// `DELETE /room_keys/version/{version}`.
pub(super) async fn delete(
    api: Api,
    args: Args<delete_backup_version::v3::Request>,
) -> ApiResult<delete_backup_version::v3::Response> {
    api.backups.delete(&args.requester.user_id, &args.request.version).await?;
    Ok(delete_backup_version::v3::Response::new())
}

fn shown(info: &BackupInfo) -> ApiResult<(Raw<BackupAlgorithm>, UInt)> {
    let algorithm = json!({ "algorithm": info.algorithm, "auth_data": info.auth_data });
    Ok((Raw::from_json_string(algorithm.to_string())?, UInt::new_saturating(info.count)))
}
