//! Profiles: what users say of themselves, here and on other servers.
//! <https://spec.matrix.org/v1.19/client-server-api/#profiles>

use crate::Core;
use crate::timeline::Timeline;
use parking_lot::Mutex;
use ruma::profile::ProfileFieldName;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_federation::client::{Client, ClientError};
use waxwing_storage::{Conn, StoreError};

/// A whole profile, as JSON: below 64 KiB by the specification.
const MAX_PROFILE_BYTES: usize = 65_535;
/// The name of a field: by the specification.
const MAX_KEY_BYTES: usize = 255;
/// Display names and avatars are copied into a member event of every room, so they are kept far smaller.
const MAX_DISPLAY_NAME_CHARS: usize = 256;
const MAX_AVATAR_BYTES: usize = 1000;

/// Why a profile could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such user, or no such field.
    #[error("profile not found")]
    NotFound,
    /// Somebody else's profile.
    #[error("you may only change your own profile")]
    NotYours,
    /// The name of the field is no identifier.
    #[error("invalid profile key")]
    BadKey,
    /// The name of the field is too long.
    #[error("the profile key is longer than 255 bytes")]
    KeyTooLarge,
    /// The whole would be too large.
    #[error("the profile would be larger than 64 KiB")]
    TooLarge,
    /// The value cannot be the value of this field.
    #[error("{0}")]
    BadValue(&'static str),
    /// The user's server does not tell.
    #[error("the user's server does not disclose it")]
    Refused,
    /// The user's server did not answer.
    #[error("the user's server did not answer")]
    Unreachable,
}

/// Reads and changes profiles.
#[derive(Clone)]
pub struct Profiles {
    core: Core,
    timeline: Timeline,
    remote: Option<Client>,
    /// Users whose rooms are being told; true: the profile changed again meanwhile.
    spreading: Arc<Mutex<HashMap<OwnedUserId, bool>>>,
}

impl Profiles {
    /// `remote` asks other servers; none without federation.
    pub fn new(core: Core, timeline: Timeline, remote: Option<Client>) -> Profiles {
        Profiles { core, timeline, remote, spreading: Arc::default() }
    }

    /// Everything that a user, of this server or another, shows.
    ///
    /// # Errors
    /// [`ProfileError::NotFound`] for an unknown user.
    pub async fn whole(&self, user: &UserId) -> Result<Map<String, Value>, ProfileError> {
        if self.core.is_local(user) { self.local(user).await } else { self.ask(user, None).await }
    }

    /// One field of it.
    ///
    /// # Errors
    /// [`ProfileError::NotFound`] for an unknown user or a field that is not set.
    pub async fn field(&self, user: &UserId, field: &str) -> Result<Value, ProfileError> {
        check_key(field)?;
        let mut profile = if self.core.is_local(user) {
            self.local(user).await?
        } else {
            self.ask(user, Some(field)).await?
        };
        profile
            .remove(field)
            .filter(|value| !value.is_null() || is_custom(field))
            .ok_or(ProfileError::NotFound)
    }

    /// Sets a field. An empty or null display name or avatar removes it, as clients have always done.
    ///
    /// # Errors
    /// [`ProfileError::NotYours`], and those of names and sizes.
    pub async fn set(
        &self,
        asking: &UserId,
        user: &UserId,
        field: &str,
        value: Value,
    ) -> Result<(), ProfileError> {
        self.must_own(asking, user)?;
        check_key(field)?;
        if !is_custom(field) && (value.is_null() || value.as_str() == Some("")) {
            return self.remove(asking, user, field).await;
        }
        check_value(field, &value)?;
        let text = value.to_string();
        let (user, field) = (user.to_owned(), field.to_owned());
        let changed = self
            .core
            .store
            .write("set profile", Vec::new(), {
                let (user, field) = (user.clone(), field.clone());
                move |tx| {
                    let (user, field, text) = (user.clone(), field.clone(), text.clone());
                    Box::pin(async move {
                        let mut fields = tx.profile_load(&user).await?;
                        if fields.get(&field) == Some(&text) {
                            return Ok(false);
                        }
                        fields.insert(field.clone(), text.clone());
                        // Quotes, colon and comma around each field, braces around all.
                        let size: usize = fields.iter().map(|(key, value)| key.len() + value.len() + 4).sum();
                        if size + 2 > MAX_PROFILE_BYTES {
                            return Err(ProfileError::TooLarge);
                        }
                        tx.profile_field_set(&user, &field, &text).await?;
                        Ok(true)
                    })
                }
            })
            .await?;
        if changed {
            self.spread(&user, &field);
        }
        Ok(())
    }

    /// Removes a field; one that is not there stays away.
    ///
    /// # Errors
    /// [`ProfileError::NotYours`], [`ProfileError::BadKey`].
    pub async fn remove(&self, asking: &UserId, user: &UserId, field: &str) -> Result<(), ProfileError> {
        self.must_own(asking, user)?;
        check_key(field)?;
        let (owner, name) = (user.to_owned(), field.to_owned());
        let removed = self
            .core
            .store
            .write("remove profile field", Vec::new(), move |tx| {
                let (owner, name) = (owner.clone(), name.clone());
                Box::pin(async move { Ok::<_, ProfileError>(tx.profile_field_remove(&owner, &name).await?) })
            })
            .await?;
        if removed {
            self.spread(user, field);
        }
        Ok(())
    }

