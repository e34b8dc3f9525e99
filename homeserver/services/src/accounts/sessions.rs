//! Logging in and out: a session is a device with its tokens.

use super::{AccountError, Accounts, names, token_hash};
use crate::Core;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use std::time::Duration;
use waxwing_model::secret_token;
use waxwing_storage::{Fact, NewAccessToken, NewRow, StoreResult, TokenHash, Tx, UserRow};

/// How long an access token is good that a refresh token came with.
const ACCESS_LIFETIME: Duration = Duration::from_mins(15);
/// How long a login token is good: <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv1loginget_token>.
pub const LOGIN_TOKEN_LIFETIME: Duration = Duration::from_mins(2);
/// Longer device ids are nobody's; other servers take them in EDUs.
const LONGEST_DEVICE_ID: usize = 255;
/// Longer names of devices are cut off by nobody but refused nowhere; this is what we keep.
pub(super) const LONGEST_DEVICE_NAME: usize = 256;

/// How somebody names the account to log in to: <https://spec.matrix.org/v1.19/client-server-api/#identifier-types>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginName<'a> {
    /// A user id or its local part.
    User(&'a str),
    /// An address of the account.
    Address {
        /// `email`; addresses of other media are nobody's.
        medium: &'a str,
        /// The address.
        address: &'a str,
    },
}

/// What a login wants of its device.
#[derive(Clone, Debug, Default)]
pub struct DeviceWish {
    /// The device; none: a new one.
    pub device_id: Option<OwnedDeviceId>,
    /// What a new device is called.
    pub display_name: Option<String>,
    /// The client can refresh tokens.
    pub refresh: bool,
}

/// A new session.
#[derive(Clone, Debug)]
pub struct Session {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The access token.
    pub access_token: String,
    /// The refresh token, where the client wanted one.
    pub refresh_token: Option<String>,
    /// How long the access token is good; none: until it is taken away.
    pub expires_in: Option<Duration>,
}

/// New tokens, before and after they are stored.
#[derive(Clone)]
pub(super) struct Tokens {
    access: String,
    refresh: Option<String>,
    expires_at: Option<u64>,
}

impl Tokens {
    pub fn new(refresh: bool, now: u64) -> Tokens {
        Tokens {
            access: secret_token("wxa_"),
            refresh: refresh.then(|| secret_token("wxr_")),
            expires_at: refresh.then(|| now + ACCESS_LIFETIME.as_millis() as u64),
        }
    }

    pub fn refresh_hash(&self) -> Option<TokenHash> {
        self.refresh.as_deref().map(token_hash)
    }

    pub async fn insert(&self, tx: &mut Tx, user: &UserId, device: &DeviceId, now: u64) -> StoreResult<()> {
        let refresh_hash = self.refresh_hash();
        if let Some(hash) = &refresh_hash {
            tx.refresh_token_insert(hash, user, device, now).await?;
        }
        let token =
            NewAccessToken { hash: token_hash(&self.access), expires_at: self.expires_at, refresh_hash };
        tx.access_token_insert(&token, user, device, now).await
    }

    pub fn session(self, user_id: OwnedUserId, device_id: OwnedDeviceId) -> Session {
        Session {
            user_id,
            device_id,
            access_token: self.access,
            expires_in: self.refresh.is_some().then_some(ACCESS_LIFETIME),
            refresh_token: self.refresh,
        }
    }
}

/// A session that is about to begin: everything that must not change when the transaction runs again.
#[derive(Clone)]
pub(super) struct NewSession {
    device_id: OwnedDeviceId,
    name: Option<String>,
    tokens: Tokens,
    now: u64,
}

impl NewSession {
    pub fn new(core: &Core, wish: DeviceWish) -> Result<NewSession, AccountError> {
        let device_id = match wish.device_id {
            Some(id) => {
                check_device_id(&id)?;
                id
            }
            None => waxwing_model::device_id().into(),
        };
        let name = wish.display_name.map(|name| name.chars().take(LONGEST_DEVICE_NAME).collect());
        let now = core.now();
        Ok(NewSession { device_id, name, tokens: Tokens::new(wish.refresh, now), now })
    }

    /// Makes the device if it is new, takes away its old tokens, stores the new ones.
    pub async fn begin(&self, core: &Core, tx: &mut Tx, user: &UserId) -> Result<(), AccountError> {
        if is_cross_signing_key(tx, user, &self.device_id).await? {
            return Err(AccountError::DeviceIdIsKey);
        }
        if tx.device_insert(user, &self.device_id, self.name.as_deref(), self.now).await? {
            crate::keys::device_changed(core, tx, user, self.device_id.as_str()).await?;
        } else {
            tx.tokens_delete_of_device(user, &self.device_id).await?;
        }
        self.tokens.insert(tx, user, &self.device_id, self.now).await?;
        tx.log_append(NewRow::new(Fact::Account).user(user).reference(self.device_id.as_str()));
        Ok(())
    }

    pub fn session(self, user_id: OwnedUserId) -> Session {
        self.tokens.session(user_id, self.device_id)
    }
}

/// Whether a device may be called so.
pub(super) fn check_device_id(id: &DeviceId) -> Result<(), AccountError> {
    if id.as_str().is_empty() || id.as_str().len() > LONGEST_DEVICE_ID {
        return Err(AccountError::InvalidDeviceId);
    }
    Ok(())
}

