//! Telling readers of the log, and other servers, that keys or devices of our users changed. Everything here runs inside
//! the transaction that makes the change.
//! <https://spec.matrix.org/v1.19/server-server-api/#device-management>

use super::objects;
use crate::Core;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_storage::{Fact, NewRow, ServerSet, StoreResult, Tx};

/// A device of our user was made or renamed, or its keys or the signatures over them changed.
pub async fn device_changed(core: &Core, tx: &mut Tx, user: &UserId, device: &str) -> StoreResult<()> {
    tx.log_append(NewRow::new(Fact::DeviceList).user(user));
    if !core.settings.federation {
        return Ok(());
    }
    let stream = tx.device_list_stream_next(user).await?;
    let servers = others(core, tx.servers_sharing(user).await?);
    if servers.is_empty() {
        return Ok(());
    }
    let mut content = device_content(tx, user, device).await?;
    number(&mut content, stream);
    queue(tx, &servers, "m.device_list_update", content);
    Ok(())
}

/// A device of our user is gone: so are its keys, what waited for it, and where its syncs stood.
pub async fn device_removed(core: &Core, tx: &mut Tx, user: &UserId, device: &str) -> StoreResult<()> {
    tx.device_keys_delete(user, device).await?;
    tx.one_time_keys_delete(user, device).await?;
    tx.to_device_delete_all(user, device).await?;
    tx.sliding_remove_device(user, device).await?;
    tx.dehydrated_delete(user, device.into()).await?;
    tx.log_append(NewRow::new(Fact::DeviceList).user(user));
    if !core.settings.federation {
        return Ok(());
    }
    let stream = tx.device_list_stream_next(user).await?;
    let servers = others(core, tx.servers_sharing(user).await?);
    let mut content = Map::new();
    content.insert("user_id".into(), user.as_str().into());
    content.insert("device_id".into(), device.into());
    content.insert("deleted".into(), true.into());
    number(&mut content, stream);
    queue(tx, &servers, "m.device_list_update", content);
    Ok(())
}

/// The master or self-signing key of our user, or the user's own signatures over them, changed.
pub(super) async fn signing_keys_changed(core: &Core, tx: &mut Tx, user: &UserId) -> StoreResult<()> {
    tx.log_append(NewRow::new(Fact::DeviceList).user(user));
    if !core.settings.federation {
        return Ok(());
    }
    let servers = others(core, tx.servers_sharing(user).await?);
    if servers.is_empty() {
        return Ok(());
    }
    let content = signing_content(tx, user).await?;
    queue(tx, &servers, "m.signing_key_update", content);
    Ok(())
}

/// Who, and the master and self-signing keys with the user's own signatures.
async fn signing_content(tx: &mut Tx, user: &UserId) -> StoreResult<Map<String, Value>> {
    let users = [user.to_owned()];
    let signatures = tx.key_signatures_load(&users, None).await?;
    let mut content = Map::new();
    content.insert("user_id".into(), user.as_str().into());
    for row in tx.cross_signing_load(&users).await? {
        let Ok(mut object) = objects::parse(&row.json) else { continue };
        let Some((_, key)) = objects::only_key(&object).map(|(id, key)| (id.to_owned(), key.to_owned()))
        else {
            continue;
        };
        for signature in signatures.iter().filter(|signature| signature.target_key == key) {
            objects::add_signature(&mut object, signature);
        }
        objects::keep_signatures(&mut object, |signer| signer == user.as_str());
        let name = match row.usage.as_str() {
            "master" => "master_key",
            "self_signing" => "self_signing_key",
            _ => continue,
        };
        content.insert(name.into(), serde_json::to_value(object).unwrap_or_default());
    }
    Ok(content)
}

