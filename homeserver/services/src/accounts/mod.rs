//! Accounts: who may do what, tokens, devices, registration and login.

mod devices;
mod error;
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

pub(crate) use devices::remove as remove_device;
pub use error::{AccountError, AuthError};
pub use openid::OPENID_LIFETIME;
pub use registration::{Made, NewAccount, SecretRegistration};
pub use requester::Requester;
pub use sessions::{DeviceWish, LOGIN_TOKEN_LIFETIME, Session};
pub use standing::Standing;
pub use tokens::token_hash;
pub use uia::{UiaDone, UiaError, UiaRequest, stage};
pub use waxwing_storage::{DeviceRow, RegistrationTokenRow, UserRow};

use crate::Core;
use crate::appservices::Appservices;
use std::sync::Arc;
use tokens::TokenCache;

/// Accounts.
pub struct Accounts {
    core: Core,
    tokens: TokenCache,
    seen: seen::Seen,
    hasher: password::Hasher,
    appservices: Arc<Appservices>,
}

impl Accounts {
    /// The service over `core`.
    pub fn new(core: Core, appservices: Arc<Appservices>) -> Accounts {
        let tokens = TokenCache::new(core.store.tail().head());
        let hasher = password::Hasher::new(core.settings.password);
        Accounts { core, tokens, seen: seen::Seen::default(), hasher, appservices }
    }

    /// Who speaks with this access token. From memory when it was asked before.
    pub async fn authenticate(&self, token: &str) -> Result<Arc<Requester>, AuthError> {
        self.tokens.authenticate(&self.core, token).await
    }

    /// The application services.
    pub fn appservices(&self) -> &Arc<Appservices> {
        &self.appservices
    }
}