    fn must_own(&self, asking: &UserId, user: &UserId) -> Result<(), ProfileError> {
        if asking == user && self.core.is_local(user) { Ok(()) } else { Err(ProfileError::NotYours) }
    }

    async fn local(&self, user: &UserId) -> Result<Map<String, Value>, ProfileError> {
        let mut conn = self.core.store.read().await?;
        let profile = load(&mut conn, user).await?;
        if profile.is_empty() && !conn.profile_owner_known(user).await? {
            return Err(ProfileError::NotFound);
        }
        Ok(profile)
    }

    async fn ask(&self, user: &UserId, field: Option<&str>) -> Result<Map<String, Value>, ProfileError> {
        let client = self.remote.as_ref().ok_or(ProfileError::NotFound)?;
        let asked = field.map(ProfileFieldName::from);
        match client.query_profile(user.server_name(), user.to_owned(), asked).await {
            Ok(profile) => Ok(profile.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
            Err(ClientError::Refused(refusal)) => Err(match refusal.status.as_u16() {
                404 => ProfileError::NotFound,
                401 | 403 => ProfileError::Refused,
                _ => ProfileError::Unreachable,
            }),
            Err(error) => {
                tracing::debug!(server = %user.server_name(), %error, "a profile could not be asked for");
                Err(ProfileError::Unreachable)
            }
        }
    }

    /// Tells the user's rooms in the background: one task for each user, which starts again when the profile has
    /// changed meanwhile, so that the last change is the last that rooms hear of.
    fn spread(&self, user: &UserId, field: &str) {
        if !matches!(field, "displayname" | "avatar_url") {
            return;
        }
        if let Some(again) = self.spreading.lock().get_mut(user) {
            *again = true;
            return;
        }
        self.spreading.lock().insert(user.to_owned(), false);
        let (spreading, timeline, user) =
            (Arc::clone(&self.spreading), self.timeline.clone(), user.to_owned());
        tokio::spawn(async move {
            loop {
                if let Err(error) = timeline.spread_profile(&user).await {
                    tracing::warn!(%error, "a profile change could not be told to the user's rooms");
                }
                let mut spreading = spreading.lock();
                match spreading.get_mut(&user) {
                    Some(again) if *again => *again = false,
                    _ => {
                        spreading.remove(&user);
                        return;
                    }
                }
            }
        });
    }
}

/// A local user's profile. A row that is no JSON is left out.
async fn load(conn: &mut Conn, user: &UserId) -> Result<Map<String, Value>, StoreError> {
    let fields = conn.profile_load(user).await?;
    Ok(fields.into_iter().filter_map(|(key, text)| Some((key, serde_json::from_str(&text).ok()?))).collect())
}

fn is_custom(field: &str) -> bool {
    !matches!(field, "displayname" | "avatar_url" | "m.tz")
}

/// <https://spec.matrix.org/v1.19/appendices/#common-namespaced-identifier-grammar>
fn check_key(field: &str) -> Result<(), ProfileError> {
    if field.len() > MAX_KEY_BYTES {
        return Err(ProfileError::KeyTooLarge);
    }
    let mut bytes = field.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
    let goes_on = bytes
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-'));
    if starts && goes_on { Ok(()) } else { Err(ProfileError::BadKey) }
}

fn check_value(field: &str, value: &Value) -> Result<(), ProfileError> {
    match (field, value) {
        ("displayname", Value::String(name)) if name.chars().count() <= MAX_DISPLAY_NAME_CHARS => Ok(()),
        ("displayname", Value::String(_)) => Err(ProfileError::BadValue("the display name is too long")),
        ("avatar_url", Value::String(url)) if url.len() <= MAX_AVATAR_BYTES => Ok(()),
        ("avatar_url", Value::String(_)) => Err(ProfileError::BadValue("the avatar's address is too long")),
        ("m.tz", Value::String(_)) => Ok(()),
        ("displayname" | "avatar_url" | "m.tz", _) => Err(ProfileError::BadValue("it must be a string")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_identifiers() {
        for good in ["displayname", "m.tz", "org.example.field_1", "us.cloke.msc4175.tz"] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "A", "a/b", "a b", "ä"] {
            assert!(matches!(check_key(bad), Err(ProfileError::BadKey)), "{bad}");
        }
        assert!(matches!(check_key(&"a".repeat(256)), Err(ProfileError::KeyTooLarge)));
    }

    #[test]
    fn known_fields_are_strings() {
        assert!(check_value("m.tz", &Value::from(1)).is_err());
        assert!(check_value("org.example.x", &Value::Null).is_ok());
        assert!(check_value("displayname", &Value::from("a".repeat(257))).is_err());
    }
}
