//! What the modules do together, in every room version.

use crate::auth::{self, AuthMap, Judged, check_state_dependent, check_state_independent};
use crate::build::{
    BuildError, EventDraft, PrevEvent, RoomContext, TemplateRequest, build_event, create_content,
    draft_without_signing, finish_template, reference_hash_of,
};
use crate::canonical::{canonical_object, canonical_text};
use crate::format::Counts;
use crate::parse::{DropReason, parse_pdu, redaction_target};
use crate::sign::{self, Verified, required_keys, verify_event};
use crate::version::SUPPORTED;
use crate::{KeyPair, PowerLevels, redact, sealed};
use ruma::canonical_json::CanonicalJsonObject;
use ruma::events::TimelineEventType as Kind;
use ruma::signatures::PublicKeyMap;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, RoomVersionId, ServerName, server_name,
    uint,
};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::Event;

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn here() -> &'static ServerName {
    server_name!("here")
}

fn alice() -> OwnedUserId {
    "@alice:here".try_into().unwrap()
}

/// A room with its creator in it.
struct Room {
    version: RoomVersionId,
    key: KeyPair,
    events: BTreeMap<OwnedEventId, Arc<Event>>,
    context: RoomContext,
    create: Arc<Event>,
}

impl Room {
    fn new(version: &RoomVersionId) -> Room {
        let key = KeyPair::generate().unwrap();
        let hashes_ids = *version == RoomVersionId::V12;
        let mut context = RoomContext {
            version: version.clone(),
            room_id: (!hashes_ids).then(|| "!room:here".try_into().unwrap()),
            prev_events: Vec::new(),
            state: AuthMap::new(),
        };
        let content = create_content(version, &alice(), CanonicalJsonObject::new()).unwrap();
        let content = canonical_text(&content).unwrap();
        let create = draft(Kind::RoomCreate, &content, Some(""));
        let create = Arc::new(build_event(create, &context, here(), &key).unwrap());
        context.room_id = Some(create.room_id.clone());
        let events = BTreeMap::new();
        let mut room = Room { version: version.clone(), key, events, context, create: create.clone() };
        room.append(&create);
        let join = room.build(draft(Kind::RoomMember, r#"{"membership":"join"}"#, Some("@alice:here")));
        room.append(&Arc::new(join.unwrap()));
        room
    }

    fn build(&self, draft: EventDraft) -> Result<Event, BuildError> {
        build_event(draft, &self.context, here(), &self.key)
    }

    fn append(&mut self, event: &Arc<Event>) {
        self.context.prev_events = vec![PrevEvent::of(event, &self.version).unwrap()];
        if let Some(entry) = event.state_entry() {
            self.context.state.insert(entry, event.clone());
        }
        self.events.insert(event.event_id.clone(), event.clone());
    }

    fn message(&self) -> Event {
        self.build(draft(Kind::RoomMessage, r#"{"body":"words"}"#, None)).unwrap()
    }

    fn fetch(&self, id: &EventId, rejected: bool) -> Option<Judged> {
        Some(Judged { event: self.events.get(id)?.clone(), rejected })
    }

    fn keys(&self) -> PublicKeyMap {
        let key = BTreeMap::from([(self.key.id().to_string(), self.key.public_key())]);
        BTreeMap::from([(here().to_string(), key)])
    }
}

fn draft(kind: Kind, content: &str, state_key: Option<&str>) -> EventDraft {
    EventDraft {
        kind,
        content: raw(content),
        state_key: state_key.map(ToOwned::to_owned),
        sender: alice(),
        redacts: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1_700_000_000)),
        sticky_ms: None,
    }
}

#[test]
fn what_is_built_is_parsed_verified_and_allowed() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let message = Arc::new(room.message());
        for event in room.events.values().chain([&message]) {
            let pdu = parse_pdu(&event.json, &version, Counts::Limited).unwrap();
            assert_eq!((&pdu.event.event_id, &pdu.event.room_id), (&event.event_id, &room.create.room_id));
            assert_eq!(pdu.event.json.get(), event.json.get());
            let keys = required_keys(&pdu.object, &version).unwrap();
            assert_eq!(keys, [(here().to_owned(), room.key.id())]);
            assert_eq!(verify_event(&pdu.object, &version, &room.keys()).unwrap(), Verified::All);
            check_state_independent(event, &version, |id| room.fetch(id, false)).unwrap();
            check_state_dependent(event, &version, &room.context.state).unwrap();
            let own = auth::state_of_auth_events(event, &version, |id| room.fetch(id, false));
            check_state_dependent(event, &version, &own).unwrap();
        }
        let names_create = message.auth_events.contains(&room.create.event_id);
        assert_eq!(names_create, version != RoomVersionId::V12);
        assert_eq!(message.depth, uint!(3));
        let is_id = message.event_id.as_str()[1..] == reference_hash_of(&message, &version).unwrap();
        assert_eq!(is_id, !matches!(version, RoomVersionId::V1 | RoomVersionId::V2));
    }
}

