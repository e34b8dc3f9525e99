//! `/_matrix/client/v3/room_keys/keys`: the keys in a backup.

use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::backup::{
    KeyBackupData, RoomKeyBackup, add_backup_keys, add_backup_keys_for_room, add_backup_keys_for_session,
    delete_backup_keys, delete_backup_keys_for_room, delete_backup_keys_for_session, get_backup_keys,
    get_backup_keys_for_room, get_backup_keys_for_session,
};
use ruma::serde::Raw;
use ruma::{OwnedRoomId, UInt};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use waxwing_services::backups::{BackupKeys, BackupScope, BackupState};

type Sessions = BTreeMap<String, Raw<KeyBackupData>>;

fn stored(sessions: Sessions) -> BTreeMap<String, Box<RawValue>> {
    sessions.into_iter().map(|(session, key)| (session, key.into_json())).collect()
}

fn shown(sessions: BTreeMap<String, Box<RawValue>>) -> Sessions {
    sessions.into_iter().map(|(session, key)| (session, Raw::from_json(key))).collect()
}

fn count(state: &BackupState) -> UInt {
    UInt::new_saturating(state.count)
}

/// `PUT /room_keys/keys`.
pub(super) async fn put_all(
    api: Api,
    args: Args<add_backup_keys::v3::Request>,
) -> ApiResult<add_backup_keys::v3::Response> {
    let request = args.request;
    let keys: BackupKeys =
        request.rooms.into_iter().map(|(room, keys)| (room.to_string(), stored(keys.sessions))).collect();
    let state = api.backups.keys_put(&args.requester.user_id, &request.version, keys).await?;
    let count = count(&state);
    Ok(add_backup_keys::v3::Response::new(state.etag, count))
}

/// `PUT /room_keys/keys/{roomId}`.
pub(super) async fn put_room(
    api: Api,
    args: Args<add_backup_keys_for_room::v3::Request>,
) -> ApiResult<add_backup_keys_for_room::v3::Response> {
    let request = args.request;
    let keys = BackupKeys::from([(request.room_id.to_string(), stored(request.sessions))]);
    let state = api.backups.keys_put(&args.requester.user_id, &request.version, keys).await?;
    let count = count(&state);
    Ok(add_backup_keys_for_room::v3::Response::new(state.etag, count))
}

/// `PUT /room_keys/keys/{roomId}/{sessionId}`.
pub(super) async fn put_session(
    api: Api,
    args: Args<add_backup_keys_for_session::v3::Request>,
) -> ApiResult<add_backup_keys_for_session::v3::Response> {
    let request = args.request;
    let sessions = BTreeMap::from([(request.session_id, request.session_data.into_json())]);
    let keys = BackupKeys::from([(request.room_id.to_string(), sessions)]);
    let state = api.backups.keys_put(&args.requester.user_id, &request.version, keys).await?;
    let count = count(&state);
    Ok(add_backup_keys_for_session::v3::Response::new(state.etag, count))
}

/// `GET /room_keys/keys`.
pub(super) async fn get_all(
    api: Api,
    args: Args<get_backup_keys::v3::Request>,
) -> ApiResult<get_backup_keys::v3::Response> {
    let keys = api.backups.keys(&args.requester.user_id, &args.request.version, &BackupScope::All).await?;
    let rooms = keys
        .into_iter()
        .filter_map(|(room, sessions)| {
            Some((OwnedRoomId::try_from(room).ok()?, RoomKeyBackup::new(shown(sessions))))
        })
        .collect();
    Ok(get_backup_keys::v3::Response::new(rooms))
}

/// `GET /room_keys/keys/{roomId}`.
pub(super) async fn get_room(
    api: Api,
    args: Args<get_backup_keys_for_room::v3::Request>,
) -> ApiResult<get_backup_keys_for_room::v3::Response> {
    let request = args.request;
    let scope = BackupScope::Room(request.room_id.to_string());
    let mut keys = api.backups.keys(&args.requester.user_id, &request.version, &scope).await?;
    let sessions = keys.remove(request.room_id.as_str()).unwrap_or_default();
    Ok(get_backup_keys_for_room::v3::Response::new(shown(sessions)))
}

/// `GET /room_keys/keys/{roomId}/{sessionId}`.
pub(super) async fn get_session(
    api: Api,
    args: Args<get_backup_keys_for_session::v3::Request>,
) -> ApiResult<get_backup_keys_for_session::v3::Response> {
    let request = args.request;
    let key = api
        .backups
        .key(&args.requester.user_id, &request.version, request.room_id.as_str(), &request.session_id)
        .await?;
    Ok(get_backup_keys_for_session::v3::Response::new(Raw::from_json(key)))
}

/// `DELETE /room_keys/keys`.
pub(super) async fn delete_all(
    api: Api,
    args: Args<delete_backup_keys::v3::Request>,
) -> ApiResult<delete_backup_keys::v3::Response> {
    let state =
        api.backups.keys_delete(&args.requester.user_id, &args.request.version, BackupScope::All).await?;
    let count = count(&state);
    Ok(delete_backup_keys::v3::Response::new(state.etag, count))
}

/// `DELETE /room_keys/keys/{roomId}`.
pub(super) async fn delete_room(
    api: Api,
    args: Args<delete_backup_keys_for_room::v3::Request>,
) -> ApiResult<delete_backup_keys_for_room::v3::Response> {
    let request = args.request;
    let scope = BackupScope::Room(request.room_id.to_string());
    let state = api.backups.keys_delete(&args.requester.user_id, &request.version, scope).await?;
    let count = count(&state);
    Ok(delete_backup_keys_for_room::v3::Response::new(state.etag, count))
}

/// `DELETE /room_keys/keys/{roomId}/{sessionId}`.
pub(super) async fn delete_session(
    api: Api,
    args: Args<delete_backup_keys_for_session::v3::Request>,
) -> ApiResult<delete_backup_keys_for_session::v3::Response> {
    let request = args.request;
    let scope = BackupScope::Session(request.room_id.to_string(), request.session_id);
    let state = api.backups.keys_delete(&args.requester.user_id, &request.version, scope).await?;
    let count = count(&state);
    Ok(delete_backup_keys_for_session::v3::Response::new(state.etag, count))
}
