//! What clients may put into state, beyond the authorisation rules.

use super::append::Draft;
use super::error::TimelineError;
use crate::Core;
use ruma::events::TimelineEventType;
use ruma::{RoomAliasId, RoomId};
use serde_json::{Map, Value};
use waxwing_rooms::owned;

/// Checks the content of a state event of a client.
///
/// # Errors
/// [`TimelineError::BadAlias`] for a canonical alias that does not point here, [`TimelineError::BadContent`] for power
/// levels that are not integers, [`TimelineError::InvalidParam`] for malformed aliases.
pub(crate) async fn state_content(core: &Core, room: &RoomId, draft: &Draft) -> Result<(), TimelineError> {
    let content: Map<String, Value> = serde_json::from_str(draft.content.get())
        .map_err(|_| TimelineError::BadContent("the content must be an object".to_owned()))?;
    owner(core, room, draft).await?;
    match draft.kind {
        TimelineEventType::RoomCanonicalAlias => aliases(core, room, &content).await,
        TimelineEventType::RoomPowerLevels => {
            power_levels(&content)?;
            creators(core, room, &content).await
        }
        TimelineEventType::RoomCreate => Err(TimelineError::BadContent("a room is created once".to_owned())),
        _ => Ok(()),
    }
}

/// In room versions whose state may belong to users (MSC3757), a key that begins like a user id must name one.
async fn owner(core: &Core, room: &RoomId, draft: &Draft) -> Result<(), TimelineError> {
    let key = draft.state_key.as_deref().unwrap_or_default();
    if !key.starts_with('@') || draft.kind == TimelineEventType::RoomMember || owned::owner(key).is_some() {
        return Ok(());
    }
    let row = core.store.read().await?.room_load(room).await?.ok_or(TimelineError::NoRoom)?;
    if waxwing_rooms::version::has_owned_state(&row.version) {
        return Err(TimelineError::BadContent("the state key must begin with a user id".to_owned()));
    }
    Ok(())
}

async fn aliases(core: &Core, room: &RoomId, content: &Map<String, Value>) -> Result<(), TimelineError> {
    let mut named: Vec<&str> = Vec::new();
    match content.get("alias") {
        None | Some(Value::Null) => {}
        Some(Value::String(alias)) if alias.is_empty() => {}
        Some(Value::String(alias)) => named.push(alias),
        Some(_) => return Err(TimelineError::BadContent("alias must be a string".to_owned())),
    }
    match content.get("alt_aliases") {
        None | Some(Value::Null) => {}
        Some(Value::Array(all)) => {
            for alias in all {
                match alias.as_str() {
                    Some(alias) => named.push(alias),
                    None => {
                        return Err(TimelineError::InvalidParam("alt_aliases must be strings".to_owned()));
                    }
                }
            }
        }
        Some(_) => return Err(TimelineError::InvalidParam("alt_aliases must be a list".to_owned())),
    }
    let before = known_aliases(core, room).await?;
    for alias in named {
        if before.iter().any(|known| known == alias) {
            continue;
        }
        let id = RoomAliasId::parse(alias)
            .map_err(|_| TimelineError::InvalidParam(format!("{alias} is not a room alias")))?;
        let target = core.store.read().await?.alias_load(&id).await?;
        if target.as_deref() != Some(room) {
            return Err(TimelineError::BadAlias(format!("{alias} does not point at this room")));
        }
    }
    Ok(())
}

/// The aliases that the room's present canonical alias event names: they are not checked again.
async fn known_aliases(core: &Core, room: &RoomId) -> Result<Vec<String>, TimelineError> {
    let mut conn = core.store.read().await?;
    let Some(row) = conn.room_load(room).await? else { return Err(TimelineError::NoRoom) };
    let kind = ruma::events::StateEventType::RoomCanonicalAlias;
    let Some(id) = core.store.state(&mut conn).get(row.state_root, kind, "").await? else {
        return Ok(Vec::new());
    };
    drop(conn);
    let Some(stored) = core.store.event(&id).await? else { return Ok(Vec::new()) };
    let content: Map<String, Value> = stored.event.content_as().unwrap_or_default();
    let alternatives = content.get("alt_aliases").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(content
        .get("alias")
        .into_iter()
        .chain(alternatives.iter())
        .filter_map(|alias| alias.as_str().map(str::to_owned))
        .collect())
}

/// Creators of rooms that give them unbounded power cannot be given a level.
/// <https://spec.matrix.org/v1.19/rooms/v12/#power-level-calculations>
async fn creators(core: &Core, room: &RoomId, content: &Map<String, Value>) -> Result<(), TimelineError> {
    let Some(Value::Object(users)) = content.get("users") else { return Ok(()) };
    let mut conn = core.store.read().await?;
    let Some(row) = conn.room_load(room).await? else { return Err(TimelineError::NoRoom) };
    let privileged = waxwing_rooms::version::rules(&row.version)
        .is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators);
    if !privileged {
        return Ok(());
    }
    let kind = ruma::events::StateEventType::RoomCreate;
    let create = core.store.state(&mut conn).get(row.state_root, kind, "").await?;
    drop(conn);
    let Some(id) = create else { return Ok(()) };
    let Some(create) = core.store.event(&id).await? else { return Ok(()) };
    let power = waxwing_rooms::PowerLevels::new(&create.event, None, &row.version)?;
    if power.creators().iter().any(|creator| users.contains_key(creator.as_str())) {
        return Err(TimelineError::BadContent("creators cannot be given a power level".to_owned()));
    }
    Ok(())
}

/// Levels must be integers in every room version, whatever old rooms tolerate.
fn power_levels(content: &Map<String, Value>) -> Result<(), TimelineError> {
    let wrong = |field: &str| TimelineError::BadContent(format!("{field} must be an integer"));
    for (field, value) in content {
        match (field.as_str(), value) {
            ("users" | "events" | "notifications", Value::Object(levels)) => {
                if let Some((name, _)) = levels.iter().find(|(_, level)| !level.is_i64()) {
                    return Err(wrong(name));
                }
            }
            ("users" | "events" | "notifications", _) => {
                return Err(TimelineError::BadContent(format!("{field} must be an object")));
            }
            (
                "ban" | "kick" | "redact" | "invite" | "users_default" | "events_default" | "state_default",
                level,
            ) if !level.is_i64() => return Err(wrong(field)),
            _ => {}
        }
    }
    Ok(())
}
