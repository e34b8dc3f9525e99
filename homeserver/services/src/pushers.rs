//! Pushers: where a user's notifications go. Delivering is [`crate::push`]'s business.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3pushersset>

use crate::Core;
use ruma::UserId;
use serde_json::{Map, Value};
use std::sync::Arc;
use waxwing_federation::net::{AddressPolicy, Host};
use waxwing_storage::{PusherKey, PusherRow, StoreError, Tx};

/// By the specification.
const MAX_APP_ID_CHARS: usize = 64;
/// By the specification.
const MAX_PUSHKEY_BYTES: usize = 512;
/// A pusher as JSON.
const MAX_BYTES: usize = 16 << 10;
/// Pushers of one user: each costs a request for each notification.
const MAX_PUSHERS: usize = 100;
/// The only path that a gateway may have.
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";
/// Whether a pusher is switched on, and the device that made it: MSC3881.
/// <https://github.com/matrix-org/matrix-spec-proposals/pull/3881>
const ENABLED: &str = "org.matrix.msc3881.enabled";
const DEVICE: &str = "org.matrix.msc3881.device_id";

/// Why a pusher was not made.
#[derive(Debug, thiserror::Error)]
pub enum PusherError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field is of another type than it must be.
    #[error("{0} is of the wrong type")]
    Type(&'static str),
    /// What is wrong with it.
    #[error("{0}")]
    Invalid(&'static str),
}

/// What a client wants with a pusher.
#[derive(Debug)]
enum Wanted {
    Remove { app_id: String, pushkey: String },
    Set(NewPusher),
}

#[derive(Debug)]
struct NewPusher {
    app_id: String,
    pushkey: String,
    json: String,
    enabled: bool,
    append: bool,
}

/// Reads and changes pushers.
#[derive(Clone)]
pub struct Pushers {
    core: Core,
}

impl Pushers {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Pushers {
        Pushers { core }
    }

    /// A user's pushers, as clients see them.
    pub async fn list(&self, user: &UserId) -> Result<Vec<Map<String, Value>>, PusherError> {
        let rows = self.core.store.read().await?.pushers_of(user).await?;
        let shown = rows.into_iter().filter_map(|row| {
            let mut pusher: Map<String, Value> = serde_json::from_str(&row.json).ok()?;
            pusher.insert(ENABLED.to_owned(), row.enabled.into());
            if let Some(device) = row.device_id {
                pusher.insert(DEVICE.to_owned(), device.into());
            }
            Some(pusher)
        });
        Ok(shown.collect())
    }

    /// Makes, changes or (`kind` is null) removes a pusher, as the body of a request says. Without `append`, other
    /// users' pushers of the same app and key go: the device has changed hands.
    ///
    /// A pusher stays with the device that made it, whichever device changes it later: so one switches another off.
    ///
    /// # Errors
    /// [`PusherError::Missing`], [`PusherError::Type`]; [`PusherError::Invalid`] for sizes, for kinds that there are
    /// not, and for a gateway that is not `https` with the path of the specification.
    pub async fn change(
        &self,
        user: &UserId,
        device: Option<&str>,
        body: &Map<String, Value>,
    ) -> Result<(), PusherError> {
        let wanted = parse(body, self.core.settings.push.allow_private)?;
        let key = match &wanted {
            Wanted::Remove { app_id, pushkey } => (app_id, pushkey),
            Wanted::Set(new) => (&new.app_id, &new.pushkey),
        };
        let key = PusherKey { user_id: user.to_owned(), app_id: key.0.clone(), pushkey: key.1.clone() };
        let change =
            Arc::new(Change { key, wanted, device: device.map(str::to_owned), now: self.core.now() });
        self.core
            .store
            .write("change pusher", Vec::new(), move |tx| {
                let change = Arc::clone(&change);
                Box::pin(async move { change.run(tx).await })
            })
            .await
    }
}

struct Change {
    key: PusherKey,
    wanted: Wanted,
    device: Option<String>,
    now: u64,
}

impl Change {
    async fn run(&self, tx: &mut Tx) -> Result<(), PusherError> {
        let Wanted::Set(new) = &self.wanted else {
            tx.pusher_remove(&self.key).await?;
            return Ok(());
        };
        if !new.append {
            tx.pushers_remove_others(&self.key).await?;
        }
        let all = tx.pushers_of(&self.key.user_id).await?;
        let before = all.iter().find(|row| row.key == self.key);
        if before.is_none() && all.len() >= MAX_PUSHERS {
            return Err(PusherError::Invalid("you have too many pushers"));
        }
        // What came before, and while it was switched off, is not told.
        let head = tx.log_head().await?.0;
        let mut row = PusherRow {
            key: self.key.clone(),
            device_id: self.device.clone(),
            json: new.json.clone(),
            enabled: new.enabled,
            updated_at: self.now,
            position: head,
            marked: head,
            badge: None,
            failing: None,
        };
        if let Some(before) = before {
            row.device_id.clone_from(&before.device_id);
            row.badge = before.badge;
            if before.enabled && new.enabled {
                (row.position, row.marked) = (before.position, before.marked);
            }
        }
        Ok(tx.pusher_set(&row).await?)
    }
}

fn text<'a>(body: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, PusherError> {
    match body.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(PusherError::Type(field)),
        None => Err(PusherError::Missing(field)),
    }
}

fn flag(body: &Map<String, Value>, field: &'static str, default: bool) -> Result<bool, PusherError> {
    match body.get(field) {
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::Null) | None => Ok(default),
        Some(_) => Err(PusherError::Type(field)),
    }
}

