//! Policy servers: <https://spec.matrix.org/v1.19/server-server-api/#policy-servers>.

use http::Method;
use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
use ruma::serde::Base64;
use ruma::{OwnedServerName, RoomVersionId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;
use waxwing_model::Event;
use waxwing_rooms::sign::{POLICY_KEY_ID, verify_policy, with_policy_signature};
use waxwing_rooms::{canonical_object, lenient_object};

use super::{Call, Client, ClientError, path};

/// How long a policy server may think: whoever sends waits for it, and so does the room that an event comes to.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// Its answer holds one signature.
const SIGN_BODY: usize = 16 << 10;

/// The policy server of a room, as `m.room.policy` in its state names it.
#[derive(Clone, Debug)]
pub struct PolicyServer {
    /// The server.
    pub via: OwnedServerName,
    /// Its public key.
    pub key: Base64,
}

#[derive(Deserialize)]
struct Content {
    via: OwnedServerName,
    public_keys: Keys,
}

#[derive(Deserialize)]
struct Keys {
    ed25519: Base64,
}

impl PolicyServer {
    /// Reads the state event; `None` for one that is no valid configuration: the room has no policy server then. Whether
    /// the server is in the room is for the caller to find out.
    pub fn of(event: &Event) -> Option<PolicyServer> {
        let content: Content = event.content_as().ok()?;
        Some(PolicyServer { via: content.via, key: content.public_keys.ed25519 })
    }

    /// Whether the event has its signature.
    pub fn has_signed(&self, event: &Event, version: &RoomVersionId) -> bool {
        lenient_object(event.json.get())
            .is_ok_and(|object| verify_policy(&object, version, &self.via, &self.key).is_ok())
    }
}

impl Client {
    /// `POST /_matrix/policy/v1/sign`: asks a room's policy server for its signature, and gives the event with it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the policy server is against the event; [`ClientError::Nonsense`] when its
    /// signature does not hold.
    pub async fn policy_sign(
        &self,
        policy: &PolicyServer,
        event: &Event,
        version: &RoomVersionId,
    ) -> Result<Event, ClientError> {
        let path = path(&["_matrix", "policy", "v1", "sign"]);
        let call = Call::new(&policy.via, Method::POST, path).body(&event.json);
        let answer: Box<RawValue> =
            self.json(call.timeout(SIGN_TIMEOUT).limit(SIGN_BODY).insistent()).await?;
        let nonsense = |why: &str| ClientError::Nonsense(why.to_owned());
        let answer = canonical_object(answer.get()).map_err(|error| nonsense(&error.to_string()))?;
        let only = signature_of(&answer, &policy.via)
            .ok_or_else(|| nonsense("no signature of the policy server"))?;
        let signed = with_policy_signature(event, &policy.via, &only);
        let signed = signed.map_err(|error| nonsense(&error.to_string()))?;
        if policy.has_signed(&signed, version) {
            Ok(signed)
        } else {
            Err(nonsense("the signature does not hold"))
        }
    }
}

/// The policy server's signature, and nothing else that the answer may hold.
fn signature_of(answer: &CanonicalJsonObject, via: &ServerName) -> Option<CanonicalJsonValue> {
    answer.get(via.as_str())?.as_object()?.get(POLICY_KEY_ID).cloned()
}
