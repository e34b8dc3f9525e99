//! What becomes of accounts: passwords, closing, and what administrators do.

use super::{AccountError, Accounts, Requester, devices};
use ruma::{DeviceId, UserId};
use waxwing_storage::{DeviceRow, Fact, NewRow, UserRow};

/// What an administrator can do to an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Locked: <https://spec.matrix.org/v1.19/client-server-api/#account-locking>.
    Locked,
    /// Suspended: <https://spec.matrix.org/v1.19/client-server-api/#account-suspension>.
    Suspended,
}

impl Accounts {
    /// The account with this id, closed ones too.
    pub async fn user(&self, user: &UserId) -> Result<Option<UserRow>, AccountError> {
        Ok(self.core.store.read().await?.user_load(user).await?)
    }

    /// Changes the password. `kept`: where the change came from; with `logout_others` every other device goes.
    pub async fn change_password(
        &self,
        user: &UserId,
        password: &str,
        kept: Option<&DeviceId>,
        logout_others: bool,
    ) -> Result<(), AccountError> {
        let hash = self.hasher.hash(password).await?;
        let (core, user, kept) = (self.core.clone(), user.to_owned(), kept.map(ToOwned::to_owned));
        self.core
            .store
            .write("password changed", Vec::new(), move |tx| {
                let (core, user, kept, hash) = (core.clone(), user.clone(), kept.clone(), hash.clone());
                Box::pin(async move {
                    if !tx.user_password_set(&user, Some(&hash)).await? {
                        return Err(AccountError::UnknownUser);
                    }
                    if logout_others {
                        devices::remove_except(&core, tx, &user, kept.as_deref()).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Closes an account for ever: no password, no device, no profile. Leaving its rooms is the timeline's business.
    pub async fn deactivate(&self, user: &UserId) -> Result<(), AccountError> {
        let (core, user) = (self.core.clone(), user.to_owned());
        self.core
            .store
            .write("account closed", Vec::new(), move |tx| {
                let (core, user) = (core.clone(), user.clone());
                Box::pin(async move {
                    let mut row = tx.user_load(&user).await?.ok_or(AccountError::UnknownUser)?;
                    row.deactivated = true;
                    row.admin = false;
                    tx.user_standing_set(&row).await?;
                    tx.user_password_set(&user, None).await?;
                    devices::remove_except(&core, tx, &user, None).await?;
                    tx.pushers_remove_except(&user, None).await?;
                    tx.keys_delete_all(&user).await?;
                    tx.profile_remove(&user).await?;
                    tx.log_append(NewRow::new(Fact::Profile).user(user.clone()));
                    tx.log_append(NewRow::new(Fact::DeviceList).user(user));
                    Ok(())
                })
            })
            .await
    }

    /// Whether an account is locked or suspended.
    pub async fn standing(
        &self,
        by: &Requester,
        user: &UserId,
        which: Standing,
    ) -> Result<bool, AccountError> {
        let row = self.governed(by, user).await?;
        Ok(match which {
            Standing::Locked => row.locked,
            Standing::Suspended => row.suspended,
        })
    }

    /// Locks or suspends an account, or ends that.
    pub async fn set_standing(
        &self,
        by: &Requester,
        user: &UserId,
        which: Standing,
        on: bool,
    ) -> Result<(), AccountError> {
        let row = self.governed(by, user).await?;
        if row.user_id == by.user_id || row.admin {
            return Err(AccountError::Protected);
        }
        let user = user.to_owned();
        self.core
            .store
            .write("account standing", Vec::new(), move |tx| {
                let user = user.clone();
                Box::pin(async move {
                    let mut row = tx.user_load(&user).await?.ok_or(AccountError::UnknownUser)?;
                    match which {
                        Standing::Locked => row.locked = on,
                        Standing::Suspended => row.suspended = on,
                    }
                    tx.user_standing_set(&row).await?;
                    tx.log_append(NewRow::new(Fact::Account).user(user));
                    Ok(())
                })
            })
            .await
    }

    /// The devices of a user with when and from where they were seen; for the user and for administrators.
    pub async fn whois(&self, by: &Requester, user: &UserId) -> Result<Vec<DeviceRow>, AccountError> {
        if by.user_id != user {
            self.governed(by, user).await?;
        }
        self.devices(user).await
    }

    /// The account, for an administrator. Rights are checked before anything is looked up.
    async fn governed(&self, by: &Requester, user: &UserId) -> Result<UserRow, AccountError> {
        if !by.is_admin {
            return Err(AccountError::NotAdmin);
        }
        if !self.core.is_local(user) {
            return Err(AccountError::RemoteUser);
        }
        self.user(user).await?.filter(|row| !row.deactivated).ok_or(AccountError::UnknownUser)
    }
}
