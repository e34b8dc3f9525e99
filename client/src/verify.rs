//! Verification by short authentication string: two people compare seven emoji over a channel they trust, and
//! their devices sign each other's identities.
//!
//! Both sides run to completion by themselves: they sync, answer the protocol's steps, and call `confirm` once
//! with what to compare. <https://spec.matrix.org/v1.18/client-server-api/#short-authentication-string-sas-verification>

use std::time::{Duration, Instant};

use client_ruma::{
    OwnedUserId, RoomId, UserId,
    events::{key::verification::VerificationMethod, room::message::RoomMessageEventContent},
};
use matrix_sdk_crypto::{
    CancelInfo, Sas, SasState, UserIdentity, Verification, VerificationRequest, VerificationRequestState,
};

use crate::{
    client::Client,
    error::{Error, Result},
};

/// How long one poll holds while the other side thinks; short, because steps come in quick succession.
const STEP_POLL: Duration = Duration::from_secs(5);
/// Syncs after the last step, so that the other side's "done" and its signatures arrive.
const CLOSING_SYNCS: usize = 2;

/// The way the steps travel.
#[derive(Clone, Copy, Debug)]
pub enum Channel<'a> {
    /// Device to device.
    Direct,
    /// As messages in a room that both are in.
    Room(&'a RoomId),
}

/// What the two people compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortString {
    /// Symbol and English name, seven of them; empty when the other side cannot show emoji.
    pub emoji: Vec<(&'static str, &'static str)>,
    pub decimals: (u16, u16, u16),
}

impl Client {
    /// Asks `user` for a verification and carries it through. With our own id: verifies our other devices.
    pub async fn verify_with<F>(
        &self,
        user: &UserId,
        channel: Channel<'_>,
        timeout: Duration,
        confirm: F,
    ) -> Result<ShortString>
    where
        F: AsyncFnOnce(&ShortString) -> bool,
    {
        self.refresh_devices([user]).await?;
        let request = match channel {
            Channel::Room(room) => self.request_in_room(user, room).await?,
            Channel::Direct => self.request_direct(user).await?,
        };
        self.carry_through(request, timeout, confirm).await
    }

    /// Waits for a verification request from `user`, accepts it and carries it through.
    pub async fn accept_verification<F>(
        &self,
        user: &UserId,
        timeout: Duration,
        confirm: F,
    ) -> Result<ShortString>
    where
        F: AsyncFnOnce(&ShortString) -> bool,
    {
        // A request from a device we do not know would be dropped.
        self.refresh_devices([user]).await?;
        let deadline = Instant::now() + timeout;
        let request = loop {
            let open = |request: &VerificationRequest| {
                !request.we_started()
                    && !request.is_done()
                    && !request.is_cancelled()
                    && !request.is_passive()
            };
            if let Some(request) = self.machine().get_verification_requests(user).into_iter().find(open) {
                break request;
            }
            let left = time_left(deadline, timeout, "a verification request")?;
            self.sync_once(left.min(STEP_POLL)).await?;
        };
        let left = time_left(deadline, timeout, "the verification")?;
        self.carry_through(request, left, confirm).await
    }

    async fn request_in_room(&self, user: &UserId, room: &RoomId) -> Result<VerificationRequest> {
        let methods = Some(vec![VerificationMethod::SasV1]);
        let Some(UserIdentity::Other(identity)) = self.machine().get_identity(user, None).await? else {
            return Err(Error::NothingToVerify(user.to_owned()));
        };
        let content = RoomMessageEventContent::new(identity.verification_request_content(methods.clone()));
        let event_id = self.send_content(room, content).await?;
        Ok(identity.request_verification(room, &event_id, methods))
    }

    async fn request_direct(&self, user: &UserId) -> Result<VerificationRequest> {
        let methods = vec![VerificationMethod::SasV1];
        let (request, outgoing) = match self.machine().get_identity(user, None).await? {
            Some(UserIdentity::Own(identity)) => identity.request_verification_with_methods(methods).await?,
            _ => {
                let devices = self.machine().get_user_devices(user, None).await?;
                let other = devices.devices().find(|device| device.device_id() != self.device_id());
                let device = other.ok_or_else(|| Error::NothingToVerify(user.to_owned()))?;
                device.request_verification_with_methods(methods)
            }
        };
        self.send_verification_request(outgoing).await?;
        Ok(request)
    }

