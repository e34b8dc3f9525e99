//! Finding out that somebody reads what is sent to an address: a letter with a link, a page that asks to confirm (so that
//! programs that open every link confirm nothing), and a session that the client then shows.
//!
//! The token in the link follows from the session and the server's key, so that the database does not hold it, any
//! node can check it, and a second letter does not make the first one useless.

use super::letters::{Subject, letter};
use super::{EMAIL, address};
use crate::accounts::{AccountError, Accounts};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::Duration;
use url::Url;
use waxwing_model::opaque_id;
use waxwing_storage::ValidationRow;

/// How long the link in a letter is good. Some mail servers deliver late.
const LINK_LIFETIME: Duration = Duration::from_hours(1);
/// How long a session can be used after it began: <https://spec.matrix.org/v1.19/identity-service-api/#association-lookup>
/// knows a day.
const SESSION_KEPT_FOR: Duration = Duration::from_hours(24);
/// Wrong tokens after which a session is over. Nobody mistypes a link.
const MAX_WRONG: i64 = 5;
/// Letters of one session: so often one can ask for another.
const MAX_LETTERS: i64 = 10;
/// A longer link is none that a client makes.
const LONGEST_LINK: usize = 2048;
/// The page of the links, under the server's address.
const PAGE: &str = "/_waxwing/email/confirm";

/// What an address shall be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A new account.
    Register,
    /// One more address of an account.
    Add,
    /// A new password.
    Password,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Purpose::Register => "register",
            Purpose::Add => "add",
            Purpose::Password => "password",
        }
    }

    fn of(word: &str) -> Purpose {
        match word {
            "register" => Purpose::Register,
            "password" => Purpose::Password,
            _ => Purpose::Add,
        }
    }
}

/// A request for a letter.
#[derive(Clone, Copy, Debug)]
pub struct TokenRequest<'a> {
    /// What for.
    pub purpose: Purpose,
    /// The address.
    pub email: &'a str,
    /// What the client made up; with it, it uses the session afterwards.
    pub client_secret: &'a str,
    /// Another letter is sent only for a higher number than before.
    pub send_attempt: i64,
    /// Where the browser goes after the link was confirmed.
    pub next_link: Option<&'a str>,
}

/// A validated address, to be used once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The session.
    pub sid: String,
    /// The address.
    pub address: String,
    /// When it was validated.
    pub validated_at: u64,
}

/// What a link in a letter stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// What for.
    pub purpose: Purpose,
    /// The address.
    pub address: String,
    /// Where the browser goes next.
    pub next_link: Option<String>,
    /// It was confirmed before.
    pub already: bool,
}

impl Accounts {
    /// Sends a letter, and gives the session's id. Whether the address is an account's is told in the letter only.
    ///
    /// # Errors
    /// [`AccountError::MediumNotSupported`] without a mail server, [`AccountError::InvalidParam`],
    /// [`AccountError::AddressDenied`], [`AccountError::MailBusy`].
    pub async fn request_email(&self, request: TokenRequest<'_>) -> Result<String, AccountError> {
        let mailer = self.mailer.as_ref().ok_or(AccountError::MediumNotSupported)?;
        let row = self.new_validation(request)?;
        let owner = self.core.store.read().await?.threepid_load(EMAIL, &row.address).await?.is_some();
        let (sid, send) = self.begin_validation(row.clone()).await?;
        if !send {
            return Ok(sid);
        }
        let link =
            format!("{}{PAGE}?sid={sid}&token={}", self.core.base_url(), self.token(&sid, &row.address));
        let about = match (request.purpose, owner) {
            (Purpose::Register | Purpose::Add, true) => Subject::InUse,
            (Purpose::Password, false) => Subject::Unknown,
            _ => Subject::Confirm { link: &link },
        };
        let (organisation, server) = (self.core.organisation(), self.core.server_name.as_str());
        let letter = letter(&row.address, request.purpose, &about, organisation, server);
        mailer.send(letter).map_err(|error| {
            tracing::warn!(%error, "no letter");
            AccountError::MailBusy
        })?;
        Ok(sid)
    }

