//! Accounts: who may do what, tokens, devices, registration and login.

mod addresses;
mod admin;
mod devices;
mod error;
mod fallback;
mod names;
mod openid;
mod password;
mod refresh;
mod registration;
mod requester;
mod seen;
mod sessions;
mod standing;
mod tokens;
mod uia;

pub use addresses::{Confirmed, EMAIL, Proof, Purpose, TokenRequest};
pub use admin::{Change, Page, Standing};
pub(crate) use devices::remove as remove_device;
pub use error::{AccountError, AuthError};
pub use fallback::{FallbackInput, FallbackStep};
pub use openid::OPENID_LIFETIME;
pub use registration::{Made, NewAccount, SecretRegistration};
pub use requester::Requester;
pub use sessions::{DeviceWish, LOGIN_TOKEN_LIFETIME, LoginName, Session};

pub use tokens::token_hash;
pub use uia::{UiaDone, UiaError, UiaRequest, stage};
pub use waxwing_storage::{DeviceRow, RegistrationTokenRow, ThreepidRow, UserRow};

use crate::Core;
use crate::appservices::Appservices;
use crate::mail::Mailer;
use std::sync::Arc;
use tokens::TokenCache;

/// Accounts.
pub struct Accounts {
    core: Core,
    tokens: TokenCache,
    seen: seen::Seen,
    hasher: password::Hasher,
    appservices: Arc<Appservices>,
    mailer: Option<Mailer>,
}

impl Accounts {
    /// The service over `core`. Without `mailer` there are no e-mail addresses.
    pub fn new(core: Core, appservices: Arc<Appservices>, mailer: Option<Mailer>) -> Accounts {
        let tokens = TokenCache::new(core.store.tail().head());
        let hasher = password::Hasher::new(core.settings.password);
        Accounts { core, tokens, seen: seen::Seen::default(), hasher, appservices, mailer }
    }

    /// Who speaks with this access token. From memory when it was asked before.
    pub async fn authenticate(&self, token: &str) -> Result<Arc<Requester>, AuthError> {
        self.tokens.authenticate(&self.core, token).await
    }

    /// Whether letters can be sent: without, no address can be added.
    pub fn sends_mail(&self) -> bool {
        self.mailer.is_some()
    }

    /// The application services.
    pub fn appservices(&self) -> &Arc<Appservices> {
        &self.appservices
    }
}