/// A user (ours or not) began or ceased to be joined to a room that this server is in. To be called after the membership
/// was saved, and only when joined-or-not changed. Servers that did not get the device list of our user before are told.
pub async fn sharing_changed(
    core: &Core,
    tx: &mut Tx,
    room: &RoomId,
    user: &UserId,
    joined: bool,
) -> StoreResult<()> {
    let row = NewRow::new(Fact::DeviceList).user(user).room(OwnedRoomId::from(room));
    tx.log_append(row.data(if joined { "join" } else { "leave" }));
    if !joined || !core.is_local(user) || !core.settings.federation {
        return Ok(());
    }
    let mut new = others(core, tx.servers_in(room).await?);
    if new.is_empty() {
        return Ok(());
    }
    for known in tx.servers_sharing_elsewhere(user, room).await? {
        new.remove(&known);
    }
    if new.is_empty() {
        return Ok(());
    }
    let mut stream = tx.device_list_stream(user).await?;
    if stream == 0 {
        stream = tx.device_list_stream_next(user).await?;
    }
    // While the members of a room are missing, who is in it is not sure: devices that take part in no encryption need
    // not be told of.
    let partial = tx.room_peek(room).await?.is_some_and(|row| row.partial);
    for (_, device) in tx.device_ids_of(&[user.to_owned()]).await? {
        let mut content = device_content(tx, user, &device).await?;
        if partial && !content.contains_key("keys") {
            continue;
        }
        // No `prev_id`: these servers have no list to put the change on, and the others need not see a gap.
        content.insert("stream_id".into(), stream.into());
        queue(tx, &new, "m.device_list_update", content);
    }
    Ok(())
}

/// The device list of our user as it is, for servers that missed a change of it: who is in a room was not known.
pub(crate) async fn list_told_again(
    core: &Core,
    tx: &mut Tx,
    user: &UserId,
    servers: &BTreeSet<OwnedServerName>,
) -> StoreResult<()> {
    if servers.is_empty() || !core.settings.federation {
        return Ok(());
    }
    let stream = tx.device_list_stream(user).await?;
    for (_, device) in tx.device_ids_of(&[user.to_owned()]).await? {
        let mut content = device_content(tx, user, &device).await?;
        content.insert("stream_id".into(), stream.into());
        queue(tx, servers, "m.device_list_update", content);
    }
    let content = signing_content(tx, user).await?;
    if content.len() > 1 {
        queue(tx, servers, "m.signing_key_update", content);
    }
    Ok(())
}

/// Another server's user changed devices at a time when it was not known whether we share a room: the copy that we may
/// have is stale, and those who share a room with the user hear of it.
pub(crate) async fn remote_list_changed(tx: &mut Tx, user: &OwnedUserId) -> StoreResult<()> {
    tx.remote_list_stale(user).await?;
    remote_changed(tx, user);
    Ok(())
}

/// What `viewer` sees of the keys of `target` changed: `viewer` signed them.
pub(super) fn view_changed(tx: &mut Tx, viewer: &UserId, target: &UserId) {
    tx.log_append(NewRow::new(Fact::DeviceList).user(viewer).reference(target.as_str()));
}

/// Another server's user changed.
pub(super) fn remote_changed(tx: &mut Tx, user: &OwnedUserId) {
    tx.log_append(NewRow::new(Fact::DeviceList).user(user.clone()));
}

fn others(core: &Core, servers: Vec<OwnedServerName>) -> BTreeSet<OwnedServerName> {
    servers.into_iter().filter(|server| *server != core.server_name).collect()
}

fn number(content: &mut Map<String, Value>, stream: i64) {
    content.insert("stream_id".into(), stream.into());
    let before: Vec<i64> = (stream > 1).then_some(stream - 1).into_iter().collect();
    content.insert("prev_id".into(), before.into());
}

/// Who, which device, its name and its keys with the user's own signatures.
async fn device_content(tx: &mut Tx, user: &UserId, device: &str) -> StoreResult<Map<String, Value>> {
    let mut content = Map::new();
    content.insert("user_id".into(), user.as_str().into());
    content.insert("device_id".into(), device.into());
    if let Some(name) = tx.device_name(user, device).await?.flatten() {
        content.insert("device_display_name".into(), name.into());
    }
    let Some(row) = tx.device_keys_of(user, device).await? else { return Ok(content) };
    let Ok(mut object) = objects::parse(&row.json) else { return Ok(content) };
    for signature in tx.key_signatures_load(&[user.to_owned()], None).await? {
        if signature.target_key == device {
            objects::add_signature(&mut object, &signature);
        }
    }
    objects::keep_signatures(&mut object, |signer| signer == user.as_str());
    content.insert("keys".into(), serde_json::to_value(object).unwrap_or_default());
    Ok(content)
}

/// One row, however many servers get it.
fn queue(tx: &mut Tx, servers: &BTreeSet<OwnedServerName>, kind: &str, content: Map<String, Value>) {
    if servers.is_empty() {
        return;
    }
    let edu: Arc<str> = json!({ "edu_type": kind, "content": content }).to_string().into();
    let slot = tx.log_append(NewRow::new(Fact::Outbox));
    tx.outgoing_edu_put(slot, edu, ServerSet::new(servers.iter().cloned()));
}
