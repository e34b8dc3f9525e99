//! Hashes and signatures of events, and signatures of other JSON.
//! <https://spec.matrix.org/v1.19/server-server-api/#signing-events>

use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
use ruma::serde::Base64;
use ruma::serde::base64::Standard;
use ruma::signatures::{PublicKeyMap, PublicKeySet, VerificationError, verify_canonical_json_bytes};
use ruma::{
    OwnedEventId, OwnedServerName, OwnedServerSigningKeyId, RoomVersionId, ServerName, SigningKeyAlgorithm,
    UserId,
};
use std::collections::BTreeSet;
use waxwing_model::Event;

use crate::KeyPair;
use crate::canonical::lenient_object;
use crate::hash::{self, HashError, signed_text};
use crate::parse::{DropReason, raw_canonical};
use crate::version::{UnknownVersion, rules_or_unknown};

/// The key of policy servers: it stands among the signatures of whatever server carries that name, and proves
/// nothing about the sender. <https://spec.matrix.org/v1.19/server-server-api/#policy-servers>
pub const POLICY_KEY_ID: &str = "ed25519:policy_server";

/// What verification says of an event whose signatures are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// The content hash matches: the event is as its sender made it.
    All,
    /// The content hash does not match: only the redacted form, held here, is the sender's.
    ContentHashMismatch(CanonicalJsonObject),
}

/// Why signing or verifying failed. An event that fails verification is dropped.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A field that signatures depend on is missing or malformed.
    #[error("malformed event: {0}")]
    Malformed(&'static str),
    /// A server that had to sign did not.
    #[error("no signature of {0}")]
    Unsigned(OwnedServerName),
    /// A server signed, with no key that is known and valid.
    #[error("no signature of {0} with a known key")]
    NoKnownKey(OwnedServerName),
    /// A signature is wrong.
    #[error("bad signature of {server} with {key}: {error}")]
    BadSignature {
        /// Whose signature.
        server: OwnedServerName,
        /// With which key.
        key: String,
        /// What is wrong with it.
        error: VerificationError,
    },
    /// The object can't be hashed or serialised.
    #[error("can't be serialised: {0}")]
    Json(#[from] ruma::signatures::JsonError),
    /// The same, of an event.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The room version is unknown.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

/// The servers that must have signed an event: the sender's (unless it stems from a third-party invite), that of the
/// event id in room versions 1 and 2, that of the member who let someone into a restricted room.
/// <https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events>
pub fn required_servers(
    object: &CanonicalJsonObject,
    version: &RoomVersionId,
) -> Result<BTreeSet<OwnedServerName>, SignError> {
    let rules = rules_or_unknown(version)?;
    let text = |field: &'static str| {
        object.get(field).and_then(CanonicalJsonValue::as_str).ok_or(SignError::Malformed(field))
    };
    let content = object.get("content").and_then(CanonicalJsonValue::as_object);
    let is_member = text("type")? == "m.room.member";
    let membership = content.and_then(|c| c.get("membership")).and_then(CanonicalJsonValue::as_str);
    let mut servers = BTreeSet::new();

    // Only an object counts: with `null` the authorisation rules see an ordinary invite, which must be signed.
    let third_party =
        content.and_then(|c| c.get("third_party_invite")).is_some_and(CanonicalJsonValue::is_object);
    if !(is_member && membership == Some("invite") && third_party) {
        servers.insert(server_of(text("sender")?).ok_or(SignError::Malformed("sender"))?);
    }
    if rules.signatures.check_event_id_server {
        let id = OwnedEventId::try_from(text("event_id")?).map_err(|_| SignError::Malformed("event_id"))?;
        servers.insert(id.server_name().ok_or(SignError::Malformed("event_id"))?.to_owned());
    }
    if rules.signatures.check_join_authorised_via_users_server
        && is_member
        && membership == Some("join")
        && let Some(user) = content.and_then(|c| c.get("join_authorised_via_users_server"))
    {
        let user = user.as_str().and_then(server_of);
        servers.insert(user.ok_or(SignError::Malformed("join_authorised_via_users_server"))?);
    }
    Ok(servers)
}

fn server_of(user: &str) -> Option<OwnedServerName> {
    Some(<&UserId>::try_from(user).ok()?.server_name().to_owned())
}

/// The keys that verify an event, as (server, key id) pairs: every key that a required server signed with. A key
/// ring fetches them before [`verify_event`] is called. A required server without a usable signature is an error.
pub fn required_keys(
    object: &CanonicalJsonObject,
    version: &RoomVersionId,
) -> Result<Vec<(OwnedServerName, OwnedServerSigningKeyId)>, SignError> {
    let mut keys = Vec::new();
    for server in required_servers(object, version)? {
        let before = keys.len();
        for key in signatures_of(object, &server)?.keys().filter(|key| key.as_str() != POLICY_KEY_ID) {
            if let Ok(id) = OwnedServerSigningKeyId::try_from(key.as_str())
                && id.algorithm() == SigningKeyAlgorithm::Ed25519
            {
                keys.push((server.clone(), id));
            }
        }
        if keys.len() == before {
            return Err(SignError::Unsigned(server));
        }
    }
    Ok(keys)
}

/// The servers and key ids that signed a JSON object which is no event.
pub fn signing_keys(object: &CanonicalJsonObject) -> Vec<(OwnedServerName, OwnedServerSigningKeyId)> {
    let mut keys = Vec::new();
    let signatures = object.get("signatures").and_then(CanonicalJsonValue::as_object);
    for (server, of_server) in signatures.into_iter().flatten() {
        let Ok(server) = OwnedServerName::try_from(server.as_str()) else { continue };
        for key in of_server.as_object().into_iter().flat_map(CanonicalJsonObject::keys) {
            if let Ok(id) = OwnedServerSigningKeyId::try_from(key.as_str()) {
                keys.push((server.clone(), id));
            }
        }
    }
    keys
}

fn signatures_of<'a>(
    object: &'a CanonicalJsonObject,
    server: &ServerName,
) -> Result<&'a CanonicalJsonObject, SignError> {
    let signatures = object.get("signatures").and_then(CanonicalJsonValue::as_object);
    signatures
        .ok_or(SignError::Malformed("signatures"))?
        .get(server.as_str())
        .and_then(CanonicalJsonValue::as_object)
        .ok_or_else(|| SignError::Unsigned(server.to_owned()))
}

