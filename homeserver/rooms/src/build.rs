//! New events of our own.
//! <https://spec.matrix.org/v1.19/server-server-api/#pdus>

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules};
use ruma::{
    EventId, Int, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId,
    ServerName, UInt,
};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use waxwing_model::{Event, state_key};

use crate::KeyPair;
use crate::auth::{AuthError, AuthMap, auth_types_for};
use crate::canonical::{CanonicalError, canonical_object, canonical_text, lenient_object};
use crate::format::{Counts, FormatError, MAX_PDU_BYTES};
use crate::hash::reference_hash;
use crate::parse::{DropReason, object_of, pdu_from_object, raw_canonical};
use crate::sign::{SignError, hash_and_sign_event};
use crate::version::{UnknownVersion, rules_or_unknown};

/// What someone wants to say: an event without its place in the graph.
#[derive(Debug, Clone)]
pub struct EventDraft {
    /// The event type.
    pub kind: TimelineEventType,
    /// The content, as the client sent it.
    pub content: Box<RawValue>,
    /// Present on state events.
    pub state_key: Option<String>,
    /// The sender.
    pub sender: OwnedUserId,
    /// What a redaction redacts; written where the room version wants it.
    pub redacts: Option<OwnedEventId>,
    /// When it was sent.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// For how long it is sticky, milliseconds (MSC4354).
    pub sticky_ms: Option<u32>,
}

/// One event that a new event follows.
#[derive(Debug, Clone)]
pub struct PrevEvent {
    /// Its id.
    pub event_id: OwnedEventId,
    /// Its depth.
    pub depth: UInt,
    /// Its reference hash in base64, which rooms of versions 1 and 2 write beside the id.
    pub hash: Option<String>,
}

impl PrevEvent {
    /// A reference to an event that is at hand.
    pub fn of(event: &Event, version: &RoomVersionId) -> Result<PrevEvent, BuildError> {
        let hash = hash_beside_reference(event, rules_or_unknown(version)?)?;
        Ok(PrevEvent { event_id: event.event_id.clone(), depth: event.depth, hash })
    }
}

/// The place in the graph where a new event goes.
#[derive(Debug, Clone)]
pub struct RoomContext {
    /// The room version.
    pub version: RoomVersionId,
    /// The room; `None` for the create event of a version 12 room, whose id gives the room its id.
    pub room_id: Option<OwnedRoomId>,
    /// The room's forward extremities; at most 20 are used, deepest first.
    pub prev_events: Vec<PrevEvent>,
    /// The state before the event, at least what [`crate::auth::state_to_load`] names.
    pub state: AuthMap,
}

