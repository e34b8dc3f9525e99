//! Account data: what clients keep for their user, among it tags, and the list of ignored users.
//! <https://spec.matrix.org/v1.19/client-server-api/#client-config>

use crate::Core;
use ruma::{OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_storage::{StoreError, Tx};

/// One entry: large lists of direct chats and image packs fit, a store of files does not.
const MAX_CONTENT_BYTES: usize = 1 << 20;
/// An event type has at most this many bytes.
const MAX_KIND_BYTES: usize = 255;
/// A tag has at most this many bytes: by the specification.
const MAX_TAG_BYTES: usize = 255;
/// Tags of one room of one user.
const MAX_TAGS: usize = 100;

/// The type that holds a room's tags.
const TAGS: &str = "m.tag";
/// What precedes a device's id in the type that says whether it notifies.
/// <https://github.com/matrix-org/matrix-spec-proposals/pull/3890>
const LOCAL_NOTIFICATIONS: [&str; 2] =
    ["org.matrix.msc3890.local_notification_settings.", "m.local_notification_settings."];

/// Why account data could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountDataError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else's.
    #[error("you may only use your own account data")]
    NotYours,
    /// There is no such entry.
    #[error("account data not found")]
    NotFound,
    /// The server keeps this type itself; another endpoint changes it.
    #[error("{0} cannot be set through this endpoint")]
    ServerControlled(String),
    /// Larger than an entry may be.
    #[error("the content is too large")]
    TooLarge,
    /// The content is no object, or the tag's name is too long.
    #[error("{0}")]
    Bad(&'static str),
}

type Answer<T> = Result<T, AccountDataError>;

/// Reads and changes account data.
#[derive(Clone)]
pub struct AccountData {
    core: Core,
}

fn must_own(asking: &UserId, user: &UserId) -> Answer<()> {
    if asking == user { Ok(()) } else { Err(AccountDataError::NotYours) }
}

fn must_be_free(room: Option<&RoomId>, kind: &str) -> Answer<()> {
    let controlled = match kind {
        "m.fully_read" => true,
        "m.push_rules" => room.is_none(),
        _ => false,
    };
    if controlled { Err(AccountDataError::ServerControlled(kind.to_owned())) } else { Ok(()) }
}

impl AccountData {
    /// Over the database of `core`.
    pub fn new(core: Core) -> AccountData {
        AccountData { core }
    }

    /// One entry. The push rules of a user who never changed them are the defaults.
    ///
    /// # Errors
    /// [`AccountDataError::NotFound`], [`AccountDataError::NotYours`].
    pub async fn get(
        &self,
        asking: &UserId,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
    ) -> Answer<Box<RawValue>> {
        must_own(asking, user)?;
        let content = self.core.store.read().await?.account_data_load(user, room, kind).await?;
        if room.is_none() && kind == crate::push_rules::KIND {
            return Ok(crate::push_rules::content(&self.core, user, content.as_deref()));
        }
        let content = content.ok_or(AccountDataError::NotFound)?;
        RawValue::from_string(content)
            .map_err(|error| StoreError::corrupt("account_data", user.as_str(), error).into())
    }

    /// Type and content of the entries of one room, or the global ones, the push rules always among those: what an
    /// initial sync shows.
    pub async fn all(&self, user: &UserId, room: Option<&RoomId>) -> Answer<Vec<(String, Box<RawValue>)>> {
        let entries = self.core.store.read().await?.account_data_of(user, room).await?;
        let mut shown = Vec::with_capacity(entries.len() + 1);
        let mut rules = None;
        for (kind, content) in entries {
            if room.is_none() && kind == crate::push_rules::KIND {
                rules = Some(content);
            } else if let Ok(content) = RawValue::from_string(content) {
                shown.push((kind, content));
            }
        }
        if room.is_none() {
            let content = crate::push_rules::content(&self.core, user, rules.as_deref());
            shown.push((crate::push_rules::KIND.to_owned(), content));
        }
        Ok(shown)
    }

    /// The present content of an entry that a log row announced: `{}` for one that is gone, as MSC3391 says.
    pub async fn announced(&self, user: &UserId, room: Option<&RoomId>, kind: &str) -> Answer<Box<RawValue>> {
        match self.get(user, user, room, kind).await {
            Err(AccountDataError::NotFound) => Ok(RawValue::from_string("{}".to_owned())
                .map_err(|error| StoreError::corrupt("account_data", kind, error))?),
            other => other,
        }
    }

    /// Sets an entry. An empty object removes it: so says MSC3391.
    ///
    /// # Errors
    /// [`AccountDataError::ServerControlled`] for `m.fully_read` and `m.push_rules`, [`AccountDataError::NotYours`].
    pub async fn set(
        &self,
        asking: &UserId,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
        content: &RawValue,
    ) -> Answer<()> {
        must_own(asking, user)?;
        must_be_free(room, kind)?;
        if kind.len() > MAX_KIND_BYTES {
            return Err(AccountDataError::Bad("the type is too long"));
        }
        if content.get().len() > MAX_CONTENT_BYTES {
            return Err(AccountDataError::TooLarge);
        }
        if !content.get().trim_start().starts_with('{') {
            return Err(AccountDataError::Bad("the content must be an object"));
        }
        if serde_json::from_str::<Map<String, Value>>(content.get()).is_ok_and(|content| content.is_empty()) {
            return self.remove(asking, user, room, kind).await;
        }
        let (user, room) = (user.to_owned(), room.map(ToOwned::to_owned));
        let (kind, content): (Arc<str>, Arc<str>) = (kind.into(), content.get().into());
        self.core
            .store
            .write("set account data", Vec::new(), move |tx| {
                let (user, room, kind, content) =
                    (user.clone(), room.clone(), Arc::clone(&kind), Arc::clone(&content));
                Box::pin(
                    async move { Ok(tx.account_data_set(&user, room.as_deref(), &kind, &content).await?) },
                )
            })
            .await
    }

    /// Removes an entry (MSC3391). One that is not there stays away.
    ///
    /// # Errors
    /// As [`AccountData::set`].
    pub async fn remove(
        &self,
        asking: &UserId,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
    ) -> Answer<()> {
        must_own(asking, user)?;
        must_be_free(room, kind)?;
        let (user, room, kind) = (user.to_owned(), room.map(ToOwned::to_owned), kind.to_owned());
        self.core
            .store
            .write("remove account data", Vec::new(), move |tx| {
                let (user, room, kind) = (user.clone(), room.clone(), kind.clone());
                Box::pin(async move {
                    tx.account_data_remove(&user, room.as_deref(), &kind).await?;
                    Ok(())
                })
            })
            .await
    }

    /// The tags of a room, by name.
    pub async fn tags(&self, asking: &UserId, user: &UserId, room: &RoomId) -> Answer<Map<String, Value>> {
        must_own(asking, user)?;
        let content = self.core.store.read().await?.account_data_load(user, Some(room), TAGS).await?;
        Ok(parse_tags(content.as_deref()))
    }

    /// Puts a tag on a room; `info` is its object (`order`).
    ///
    /// # Errors
    /// [`AccountDataError::Bad`] for a name that is too long, or too many tags.
    pub async fn tag_set(
        &self,
        asking: &UserId,
        user: &UserId,
        room: &RoomId,
        tag: &str,
        info: Map<String, Value>,
    ) -> Answer<()> {
        must_own(asking, user)?;
        if tag.len() > MAX_TAG_BYTES {
            return Err(AccountDataError::Bad("the tag is longer than 255 bytes"));
        }
        self.change_tags(user, room, tag, Some(info)).await
    }

    /// Takes a tag off a room.
    pub async fn tag_remove(&self, asking: &UserId, user: &UserId, room: &RoomId, tag: &str) -> Answer<()> {
        must_own(asking, user)?;
        self.change_tags(user, room, tag, None).await
    }

    async fn change_tags(
        &self,
        user: &UserId,
        room: &RoomId,
        tag: &str,
        info: Option<Map<String, Value>>,
    ) -> Answer<()> {
        let change = Arc::new((user.to_owned(), room.to_owned(), tag.to_owned(), info));
        self.core
            .store
            .write("change tags", Vec::new(), move |tx| {
                let change = Arc::clone(&change);
                Box::pin(async move {
                    let (user, room, tag, info) = &*change;
                    let content = tx.account_data_load(user, Some(room), TAGS).await?;
                    let mut tags = parse_tags(content.as_deref());
                    match info {
                        Some(info) => drop(tags.insert(tag.clone(), Value::Object(info.clone()))),
                        None if tags.remove(tag).is_none() => return Ok(()),
                        None => {}
                    }
                    if tags.len() > MAX_TAGS {
                        return Err(AccountDataError::Bad("the room has too many tags"));
                    }
                    let content = serde_json::json!({ "tags": tags }).to_string();
                    Ok(tx.account_data_set(user, Some(room), TAGS, &content).await?)
                })
            })
            .await
    }

    /// Whom a user ignores: <https://spec.matrix.org/v1.19/client-server-api/#ignoring-users>.
    pub async fn ignored_users(&self, user: &UserId) -> Result<BTreeSet<OwnedUserId>, StoreError> {
        let mut conn = self.core.store.read().await?;
        let content = conn.account_data_load(user, None, "m.ignored_user_list").await?;
        Ok(content.map(|content| parse_ignored(&content)).unwrap_or_default())
    }
}

/// What a user wants to keep when a room is replaced by another: the tags, being a direct chat, and the push rules that
/// name the room. What the user has already set for the new room stays.
pub(crate) async fn copy_to_successor(
    tx: &mut Tx,
    user: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<(), StoreError> {
    let tags = tx.account_data_load(user, Some(old), TAGS).await?;
    if let Some(tags) = tags
        && tx.account_data_load(user, Some(new), TAGS).await?.is_none()
    {
        tx.account_data_set(user, Some(new), TAGS, &tags).await?;
    }
    let direct = tx.account_data_load(user, None, "m.direct").await?;
    if let Some(direct) = direct.and_then(|direct| direct_with(&direct, old.as_str(), new.as_str())) {
        tx.account_data_set(user, None, "m.direct", &direct).await?;
    }
    let rules = tx.account_data_load(user, None, crate::push_rules::KIND).await?;
    if let Some(rules) = rules.and_then(|rules| crate::push_rules::with_successor(&rules, old, new)) {
        tx.account_data_set(user, None, crate::push_rules::KIND, &rules).await?;
    }
    Ok(())
}

/// Removes what clients keep for one device of the user, which is gone: whether it notifies (MSC3890).
pub(crate) async fn device_removed(tx: &mut Tx, user: &UserId, device: &str) -> Result<(), StoreError> {
    for prefix in LOCAL_NOTIFICATIONS {
        tx.account_data_remove(user, None, &format!("{prefix}{device}")).await?;
    }
    Ok(())
}

fn parse_tags(content: Option<&str>) -> Map<String, Value> {
    #[derive(Deserialize, Default)]
    struct Content {
        #[serde(default)]
        tags: Map<String, Value>,
    }
    content.and_then(|content| serde_json::from_str::<Content>(content).ok()).unwrap_or_default().tags
}

fn parse_ignored(content: &str) -> BTreeSet<OwnedUserId> {
    #[derive(Deserialize, Default)]
    struct Content {
        #[serde(default)]
        ignored_users: Map<String, Value>,
    }
    let content: Content = serde_json::from_str(content).unwrap_or_default();
    content.ignored_users.keys().filter_map(|user| user.as_str().try_into().ok()).collect()
}

/// `m.direct` with `new` beside `old`; `None` when nothing changes.
fn direct_with(content: &str, old: &str, new: &str) -> Option<String> {
    let mut direct: Map<String, Value> = serde_json::from_str(content).ok()?;
    let mut changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        let has = |rooms: &[Value], id: &str| rooms.iter().any(|room| room.as_str() == Some(id));
        if has(rooms, old) && !has(rooms, new) {
            rooms.push(new.into());
            changed = true;
        }
    }
    changed.then(|| Value::Object(direct).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ignored_users_may_hold_anything() {
        let found = parse_ignored(r#"{"ignored_users":{"@a:b.c":{},"nobody":{}}}"#);
        assert_eq!(found.len(), 1);
        assert!(parse_ignored(r#"{"ignored_users":[]}"#).is_empty());
        assert!(parse_ignored("[]").is_empty());
    }

    #[test]
    fn a_direct_chat_stays_one_after_an_upgrade() {
        let changed = direct_with(r#"{"@a:b":["!old","!x"],"@c:d":["!y"],"bad":1}"#, "!old", "!new").unwrap();
        assert_eq!(changed, r#"{"@a:b":["!old","!x","!new"],"@c:d":["!y"],"bad":1}"#);
        assert_eq!(direct_with(&changed, "!old", "!new"), None);
    }

    #[test]
    fn the_server_keeps_some_types_itself() {
        let room: ruma::OwnedRoomId = "!r:a.b".try_into().unwrap();
        assert!(must_be_free(None, "m.push_rules").is_err());
        assert!(must_be_free(Some(&room), "m.push_rules").is_ok());
        assert!(must_be_free(Some(&room), "m.fully_read").is_err());
        assert!(must_be_free(None, "m.direct").is_ok());
    }
}
