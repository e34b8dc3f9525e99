//! What nodes of one server need beside the database: where their hints go.

use crate::config::{Config, Secret};
use anyhow::Context;
use std::fs;
use waxwing_storage::Nats;

/// Where hints go over NATS; `None` where it is not configured.
///
/// # Errors
/// The file of credentials cannot be read, or the settings are none of NATS. No message shows a secret.
pub fn nats(config: &Config) -> anyhow::Result<Option<Nats>> {
    let cluster = &config.cluster;
    let Some(servers) = &cluster.nats else { return Ok(None) };
    let credentials = match &cluster.nats_credentials {
        Some(path) => Some(
            fs::read_to_string(path)
                .with_context(|| format!("cannot read cluster.nats_credentials, {}", path.display()))?,
        ),
        None => None,
    };
    let secret = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    let nats = Nats {
        servers: servers.expose().split(',').map(|server| server.trim().to_owned()).collect(),
        subject: cluster.nats_subject.clone().unwrap_or_else(|| format!("waxwing.{}", config.server_name)),
        user: cluster.nats_user.clone().zip(secret(&cluster.nats_password)),
        token: secret(&cluster.nats_token),
        credentials,
        roots: cluster.nats_ca.clone(),
        certificate: cluster.nats_certificate.clone().zip(cluster.nats_key.clone()),
    };
    nats.check().context("the settings of NATS under `cluster` are not right")?;
    Ok(Some(nats))
}