/// A device must not be called like a cross-signing key of its user, or signatures over the one could be taken for
/// signatures over the other: <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>.
pub(super) async fn is_cross_signing_key(tx: &mut Tx, user: &UserId, device: &DeviceId) -> StoreResult<bool> {
    let rows = tx.cross_signing_load(&[user.to_owned()]).await?;
    Ok(rows.iter().any(|row| {
        serde_json::from_str::<serde_json::Value>(&row.json)
            .ok()
            .and_then(|key| Some(key.get("keys")?.as_object()?.values().any(|key| key == device.as_str())))
            .unwrap_or(false)
    }))
}

/// Whether the account may begin a session.
fn may_log_in(user: &UserRow) -> Result<(), AccountError> {
    if user.deactivated {
        return Err(AccountError::Deactivated);
    }
    if user.locked {
        return Err(AccountError::Locked);
    }
    Ok(())
}

impl Accounts {
    /// Logs in with a password.
    pub async fn login_password(
        &self,
        name: LoginName<'_>,
        password: &str,
        wish: DeviceWish,
    ) -> Result<Session, AccountError> {
        let user = self.check_password(name, password).await?;
        self.begin_session(user, wish).await
    }

    /// The user who has this name and password.
    pub(super) async fn check_password(
        &self,
        name: LoginName<'_>,
        password: &str,
    ) -> Result<OwnedUserId, AccountError> {
        let found = self.named(name).await?;
        if let Some(row) = &found
            && row.deactivated
        {
            return Err(AccountError::Deactivated);
        }
        let hash = found.as_ref().and_then(|row| row.password_hash.as_deref());
        let fits = self.hasher.verify(password, hash).await?;
        found.filter(|_| fits).map(|row| row.user_id).ok_or(AccountError::WrongPassword)
    }

    async fn named(&self, name: LoginName<'_>) -> Result<Option<UserRow>, AccountError> {
        let ids = match name {
            LoginName::User(user) => names::login_candidates(user, &self.core.server_name),
            LoginName::Address { medium, address } => {
                self.owner_of(medium, address).await?.map(|owner| owner.user_id).into_iter().collect()
            }
        };
        let mut conn = self.core.store.read().await?;
        for id in ids {
            if let Some(row) = conn.user_load(&id).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Logs a user of an application service in, who has no password.
    pub async fn login_appservice(
        &self,
        appservice: &str,
        user: &str,
        wish: DeviceWish,
    ) -> Result<Session, AccountError> {
        let mut ids = names::login_candidates(user, &self.core.server_name).into_iter();
        let user = ids.find(|id| self.appservices.may_use(appservice, id)).ok_or(AccountError::NotTheirs)?;
        self.begin_session(user, wish).await
    }

    /// Logs in with a token of [`Accounts::login_token`].
    pub async fn login_with_token(&self, token: &str, wish: DeviceWish) -> Result<Session, AccountError> {
        let hash = token_hash(token);
        let now = self.core.now();
        let user = self
            .core
            .store
            .write("login token taken", Vec::new(), move |tx| {
                Box::pin(async move { tx.login_token_take(&hash, now).await })
            })
            .await?
            .ok_or(AccountError::BadLoginToken)?;
        self.begin_session(user, wish).await
    }

    /// A token with which another client of the user can log in, once, within [`LOGIN_TOKEN_LIFETIME`].
    pub async fn login_token(&self, user: &UserId) -> Result<String, AccountError> {
        let token = secret_token("wxl_");
        let hash = token_hash(&token);
        let now = self.core.now();
        let expires = now + LOGIN_TOKEN_LIFETIME.as_millis() as u64;
        let user = user.to_owned();
        self.core
            .store
            .write("login token", Vec::new(), move |tx| {
                let user = user.clone();
                Box::pin(async move { tx.login_token_insert(&hash, &user, expires, now).await })
            })
            .await?;
        Ok(token)
    }

    /// Begins a session of a user who is known to be who they say.
    pub async fn begin_session(&self, user: OwnedUserId, wish: DeviceWish) -> Result<Session, AccountError> {
        let new = NewSession::new(&self.core, wish)?;
        let (core, begun, id) = (self.core.clone(), new.clone(), user.clone());
        self.core
            .store
            .write("login", Vec::new(), move |tx| {
                let (core, begun, id) = (core.clone(), begun.clone(), id.clone());
                Box::pin(async move {
                    let row = tx.user_load(&id).await?.ok_or(AccountError::UnknownUser)?;
                    may_log_in(&row)?;
                    begun.begin(&core, tx, &id).await
                })
            })
            .await?;
        Ok(new.session(user))
    }

    /// Ends the session of a device: the device is gone with its keys and messages.
    pub async fn logout(&self, user: &UserId, device: &DeviceId) -> Result<(), AccountError> {
        match self.delete_devices(user, &[device.to_owned()]).await {
            Err(AccountError::UnknownDevice) => Ok(()),
            other => other,
        }
    }

    /// Ends all sessions of a user.
    pub async fn logout_all(&self, user: &UserId) -> Result<(), AccountError> {
        let (core, user) = (self.core.clone(), user.to_owned());
        self.core
            .store
            .write("logout all", Vec::new(), move |tx| {
                let (core, user) = (core.clone(), user.clone());
                Box::pin(async move { super::devices::remove_except(&core, tx, &user, None).await })
            })
            .await?;
        Ok(())
    }
}