/// Verifies the signatures of all required servers and the content hash.
///
/// `keys` holds, per server, the keys that are known and, from room version 5 on, were valid at the event's
/// `origin_server_ts`. A signature by another key is skipped; each server needs one good signature, and none by a
/// key in `keys` may be bad.
pub fn verify_event(
    object: &CanonicalJsonObject,
    version: &RoomVersionId,
    keys: &PublicKeyMap,
) -> Result<Verified, SignError> {
    let rules = rules_or_unknown(version)?;
    let signed = signed_text(object, rules)?;
    for server in required_servers(object, version)? {
        verify_for(&server, signatures_of(object, &server)?, keys.get(server.as_str()), &signed)?;
    }
    let claimed = object.get("hashes").and_then(CanonicalJsonValue::as_object);
    let claimed = claimed.and_then(|hashes| hashes.get("sha256")).and_then(CanonicalJsonValue::as_str);
    let claimed = Base64::<Standard>::parse(claimed.ok_or(SignError::Malformed("hashes"))?);
    if claimed.is_ok_and(|claimed| hash::content_hash(object).is_ok_and(|ours| claimed.as_bytes() == ours)) {
        return Ok(Verified::All);
    }
    let redacted = ruma::canonical_json::redact(object.clone(), &rules.redaction, None);
    Ok(Verified::ContentHashMismatch(redacted.map_err(|_| SignError::Malformed("type"))?))
}

/// Verifies that `server` signed an object that is no event, by one of the keys given for it.
/// <https://spec.matrix.org/v1.19/appendices/#checking-for-a-signature>
pub fn verify_json(
    object: &CanonicalJsonObject,
    server: &ServerName,
    keys: &PublicKeySet,
) -> Result<(), SignError> {
    let signed = ruma::signatures::to_canonical_json_string_for_signing(object)?;
    verify_for(server, signatures_of(object, server)?, Some(keys), &signed)
}

/// Verifies the signature of a room's policy server, by the public key that the room's state names.
pub fn verify_policy(
    object: &CanonicalJsonObject,
    version: &RoomVersionId,
    via: &ServerName,
    public_key: &Base64,
) -> Result<(), SignError> {
    let signed = signed_text(object, rules_or_unknown(version)?)?;
    let signatures = signatures_of(object, via)?;
    match signatures.get(POLICY_KEY_ID) {
        Some(signature) => verify_one(via, POLICY_KEY_ID, signature, public_key, &signed),
        None => Err(SignError::Unsigned(via.to_owned())),
    }
}