    fn new_validation(&self, request: TokenRequest<'_>) -> Result<ValidationRow, AccountError> {
        check_client_secret(request.client_secret)?;
        let address = address::canonical(request.email)
            .ok_or(AccountError::InvalidParam("that is not an e-mail address"))?;
        let settings = self.core.settings.accounts.email.as_ref();
        let domain = address::domain(&address);
        let allowed = |domains: &[String]| {
            domains.is_empty() || domains.iter().any(|it| it.eq_ignore_ascii_case(domain))
        };
        if request.purpose != Purpose::Password && settings.is_some_and(|it| !allowed(&it.allowed_domains)) {
            return Err(AccountError::AddressDenied);
        }
        let links = settings.map(|settings| &*settings.next_link_domains).unwrap_or_default();
        Ok(ValidationRow {
            sid: opaque_id(24),
            purpose: request.purpose.word().to_owned(),
            medium: EMAIL.to_owned(),
            address,
            client_secret: hashed(request.client_secret),
            send_attempt: request.send_attempt,
            next_link: request.next_link.map(|link| next_link(link, links)).transpose()?,
            created_at: self.core.now(),
            letters: 1,
            wrong_tokens: 0,
            validated_at: None,
            used_at: None,
        })
    }

    /// Stores the session, or finds the one of before; gives its id and whether a letter is due.
    async fn begin_validation(&self, row: ValidationRow) -> Result<(String, bool), AccountError> {
        let now = self.core.now();
        let over = now.saturating_sub(SESSION_KEPT_FOR.as_millis() as u64);
        self.core
            .store
            .write("address to validate", Vec::new(), move |tx| {
                let mut row = row.clone();
                Box::pin(async move {
                    tx.validations_prune(over).await?;
                    let found =
                        tx.validation_of(&row.purpose, &row.medium, &row.address, &row.client_secret).await?;
                    match found {
                        Some(found) if found.used_at.is_none() && !is_over(&found, now) => {
                            row.sid = found.sid;
                            if row.send_attempt <= found.send_attempt || found.letters >= MAX_LETTERS {
                                return Ok((row.sid, false));
                            }
                        }
                        Some(found) => tx.validation_delete(&found.sid).await?,
                        None => {}
                    }
                    tx.validation_put(&row).await?;
                    Ok((row.sid, true))
                })
            })
            .await
    }

    /// What the link in a letter is for. Nothing changes, but that a wrong token counts.
    ///
    /// # Errors
    /// [`AccountError::NoSession`], [`AccountError::SessionExpired`], [`AccountError::WrongToken`].
    pub async fn look_at_link(&self, sid: &str, token: &str) -> Result<Confirmed, AccountError> {
        Ok(confirmed(&self.checked(sid, token, None).await?))
    }

    /// Confirms a link: the address is validated.
    ///
    /// # Errors
    /// As [`Accounts::look_at_link`].
    pub async fn confirm_link(&self, sid: &str, token: &str) -> Result<Confirmed, AccountError> {
        let row = self.checked(sid, token, None).await?;
        self.validate(&row).await?;
        Ok(confirmed(&row))
    }

    /// The same by a client, which shows its secret too.
    ///
    /// # Errors
    /// As [`Accounts::look_at_link`].
    pub async fn submit_token(
        &self,
        sid: &str,
        client_secret: &str,
        token: &str,
    ) -> Result<(), AccountError> {
        let row = self.checked(sid, token, Some(client_secret)).await?;
        self.validate(&row).await
    }

    async fn validate(&self, row: &ValidationRow) -> Result<(), AccountError> {
        let (sid, now) = (row.sid.clone(), self.core.now());
        Ok(self
            .core
            .store
            .write("address validated", Vec::new(), move |tx| {
                let sid = sid.clone();
                Box::pin(async move { tx.validation_validated(&sid, now).await })
            })
            .await?)
    }

    async fn checked(
        &self,
        sid: &str,
        token: &str,
        client_secret: Option<&str>,
    ) -> Result<ValidationRow, AccountError> {
        let row = self.core.store.read().await?.validation_load(sid).await?;
        let row = row.filter(|row| client_secret.is_none_or(|secret| hashed(secret) == row.client_secret));
        let row = row.ok_or(AccountError::NoSession)?;
        if is_over(&row, self.core.now()) {
            return Err(AccountError::SessionExpired);
        }
        let given = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        if self.token_mac(&row.sid, &row.address).is_some_and(|mac| mac.verify_slice(&given).is_ok()) {
            return Ok(row);
        }
        let sid = sid.to_owned();
        self.core
            .store
            .write("wrong token", Vec::new(), move |tx| {
                let sid = sid.clone();
                Box::pin(async move { tx.validation_wrong(&sid).await })
            })
            .await?;
        Err(AccountError::WrongToken)
    }

