//! The authorisation rules, over ruma's.
//! <https://spec.matrix.org/v1.19/server-server-api/#authorization-rules>

use ruma::events::{StateEventType, TimelineEventType};
use ruma::state_res::{self, Event as ResEvent};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, RoomVersionId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::{Event, StateKey, state_key};

use crate::owned;
use crate::version::{self, UnknownVersion, rules_or_unknown};

/// State by its keys, as far as it was loaded: all of [`state_to_load`] suffices.
pub type AuthMap = BTreeMap<StateKey, Arc<Event>>;

/// An event and whether it was rejected.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The event.
    pub event: Arc<Event>,
    /// Whether the checks on receipt rejected it.
    pub rejected: bool,
}

/// Why an event is not allowed. It is rejected, or soft-failed when only the current state forbids it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A rule forbids it.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The room version is unknown.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

/// The state entries that an event must name as its `auth_events`, in the state before it.
/// <https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection>
pub fn auth_types_for(
    kind: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
    version: &RoomVersionId,
) -> Result<Vec<StateKey>, AuthError> {
    let rules = rules_or_unknown(version)?;
    state_res::auth_types_for_event(kind, sender, state_key, content, &rules.authorization)
        .map_err(AuthError::Forbidden)
}

/// The state entries to load before an event of this kind can be authorised: those of [`auth_types_for`] and the
/// create event, which version 12 rooms do not name.
pub fn state_to_load(
    kind: &TimelineEventType,
    sender: &UserId,
    key: Option<&str>,
    content: &RawValue,
    version: &RoomVersionId,
) -> Result<Vec<StateKey>, AuthError> {
    let mut keys = auth_types_for(kind, sender, key, content, version)?;
    let create = state_key(StateEventType::RoomCreate, "");
    if !keys.contains(&create) && *kind != TimelineEventType::RoomCreate {
        keys.push(create);
    }
    Ok(keys)
}

/// As [`state_to_load`], for an event that exists.
pub fn state_to_load_for(event: &Event, version: &RoomVersionId) -> Result<Vec<StateKey>, AuthError> {
    state_to_load(&event.kind, &event.sender, event.state_key.as_deref(), &event.content, version)
}

/// The rules that look only at the event and the events it names. `fetch` finds those, and the create event of a
/// version 12 room (see [`create_event_id`]); whoever calls has loaded them.
///
/// Errors: the event is rejected.
pub fn check_state_independent(
    event: &Event,
    version: &RoomVersionId,
    fetch: impl Fn(&EventId) -> Option<Judged>,
) -> Result<(), AuthError> {
    let rules = rules_or_unknown(version)?;
    if event.kind == TimelineEventType::RoomCreate && version::of_create(event).as_ref() != Some(version) {
        return Err(AuthError::Forbidden("create event names another room version".to_owned()));
    }
    let view = PduView::new(event, false, version);
    state_res::check_state_independent_auth_rules(&rules.authorization, &view, |id| {
        fetch(id).map(|judged| PduView::new(judged.event, judged.rejected, version))
    })
    .map_err(AuthError::Forbidden)
}

/// The rules that look at a state: called with the state of the event's own `auth_events`, the state before it, and
/// the current state. `state` holds at least what [`state_to_load_for`] names, where the state has it.
///
/// Errors: the event is not allowed in that state.
pub fn check_state_dependent(
    event: &Event,
    version: &RoomVersionId,
    state: &AuthMap,
) -> Result<(), AuthError> {
    let rules = rules_or_unknown(version)?;
    owned::check(event, version, state)?;
    let view = PduView::new(event, false, version);
    state_res::check_state_dependent_auth_rules(&rules.authorization, &view, |kind, key| {
        let found = state.get(&(kind.clone(), key.to_owned()))?;
        Some(PduView::new(&**found, false, version))
    })
    .map_err(AuthError::Forbidden)
}

