//! Signed JSON objects: device keys and cross-signing keys. Pure.
//! <https://spec.matrix.org/v1.19/appendices/#signing-json>

use super::error::KeysError;
use ruma::serde::Base64;
use ruma::serde::base64::Standard;
use ruma::signatures::{
    SigningKeyAlgorithm, to_canonical_json_string_for_signing, verify_canonical_json_bytes,
};
use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use waxwing_rooms::canonical_object;
use waxwing_storage::KeySignatureRow;

const SIGNATURES: &str = "signatures";
const UNSIGNED: &str = "unsigned";

/// Reads an object of canonical JSON.
pub(super) fn parse(json: &str) -> Result<CanonicalJsonObject, KeysError> {
    canonical_object(json).map_err(|error| KeysError::BadJson(error.to_string()))
}

/// Writes an object.
pub(super) fn text(object: &CanonicalJsonObject) -> String {
    serde_json::to_string(object).unwrap_or_default()
}

/// What a signature is over: everything but signatures and `unsigned`.
pub(super) fn signed_text(object: &CanonicalJsonObject) -> String {
    to_canonical_json_string_for_signing(object).unwrap_or_default()
}

/// The signatures of one signer, by key id.
pub(super) fn signatures_of<'a>(
    object: &'a CanonicalJsonObject,
    signer: &str,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let by_key = object
        .get(SIGNATURES)
        .and_then(CanonicalJsonValue::as_object)
        .and_then(|signers| signers.get(signer))
        .and_then(CanonicalJsonValue::as_object);
    by_key.into_iter().flatten().filter_map(|(id, value)| Some((id.as_str(), value.as_str()?)))
}

/// One signature.
pub(super) fn signature<'a>(object: &'a CanonicalJsonObject, signer: &str, key_id: &str) -> Option<&'a str> {
    signatures_of(object, signer).find(|(id, _)| *id == key_id).map(|(_, signature)| signature)
}

/// Drops the signatures of all signers but those that `keep` names.
pub(super) fn keep_signatures(object: &mut CanonicalJsonObject, keep: impl Fn(&str) -> bool) {
    if let Some(CanonicalJsonValue::Object(signers)) = object.get_mut(SIGNATURES) {
        signers.retain(|signer, _| keep(signer));
    }
}

/// Drops those signatures of `signer` that `keep` does not want, by the object and the key's id.
pub(super) fn keep_signatures_of(
    object: &mut CanonicalJsonObject,
    signer: &str,
    keep: impl Fn(&CanonicalJsonObject, &str) -> bool,
) {
    let ids: Vec<String> = signatures_of(object, signer).map(|(id, _)| id.to_owned()).collect();
    let dropped: Vec<String> = ids.into_iter().filter(|id| !keep(object, id)).collect();
    if let Some(CanonicalJsonValue::Object(signers)) = object.get_mut(SIGNATURES)
        && let Some(CanonicalJsonValue::Object(keys)) = signers.get_mut(signer)
    {
        keys.retain(|id, _| !dropped.contains(id));
        if keys.is_empty() {
            signers.remove(signer);
        }
    }
}

/// Adds a signature.
pub(super) fn add_signature(object: &mut CanonicalJsonObject, row: &KeySignatureRow) {
    let empty = || CanonicalJsonValue::Object(CanonicalJsonObject::new());
    let signers = object.entry(SIGNATURES.to_owned()).or_insert_with(empty);
    let CanonicalJsonValue::Object(signers) = signers else { return };
    let keys = signers.entry(row.signer_id.to_string()).or_insert_with(empty);
    if let CanonicalJsonValue::Object(keys) = keys {
        keys.insert(row.signer_key.clone(), CanonicalJsonValue::String(row.signature.clone()));
    }
}

/// Sets what this server says beside the keys: the name of the device.
pub(super) fn set_device_name(object: &mut CanonicalJsonObject, name: Option<&str>) {
    object.remove(UNSIGNED);
    if let Some(name) = name {
        let name = CanonicalJsonValue::String(name.to_owned());
        let unsigned = CanonicalJsonObject::from([("device_display_name".to_owned(), name)]);
        object.insert(UNSIGNED.to_owned(), CanonicalJsonValue::Object(unsigned));
    }
}

/// Drops `unsigned`: it is this server's to write.
pub(super) fn drop_unsigned(object: &mut CanonicalJsonObject) {
    object.remove(UNSIGNED);
}

/// The public key with this id among the object's `keys`.
pub(super) fn public_key<'a>(object: &'a CanonicalJsonObject, key_id: &str) -> Option<&'a str> {
    object.get("keys")?.as_object()?.get(key_id)?.as_str()
}

/// The id (`ed25519:…`) and public key of a cross-signing key, which has exactly one.
pub(super) fn only_key(object: &CanonicalJsonObject) -> Option<(&str, &str)> {
    let keys = object.get("keys")?.as_object()?;
    let (id, key) = keys.iter().next().filter(|_| keys.len() == 1)?;
    Some((id.as_str(), key.as_str()?))
}

/// Whether the object carries this signature and it is right. `key`: the signer's public key in base64.
pub(super) fn is_signed_by(object: &CanonicalJsonObject, signer: &str, key_id: &str, key: &str) -> bool {
    let Some(signature) = signature(object, signer, key_id) else { return false };
    let decode = |text: &str| Base64::<Standard>::parse(text).ok();
    let (Some(signature), Some(key)) = (decode(signature), decode(key)) else { return false };
    let text = signed_text(object);
    verify_canonical_json_bytes(
        &SigningKeyAlgorithm::Ed25519,
        key.as_bytes(),
        signature.as_bytes(),
        text.as_bytes(),
    )
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::server_name;
    use waxwing_rooms::KeyPair;

    #[test]
    fn signatures_are_checked_added_and_filtered() {
        let pair = KeyPair::from_seed([7; 32], "D").unwrap();
        let mut object = parse(r#"{"user_id":"@a:x","keys":{"ed25519:D":"k"}}"#).unwrap();
        pair.sign_json(server_name!("x"), &mut object).unwrap();
        let key = pair.public_key().encode();
        assert!(is_signed_by(&object, "x", "ed25519:D", &key));
        assert!(!is_signed_by(&object, "x", "ed25519:E", &key));
        assert!(!is_signed_by(&object, "y", "ed25519:D", &key));
        set_device_name(&mut object, Some("phone"));
        assert!(is_signed_by(&object, "x", "ed25519:D", &key));
        let row = KeySignatureRow {
            target_id: "@a:x".try_into().unwrap(),
            target_key: "D".into(),
            signer_id: "@b:x".try_into().unwrap(),
            signer_key: "ed25519:m".into(),
            signature: "s".into(),
        };
        add_signature(&mut object, &row);
        assert_eq!(signature(&object, "@b:x", "ed25519:m"), Some("s"));
        keep_signatures(&mut object, |signer| signer == "@b:x");
        assert_eq!(signature(&object, "x", "ed25519:D"), None);
        object.insert("extra".into(), CanonicalJsonValue::Null);
        assert!(!is_signed_by(&object, "x", "ed25519:D", &key));
    }
}