#[test]
fn each_version_has_its_own_format() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let message = room.message();
        let object = canonical_object(message.json.get()).unwrap();
        let old = matches!(version, RoomVersionId::V1 | RoomVersionId::V2);
        assert_eq!(object.contains_key("event_id"), old);
        assert_eq!(message.event_id.server_name().is_some(), old);
        let pair = object["prev_events"].as_array().unwrap()[0].as_array();
        assert_eq!(pair.is_some(), old);
        if let Some(pair) = pair {
            assert_eq!(pair[1].as_object().unwrap()["sha256"].as_str().unwrap().len(), 43);
        }
        let create = canonical_object(room.create.json.get()).unwrap();
        assert_eq!(create.contains_key("room_id"), version != RoomVersionId::V12);
        let other = if old { RoomVersionId::V6 } else { RoomVersionId::V2 };
        assert!(parse_pdu(&message.json, &other, Counts::Unlimited).is_err());
    }
}

#[test]
fn changed_events_are_found_out() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let object = canonical_object(room.message().json.get()).unwrap();
        let mut words = object.clone();
        words.insert("content".to_owned(), CanonicalJsonObject::new().into());
        let verified = verify_event(&words, &version, &room.keys()).unwrap();
        assert!(matches!(verified, Verified::ContentHashMismatch(_)), "{version}");
        let mut place = object.clone();
        place.insert("depth".to_owned(), ruma::Int::from(9_u8).into());
        assert!(verify_event(&place, &version, &room.keys()).is_err(), "{version}");
        assert!(verify_event(&object, &version, &BTreeMap::new()).is_err());
        let mut unsigned = object;
        unsigned.remove("signatures");
        assert!(required_keys(&unsigned, &version).is_err());
    }
}

#[test]
fn a_redacted_event_keeps_its_id_and_signatures() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let message = room.message();
        let policy = sealed::SealPolicy::default();
        let redacted = redact::redact_event(&message, &version, None).unwrap();
        let seal = sealed::seal_remote(&message, &version, &policy).unwrap().unwrap();
        for bare in [redacted, seal] {
            assert!(!bare.json.get().contains("words"));
            let pdu = parse_pdu(&bare.json, &version, Counts::Limited).unwrap();
            assert_eq!(pdu.event.event_id, message.event_id, "{version}");
            let verified = verify_event(&pdu.object, &version, &room.keys()).unwrap();
            assert!(matches!(verified, Verified::ContentHashMismatch(_)));
            assert!(sealed::seal_remote(&bare, &version, &policy).unwrap().is_none());
        }
    }
}

#[test]
fn redactions_stand_where_the_version_wants_them_and_apply() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let target = room.message();
        let ask = EventDraft {
            redacts: Some(target.event_id.clone()),
            ..draft(Kind::RoomRedaction, r#"{"reason":"typo"}"#, None)
        };
        let redaction = room.build(ask).unwrap();
        let object = canonical_object(redaction.json.get()).unwrap();
        let old = !matches!(version, RoomVersionId::V11 | RoomVersionId::V12);
        assert_eq!(object.contains_key("redacts"), old);
        assert_eq!(redaction_target(&redaction, &version).unwrap(), target.event_id);
        let power = PowerLevels::new(&room.create, None, &version).unwrap();
        assert!(redact::may_apply(&redaction, &target, &power, &version));
        assert!(!redact::may_apply(&redaction, &room.create, &power, &version));

        // Of another server, and without a level: not since version 3.
        let mut stranger = redaction.clone();
        stranger.sender = "@bob:there".try_into().unwrap();
        let trusted = matches!(version, RoomVersionId::V1 | RoomVersionId::V2);
        assert_eq!(redact::may_apply(&stranger, &target, &power, &version), trusted);
    }
}