/// The state that an event's own `auth_events` form, for [`check_state_dependent`]; the create event of a version 12
/// room is added. `fetch` finds the events. Rejected events and those without a state key are left out.
pub fn state_of_auth_events(
    event: &Event,
    version: &RoomVersionId,
    fetch: impl Fn(&EventId) -> Option<Judged>,
) -> AuthMap {
    let mut state = AuthMap::new();
    let implied = create_event_id(&event.room_id, version);
    for id in event.auth_events.iter().chain(&implied) {
        if let Some(judged) = fetch(id)
            && !judged.rejected
            && let Some(entry) = judged.event.state_entry()
        {
            state.insert(entry, judged.event);
        }
    }
    state
}

/// The id of the create event of a version 12 room, which its room id names; `None` before.
/// <https://spec.matrix.org/v1.19/rooms/v12/#room-ids>
pub fn create_event_id(room_id: &RoomId, version: &RoomVersionId) -> Option<OwnedEventId> {
    let rules = version::rules(version)?;
    if !rules.authorization.room_create_event_id_as_room_id {
        return None;
    }
    OwnedEventId::try_from(format!("${}", room_id.strip_sigil())).ok()
}

/// An event at hand, as ruma's authorisation and state resolution see it.
pub type AuthEvent = PduView<Arc<Event>>;

/// An event as ruma's authorisation and state resolution see it.
#[derive(Debug, Clone)]
pub struct PduView<E> {
    event: E,
    rejected: bool,
    has_room_id: bool,
    /// In place of the event's own, without those that can't be had.
    auth_events: Option<Vec<OwnedEventId>>,
    /// In place of the event's own.
    state_key: Option<String>,
    /// In place of the event's own: power levels as integers.
    content: Option<Box<RawValue>>,
}

impl<E: Borrow<Event>> PduView<E> {
    /// Wraps an event of a room of this version; `rejected` is what this server thought of it.
    pub fn new(event: E, rejected: bool, version: &RoomVersionId) -> PduView<E> {
        let has_room_id = has_room_id(event.borrow(), version);
        let shown: &Event = event.borrow();
        let state_key = shown
            .state_key
            .as_deref()
            .filter(|_| version::has_owned_state(version))
            .map(|key| owned::disguised(&shown.kind, key, version).into_owned());
        let has_odd_levels =
            || rules_or_unknown(version).is_ok_and(|r| !r.authorization.strict_canonical_json);
        let content = (shown.kind == TimelineEventType::RoomPowerLevels && has_odd_levels())
            .then(|| crate::power::whole_levels(&shown.content))
            .flatten();
        PduView { event, rejected, has_room_id, auth_events: None, state_key, content }
    }

    pub(crate) fn with_auth_events(self, auth_events: Vec<OwnedEventId>) -> PduView<E> {
        PduView { auth_events: Some(auth_events), ..self }
    }

    /// The event inside.
    pub fn event(&self) -> &E {
        &self.event
    }
}

/// Whether the PDU itself has a room id: all but the create event of a version 12 room, which may not have one.
fn has_room_id(event: &Event, version: &RoomVersionId) -> bool {
    #[derive(Deserialize)]
    struct Field {
        room_id: Option<serde::de::IgnoredAny>,
    }
    let implied = version::rules(version).is_some_and(|r| r.authorization.room_create_event_id_as_room_id);
    if !implied || event.kind != TimelineEventType::RoomCreate {
        return true;
    }
    serde_json::from_str::<Field>(event.json.get()).map_or(true, |field| field.room_id.is_some())
}

impl<E: Borrow<Event>> ResEvent for PduView<E> {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event.borrow().event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.has_room_id.then_some(&*self.event.borrow().room_id)
    }

    fn sender(&self) -> &UserId {
        &self.event.borrow().sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.event.borrow().origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event.borrow().kind
    }

    fn content(&self) -> &RawValue {
        self.content.as_deref().unwrap_or(&self.event.borrow().content)
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref().or_else(|| self.event.borrow().state_key.as_deref())
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.event.borrow().prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        let own = &self.event.borrow().auth_events;
        Box::new(self.auth_events.as_ref().unwrap_or(own).iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.event.borrow().redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}
