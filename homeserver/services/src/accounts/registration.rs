//! Making accounts: <https://spec.matrix.org/v1.19/client-server-api/#account-registration>.

use super::addresses::{self, Proof};
use super::sessions::NewSession;
use super::{AccountError, Accounts, DeviceWish, Session, names};
use crate::RegistrationMode;
use hmac::{Hmac, KeyInit, Mac};
use ruma::OwnedUserId;
use sha1::Sha1;
use std::time::Duration;
use waxwing_model::{opaque_id, secret_token};
use waxwing_storage::{RegistrationTokenRow, StoreError, Tx, UserRow};

/// How long a nonce of the shared-secret API is good.
const NONCE_LIFETIME: Duration = Duration::from_mins(1);
/// Sets nonces apart from the sessions that they are stored among.
const NONCE_PREFIX: &str = "nonce.";

/// A new account.
#[derive(Clone, Debug, Default)]
pub struct NewAccount {
    /// The name; none: a name is made up.
    pub username: Option<String>,
    /// The password; none: nobody can log in with one.
    pub password: Option<String>,
    /// The account is a guest's.
    pub guest: bool,
    /// The account is an administrator's.
    pub admin: bool,
    /// The application service that makes it.
    pub appservice: Option<String>,
    /// The registration token that was shown; it is counted.
    pub registration_token: Option<String>,
    /// The access token of a guest that the account grows out of.
    pub guest_access_token: Option<String>,
    /// The address that was shown; it becomes the account's.
    pub email: Option<Proof>,
    /// What the first session wants; none: there is no session yet.
    pub session: Option<DeviceWish>,
}

/// An account that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The user.
    pub user_id: OwnedUserId,
    /// The first session, where one was wanted.
    pub session: Option<Session>,
}

impl Accounts {
    /// Whether a name could be registered now by a person.
    ///
    /// # Errors
    /// [`AccountError::InvalidUsername`], [`AccountError::UserInUse`], [`AccountError::Exclusive`].
    pub async fn check_available(&self, username: &str) -> Result<OwnedUserId, AccountError> {
        let id = names::new_user_id(username, &self.core.server_name)?;
        if id.localpart().starts_with('_') {
            return Err(AccountError::InvalidUsername("a user name must not begin with _"));
        }
        if self.appservices.exclusive_owner(&id).is_some() {
            return Err(AccountError::Exclusive);
        }
        let mut conn = self.core.store.read().await?;
        if self.core.is_notices_user(&id) || conn.user_load(&id).await?.is_some() {
            return Err(AccountError::UserInUse);
        }
        Ok(id)
    }

    /// Makes an account. Whether it may be made was decided before, except for the name.
    pub async fn create(&self, new: NewAccount) -> Result<Made, AccountError> {
        let id = self.new_id(&new).await?;
        let password_hash = match &new.password {
            Some(password) => Some(self.hasher.hash(password).await?),
            None => None,
        };
        let row = UserRow {
            user_id: id.clone(),
            password_hash,
            admin: new.admin,
            guest: new.guest,
            deactivated: false,
            locked: false,
            suspended: false,
            erased: false,
            appservice: new.appservice.clone(),
            created_at: self.core.now(),
        };
        let session = match &new.session {
            Some(wish) => Some(NewSession::new(&self.core, wish.clone())?),
            None => None,
        };
        let (core, begun) = (self.core.clone(), session.clone());
        let shown = Shown {
            upgraded: new.guest_access_token.is_some(),
            token: new.registration_token,
            email: new.email,
        };
        self.core
            .store
            .write("account made", Vec::new(), move |tx| {
                let (core, begun, row, shown) = (core.clone(), begun.clone(), row.clone(), shown.clone());
                Box::pin(async move {
                    insert(tx, row.clone(), &shown).await?;
                    if let Some(begun) = &begun {
                        begun.begin(&core, tx, &row.user_id).await?;
                    }
                    Ok::<(), AccountError>(())
                })
            })
            .await?;
        Ok(Made { user_id: id.clone(), session: session.map(|session| session.session(id)) })
    }

    async fn new_id(&self, new: &NewAccount) -> Result<OwnedUserId, AccountError> {
        if let Some(token) = &new.guest_access_token {
            let guest = self.authenticate(token).await.map_err(|_| AccountError::NotThisGuest)?;
            let named = new.username.as_ref().is_none_or(|name| name == guest.user_id.localpart());
            let theirs = guest.is_guest && named;
            return if theirs { Ok(guest.user_id.clone()) } else { Err(AccountError::NotThisGuest) };
        }
        let name = match &new.username {
            Some(name) => name.clone(),
            None => opaque_id(12).to_ascii_lowercase(),
        };
        let id = names::new_user_id(&name, &self.core.server_name)?;
        match &new.appservice {
            Some(appservice) if !self.appservices.may_use(appservice, &id) => Err(AccountError::Exclusive),
            None if self.appservices.exclusive_owner(&id).is_some() => Err(AccountError::Exclusive),
            _ => Ok(id),
        }
    }