    /// The validated, unused session of these three.
    ///
    /// # Errors
    /// [`AccountError::NotValidated`]: whatever is wrong with it, the answer is the same.
    pub async fn proof(
        &self,
        sid: &str,
        client_secret: &str,
        purpose: Purpose,
    ) -> Result<Proof, AccountError> {
        let row = self.core.store.read().await?.validation_load(sid).await?;
        let over = self.core.now().saturating_sub(SESSION_KEPT_FOR.as_millis() as u64);
        let row = row.filter(|row| {
            row.client_secret == hashed(client_secret)
                && row.purpose == purpose.word()
                && row.used_at.is_none()
                && row.created_at > over
        });
        match row {
            Some(ValidationRow { sid, address, validated_at: Some(validated_at), .. }) => {
                Ok(Proof { sid, address, validated_at })
            }
            _ => Err(AccountError::NotValidated),
        }
    }

    fn token_mac(&self, sid: &str, address: &str) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.core.key.to_der()).ok()?;
        for part in ["waxwing: address validation", sid, address] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        Some(mac)
    }

    fn token(&self, sid: &str, address: &str) -> String {
        let mac = self.token_mac(sid, address);
        mac.map(|mac| URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())).unwrap_or_default()
    }
}

fn confirmed(row: &ValidationRow) -> Confirmed {
    Confirmed {
        purpose: Purpose::of(&row.purpose),
        address: row.address.clone(),
        next_link: row.next_link.clone(),
        already: row.validated_at.is_some(),
    }
}

/// Whether a session takes no token any more.
fn is_over(row: &ValidationRow, now: u64) -> bool {
    row.used_at.is_some()
        || row.wrong_tokens >= MAX_WRONG
        || row.created_at + LINK_LIFETIME.as_millis() as u64 <= now
}

fn hashed(client_secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(client_secret.as_bytes()))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3registeremailrequesttoken>
fn check_client_secret(secret: &str) -> Result<(), AccountError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".=_-".contains(c);
    if secret.is_empty() || secret.len() > 255 || !secret.chars().all(allowed) {
        return Err(AccountError::InvalidParam("client_secret has 1 to 255 of the characters 0-9a-zA-Z.=_-"));
    }
    Ok(())
}

/// A link that a browser may be sent to: http or https, and to one of `domains` where there are any.
fn next_link(link: &str, domains: &[String]) -> Result<String, AccountError> {
    let url = Url::parse(link).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url =
        url.filter(|url| link.len() <= LONGEST_LINK && url.username().is_empty() && url.password().is_none());
    let url = url.ok_or(AccountError::InvalidParam("next_link is no http or https address"))?;
    let host = url.host_str().unwrap_or_default();
    if !domains.is_empty() && !domains.iter().any(|domain| domain.eq_ignore_ascii_case(host)) {
        return Err(AccountError::InvalidParam("next_link is no address that this server sends people to"));
    }
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_go_to_the_web_only_and_where_they_may() {
        assert_eq!(next_link("https://app.example/#/x?a=b", &[]).unwrap(), "https://app.example/#/x?a=b");
        for wrong in
            ["javascript:alert(1)", "file:///etc/passwd", "//x", "data:text/html,x", "https://a:b@c.d/", ""]
        {
            assert!(next_link(wrong, &[]).is_err(), "{wrong}");
        }
        let domains = ["app.example".to_owned()];
        assert!(next_link("https://APP.example/x", &domains).is_ok());
        assert!(next_link("https://app.example.evil/x", &domains).is_err());
    }

    #[test]
    fn client_secrets_have_a_grammar() {
        assert!(check_client_secret("monkeys_are.GREAT=-9").is_ok());
        for wrong in ["", "a b", "ä", "a/b", &"a".repeat(256)] {
            assert!(check_client_secret(wrong).is_err(), "{wrong}");
        }
    }
}