fn verify_for(
    server: &ServerName,
    signatures: &CanonicalJsonObject,
    keys: Option<&PublicKeySet>,
    signed: &str,
) -> Result<(), SignError> {
    let mut good = 0;
    for (id, signature) in signatures {
        if id == POLICY_KEY_ID || !id.starts_with("ed25519:") {
            continue;
        }
        if let Some(public_key) = keys.and_then(|keys| keys.get(id)) {
            verify_one(server, id, signature, public_key, signed)?;
            good += 1;
        }
    }
    if good == 0 { Err(SignError::NoKnownKey(server.to_owned())) } else { Ok(()) }
}

fn verify_one(
    server: &ServerName,
    key: &str,
    signature: &CanonicalJsonValue,
    public_key: &Base64,
    signed: &str,
) -> Result<(), SignError> {
    let signature = signature.as_str().and_then(|text| Base64::<Standard>::parse(text).ok());
    let signature = signature.ok_or(SignError::Malformed("signatures"))?;
    let algorithm = SigningKeyAlgorithm::Ed25519;
    verify_canonical_json_bytes(&algorithm, public_key.as_bytes(), signature.as_bytes(), signed.as_bytes())
        .map_err(|error| SignError::BadSignature { server: server.to_owned(), key: key.to_owned(), error })
}

/// Adds the content hash and the signature of `server` to an event that we made.
pub fn hash_and_sign_event(
    object: &mut CanonicalJsonObject,
    version: &RoomVersionId,
    server: &ServerName,
    key: &KeyPair,
) -> Result<(), SignError> {
    let rules = rules_or_unknown(version)?;
    hash::add_content_hash(object)?;
    Ok(hash::add_signature(object, rules, server, key)?)
}

/// Adds a signature of `server` to another server's event, as for an invite or a restricted join.
/// Hash, id and the signatures that are there stay as they are.
pub fn sign_event(
    object: &mut CanonicalJsonObject,
    version: &RoomVersionId,
    server: &ServerName,
    key: &KeyPair,
) -> Result<(), SignError> {
    let rules = rules_or_unknown(version)?;
    Ok(hash::add_signature(object, rules, server, key)?)
}

/// The same event with more signatures, as a policy server or an invited server returned them. A signature that is
/// there already is kept, never replaced. The id does not depend on signatures and stays.
pub fn merge_signatures(event: &Event, more: &CanonicalJsonObject) -> Result<Event, DropReason> {
    merged(event, lenient_object(event.json.get())?, more)
}

/// The same event with the signature of a room's policy server, in the place of an older one of that server: its key may
/// be another by now. Other signatures stay.
/// <https://spec.matrix.org/v1.19/server-server-api/#validating-policy-server-signatures>
pub fn with_policy_signature(
    event: &Event,
    via: &ServerName,
    signature: &CanonicalJsonValue,
) -> Result<Event, DropReason> {
    let mut object = lenient_object(event.json.get())?;
    if let Some(CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures")
        && let Some(CanonicalJsonValue::Object(theirs)) = signatures.get_mut(via.as_str())
    {
        theirs.remove(POLICY_KEY_ID);
    }
    let keys = CanonicalJsonObject::from([(POLICY_KEY_ID.to_owned(), signature.clone())]);
    let more = CanonicalJsonObject::from([(via.to_string(), CanonicalJsonValue::Object(keys))]);
    merged(event, object, &more)
}

fn merged(
    event: &Event,
    mut object: CanonicalJsonObject,
    more: &CanonicalJsonObject,
) -> Result<Event, DropReason> {
    let signatures =
        object.entry("signatures".to_owned()).or_insert_with(|| CanonicalJsonObject::new().into());
    if let CanonicalJsonValue::Object(signatures) = signatures {
        for (server, of_server) in more {
            let ours = signatures.entry(server.clone()).or_insert_with(|| CanonicalJsonObject::new().into());
            if let (CanonicalJsonValue::Object(ours), CanonicalJsonValue::Object(theirs)) = (ours, of_server)
            {
                for (key, signature) in theirs {
                    ours.entry(key.clone()).or_insert_with(|| signature.clone());
                }
            }
        }
    }
    crate::format::check_size(&object)?;
    let mut merged = Event::parse(event.event_id.clone(), event.room_id.clone(), raw_canonical(&object)?)?;
    merged.redacts.clone_from(&event.redacts);
    Ok(merged)
}