    async fn carry_through<F>(
        &self,
        request: VerificationRequest,
        timeout: Duration,
        confirm: F,
    ) -> Result<ShortString>
    where
        F: AsyncFnOnce(&ShortString) -> bool,
    {
        let deadline = Instant::now() + timeout;
        let sas = self.begin_sas(&request, deadline, timeout).await?;
        let compared = self.exchange_keys(&sas, deadline, timeout).await?;
        if !confirm(&compared).await {
            if let Some(cancel) = sas.cancel() {
                self.send_verification_request(cancel).await?;
            }
            return Err(Error::VerificationCancelled("the strings did not match".to_owned()));
        }
        let (steps, signatures) = sas.confirm().await?;
        for step in steps {
            self.send_verification_request(step).await?;
        }
        if let Some(signatures) = signatures {
            self.upload_signatures(signatures).await?;
        }
        while !sas.is_done() {
            if let Some(reason) = sas.cancel_info() {
                return Err(cancelled(&reason));
            }
            let left = time_left(deadline, timeout, "the other side to confirm")?;
            self.sync_once(left.min(STEP_POLL)).await?;
        }
        for _ in 0..CLOSING_SYNCS {
            self.sync_once(Duration::ZERO).await?;
        }
        self.refresh_devices([self.user_id(), sas.other_user_id()]).await?;
        Ok(compared)
    }

    /// From the request to a running SAS exchange.
    async fn begin_sas(
        &self,
        request: &VerificationRequest,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Sas> {
        loop {
            match request.state() {
                VerificationRequestState::Requested { .. } => {
                    if let Some(accept) = request.accept_with_methods(vec![VerificationMethod::SasV1]) {
                        self.send_verification_request(accept).await?;
                        continue;
                    }
                }
                VerificationRequestState::Ready { .. } if request.we_started() => {
                    if let Some((_, start)) = request.start_sas().await? {
                        self.send_verification_request(start).await?;
                        continue;
                    }
                }
                VerificationRequestState::Transitioned { verification: Verification::SasV1(sas), .. } => {
                    return Ok(*sas);
                }
                VerificationRequestState::Cancelled(reason) => return Err(cancelled(&reason)),
                _ => {}
            }
            let left = time_left(deadline, timeout, "the other side to answer")?;
            self.sync_once(left.min(STEP_POLL)).await?;
        }
    }

    async fn exchange_keys(&self, sas: &Sas, deadline: Instant, timeout: Duration) -> Result<ShortString> {
        loop {
            match sas.state() {
                SasState::Started { .. } => {
                    if let Some(accept) = sas.accept() {
                        self.send_verification_request(accept).await?;
                    }
                }
                SasState::KeysExchanged { emojis, decimals } => {
                    let emoji = emojis
                        .map(|found| found.emojis.iter().map(|one| (one.symbol, one.description)).collect());
                    return Ok(ShortString { emoji: emoji.unwrap_or_default(), decimals });
                }
                SasState::Cancelled(reason) => return Err(cancelled(&reason)),
                _ => {}
            }
            let left = time_left(deadline, timeout, "the other side's keys")?;
            self.sync_once(left.min(STEP_POLL)).await?;
        }
    }

    /// Verification requests that wait for an answer, by sender.
    pub fn pending_verifications(&self) -> Vec<OwnedUserId> {
        let mut senders: Vec<OwnedUserId> = self
            .store()
            .rooms()
            .flat_map(|(_, room)| room.members.keys().cloned().collect::<Vec<_>>())
            .collect();
        senders.push(self.user_id().to_owned());
        senders.sort();
        senders.dedup();
        senders.retain(|user| {
            self.machine()
                .get_verification_requests(user)
                .iter()
                .any(|request| !request.we_started() && !request.is_done() && !request.is_cancelled())
        });
        senders
    }
}

fn time_left(deadline: Instant, timeout: Duration, what: &str) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout { what: what.to_owned(), after: timeout });
    }
    Ok(left)
}

fn cancelled(info: &CancelInfo) -> Error {
    let by = if info.cancelled_by_us() { "by us" } else { "by the other side" };
    Error::VerificationCancelled(format!("{by}: {}", info.reason()))
}
