//! Taking one-time keys of other devices.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysclaim>

use super::remote::{failure, too_late};
use super::{Keys, KeysError, REMOTE_PARALLEL, REMOTE_TIMEOUT};
use futures_util::StreamExt;
use ruma::api::federation::keys::claim_keys;
use ruma::encryption::OneTimeKey;
use ruma::serde::Raw;
use ruma::{OneTimeKeyAlgorithm, OwnedDeviceId, OwnedOneTimeKeyId, OwnedServerName, OwnedUserId};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use waxwing_storage::{Fact, KeyClaim, NewRow, Tx};

/// Devices that one claim may name: those of a large room, claimed at once.
const MAX_DEVICES: usize = 20_000;

/// Of which device a key of which algorithm is wanted.
pub type Claims = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>>;

/// The keys that were taken.
pub type ClaimedKeys =
    BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>>>;

/// What a claim answers.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// The keys; devices that have none are left out.
    pub one_time_keys: ClaimedKeys,
    /// Servers that did not answer, and why.
    pub failures: BTreeMap<String, Value>,
}

impl Keys {
    /// Takes a key of each device. No one gets the same one-time key again. Other servers are asked in parallel, for at
    /// most `timeout` and ten seconds.
    pub async fn claim(&self, claims: Claims, timeout: Option<Duration>) -> Result<Claimed, KeysError> {
        let (local, remote): (Claims, Claims) =
            claims.into_iter().partition(|(user, _)| self.core.is_local(user));
        let mut claimed =
            Claimed { one_time_keys: self.claim_local(local).await?, failures: BTreeMap::new() };
        let mut servers: BTreeMap<OwnedServerName, Claims> = BTreeMap::new();
        for (user, devices) in remote {
            servers.entry(user.server_name().to_owned()).or_default().insert(user, devices);
        }
        let limit = timeout.unwrap_or(REMOTE_TIMEOUT).min(REMOTE_TIMEOUT);
        let asked = futures_util::stream::iter(servers.into_iter().map(|(server, claims)| async move {
            let got = tokio::time::timeout(limit, self.claim_remote(&server, claims)).await;
            (server, got.unwrap_or_else(|_| Err(too_late())))
        }));
        let mut asked = asked.buffer_unordered(REMOTE_PARALLEL);
        while let Some((server, got)) = asked.next().await {
            match got {
                Ok(keys) => claimed.one_time_keys.extend(keys),
                Err(failure) => drop(claimed.failures.insert(server.to_string(), failure)),
            }
        }
        Ok(claimed)
    }

    /// Takes keys of our users' devices, for anyone. Users of other servers are left out.
    /// <https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1userkeysclaim>
    pub async fn claim_local(&self, claims: Claims) -> Result<ClaimedKeys, KeysError> {
        let local = claims.into_iter().filter(|(user, _)| self.core.is_local(user));
        let local: Vec<KeyClaim> = local
            .flat_map(|(user, devices)| {
                let claim = move |(device, algorithm): (OwnedDeviceId, OneTimeKeyAlgorithm)| {
                    (user.clone(), device.to_string(), algorithm.to_string())
                };
                devices.into_iter().map(claim)
            })
            .collect();
        if local.len() > MAX_DEVICES {
            return Err(KeysError::TooLarge(format!("at most {MAX_DEVICES} devices at once")));
        }
        if local.is_empty() {
            return Ok(ClaimedKeys::new());
        }
        let local = Arc::new(local);
        self.core
            .store
            .write("keys.claim", Vec::new(), move |tx| {
                let local = Arc::clone(&local);
                Box::pin(async move { take(tx, &local).await })
            })
            .await
    }

    async fn claim_remote(&self, server: &OwnedServerName, claims: Claims) -> Result<ClaimedKeys, Value> {
        let Some(client) = self.client.as_ref().filter(|_| self.core.settings.federation) else {
            return Err(too_late());
        };
        let request = claim_keys::v1::Request::new(claims.clone());
        let answer = client.keys_claim(server, request).await.map_err(|error| {
            tracing::debug!(%server, %error, "no one-time keys from another server");
            failure(&error)
        })?;
        let mut keys = answer.one_time_keys;
        keys.retain(|user, devices| {
            let asked = claims.get(user);
            devices.retain(|device, keys| {
                asked.is_some_and(|asked| asked.contains_key(device)) && !keys.is_empty()
            });
            !devices.is_empty()
        });
        Ok(keys)
    }
}

async fn take(tx: &mut Tx, claims: &[KeyClaim]) -> Result<ClaimedKeys, KeysError> {
    let mut taken = ClaimedKeys::new();
    let found = tx.one_time_keys_claim(claims).await?;
    for ((user, device, algorithm), key) in claims.iter().zip(found) {
        let Some(key) = key else { continue };
        if key.changed {
            let row = NewRow::new(Fact::OneTimeKeys).user(user.clone());
            tx.log_append(row.reference(device.as_str()));
        }
        let id = OwnedOneTimeKeyId::try_from(format!("{algorithm}:{}", key.key_id));
        let (Ok(id), Ok(json)) = (id, Raw::from_json_string(key.json)) else { continue };
        taken.entry(user.clone()).or_default().entry(device.as_str().into()).or_default().insert(id, json);
    }
    Ok(taken)
}
