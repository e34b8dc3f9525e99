//! Request authentication (X-Matrix): <https://spec.matrix.org/v1.19/server-server-api/#request-authentication>.
//!
//! Signs and verifies over the raw bytes of path and query. Which keys a server has is the key ring's business.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ruma::signatures::verify_canonical_json_bytes;
use ruma::{OwnedServerName, OwnedServerSigningKeyId, ServerName, SigningKeyAlgorithm};
use std::fmt::Write;
use std::sync::Arc;
use waxwing_rooms::KeyPair;

use crate::canonical::canonical_bytes;
use crate::keys::KeyRing;
use crate::ports::PortError;

/// Base64 as servers write it: the standard alphabet, padded or not.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A header is a few hundred bytes; a longer one is not looked at.
const MAX_HEADER: usize = 4096;
/// A server signs with one key, or with two while it changes over.
const MAX_CREDENTIALS: usize = 4;

/// Who we are: our name and the key that we sign with. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct Identity {
    /// Our server name.
    pub server: OwnedServerName,
    /// Our signing key. It may be replaced at any time.
    pub key: Arc<KeyPair>,
}

/// The signing key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the signing key cannot be used")]
pub struct BadKey;

impl Identity {
    /// We are `server` and sign with `key`.
    pub fn new(server: OwnedServerName, key: Arc<KeyPair>) -> Result<Identity, BadKey> {
        // What is signed with it must be what others verify with it.
        let signature = key.sign_bytes(b"");
        if !verifies(key.public_key().as_bytes(), &signature, b"") {
            return Err(BadKey);
        }
        Ok(Identity { server, key })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why a request is not accepted as coming from a server. All of them are `401 M_UNAUTHORIZED`, but `Internal`.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// There is no X-Matrix header.
    #[error("the request is not signed")]
    Missing,
    /// The header is not one.
    #[error("malformed X-Matrix header: {0}")]
    Malformed(&'static str),
    /// It was signed for another server.
    #[error("the request is signed for another server")]
    WrongDestination,
    /// It claims to come from ourselves.
    #[error("the request claims to come from this server")]
    FromOurselves,
    /// The body is not JSON.
    #[error("the body is not JSON")]
    Body,
    /// The key is not known, or no longer valid.
    #[error("the key {0} of {1} is not known or not valid now")]
    UnknownKey(OwnedServerSigningKeyId, OwnedServerName),
    /// The signature does not fit.
    #[error("the signature is wrong")]
    BadSignature,
    /// We could not find out.
    #[error("internal")]
    Internal(#[from] PortError),
}

/// The content of one X-Matrix header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Who says that it sends.
    pub origin: OwnedServerName,
    /// For whom; old servers leave it out.
    pub destination: Option<OwnedServerName>,
    /// The key.
    pub key: OwnedServerSigningKeyId,
    /// The signature.
    pub signature: Vec<u8>,
}

/// An incoming request before anything has normalised it.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// The path and query exactly as they came.
    pub path_and_query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The whole body; empty when there is none.
    pub body: &'a [u8],
}

/// The `Authorization` header for a request that we send. `body` must be the JSON that is sent.
pub fn authorization(
    identity: &Identity,
    destination: &ServerName,
    method: &str,
    path_and_query: &str,
    body: Option<&[u8]>,
) -> Result<String, serde_json::Error> {
    let object =
        signed_object(&identity.server, destination, method, path_and_query, body.unwrap_or_default())?;
    // A signed body is not always canonical JSON (a client's to-device message may hold a float), and one that could
    // not be signed would block its destination for ever.
    let pair = identity.key.fixed();
    let signature = BASE64.encode(pair.sign_bytes(object.as_bytes()));
    let (server, key) = (&identity.server, pair.id());
    Ok(format!(r#"X-Matrix origin="{server}",destination="{destination}",key="{key}",sig="{signature}""#))
}

/// Verifies an incoming request; gives the server that sent it.
pub async fn verify_request(
    ring: &KeyRing,
    us: &ServerName,
    request: Incoming<'_>,
) -> Result<OwnedServerName, AuthError> {
    let credentials = credentials(request.headers)?;
    let origin = credentials[0].origin.clone();
    if origin == us {
        return Err(AuthError::FromOurselves);
    }
    if credentials.iter().any(|c| c.destination.as_ref().is_some_and(|name| name != us)) {
        return Err(AuthError::WrongDestination);
    }
    let object = signed_object(&origin, us, request.method, request.path_and_query, request.body)
        .map_err(|_| AuthError::Body)?;
    match check(ring, &origin, &credentials, object.as_bytes()).await? {
        Some(AuthError::BadSignature) if ring.again(&origin).await? => {
            check(ring, &origin, &credentials, object.as_bytes()).await?.map_or(Ok(origin), Err)
        }
        Some(refusal) => Err(refusal),
        None => Ok(origin),
    }
}

/// Why none of the signatures counts; `None` when one does.
async fn check(
    ring: &KeyRing,
    origin: &ServerName,
    credentials: &[Credentials],
    message: &[u8],
) -> Result<Option<AuthError>, AuthError> {
    let mut refusal = AuthError::BadSignature;
    for one in credentials {
        match ring.request_key(origin, &one.key).await? {
            Some(key) if verifies(&key, &one.signature, message) => return Ok(None),
            Some(_) => {}
            None => refusal = AuthError::UnknownKey(one.key.clone(), origin.to_owned()),
        }
    }
    Ok(Some(refusal))
}

fn verifies(key: &[u8], signature: &[u8], message: &[u8]) -> bool {
    verify_canonical_json_bytes(&SigningKeyAlgorithm::Ed25519, key, signature, message).is_ok()
}

/// Reads all X-Matrix headers of a request. There is at least one, and all name the same origin.
pub fn credentials(headers: &HeaderMap) -> Result<Vec<Credentials>, AuthError> {
    let mut found = Vec::new();
    for value in headers.get_all(AUTHORIZATION) {
        let Ok(text) = value.to_str() else { continue };
        if let Some(one) = parse(text)? {
            found.push(one);
        }
        if found.len() > MAX_CREDENTIALS {
            return Err(AuthError::Malformed("too many signatures"));
        }
    }
    match found.first() {
        None => Err(AuthError::Missing),
        Some(first) if found.iter().all(|one| one.origin == first.origin) => Ok(found),
        Some(_) => Err(AuthError::Malformed("several origins")),
    }
}

/// Reads one header; `None` when it is of another scheme.
fn parse(header: &str) -> Result<Option<Credentials>, AuthError> {
    if header.len() > MAX_HEADER {
        return Err(AuthError::Malformed("too long"));
    }
    let header = header.trim_start();
    let Some((scheme, parameters)) = header.split_once([' ', '\t']) else {
        return Ok(None);
    };
    if !scheme.eq_ignore_ascii_case("X-Matrix") {
        return Ok(None);
    }
    let (mut origin, mut destination, mut key, mut signature) = (None, None, None, None);
    for (name, value) in parameters_of(parameters)? {
        let slot = match name.to_ascii_lowercase().as_str() {
            "origin" => &mut origin,
            "destination" => &mut destination,
            "key" => &mut key,
            // The list in the specification's prose says `signature`, everything else says `sig`.
            "sig" | "signature" => &mut signature,
            _ => continue,
        };
        if slot.replace(value).is_some() {
            return Err(AuthError::Malformed("a parameter twice"));
        }
    }
    let server =
        |text: String| OwnedServerName::try_from(text).map_err(|_| AuthError::Malformed("not a server name"));
    let key = key.ok_or(AuthError::Malformed("no key"))?;
    let signature = signature.ok_or(AuthError::Malformed("no signature"))?;
    Ok(Some(Credentials {
        origin: server(origin.ok_or(AuthError::Malformed("no origin"))?)?,
        destination: destination.map(server).transpose()?,
        key: key.try_into().map_err(|_| AuthError::Malformed("not a key id"))?,
        signature: BASE64
            .decode(signature)
            .map_err(|_| AuthError::Malformed("the signature is not base64"))?,
    }))
}

/// Splits `name=value` pairs at commas; values may be quoted, with backslashes, and may hold colons without quotes.
fn parameters_of(text: &str) -> Result<Vec<(String, String)>, AuthError> {
    let mut pairs = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Ok(pairs);
        }
        let (name, after) = rest.split_once('=').ok_or(AuthError::Malformed("a parameter without value"))?;
        let after = after.trim_start_matches([' ', '\t']);
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (value, rest) = after.split_at(after.find(',').unwrap_or(after.len()));
                (value.trim_end().to_owned(), rest)
            }
        };
        pairs.push((name.trim().to_owned(), value));
        let next = rest.trim_start_matches([' ', '\t']);
        if !next.is_empty() && !next.starts_with(',') {
            return Err(AuthError::Malformed("no comma between parameters"));
        }
    }
}

