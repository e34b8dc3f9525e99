//! The part of the configuration that concerns people's accounts, as services take it: mail, terms, notices, TURN.

use crate::config::{Config, MailTls, Secret};
use anyhow::Context;
use ruma::{OwnedUserId, UserId};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_services::mail::{self, MailSettings, Mailer};
use waxwing_services::{
    AccountSettings, EmailSettings, NoticeSettings, TermsSettings, TurnAccess, TurnSettings,
};

/// What services act upon.
pub fn settings(config: &Config) -> anyhow::Result<AccountSettings> {
    let base = config.public_base_url.as_ref().or(config.well_known.client.as_ref());
    let email = &config.email;
    Ok(AccountSettings {
        base_url: base.map(|url| url.as_str().trim_end_matches('/').to_owned()),
        organisation: config.organisation.clone(),
        email: email.server.as_ref().map(|_| EmailSettings {
            required: email.required,
            allowed_domains: email.allowed_domains.clone(),
            next_link_domains: email.next_link_domains.clone(),
        }),
        terms: TermsSettings {
            version: config.terms.version.clone(),
            language: config.terms.language.clone(),
            policies: config.terms.policies.iter().map(|(title, url)| (title.clone(), url.clone())).collect(),
        },
        turn: turn(config),
        notices: notices_user(config)?.map(|user| NoticeSettings {
            user,
            display_name: config.server_notices.display_name.clone(),
            avatar_url: config.server_notices.avatar_url.clone(),
            room_name: config.server_notices.room_name.clone(),
        }),
    })
}

fn turn(config: &Config) -> Option<TurnSettings> {
    let turn = &config.turn;
    if turn.uris.is_empty() {
        return None;
    }
    let access = match (&turn.shared_secret, &turn.username, &turn.password) {
        (Some(secret), _, _) => TurnAccess::SharedSecret(secret.expose().to_owned()),
        (None, Some(username), Some(password)) => {
            TurnAccess::Password { username: username.clone(), password: password.expose().to_owned() }
        }
        _ => return None,
    };
    let lifetime = Duration::from_secs(turn.lifetime_seconds);
    Some(TurnSettings { uris: turn.uris.clone(), access, lifetime, guests: turn.guests })
}

/// The user as whom the server writes to its people, where it does.
pub fn notices_user(config: &Config) -> anyhow::Result<Option<OwnedUserId>> {
    let notices = &config.server_notices;
    if !notices.enabled {
        return Ok(None);
    }
    let id = format!("@{}:{}", notices.localpart, config.server_name);
    UserId::parse(&id).map(Some).with_context(|| format!("server_notices.localpart: {id} is no user id"))
}

/// What sends letters, until `stop` is cancelled; none where there is no mail server.
pub fn mailer(
    config: &Config,
    extra_roots: &[Vec<u8>],
    stop: &CancellationToken,
) -> anyhow::Result<Option<Mailer>> {
    let email = &config.email;
    let Some(host) = &email.server else { return Ok(None) };
    let (tls, port) = match email.tls {
        MailTls::StartTls => (mail::MailTls::StartTls, 587),
        MailTls::Tls => (mail::MailTls::Tls, 465),
        MailTls::None => (mail::MailTls::None, 25),
    };
    // A server name may have a port, which is no part of an address.
    let name = config.server_name.host();
    let password = email.password.as_ref().map(Secret::expose);
    let settings = MailSettings {
        host: host.clone(),
        port: email.port.unwrap_or(port),
        tls,
        credentials: email.username.clone().zip(password.map(str::to_owned)),
        from: email.from.clone().unwrap_or_else(|| format!("noreply@{name}")),
        extra_roots: extra_roots.to_vec(),
        server_name: name.to_owned(),
    };
    Mailer::start(&settings, stop.clone()).map(Some).context("cannot set up mail")
}