#[test]
fn rules_are_applied() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let message = room.message();
        assert!(check_state_independent(&message, &version, |id| room.fetch(id, true)).is_err());
        assert!(check_state_independent(&message, &version, |_| None).is_err());
        assert!(check_state_dependent(&message, &version, &AuthMap::new()).is_err());
        let mut stranger = message;
        stranger.sender = "@mallory:there".try_into().unwrap();
        assert!(check_state_dependent(&stranger, &version, &room.context.state).is_err());
    }
}

#[test]
fn version_12_creates_name_no_room() {
    let room = Room::new(&RoomVersionId::V12);
    let mut object = canonical_object(room.create.json.get()).unwrap();
    object.insert("room_id".to_owned(), "!a:here".into());
    let json = raw(&canonical_text(&object).unwrap());
    assert!(matches!(parse_pdu(&json, &RoomVersionId::V12, Counts::Limited), Err(DropReason::Id(_))));
}

#[test]
fn too_large_with_the_signature_and_floats_are_refused() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let of_length = |length: usize| {
            room.build(draft(Kind::RoomMessage, &format!(r#"{{"body":"{}"}}"#, "x".repeat(length)), None))
        };
        let rest = of_length(1000).unwrap().json.get().len() - 1000;
        let limit = crate::format::MAX_PDU_BYTES - rest;
        assert_eq!(of_length(limit).unwrap().json.get().len(), crate::format::MAX_PDU_BYTES);
        for length in [limit + 1, limit + 100, limit + rest, 2 * limit] {
            assert!(matches!(of_length(length), Err(BuildError::TooLarge(_))), "{version} {length}");
        }
        for content in [r#"{"a":1.5}"#, r#"{"a":1,"a":2}"#, "[]"] {
            let built = room.build(draft(Kind::RoomMessage, content, None));
            assert!(matches!(built, Err(BuildError::Content(_))), "{version} {content}");
        }
    }
}

#[test]
fn templates_are_finished_only_for_what_was_asked() {
    for version in SUPPORTED {
        let mut room = Room::new(&version);
        let rules = raw_draft("m.room.join_rules", r#"{"join_rule":"public"}"#);
        let rules = Arc::new(room.build(rules).unwrap());
        room.append(&rules);
        let bob: OwnedUserId = "@bob:there".try_into().unwrap();
        let ask = EventDraft {
            sender: bob.clone(),
            ..draft(
                Kind::RoomMember,
                r#"{"membership":"join","displayname":"Mallory","body":"words"}"#,
                Some("@bob:there"),
            )
        };
        let template = draft_without_signing(ask, &room.context).unwrap();
        let request = TemplateRequest {
            version: version.clone(),
            room_id: room.create.room_id.clone(),
            user_id: bob.clone(),
            membership: "join",
            content: canonical_object(r#"{"displayname":"Bob","membership":"ban"}"#).unwrap(),
            origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1_800_000_000)),
        };
        let there = server_name!("there");
        let join = finish_template(&template, request.clone(), there, &room.key).unwrap();
        assert_eq!(join.content_str("membership").unwrap(), "join");
        // The resident server does not decide what the user says.
        assert_eq!(join.content_str("displayname").unwrap(), "Bob");
        assert!(join.content_str("body").is_none());
        check_state_independent(&join, &version, |id| room.fetch(id, false)).unwrap();
        check_state_dependent(&join, &version, &room.context.state).unwrap();

        for wrong in [
            TemplateRequest { membership: "leave", ..request.clone() },
            TemplateRequest { room_id: "!other:here".try_into().unwrap(), ..request.clone() },
            TemplateRequest { user_id: alice(), ..request.clone() },
        ] {
            let refused = finish_template(&template, wrong, there, &room.key);
            assert!(matches!(refused, Err(BuildError::Template(_))));
        }

        // The resident server signs too, and both signatures are good.
        let mut object = canonical_object(join.json.get()).unwrap();
        sign::sign_event(&mut object, &version, here(), &room.key).unwrap();
        assert_eq!(sign::signing_keys(&object).len(), 2);
        let mut keys = room.keys();
        keys.insert("there".to_owned(), keys["here"].clone());
        assert_eq!(verify_event(&object, &version, &keys).unwrap(), Verified::All);
    }
}

fn raw_draft(kind: &str, content: &str) -> EventDraft {
    draft(kind.into(), content, Some(""))
}

#[test]
fn levels_are_read_by_version() {
    let text = r#"{"users":{"@bob:there":" +0075 "},"ban":"60","kick":60,"notifications":{"room":20}}"#;
    let plain = r#"{"users":{"@bob:there":75},"ban":60,"kick":60,"notifications":{"room":20}}"#;
    for version in SUPPORTED {
        let room = Room::new(&version);
        let levels = |content| room.build(raw_draft("m.room.power_levels", content)).unwrap();
        let strict = matches!(version, RoomVersionId::V10 | RoomVersionId::V11 | RoomVersionId::V12);
        assert_eq!(PowerLevels::new(&room.create, Some(&levels(text)), &version).is_err(), strict);
        let power = PowerLevels::new(&room.create, Some(&levels(plain)), &version).unwrap();
        let bob: OwnedUserId = "@bob:there".try_into().unwrap();
        let carol: OwnedUserId = "@carol:there".try_into().unwrap();
        assert!(power.can_ban(&bob, &carol) && power.can_redact(&bob) && power.can_notify(&bob, "room"));
        assert!(!power.can_kick(&carol, &bob) && !power.can_send(&carol, &Kind::RoomName, true));
        assert!(power.can_invite(&carol) && power.can_send(&carol, &Kind::RoomMessage, false));
        assert_eq!(power.action_levels().map(i64::from), [0, 60, 60, 50]);
        // Creators stand above all in version 12 and are nobody in these levels before.
        assert_eq!(power.can_ban(&alice(), &bob), version == RoomVersionId::V12);
        let none = PowerLevels::new(&room.create, None, &version).unwrap();
        assert!(none.can_ban(&alice(), &bob) && !none.can_ban(&bob, &carol));
    }
}

#[test]
fn restricted_joins_and_third_party_invites_need_other_signatures() {
    let room = Room::new(&RoomVersionId::V11);
    let join = r#"{"membership":"join","join_authorised_via_users_server":"@carol:there"}"#;
    let join = room.build(draft(Kind::RoomMember, join, Some("@alice:here"))).unwrap();
    let object = canonical_object(join.json.get()).unwrap();
    assert_eq!(sign::required_servers(&object, &RoomVersionId::V11).unwrap().len(), 2);
    assert_eq!(sign::required_servers(&object, &RoomVersionId::V7).unwrap().len(), 1);
    assert!(required_keys(&object, &RoomVersionId::V11).is_err());
    let invite = r#"{"membership":"invite","third_party_invite":{"signed":{"token":"t"}}}"#;
    let invite = room.build(draft(Kind::RoomMember, invite, Some("@bob:there"))).unwrap();
    let object = canonical_object(invite.json.get()).unwrap();
    assert!(sign::required_servers(&object, &RoomVersionId::V11).unwrap().is_empty());
}

#[test]
fn mutilated_events_are_refused_and_never_panic() {
    for version in SUPPORTED {
        let room = Room::new(&version);
        let whole = canonical_object(room.message().json.get()).unwrap();
        for field in whole.keys() {
            for value in [None, Some("null"), Some("5"), Some("[[]]"), Some(r#""x""#), Some(r#"{"x":{}}"#)] {
                let mut object = whole.clone();
                object.remove(field);
                if let Some(value) = value {
                    let value =
                        canonical_object(&format!(r#"{{"v":{value}}}"#)).unwrap().remove("v").unwrap();
                    object.insert(field.clone(), value);
                }
                let json = raw(&canonical_text(&object).unwrap());
                let _ = required_keys(&object, &version);
                let _ = verify_event(&object, &version, &room.keys());
                if let Ok(pdu) = parse_pdu(&json, &version, Counts::Limited) {
                    let _ = check_state_independent(&pdu.event, &version, |id| room.fetch(id, false));
                    let _ = check_state_dependent(&pdu.event, &version, &room.context.state);
                    let _ = redact::redact_event(&pdu.event, &version, None);
                }
            }
        }
    }
}