/// Why an event can't be built. All but the first three are our own mistake.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The content is not canonical JSON.
    #[error(transparent)]
    Content(#[from] CanonicalError),
    /// The event is larger than 65536 bytes with its signature. Clients get 413 `M_TOO_LARGE`.
    #[error("event of {0} bytes is larger than 65536")]
    TooLarge(usize),
    /// A field is too long, or the event is out of shape.
    #[error(transparent)]
    Format(FormatError),
    /// The content lacks what decides which events authorise it.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The template of a remote server is not for the event that was asked for.
    #[error("template: {0}")]
    Template(&'static str),
    /// The event has no room.
    #[error("no room id")]
    NoRoom,
    /// It can't be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It can't be read back, or a hash of another event can't be computed.
    #[error(transparent)]
    Event(DropReason),
    /// The room version is unknown.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

impl From<DropReason> for BuildError {
    fn from(reason: DropReason) -> BuildError {
        match reason {
            DropReason::Format(FormatError::TooLarge(size)) => BuildError::TooLarge(size),
            DropReason::Format(error) => BuildError::Format(error),
            other => BuildError::Event(other),
        }
    }
}

/// Builds, hashes and signs an event. It is in the format of its room version and within all limits; whether it is
/// allowed is for [`crate::auth`] to say.
pub fn build_event(
    draft: EventDraft,
    context: &RoomContext,
    server: &ServerName,
    key: &KeyPair,
) -> Result<Event, BuildError> {
    let object = proto_event(draft, context)?;
    finish(object, &context.version, server, key)
}

/// The event without id, hash and signature: what `make_join`, `make_leave` and `make_knock` answer with.
/// <https://spec.matrix.org/v1.19/server-server-api/#joining-rooms>
pub fn draft_without_signing(draft: EventDraft, context: &RoomContext) -> Result<Box<RawValue>, BuildError> {
    let object = proto_event(draft, context)?;
    crate::format::check_size(&object).map_err(DropReason::from)?;
    Ok(raw_canonical(&object).map_err(DropReason::from)?)
}

/// What we asked a remote server for a template of.
#[derive(Debug, Clone)]
pub struct TemplateRequest {
    /// The version of the room, as the remote server says and we support.
    pub version: RoomVersionId,
    /// The room.
    pub room_id: OwnedRoomId,
    /// Our user: sender and state key.
    pub user_id: OwnedUserId,
    /// `join`, `leave` or `knock`.
    pub membership: &'static str,
    /// The rest of the content, such as the display name. The template decides none of it.
    pub content: CanonicalJsonObject,
    /// When it is sent.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
}

/// Completes a remote server's template: checks that it is the membership event that we asked for, and hashes and
/// signs it. Its place in the graph and who lets the user in is for the resident server to say. All else in it is
/// dropped, or a stranger could put words into our user's mouth.
pub fn finish_template(
    template: &RawValue,
    request: TemplateRequest,
    server: &ServerName,
    key: &KeyPair,
) -> Result<Event, BuildError> {
    const KEPT: [&str; 8] =
        ["type", "room_id", "sender", "state_key", "content", "prev_events", "auth_events", "depth"];
    const KEPT_CONTENT: [&str; 2] = ["membership", "join_authorised_via_users_server"];
    let rules = rules_or_unknown(&request.version)?;
    let mut object = object_of(template, rules)?;
    object.retain(|field, _| KEPT.contains(&field.as_str()));
    let is = |field: &str, value: &str| object.get(field).and_then(CanonicalJsonValue::as_str) == Some(value);
    if !is("type", "m.room.member") {
        return Err(BuildError::Template("not a membership event"));
    }
    if !is("room_id", request.room_id.as_str()) {
        return Err(BuildError::Template("of another room"));
    }
    if !is("sender", request.user_id.as_str()) || !is("state_key", request.user_id.as_str()) {
        return Err(BuildError::Template("of another user"));
    }
    let Some(CanonicalJsonValue::Object(content)) = object.get_mut("content") else {
        return Err(BuildError::Template("without content"));
    };
    if content.get("membership").and_then(CanonicalJsonValue::as_str) != Some(request.membership) {
        return Err(BuildError::Template("of another membership"));
    }
    content.retain(|field, _| KEPT_CONTENT.contains(&field.as_str()));
    content.extend(request.content.into_iter().filter(|(field, _)| !KEPT_CONTENT.contains(&field.as_str())));
    object.insert("origin_server_ts".to_owned(), request.origin_server_ts.get().into());
    object.insert("origin".to_owned(), server.as_str().into());
    give_id(&mut object, rules, server)?;
    finish(object, &request.version, server, key)
}

fn finish(
    mut object: CanonicalJsonObject,
    version: &RoomVersionId,
    server: &ServerName,
    key: &KeyPair,
) -> Result<Event, BuildError> {
    give_id(&mut object, rules_or_unknown(version)?, server)?;
    // An event that is too large already can't be hashed: say so before rather than blame the hash.
    let size = canonical_text(&object)?.len();
    if size >= MAX_PDU_BYTES {
        return Err(BuildError::TooLarge(size));
    }
    hash_and_sign_event(&mut object, version, server, key)?;
    // Hash and signature count too.
    crate::format::check(&object, version, Counts::Limited).map_err(DropReason::from)?;
    Ok(pdu_from_object(object, version)?.event)
}

/// The id of an event whose room version writes it down: a hash of what it says and where, so that it is unique, and
/// the same event has the same id.
fn give_id(
    object: &mut CanonicalJsonObject,
    rules: &RoomVersionRules,
    server: &ServerName,
) -> Result<(), CanonicalError> {
    if rules.event_id_format == EventIdFormatVersion::V1 && !object.contains_key("event_id") {
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(canonical_text(object)?.as_bytes()));
        object.insert("event_id".to_owned(), format!("${hash}:{server}").into());
    }
    Ok(())
}

fn proto_event(draft: EventDraft, context: &RoomContext) -> Result<CanonicalJsonObject, BuildError> {
    let rules = rules_or_unknown(&context.version)?;
    let mut prev: Vec<&PrevEvent> = context.prev_events.iter().collect();
    prev.sort_by(|a, b| b.depth.cmp(&a.depth).then_with(|| a.event_id.cmp(&b.event_id)));
    prev.truncate(crate::format::MAX_PREV_EVENTS);
    let depth = prev.first().map_or(0, |deepest| u64::from(deepest.depth)).saturating_add(1);

    let auth = auth_references(&draft, context, rules)?;
    let mut object = CanonicalJsonObject::new();
    let implied_room = rules.authorization.room_create_event_id_as_room_id;
    if !(implied_room && draft.kind == TimelineEventType::RoomCreate) {
        let room_id = context.room_id.as_ref().ok_or(BuildError::NoRoom)?;
        object.insert("room_id".to_owned(), room_id.as_str().into());
    }
    let mut content = canonical_object(draft.content.get())?;
    if draft.kind == TimelineEventType::RoomRedaction {
        place_redacts(&mut object, &mut content, draft.redacts, rules);
    }
    object.insert("type".to_owned(), draft.kind.to_string().into());
    object.insert("sender".to_owned(), draft.sender.as_str().into());
    object.insert("content".to_owned(), content.into());
    object.insert("origin_server_ts".to_owned(), draft.origin_server_ts.get().into());
    object.insert("depth".to_owned(), UInt::new_saturating(depth).into());
    if let Some(duration) = draft.sticky_ms {
        let duration = [("duration_ms".to_owned(), CanonicalJsonValue::from(Int::from(duration)))];
        object.insert("msc4354_sticky".to_owned(), CanonicalJsonValue::Object(duration.into()));
    }
    if let Some(key) = draft.state_key {
        object.insert("state_key".to_owned(), key.into());
    }
    let prev = prev.into_iter().map(|p| reference(&p.event_id, p.hash.as_deref(), rules)).collect();
    object.insert("prev_events".to_owned(), CanonicalJsonValue::Array(prev));
    object.insert("auth_events".to_owned(), CanonicalJsonValue::Array(auth));
    debug_assert!(object.get("depth").and_then(CanonicalJsonValue::as_integer) >= Some(Int::from(1_u8)));
    Ok(object)
}

/// Room versions up to 10 write `redacts` beside the content, later ones in it. Clients may use either form.
/// <https://spec.matrix.org/v1.19/rooms/v11/#moving-the-redacts-property-of-mroomredaction-events-to-content>
fn place_redacts(
    object: &mut CanonicalJsonObject,
    content: &mut CanonicalJsonObject,
    redacts: Option<OwnedEventId>,
    rules: &RoomVersionRules,
) {
    let redacts = match redacts {
        Some(id) => Some(CanonicalJsonValue::from(id.as_str())),
        None => content.get("redacts").cloned(),
    };
    let Some(redacts) = redacts else { return };
    if rules.redaction.content_field_redacts {
        content.insert("redacts".to_owned(), redacts);
    } else {
        content.remove("redacts");
        object.insert("redacts".to_owned(), redacts);
    }
}

fn auth_references(
    draft: &EventDraft,
    context: &RoomContext,
    rules: &RoomVersionRules,
) -> Result<Vec<CanonicalJsonValue>, BuildError> {
    let (key, content) = (draft.state_key.as_deref(), &*draft.content);
    let mut references = Vec::new();
    for entry in auth_types_for(&draft.kind, &draft.sender, key, content, &context.version)? {
        if let Some(event) = context.state.get(&entry) {
            let hash = hash_beside_reference(event, rules)?;
            references.push(reference(&event.event_id, hash.as_deref(), rules));
        }
    }
    Ok(references)
}

fn reference(id: &EventId, hash: Option<&str>, rules: &RoomVersionRules) -> CanonicalJsonValue {
    if rules.events_reference_format != EventsReferenceFormatVersion::V1 {
        return id.as_str().into();
    }
    let mut hashes = CanonicalJsonObject::new();
    if let Some(hash) = hash {
        hashes.insert("sha256".to_owned(), hash.into());
    }
    CanonicalJsonValue::Array(vec![id.as_str().into(), hashes.into()])
}

/// The reference hash that rooms of versions 1 and 2 write beside each reference.
/// <https://spec.matrix.org/v1.19/server-server-api/#calculating-the-reference-hash-for-an-event>
fn hash_beside_reference(event: &Event, rules: &RoomVersionRules) -> Result<Option<String>, BuildError> {
    if rules.events_reference_format != EventsReferenceFormatVersion::V1 {
        return Ok(None);
    }
    reference_hash_by(event, rules).map(Some)
}

/// The reference hash of an event in base64, in the alphabet of its room version.
/// <https://spec.matrix.org/v1.19/server-server-api/#calculating-the-reference-hash-for-an-event>
pub fn reference_hash_of(event: &Event, version: &RoomVersionId) -> Result<String, BuildError> {
    reference_hash_by(event, rules_or_unknown(version)?)
}

fn reference_hash_by(event: &Event, rules: &RoomVersionRules) -> Result<String, BuildError> {
    let object = lenient_object(event.json.get())?;
    Ok(reference_hash(&object, rules).map_err(|error| DropReason::Hash(error.to_string()))?)
}

/// The content of the create event that a new room of this version gets, over what its creator asked for: the
/// version, and the `creator` field where the version still has it.
/// <https://spec.matrix.org/v1.19/client-server-api/#mroomcreate>
pub fn create_content(
    version: &RoomVersionId,
    creator: &OwnedUserId,
    mut asked: CanonicalJsonObject,
) -> Result<CanonicalJsonObject, BuildError> {
    let rules = rules_or_unknown(version)?;
    asked.insert("room_version".to_owned(), version.as_str().into());
    if rules.authorization.use_room_create_sender {
        asked.remove("creator");
    } else {
        asked.insert("creator".to_owned(), creator.as_str().into());
    }
    Ok(asked)
}

/// The state entry of the create event.
pub fn create_entry() -> waxwing_model::StateKey {
    state_key(StateEventType::RoomCreate, "")
}
