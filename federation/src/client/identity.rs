//! Requests to identity servers, on behalf of a user who invites somebody by an address, and the request to another
//! server that turns such an invitation into one of a user.
//! <https://spec.matrix.org/v1.19/client-server-api/#third-party-invites>

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, StatusCode};
use ruma::{OwnedUserId, RoomId, ServerName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use url::Url;

use super::{Call, Client, ClientError, QUICK, SMALL_BODY, path, refusal, to_body};
use crate::transport::{Response, TransportError, WebRequest};

/// The identity server that a client names, with the token that the client has for it.
#[derive(Clone, Debug)]
pub struct IdentityServer {
    /// Host and port.
    pub name: String,
    /// The user's access token there. Never logged.
    pub token: String,
}

/// What an identity server is told of an invitation, so that it can write to the invited.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreInvite {
    /// `email`.
    pub medium: String,
    /// The address.
    pub address: String,
    /// The room.
    pub room_id: String,
    /// Who invites.
    pub sender: String,
    /// The room's canonical alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_alias: Option<String>,
    /// The room's picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_avatar_url: Option<String>,
    /// The room's join rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_join_rules: Option<String>,
    /// The room's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_name: Option<String>,
    /// The room's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
    /// The inviter's display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_display_name: Option<String>,
    /// The inviter's picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_avatar_url: Option<String>,
}

/// A key by which an identity server will sign who the invited is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct IdentityKey {
    /// The key, base64.
    pub public_key: String,
    /// Where to ask whether it still counts.
    #[serde(default)]
    pub key_validity_url: Option<String>,
}

/// What an identity server answers to [`StoreInvite`].
#[derive(Clone, Debug, Deserialize)]
pub struct StoredInvite {
    /// Names the invitation: the state key of `m.room.third_party_invite`.
    pub token: String,
    /// Its own key and one for this invitation.
    pub public_keys: Vec<IdentityKey>,
    /// The address, made unrecognisable.
    pub display_name: String,
}

/// How addresses are hashed for a look-up.
#[derive(Deserialize)]
struct HashDetails {
    algorithms: Vec<String>,
    lookup_pepper: String,
}

#[derive(Serialize)]
struct Lookup<'a> {
    addresses: [&'a str; 1],
    algorithm: &'a str,
    pepper: &'a str,
}

#[derive(Deserialize)]
struct Mappings {
    mappings: BTreeMap<String, OwnedUserId>,
}

#[derive(Deserialize)]
struct Valid {
    valid: bool,
}

/// An address as it is looked up: <https://spec.matrix.org/v1.19/identity-service-api/#security-considerations>
fn hashed(address: &str, medium: &str, pepper: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{address} {medium} {pepper}")))
}

/// The URL of an endpoint of an identity server.
fn endpoint(server: &IdentityServer, tail: &str) -> Result<Url, ClientError> {
    let unwritable = |why: &str| ClientError::Unwritable(why.to_owned());
    let url = Url::parse(&format!("https://{}", server.name)).map_err(|_| unwritable("not a host name"))?;
    let plain =
        url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !plain || url.password().is_some() {
        return Err(unwritable("not a host name"));
    }
    url.join(&format!("/_matrix/identity/v2/{tail}")).map_err(|_| unwritable("not a host name"))
}

impl Client {
    async fn ask_identity<T: DeserializeOwned>(
        &self,
        server: &IdentityServer,
        tail: &str,
        body: Option<&RawValue>,
    ) -> Result<T, ClientError> {
        let request = WebRequest {
            method: if body.is_some() { Method::POST } else { Method::GET },
            url: endpoint(server, tail)?,
            body: body.map(|body| Bytes::copy_from_slice(body.get().as_bytes())),
            bearer: Some(server.token.clone()),
            timeout: QUICK,
        };
        read_json(self.transport.call(request).await?).await
    }

    /// Whose the address is, as far as the identity server knows.
    ///
    /// # Errors
    /// [`ClientError`] when it refuses, cannot be reached, or hashes addresses in no way that we know.
    pub async fn identity_lookup(
        &self,
        server: &IdentityServer,
        medium: &str,
        address: &str,
    ) -> Result<Option<OwnedUserId>, ClientError> {
        let details: HashDetails = self.ask_identity(server, "hash_details", None).await?;
        if !details.algorithms.iter().any(|algorithm| algorithm == "sha256") {
            return Err(ClientError::Nonsense("no known way of hashing addresses".to_owned()));
        }
        let hash = hashed(address, medium, &details.lookup_pepper);
        let lookup = Lookup { addresses: [&hash], algorithm: "sha256", pepper: &details.lookup_pepper };
        let mut found: Mappings = self.ask_identity(server, "lookup", Some(&to_body(&lookup)?)).await?;
        Ok(found.mappings.remove(&hash))
    }

    /// Has an invitation kept until somebody proves that the address is theirs.
    ///
    /// # Errors
    /// [`ClientError`] when the identity server refuses or cannot be reached.
    pub async fn identity_store_invite(
        &self,
        server: &IdentityServer,
        invite: &StoreInvite,
    ) -> Result<StoredInvite, ClientError> {
        self.ask_identity(server, "store-invite", Some(&to_body(invite)?)).await
    }

    /// Whether a key of an identity server still counts, by the address that the server gave with the key.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be found out.
    pub async fn identity_key_is_valid(&self, validity_url: &str, key: &str) -> Result<bool, ClientError> {
        let mut url = Url::parse(validity_url).map_err(|error| ClientError::Unwritable(error.to_string()))?;
        url.query_pairs_mut().append_pair("public_key", key);
        let valid: Valid = read_json(self.transport.fetch(&url, QUICK).await?).await?;
        Ok(valid.valid)
    }

    /// `PUT v1/exchange_third_party_invite`: asks the inviter's server to invite the user who has the address.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn exchange_third_party_invite(
        &self,
        destination: &ServerName,
        room: &RoomId,
        event: &RawValue,
    ) -> Result<(), ClientError> {
        let path = path(&["_matrix", "federation", "v1", "exchange_third_party_invite", room.as_str()]);
        self.bytes(Call::new(destination, Method::PUT, path).body(event).insistent()).await.map(drop)
    }
}

async fn read_json<T: DeserializeOwned>(response: Response) -> Result<T, ClientError> {
    if response.status != StatusCode::OK {
        return Err(refusal(response).await);
    }
    let body = tokio::time::timeout(QUICK, response.collect(SMALL_BODY));
    let body = body.await.map_err(|_| TransportError::Timeout)??;
    serde_json::from_slice(&body).map_err(|error| ClientError::Nonsense(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hashed_as_the_specification_has_it() {
        // The example of the specification.
        let hash = hashed("alice@example.com", "email", "matrixrocks");
        assert_eq!(hash, "4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc");
    }

    #[test]
    fn an_identity_server_is_a_host_and_nothing_else() {
        let server = |name: &str| IdentityServer { name: name.to_owned(), token: String::new() };
        let url = endpoint(&server("id.example:8090"), "lookup").unwrap();
        assert_eq!(url.as_str(), "https://id.example:8090/_matrix/identity/v2/lookup");
        for wrong in ["", "id.example/x", "a@id.example", "id.example?x", "id.example#x", "http://x"] {
            assert!(endpoint(&server(wrong), "lookup").is_err(), "{wrong}");
        }
    }
}