    /// Whether a registration token could be used now.
    pub async fn registration_token_valid(&self, token: &str) -> Result<bool, AccountError> {
        let found = self.core.store.read().await?.registration_token_load(token).await?;
        let now = self.core.now();
        Ok(found.is_some_and(|row| {
            row.uses_allowed.is_none_or(|allowed| row.completed < allowed)
                && row.expires_at.is_none_or(|at| at > now)
        }))
    }

    /// Makes a registration token.
    pub async fn registration_token_create(&self, row: RegistrationTokenRow) -> Result<bool, AccountError> {
        Ok(self
            .core
            .store
            .write("registration token", Vec::new(), move |tx| {
                let row = row.clone();
                Box::pin(async move { tx.registration_token_insert(&row).await })
            })
            .await?)
    }

    /// Takes a registration token away; false: there was none.
    pub async fn registration_token_delete(&self, token: &str) -> Result<bool, AccountError> {
        let token = token.to_owned();
        Ok(self
            .core
            .store
            .write("registration token deleted", Vec::new(), move |tx| {
                let token = token.clone();
                Box::pin(async move { tx.registration_token_delete(&token).await })
            })
            .await?)
    }

    /// One registration token.
    pub async fn registration_token(
        &self,
        token: &str,
    ) -> Result<Option<RegistrationTokenRow>, AccountError> {
        Ok(self.core.store.read().await?.registration_token_load(token).await?)
    }

    /// All registration tokens but that of the first administrator.
    pub async fn registration_tokens(&self) -> Result<Vec<RegistrationTokenRow>, AccountError> {
        let mut rows = self.core.store.read().await?.registration_tokens_all().await?;
        rows.retain(|row| !row.admin);
        Ok(rows)
    }

    /// A registration token that nobody guesses.
    pub fn random_token(&self, length: usize) -> String {
        opaque_id(length)
    }

    /// While there is no account: the token with which the first administrator registers, the same after a restart.
    pub async fn first_token(&self) -> Result<Option<String>, AccountError> {
        let mut conn = self.core.store.read().await?;
        if conn.users_any().await? {
            return Ok(None);
        }
        if let Some(row) = conn.registration_token_admin().await? {
            return Ok(Some(row.token));
        }
        drop(conn);
        let token = opaque_id(24);
        let row = RegistrationTokenRow {
            token: token.clone(),
            uses_allowed: Some(1),
            completed: 0,
            expires_at: None,
            admin: true,
        };
        self.registration_token_create(row).await?;
        Ok(Some(token))
    }