fn parse(body: &Map<String, Value>, allow_private: bool) -> Result<Wanted, PusherError> {
    let (app_id, pushkey) = (text(body, "app_id")?.to_owned(), text(body, "pushkey")?.to_owned());
    if app_id.chars().count() > MAX_APP_ID_CHARS {
        return Err(PusherError::Invalid("the app_id is longer than 64 characters"));
    }
    if pushkey.len() > MAX_PUSHKEY_BYTES {
        return Err(PusherError::Invalid("the pushkey is longer than 512 bytes"));
    }
    let kind = match body.get("kind") {
        Some(Value::Null) => return Ok(Wanted::Remove { app_id, pushkey }),
        _ => text(body, "kind")?,
    };
    let mut shown = Map::new();
    for field in ["pushkey", "kind", "app_id", "app_display_name", "device_display_name", "lang"] {
        shown.insert(field.to_owned(), text(body, field)?.into());
    }
    if body.get("profile_tag").is_some_and(|tag| !tag.is_null()) {
        shown.insert("profile_tag".to_owned(), text(body, "profile_tag")?.into());
    }
    let data = match body.get("data") {
        Some(Value::Object(data)) => data.clone(),
        Some(_) => return Err(PusherError::Type("data")),
        None => return Err(PusherError::Missing("data")),
    };
    match kind {
        "http" => check_gateway(text(&data, "url")?, allow_private)?,
        "email" => return Err(PusherError::Invalid("this server sends no notifications by e-mail")),
        _ => return Err(PusherError::Invalid("this server does not know this kind of pusher")),
    }
    shown.insert("data".to_owned(), data.into());
    let json = Value::Object(shown).to_string();
    if json.len() > MAX_BYTES {
        return Err(PusherError::Invalid("the pusher is too large"));
    }
    let enabled = flag(body, ENABLED, flag(body, "enabled", true)?)?;
    Ok(Wanted::Set(NewPusher { app_id, pushkey, json, enabled, append: flag(body, "append", false)? }))
}

/// What can be told of a gateway before its name is looked up.
fn check_gateway(url: &str, allow_private: bool) -> Result<(), PusherError> {
    let url = url::Url::parse(url).map_err(|_| PusherError::Invalid("the url is none"))?;
    if !(url.scheme() == "https" || allow_private && url.scheme() == "http") {
        return Err(PusherError::Invalid("the url must be https"));
    }
    if url.path() != GATEWAY_PATH {
        return Err(PusherError::Invalid("the path of the url must be /_matrix/push/v1/notify"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(PusherError::Invalid("the url must not name a user"));
    }
    let policy = AddressPolicy { allow_private, allowed: Vec::new() };
    match url.host_str().map(Host::parse) {
        Some(Host::Address(address)) if !policy.permits(address) => {
            Err(PusherError::Invalid("the url leads to a private address"))
        }
        Some(_) => Ok(()),
        None => Err(PusherError::Invalid("the url has no host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(url: &str) -> Value {
        json!({
            "kind": "http", "app_id": "app", "pushkey": "k", "lang": "en", "app_display_name": "a",
            "device_display_name": "d", "data": { "url": url, "format": "event_id_only", "mine": [1] },
        })
    }

    fn read(body: &Value, allow_private: bool) -> Result<Wanted, PusherError> {
        parse(body.as_object().unwrap(), allow_private)
    }

    const GOOD: &str = "https://push.example/_matrix/push/v1/notify";

    #[test]
    fn only_gateways_are_told() {
        assert!(read(&body(GOOD), false).is_ok());
        for bad in [
            "http://push.example/_matrix/push/v1/notify",
            "https://push.example/x",
            "https://user:secret@push.example/_matrix/push/v1/notify",
            "https://127.0.0.1/_matrix/push/v1/notify",
            "https://[::ffff:10.0.0.1]/_matrix/push/v1/notify",
            "https://2130706433/_matrix/push/v1/notify",
            "nonsense",
        ] {
            assert!(matches!(read(&body(bad), false), Err(PusherError::Invalid(_))), "{bad}");
        }
        for inside in ["http://10.0.0.1:5000/_matrix/push/v1/notify", GOOD] {
            assert!(read(&body(inside), true).is_ok(), "{inside}");
        }
    }

    #[test]
    fn fields_are_looked_at() {
        let with = |field: &str, value: Value| {
            let mut body = body(GOOD);
            body[field] = value;
            read(&body, false)
        };
        assert!(matches!(with("app_id", "a".repeat(65).into()), Err(PusherError::Invalid(_))));
        assert!(matches!(with("pushkey", "k".repeat(513).into()), Err(PusherError::Invalid(_))));
        assert!(matches!(with("lang", 1.into()), Err(PusherError::Type("lang"))));
        assert!(matches!(with("kind", "pigeon".into()), Err(PusherError::Invalid(_))));
        assert!(matches!(with("kind", Value::Null), Ok(Wanted::Remove { .. })));
        let mut body = body(GOOD);
        body.as_object_mut().unwrap().remove("lang");
        assert!(matches!(read(&body, false), Err(PusherError::Missing("lang"))));
        let Ok(Wanted::Set(new)) = with(ENABLED, false.into()) else { panic!() };
        assert!(!new.enabled && !new.append);
        let shown: Value = serde_json::from_str(&new.json).unwrap();
        assert_eq!(shown["data"]["mine"][0], 1);
        assert!(shown.get(ENABLED).is_none());
    }
}
