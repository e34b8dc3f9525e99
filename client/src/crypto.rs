//! Drives the key machine, which does no IO of its own: it says what to send, we send it, and tell it the answer.

use std::sync::Arc;

use client_ruma::{
    OwnedUserId, RoomId, TransactionId, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_signatures},
        message::send_message_event,
        to_device::send_event_to_device,
    },
    events::{AnyMessageLikeEventContent, AnySyncTimelineEvent, AnyTimelineEvent, MessageLikeEventContent},
    serde::Raw,
};
use matrix_sdk_common::deserialized_responses::{
    AlgorithmInfo, EncryptionInfo, VerificationLevel, VerificationState,
};
use matrix_sdk_crypto::{
    CollectStrategy, DecryptionSettings, EncryptionSettings, MegolmError, TrustRequirement,
    types::{
        events::room::encrypted::EncryptedEvent,
        requests::{
            AnyOutgoingRequest, KeysQueryRequest, OutgoingVerificationRequest, RoomMessageRequest,
            ToDeviceRequest,
        },
    },
};
use serde::Deserialize;

use crate::{
    client::Client,
    error::{Error, Result},
    store::Waiting,
    timeline::{Seal, TimelineEvent},
};

/// Rounds of "send, and see what the answers make necessary". Two are usual: a query, then its consequence.
const MAX_ROUNDS: usize = 8;
/// Key claims per share: one, and a second for devices that answered with nothing usable.
const MAX_CLAIMS: usize = 2;

/// We show what we can decrypt and say how far it is trusted, instead of hiding it.
pub(crate) const DECRYPTION: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