    /// Makes the accounts that the application services are themselves, where they are not there.
    pub async fn create_appservice_senders(&self) -> Result<(), AccountError> {
        for appservice in self.appservices.all() {
            let new = NewAccount {
                username: Some(appservice.sender.localpart().to_owned()),
                appservice: Some(appservice.id.to_string()),
                ..NewAccount::default()
            };
            match self.create(new).await {
                Ok(_) | Err(AccountError::UserInUse) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether people may register themselves, and how.
    pub fn registration_mode(&self) -> RegistrationMode {
        self.core.settings.registration
    }

    /// A nonce for [`Accounts::create_with_secret`].
    pub async fn secret_nonce(&self) -> Result<String, AccountError> {
        if self.core.settings.registration_shared_secret.is_none() {
            return Err(AccountError::SharedSecretOff);
        }
        let nonce = secret_token("");
        let (key, now) = (format!("{NONCE_PREFIX}{nonce}"), self.core.now());
        self.core
            .store
            .write("registration nonce", Vec::new(), move |tx| {
                let key = key.clone();
                Box::pin(async move { tx.uia_session_put(&key, "", now).await })
            })
            .await?;
        Ok(nonce)
    }

    /// Makes an account for a tool that knows the shared secret, as Synapse does: `mac` is the hexadecimal HMAC-SHA1 of
    /// nonce, name, password and `admin` or `notadmin` (and the user type, if any) with zero bytes between.
    pub async fn create_with_secret(&self, wanted: SecretRegistration) -> Result<Made, AccountError> {
        let Some(secret) = &self.core.settings.registration_shared_secret else {
            return Err(AccountError::SharedSecretOff);
        };
        let (key, now) = (format!("{NONCE_PREFIX}{}", wanted.nonce), self.core.now());
        let since = now.saturating_sub(NONCE_LIFETIME.as_millis() as u64);
        let fresh = self
            .core
            .store
            .write("registration nonce taken", Vec::new(), move |tx| {
                let key = key.clone();
                Box::pin(async move {
                    let fresh = tx.uia_session_load(&key, since).await?.is_some();
                    tx.uia_session_delete(&key).await?;
                    Ok::<bool, StoreError>(fresh)
                })
            })
            .await?;
        if !fresh {
            return Err(AccountError::BadNonce);
        }
        wanted.verify(secret)?;
        self.check_name(&wanted.username).await?;
        self.create(NewAccount {
            username: Some(wanted.username),
            password: Some(wanted.password),
            admin: wanted.admin,
            session: Some(DeviceWish::default()),
            ..NewAccount::default()
        })
        .await
    }

    /// Makes an account on behalf of whoever runs the server.
    pub async fn create_by_operator(
        &self,
        username: String,
        password: String,
        admin: bool,
    ) -> Result<OwnedUserId, AccountError> {
        self.check_name(&username).await?;
        let new =
            NewAccount { username: Some(username), password: Some(password), admin, ..NewAccount::default() };
        Ok(self.create(new).await?.user_id)
    }

    async fn check_name(&self, username: &str) -> Result<(), AccountError> {
        let id = names::new_user_id(username, &self.core.server_name)?;
        if self.core.store.read().await?.user_load(&id).await?.is_some() {
            return Err(AccountError::UserInUse);
        }
        Ok(())
    }
}

/// A request of the shared-secret API.
#[derive(Clone, Debug)]
pub struct SecretRegistration {
    /// From [`Accounts::secret_nonce`].
    pub nonce: String,
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
    /// Make an administrator.
    pub admin: bool,
    /// Part of what is signed; nothing comes of it.
    pub user_type: Option<String>,
    /// The signature, hexadecimal.
    pub mac: String,
}

impl SecretRegistration {
    fn verify(&self, secret: &str) -> Result<(), AccountError> {
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).map_err(|_| AccountError::BadMac)?;
        let role = if self.admin { "admin" } else { "notadmin" };
        let parts = [self.nonce.as_str(), &self.username, &self.password, role];
        for (index, part) in parts.into_iter().chain(self.user_type.as_deref()).enumerate() {
            if index > 0 {
                mac.update(b"\0");
            }
            mac.update(part.as_bytes());
        }
        let given = from_hex(&self.mac).ok_or(AccountError::BadMac)?;
        mac.verify_slice(&given).map_err(|_| AccountError::BadMac)
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// What was shown before the account was made.
#[derive(Clone)]
struct Shown {
    /// The token of a guest.
    upgraded: bool,
    token: Option<String>,
    email: Option<Proof>,
}

async fn insert(tx: &mut Tx, mut row: UserRow, shown: &Shown) -> Result<(), AccountError> {
    let now = row.created_at;
    if let Some(proof) = &shown.email {
        addresses::give(tx, &row.user_id, proof, now).await?;
    }
    if let Some(token) = &shown.token {
        row.admin |= tx.registration_token_load(token).await?.is_some_and(|found| found.admin);
        if !tx.registration_token_use(token, now).await? {
            return Err(AccountError::BadRegistrationToken);
        }
    }
    if shown.upgraded {
        let before = tx.user_load(&row.user_id).await?.filter(|before| before.guest && !before.deactivated);
        before.ok_or(AccountError::UnknownUser)?;
        tx.user_standing_set(&row).await?;
        tx.user_password_set(&row.user_id, row.password_hash.as_deref()).await?;
        tx.log_append(waxwing_storage::NewRow::new(waxwing_storage::Fact::Account).user(row.user_id));
        return Ok(());
    }
    if !tx.user_insert(&row).await? {
        return Err(AccountError::UserInUse);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_synapses() {
        // python3: hmac.new(b"complement", b"n\0alice\0pw\0notadmin", "sha1").hexdigest()
        let mut wanted = SecretRegistration {
            nonce: "n".to_owned(),
            username: "alice".to_owned(),
            password: "pw".to_owned(),
            admin: false,
            user_type: None,
            mac: "b29dd3c8c9750b094bdcb10d74ea272e018cf81b".to_owned(),
        };
        assert!(wanted.verify("complement").is_ok());
        wanted.admin = true;
        assert!(wanted.verify("complement").is_err());
    }
}
