//! Inviting people by an address: an identity server, which the client names, knows whose it is, or keeps the invitation
//! until somebody proves that it is theirs. <https://spec.matrix.org/v1.19/client-server-api/#third-party-invites>

use crate::Core;
use crate::timeline::{Author, Draft, Timeline, TimelineError, raw};
use ruma::canonical_json::CanonicalJsonObject;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::serde::Base64;
use ruma::serde::base64::Standard;
use ruma::signatures::verify_canonical_json_bytes;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, SigningKeyAlgorithm, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_federation::client::{Client, ClientError, IdentityKey, IdentityServer, StoreInvite};
use waxwing_model::{Event, state_key};
use waxwing_rooms::PowerLevels;

/// Keys of one invitation that are looked at: the identity server's own and one for the invitation.
const MAX_KEYS: usize = 10;
/// Bytes of an address: that of a mail is shorter.
const MAX_ADDRESS_BYTES: usize = 500;

/// Why nobody was invited.
#[derive(Debug, thiserror::Error)]
pub enum ThirdPartyError {
    /// The room's rules, or the database.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// This server does not speak to identity servers.
    #[error("this server uses no identity server")]
    Disabled,
    /// The identity server did not answer as it should.
    #[error("the identity server did not help: {0}")]
    Identity(#[from] ClientError),
    /// The address is none.
    #[error("{0}")]
    Invalid(&'static str),
    /// There is no such invitation, or what is said of it is not signed as it must be.
    #[error("{0}")]
    Forbidden(&'static str),
}

impl From<waxwing_storage::StoreError> for ThirdPartyError {
    fn from(error: waxwing_storage::StoreError) -> ThirdPartyError {
        ThirdPartyError::Timeline(error.into())
    }
}

/// An address, and the identity server that may know it.
#[derive(Clone, Debug)]
pub struct ThirdPartyInvite {
    /// The identity server, with the inviter's token for it.
    pub server: IdentityServer,
    /// `email` or `msisdn`.
    pub medium: String,
    /// The address.
    pub address: String,
}

/// What an identity server signs: this user has the address of that invitation.
/// <https://spec.matrix.org/v1.19/client-server-api/#mroommember>
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SignedInvite {
    /// The user.
    pub mxid: OwnedUserId,
    /// The invitation: the state key of its event.
    pub token: String,
    /// Signatures by server and key.
    pub signatures: Map<String, Value>,
    /// What else was signed.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Content of `m.room.third_party_invite`.
#[derive(Deserialize)]
struct Invitation {
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    public_key: Option<String>,
    #[serde(default)]
    key_validity_url: Option<String>,
    #[serde(default)]
    public_keys: Vec<IdentityKey>,
}

impl Invitation {
    fn keys(self) -> Vec<IdentityKey> {
        let first = self
            .public_key
            .map(|public_key| IdentityKey { public_key, key_validity_url: self.key_validity_url.clone() });
        first.into_iter().chain(self.public_keys).take(MAX_KEYS).collect()
    }
}

/// Invites by address. A handle: clones share everything.
#[derive(Clone)]
pub struct ThirdParty {
    core: Core,
    timeline: Timeline,
    client: Option<Client>,
}

impl ThirdParty {
    /// Over the rooms of `timeline`; `client` speaks to identity servers (none without federation).
    pub fn new(core: Core, timeline: Timeline, client: Option<Client>) -> ThirdParty {
        ThirdParty { core, timeline, client }
    }

    /// Invites whoever has an address: at once, if the identity server knows who that is, or when somebody proves it.
    ///
    /// # Errors
    /// [`ThirdPartyError::Timeline`] for one who may not invite, before the identity server learns anything;
    /// [`ThirdPartyError::Identity`], [`ThirdPartyError::Disabled`], [`ThirdPartyError::Invalid`].
    pub async fn invite(
        &self,
        author: &Author,
        room: &RoomId,
        invite: &ThirdPartyInvite,
    ) -> Result<(), ThirdPartyError> {
        let client = self.client.as_ref().ok_or(ThirdPartyError::Disabled)?;
        let address = plain_address(&invite.medium, &invite.address)?;
        let about = self.about(author, room).await?;
        if let Some(user) = client.identity_lookup(&invite.server, &invite.medium, &address).await? {
            return Ok(self.timeline.invite(author, room, &user, Map::new()).await?);
        }
        let wanted = StoreInvite { medium: invite.medium.clone(), address, ..about };
        let stored = client.identity_store_invite(&invite.server, &wanted).await?;
        let Some(first) = stored.public_keys.first() else {
            return Err(ClientError::Nonsense("an invitation without keys".to_owned()).into());
        };
        let keys: Vec<&IdentityKey> = stored.public_keys.iter().take(MAX_KEYS).collect();
        let content = json!({
            "display_name": stored.display_name,
            "public_key": first.public_key,
            "key_validity_url": first.key_validity_url,
            "public_keys": keys,
        });
        let kind = TimelineEventType::RoomThirdPartyInvite;
        let draft = Draft::state(author.user.clone(), kind, stored.token, raw(&content)?);
        self.timeline.set_state(author, room, draft).await?;
        Ok(())
    }

    /// What the invited may be told of the room and the inviter, if that one may invite.
    async fn about(&self, author: &Author, room: &RoomId) -> Result<StoreInvite, ThirdPartyError> {
        let kinds = [
            StateEventType::RoomCreate,
            StateEventType::RoomPowerLevels,
            StateEventType::RoomName,
            StateEventType::RoomCanonicalAlias,
            StateEventType::RoomAvatar,
            StateEventType::RoomJoinRules,
        ];
        let mut keys: Vec<_> = kinds.into_iter().map(|kind| state_key(kind, "")).collect();
        keys.push(state_key(StateEventType::RoomMember, author.user.as_str()));
        let mut conn = self.core.store.read().await?;
        let row = conn.room_load(room).await?.ok_or(TimelineError::NoRoom)?;
        let ids = self.core.store.state(&mut conn).get_many(row.state_root, &keys).await?;
        drop(conn);
        let known: Vec<_> = ids.iter().flatten().cloned().collect();
        let events = self.core.store.events(&known).await?;
        let events: Vec<Option<&Event>> =
            ids.iter().map(|id| Some(&*events.get(id.as_ref()?)?.event)).collect();
        let [Some(create), levels, name, alias, avatar, rules, member] = events[..] else {
            return Err(TimelineError::NoRoom.into());
        };
        let member = member.filter(|member| member.content_str("membership").as_deref() == Some("join"));
        let member = member.ok_or(TimelineError::NotInRoom)?;
        let power = PowerLevels::new(create, levels, &row.version).map_err(TimelineError::from)?;
        if !power.can_invite(&author.user) {
            return Err(TimelineError::Forbidden("you may not invite to this room".to_owned()).into());
        }
        let text = |event: Option<&Event>, field: &str| event.and_then(|event| event.content_str(field));
        Ok(StoreInvite {
            room_id: room.to_string(),
            sender: author.user.to_string(),
            room_alias: text(alias, "alias"),
            room_avatar_url: text(avatar, "url"),
            room_join_rules: text(rules, "join_rule"),
            room_name: text(name, "name"),
            room_type: text(Some(create), "type"),
            sender_display_name: text(Some(member), "displayname"),
            sender_avatar_url: text(Some(member), "avatar_url"),
            ..StoreInvite::default()
        })
    }

    /// A user of ours proved to have the address of an invitation: turns it into one of the user, here or through the
    /// inviter's server.
    ///
    /// # Errors
    /// [`ThirdPartyError::Forbidden`] for another's user and for what is not signed; errors of the inviter's server.
    pub async fn bound(
        &self,
        room: &RoomId,
        sender: &UserId,
        signed: &SignedInvite,
    ) -> Result<(), ThirdPartyError> {
        if !self.core.is_local(&signed.mxid) {
            return Err(ThirdPartyError::Forbidden("the user is not of this server"));
        }
        if self.core.is_local(sender) {
            return self.exchange(room, sender, signed).await;
        }
        let client = self.client.as_ref().ok_or(ThirdPartyError::Disabled)?;
        let event = json!({
            "type": "m.room.member",
            "room_id": room,
            "sender": sender,
            "state_key": signed.mxid,
            "content": {
                "membership": "invite",
                "third_party_invite": { "display_name": signed.mxid.localpart(), "signed": signed },
            },
        });
        let event = raw(&event)?;
        let exchanged = client.exchange_third_party_invite(sender.server_name(), room, &event).await;
        exchanged.map_err(|error| match error {
            // The inviter's server judges what the identity server has signed.
            ClientError::Refused(refusal) if refusal.errcode.starts_with("M_") => {
                let (status, errcode) = (refusal.status.as_u16(), refusal.errcode);
                let (error, retry_after) = (refusal.error, refusal.retry_after);
                TimelineError::Remote { status, errcode, error, retry_after }.into()
            }
            other => other.into(),
        })
    }

    /// Invites the user who has the address of an invitation that `sender`, a user of ours, made.
    /// <https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid>
    ///
    /// # Errors
    /// [`ThirdPartyError::Forbidden`] when there is no such invitation, or none of the signatures is by a key of it that
    /// still counts.
    pub async fn exchange(
        &self,
        room: &RoomId,
        sender: &UserId,
        signed: &SignedInvite,
    ) -> Result<(), ThirdPartyError> {
        if !self.core.is_local(sender) {
            return Err(ThirdPartyError::Forbidden("the inviter is not of this server"));
        }
        let event = self.invitation(room, &signed.token).await?;
        if event.sender != sender {
            return Err(ThirdPartyError::Forbidden("the invitation is somebody else's"));
        }
        let invitation: Invitation =
            event.content_as().map_err(|_| ThirdPartyError::Forbidden("the invitation was taken back"))?;
        let display_name = invitation.display_name.clone();
        self.check_signed(signed, invitation.keys()).await?;
        let mut content = Map::new();
        content.insert(
            "third_party_invite".to_owned(),
            json!({ "display_name": display_name, "signed": signed }),
        );
        let author = Author::new(sender);
        Ok(self.timeline.invite(&author, room, &signed.mxid, content).await?)
    }

    async fn invitation(&self, room: &RoomId, token: &str) -> Result<Arc<Event>, ThirdPartyError> {
        let none = ThirdPartyError::Forbidden("there is no such invitation");
        let id = {
            let mut conn = self.core.store.read().await?;
            let Some(row) = conn.room_load(room).await? else { return Err(none) };
            let kind = StateEventType::RoomThirdPartyInvite;
            self.core.store.state(&mut conn).get(row.state_root, kind, token).await?
        };
        let Some(id) = id else { return Err(none) };
        let stored = self.core.store.event(&id).await?;
        stored.map(|stored| Arc::clone(&stored.event)).ok_or(none)
    }

    /// Whether one of the signatures is by one of these keys, and that key still counts.
    async fn check_signed(
        &self,
        signed: &SignedInvite,
        keys: Vec<IdentityKey>,
    ) -> Result<(), ThirdPartyError> {
        let signatures = signatures(signed);
        let text = signed_text(signed)?;
        for key in keys {
            // Standard or URL-safe, with or without padding: both are in use.
            let standard = key.public_key.replace('-', "+").replace('_', "/");
            let Ok(public) = Base64::<Standard>::parse(standard) else { continue };
            let verified = signatures.iter().any(|signature| {
                verify_canonical_json_bytes(
                    &SigningKeyAlgorithm::Ed25519,
                    public.as_bytes(),
                    signature.as_bytes(),
                    text.as_bytes(),
                )
                .is_ok()
            });
            if !verified {
                continue;
            }
            let Some(url) = &key.key_validity_url else { return Ok(()) };
            let client = self.client.as_ref().ok_or(ThirdPartyError::Disabled)?;
            if client.identity_key_is_valid(url, &key.public_key).await? {
                return Ok(());
            }
        }
        Err(ThirdPartyError::Forbidden("no key of the invitation that counts has signed this"))
    }
}

/// The Ed25519 signatures, whoever made them.
fn signatures(signed: &SignedInvite) -> Vec<Base64> {
    let by_server = signed.signatures.values().filter_map(Value::as_object);
    by_server
        .flatten()
        .filter(|(key, _)| key.starts_with("ed25519:"))
        .filter_map(|(_, signature)| Base64::parse(signature.as_str()?).ok())
        .take(MAX_KEYS)
        .collect()
}

/// What was signed, as canonical JSON.
fn signed_text(signed: &SignedInvite) -> Result<String, ThirdPartyError> {
    let wrong = |_| ThirdPartyError::Invalid("what is signed is no canonical JSON");
    let text = raw(signed)?;
    let mut object: CanonicalJsonObject = serde_json::from_str(text.get()).map_err(wrong)?;
    object.remove("signatures");
    object.remove("unsigned");
    serde_json::to_string(&object).map_err(wrong)
}

/// The address as identity servers compare it.
/// <https://spec.matrix.org/v1.19/appendices/#3pid-types>
fn plain_address(medium: &str, address: &str) -> Result<String, ThirdPartyError> {
    if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
        return Err(ThirdPartyError::Invalid("this is no address"));
    }
    match medium {
        "email" => Ok(address.trim().to_lowercase()),
        "msisdn" if address.bytes().all(|digit| digit.is_ascii_digit()) => Ok(address.to_owned()),
        _ => Err(ThirdPartyError::Invalid("addresses of this kind are not known")),
    }
}

/// The partial member event of an exchange.
#[derive(Deserialize)]
pub struct PartialInvite {
    /// `m.room.member`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who made the invitation.
    pub sender: OwnedUserId,
    /// Who has the address.
    pub state_key: OwnedUserId,
    /// The content.
    pub content: Box<RawValue>,
}

impl PartialInvite {
    /// What the identity server signed.
    ///
    /// # Errors
    /// [`ThirdPartyError::Invalid`] for what is no invitation by an address of this user.
    pub fn signed(&self) -> Result<SignedInvite, ThirdPartyError> {
        #[derive(Deserialize)]
        struct Content {
            membership: String,
            third_party_invite: ByAddress,
        }
        #[derive(Deserialize)]
        struct ByAddress {
            signed: SignedInvite,
        }
        let content: Content = serde_json::from_str(self.content.get())
            .map_err(|_| ThirdPartyError::Invalid("the content is no invitation by an address"))?;
        let signed = content.third_party_invite.signed;
        if self.kind != "m.room.member" || content.membership != "invite" || signed.mxid != self.state_key {
            return Err(ThirdPartyError::Invalid("the event is no invitation of this user"));
        }
        Ok(signed)
    }
}

/// Invitations that an identity server hands over when an address is bound.
/// <https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv13pidonbind>
#[derive(Deserialize)]
pub struct Binding {
    /// The user who has the address now.
    pub mxid: OwnedUserId,
    /// What waited for the address.
    pub invites: Vec<PendingInvite>,
}

/// One of them.
#[derive(Deserialize)]
pub struct PendingInvite {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who made the invitation.
    pub sender: OwnedUserId,
    /// What the identity server signed.
    pub signed: SignedInvite,
    /// Anything else.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_in_lower_case() {
        assert_eq!(plain_address("email", " Ann@Example.ORG").unwrap(), "ann@example.org");
        assert_eq!(plain_address("msisdn", "4912345").unwrap(), "4912345");
        assert!(plain_address("msisdn", "+49").is_err() && plain_address("email", "").is_err());
        assert!(plain_address("pigeon", "x").is_err());
    }

    #[test]
    fn what_is_signed_is_everything_but_the_signatures() {
        let signed: SignedInvite = serde_json::from_value(json!({
            "token": "t", "mxid": "@a:b.c", "sender": "@x:y.z", "signatures": { "id": { "ed25519:0": "AAAA" } },
        }))
        .unwrap();
        assert_eq!(signed_text(&signed).unwrap(), r#"{"mxid":"@a:b.c","sender":"@x:y.z","token":"t"}"#);
        assert_eq!(signatures(&signed).len(), 1);
    }

    #[test]
    fn only_an_invitation_of_that_user_is_exchanged() {
        let partial = |mxid: &str, membership: &str| -> PartialInvite {
            serde_json::from_value(json!({
                "type": "m.room.member", "room_id": "!r:b.c", "sender": "@x:y.z", "state_key": "@a:b.c",
                "content": { "membership": membership, "third_party_invite": { "display_name": "a",
                    "signed": { "token": "t", "mxid": mxid, "signatures": {} } } },
            }))
            .unwrap()
        };
        assert!(partial("@a:b.c", "invite").signed().is_ok());
        assert!(partial("@other:b.c", "invite").signed().is_err());
        assert!(partial("@a:b.c", "join").signed().is_err());
    }
}