/// Reads up to the closing quote; gives the value and what follows.
fn unquote(text: &str) -> Result<(String, &str), AuthError> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            _ => value.push(c),
        }
    }
    Err(AuthError::Malformed("a quote is not closed"))
}

/// The canonical JSON that is signed. Its keys are in order as written here.
fn signed_object(
    origin: &ServerName,
    destination: &ServerName,
    method: &str,
    path_and_query: &str,
    body: &[u8],
) -> Result<String, serde_json::Error> {
    let mut object = String::with_capacity(body.len() + 256);
    object.push('{');
    if !body.is_empty() {
        object.push_str("\"content\":");
        object.push_str(&canonical_bytes(body)?);
        object.push(',');
    }
    let quoted = |text: &str| serde_json::to_string(text);
    let _ = write!(
        object,
        r#""destination":{},"method":{},"origin":{},"uri":{}}}"#,
        quoted(destination.as_str())?,
        quoted(method)?,
        quoted(origin.as_str())?,
        quoted(path_and_query)?,
    );
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(header: &str) -> Credentials {
        parse(header).unwrap().unwrap()
    }

    fn key() -> Arc<KeyPair> {
        // The key of the specification's test vectors (appendices, "Cryptographic Test Vectors").
        let seed = BASE64.decode("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
        Arc::new(KeyPair::from_seed(seed.try_into().unwrap(), "1").unwrap())
    }

    #[test]
    fn the_specifications_header_and_the_older_form() {
        let new = one(
            r#"X-Matrix origin="origin.hs.example.com",destination="destination.hs.example.com",key="ed25519:key1",sig="ABCDEF""#,
        );
        assert_eq!(new.origin, "origin.hs.example.com");
        assert_eq!(new.destination.as_deref().unwrap(), "destination.hs.example.com");
        assert_eq!(new.key, "ed25519:key1");
        assert_eq!(new.signature, BASE64.decode("ABCDEF").unwrap());
        let old = one(r#"X-Matrix origin="origin.hs.example.com",key="ed25519:key1",sig="dGVzdA==""#);
        assert_eq!((old.destination, old.signature), (None, b"test".to_vec()));
    }

    #[test]
    fn unquoted_colons_any_order_spaces_and_case() {
        let it = one("x-matrix  SIG=dGVzdA , key=ed25519:key1\t,future=\"a,b\", Origin=a.example:8448,");
        assert_eq!((it.origin.as_str(), it.key.as_str()), ("a.example:8448", "ed25519:key1"));
        let escaped = one(r#"X-Matrix origin="a\.b",key="ed25519\:k1",sig=dGVzdA"#);
        assert_eq!((escaped.origin.as_str(), escaped.key.as_str()), ("a.b", "ed25519:k1"));
    }

    #[test]
    fn malformed_headers_are_errors_and_other_schemes_are_not_ours() {
        assert!(parse("Bearer abc").unwrap().is_none());
        assert!(parse("X-Matrix").unwrap().is_none());
        for bad in [
            "X-Matrix origin=a",
            "X-Matrix origin=a,origin=b,key=ed25519:1,sig=dGVzdA",
            "X-Matrix origin=\"a,key=ed25519:1,sig=dGVzdA",
            "X-Matrix origin=\"a\"key=ed25519:1,sig=dGVzdA",
            "X-Matrix origin=a b,key=ed25519:1,sig=dGVzdA",
            "X-Matrix origin=a,key=nokey,sig=dGVzdA",
            "X-Matrix origin=a,key=ed25519:1,sig=*",
            "X-Matrix word",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn several_headers_must_agree_on_the_origin() {
        let mut headers = HeaderMap::new();
        assert!(matches!(credentials(&headers), Err(AuthError::Missing)));
        headers.append(AUTHORIZATION, "X-Matrix origin=a,key=ed25519:1,sig=dGVzdA".parse().unwrap());
        headers.append(AUTHORIZATION, "X-Matrix origin=a,key=ed25519:2,sig=dGVzdA".parse().unwrap());
        assert_eq!(credentials(&headers).unwrap().len(), 2);
        headers.append(AUTHORIZATION, "X-Matrix origin=b,key=ed25519:2,sig=dGVzdA".parse().unwrap());
        assert!(credentials(&headers).is_err());
    }

    #[test]
    fn what_we_sign_verifies_over_canonical_json_and_nothing_else_does() {
        let identity = Identity::new("a.example".try_into().unwrap(), key()).unwrap();
        let to = <&ServerName>::try_from("b.example").unwrap();
        let body = br#"{ "b": 2, "a": "\u00e9" }"#;
        let header = authorization(&identity, to, "PUT", "/_matrix/x?y=%20", Some(body)).unwrap();
        let it = one(&header);
        assert_eq!(it.key, "ed25519:1");
        let check = |method: &str, path: &str, body: &[u8]| {
            let object = signed_object(&it.origin, to, method, path, body).unwrap();
            verifies(identity.key.public_key().as_bytes(), &it.signature, object.as_bytes())
        };
        assert!(check("PUT", "/_matrix/x?y=%20", "{\"a\":\"é\",\"b\":2}".as_bytes()));
        assert!(!check("PUT", "/_matrix/x?y= ", body));
        assert!(!check("POST", "/_matrix/x?y=%20", body));
        assert!(!check("PUT", "/_matrix/x?y=%20", b""));
        assert!(signed_object(&it.origin, to, "PUT", "/", b"{").is_err());
        assert!(authorization(&identity, to, "PUT", "/", Some(br#"{"no canonical JSON":1.5}"#)).is_ok());
    }

    #[test]
    fn the_identity_hides_its_key() {
        let identity = Identity::new("a.example".try_into().unwrap(), key()).unwrap();
        assert_eq!(format!("{identity:?}"), r#"Identity { server: "a.example", .. }"#);
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "(X-Matrix )?[ -~]{0,80}") {
            let _ = parse(&header);
        }
    }
}