impl Client {
    /// Sends what the key machine has to send: keys, queries, verification steps.
    pub async fn send_outgoing(&self) -> Result<()> {
        let _turn = self.outgoing_turn().lock().await;
        for _ in 0..MAX_ROUNDS {
            let requests = self.machine().outgoing_requests().await?;
            if requests.is_empty() {
                break;
            }
            for request in requests {
                self.send_machine_request(request.request_id(), request.request()).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn send_machine_request(
        &self,
        id: &TransactionId,
        request: &AnyOutgoingRequest,
    ) -> Result<()> {
        match request {
            AnyOutgoingRequest::KeysUpload(upload) => {
                let answer = self.http().send(upload.clone()).await?;
                self.machine().mark_request_as_sent(id, &answer).await?;
            }
            AnyOutgoingRequest::KeysQuery(query) => self.query_keys(id, query).await?,
            AnyOutgoingRequest::KeysClaim(claim) => self.claim_keys(id, claim.clone()).await?,
            AnyOutgoingRequest::ToDeviceRequest(request) => self.send_to_device(id, request).await?,
            AnyOutgoingRequest::SignatureUpload(upload) => {
                let answer = self.upload_signatures(upload.clone()).await?;
                self.machine().mark_request_as_sent(id, &answer).await?;
            }
            AnyOutgoingRequest::RoomMessage(message) => self.send_verification_message(id, message).await?,
        }
        Ok(())
    }

    /// Fetches the devices and identities of `users` now, whether or not they changed.
    pub async fn refresh_devices<'a>(&self, users: impl IntoIterator<Item = &'a UserId>) -> Result<()> {
        let (id, query) = self.machine().query_keys_for_users(users);
        self.query_keys(&id, &query).await
    }

    async fn query_keys(&self, id: &TransactionId, query: &KeysQueryRequest) -> Result<()> {
        let mut request = get_keys::v3::Request::new();
        request.timeout = query.timeout;
        request.device_keys.clone_from(&query.device_keys);
        let answer = self.http().send(request).await?;
        Ok(self.machine().mark_request_as_sent(id, &answer).await?)
    }

    async fn claim_keys(&self, id: &TransactionId, claim: claim_keys::v3::Request) -> Result<()> {
        let answer = self.http().send(claim).await?;
        Ok(self.machine().mark_request_as_sent(id, &answer).await?)
    }

    async fn send_to_device(&self, id: &TransactionId, request: &ToDeviceRequest) -> Result<()> {
        let answer = self
            .http()
            .send(send_event_to_device::v3::Request::new_raw(
                request.event_type.clone(),
                request.txn_id.clone(),
                request.messages.clone(),
            ))
            .await?;
        Ok(self.machine().mark_request_as_sent(id, &answer).await?)
    }

    /// Uploads signatures and says aloud when the server kept none of them.
    pub(crate) async fn upload_signatures(
        &self,
        upload: upload_signatures::v3::Request,
    ) -> Result<upload_signatures::v3::Response> {
        let answer = self.http().send(upload).await?;
        if !answer.failures.is_empty() {
            tracing::warn!(users = ?answer.failures.keys().collect::<Vec<_>>(), "signatures refused");
        }
        Ok(answer)
    }

    /// A verification step that travels in a room: sealed like every other message there.
    async fn send_verification_message(
        &self,
        id: &TransactionId,
        message: &RoomMessageRequest,
    ) -> Result<()> {
        let room = &message.room_id;
        let encrypted = self.room(room).is_some_and(|room| room.is_encrypted());
        let answer = if encrypted {
            self.share_room_key(room).await?;
            let event_type = message.content.event_type().to_string();
            let content = Raw::new(&*message.content)?;
            let sealed = self.machine().encrypt_room_event_raw(room, &event_type, &content).await?;
            self.http()
                .send(send_message_event::v3::Request::new_raw(
                    room.clone(),
                    message.txn_id.clone(),
                    "m.room.encrypted".into(),
                    sealed.content.cast_unchecked(),
                ))
                .await?
        } else {
            return Err(Error::NotEncrypted(room.clone()));
        };
        Ok(self.machine().mark_request_as_sent(id, &answer).await?)
    }

    pub(crate) async fn send_verification_request(&self, request: OutgoingVerificationRequest) -> Result<()> {
        let id = request.request_id().to_owned();
        self.send_machine_request(&id, &request.into()).await
    }

    /// Sees to it that every device entitled to read the room has the key of what we say next.
    pub(crate) async fn share_room_key(&self, room_id: &RoomId) -> Result<()> {
        let _turn = self.share_turn().lock().await;
        let room = self.room(room_id).ok_or_else(|| Error::UnknownRoom(room_id.to_owned()))?;
        let Some(encryption) = room.encryption.clone() else {
            return Err(Error::NotEncrypted(room_id.to_owned()));
        };
        let users = room.recipients();
        self.machine().update_tracked_users(users.iter().map(|user| &**user)).await?;
        self.send_key_queries().await?;
        self.claim_missing_sessions(&users).await?;
        let settings =
            EncryptionSettings::new(encryption, room.history_visibility, CollectStrategy::AllDevices);
        let shares: Vec<Arc<ToDeviceRequest>> =
            self.machine().share_room_key(room_id, users.iter().map(|user| &**user), settings).await?;
        for share in shares {
            self.send_to_device(&share.txn_id, &share).await?;
        }
        Ok(())
    }

    /// Only the queries: this runs inside the sending of other outgoing requests.
    async fn send_key_queries(&self) -> Result<()> {
        for request in self.machine().outgoing_requests().await? {
            if let AnyOutgoingRequest::KeysQuery(query) = request.request() {
                self.query_keys(request.request_id(), query).await?;
            }
        }
        Ok(())
    }

    async fn claim_missing_sessions(&self, users: &[OwnedUserId]) -> Result<()> {
        for _ in 0..MAX_CLAIMS {
            let missing = self.machine().get_missing_sessions(users.iter().map(|user| &**user)).await?;
            let Some((id, claim)) = missing else { break };
            self.claim_keys(&id, claim).await?;
        }
        Ok(())
    }

    /// Encrypts a message for a room whose key has been shared.
    pub(crate) async fn seal(
        &self,
        room_id: &RoomId,
        content: impl MessageLikeEventContent,
    ) -> Result<Raw<AnyMessageLikeEventContent>> {
        self.share_room_key(room_id).await?;
        Ok(self.machine().encrypt_room_event(room_id, content).await?.content.cast_unchecked())
    }

    /// Reads one event of a room's timeline, decrypting it when it is encrypted.
    pub(crate) async fn open_event(
        &self,
        room_id: &RoomId,
        raw: &Raw<AnySyncTimelineEvent>,
    ) -> Result<Opened> {
        if !is_sealed(raw) {
            return Ok(Opened::Clear(TimelineEvent::read(room_id, raw, Seal::Open)));
        }
        let encrypted: &Raw<EncryptedEvent> = raw.cast_ref_unchecked();
        match self.machine().decrypt_room_event(encrypted, room_id, &DECRYPTION).await {
            Ok(decrypted) => {
                let seal = self.seal_of(&decrypted.encryption_info).await?;
                let event = TimelineEvent::read(room_id, decrypted.event.cast_ref_unchecked(), seal);
                Ok(Opened::Decrypted(event, decrypted.event))
            }
            Err(MegolmError::Store(error)) => Err(error.into()),
            Err(reason) => Ok(Opened::Sealed(TimelineEvent::sealed(room_id, raw, reason))),
        }
    }

    /// A room key keeps the trust its sender had when it came; a sender verified since then counts as verified,
    /// provided that the key came from the very device that is verified now.
    async fn seal_of(&self, info: &EncryptionInfo) -> Result<Seal> {
        match (&info.verification_state, &info.sender_device, &info.algorithm_info) {
            (VerificationState::Verified, ..) => Ok(Seal::Verified),
            (
                VerificationState::Unverified(VerificationLevel::UnverifiedIdentity),
                Some(device),
                AlgorithmInfo::MegolmV1AesSha2 { curve25519_key, .. },
            ) => {
                let device = self.machine().get_device(&info.sender, device, None).await?;
                let verified = device.is_some_and(|device| {
                    let key = device.curve25519_key().map(|key| key.to_base64());
                    device.is_cross_signing_trusted() && key.as_deref() == Some(curve25519_key)
                });
                Ok(if verified { Seal::Verified } else { Seal::Unverified })
            }
            _ => Ok(Seal::Unverified),
        }
    }

    /// Reads an event that has just arrived: waits for its key when that is missing, and hands verification
    /// steps to the key machine. (Not for history: its verifications are long over.)
    pub(crate) async fn receive_event(
        &self,
        room_id: &RoomId,
        raw: &Raw<AnySyncTimelineEvent>,
    ) -> Result<Option<TimelineEvent>> {
        match self.open_event(room_id, raw).await? {
            Opened::Clear(event) => {
                // Other clients send these steps in the clear in encrypted rooms too; what is compared protects them.
                if let Ok(AnySyncTimelineEvent::MessageLike(step)) = raw.deserialize() {
                    let step = step.into_full_event(room_id.to_owned());
                    self.machine().receive_verification_event(&step).await?;
                }
                Ok(event)
            }
            Opened::Decrypted(event, decrypted) => {
                if let Ok(AnyTimelineEvent::MessageLike(step)) = decrypted.deserialize() {
                    self.machine().receive_verification_event(&step).await?;
                }
                Ok(event)
            }
            Opened::Sealed(event) => {
                if let Some(sealed) = &event {
                    self.store().wait_for_key(Waiting {
                        room_id: room_id.to_owned(),
                        event_id: sealed.event_id.clone(),
                        raw: raw.clone(),
                    });
                }
                Ok(event)
            }
        }
    }

    /// Tries again what waited for a key, and puts what opened into the timeline.
    pub(crate) async fn open_waiting(&self) -> Result<Vec<TimelineEvent>> {
        let waiting = self.store().take_waiting();
        let mut opened = Vec::new();
        for Waiting { room_id, raw, .. } in waiting {
            let event = self.receive_event(&room_id, &raw).await?;
            opened.extend(event.filter(|event| !event.is_sealed()));
        }
        let mut store = self.store();
        for event in &opened {
            store.put(event.clone());
        }
        Ok(opened)
    }
}

/// What became of an event when we tried to read it.
pub(crate) enum Opened {
    Clear(Option<TimelineEvent>),
    Decrypted(Option<TimelineEvent>, Raw<AnyTimelineEvent>),
    Sealed(Option<TimelineEvent>),
}

/// Whether there is something to decrypt: a redacted `m.room.encrypted` has lost its algorithm.
fn is_sealed(raw: &Raw<AnySyncTimelineEvent>) -> bool {
    #[derive(Deserialize)]
    struct Envelope {
        algorithm: Option<String>,
    }
    let is = |field, value| raw.get_field::<String>(field).ok().flatten().as_deref() == value;
    let has_algorithm =
        matches!(raw.get_field::<Envelope>("content"), Ok(Some(Envelope { algorithm: Some(_) })));
    is("type", Some("m.room.encrypted")) && is("state_key", None) && has_algorithm
}
