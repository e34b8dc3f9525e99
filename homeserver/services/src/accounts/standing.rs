//! What becomes of accounts: passwords and closing.

use super::addresses::EMAIL;
use super::{AccountError, Accounts, Proof, devices};
use crate::Core;
use ruma::{DeviceId, OwnedUserId, UserId};
use waxwing_storage::{ERASED, Fact, NewRow, Tx, UserRow};

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
                    set_password(&core, tx, &user, &hash, kept.as_deref(), logout_others).await
                })
            })
            .await
    }

    /// Sets a new password for the account that has the address of `proof`, and uses that up.
    ///
    /// # Errors
    /// [`AccountError::NotValidated`] when it was used before, [`AccountError::AddressNotFound`] when the address is
    /// nobody's any more, [`AccountError::WeakPassword`].
    pub async fn reset_password(
        &self,
        proof: &Proof,
        password: &str,
        logout: bool,
    ) -> Result<OwnedUserId, AccountError> {
        let hash = self.hasher.hash(password).await?;
        let (core, proof, now) = (self.core.clone(), proof.clone(), self.core.now());
        self.core
            .store
            .write("password reset", Vec::new(), move |tx| {
                let (core, proof, hash) = (core.clone(), proof.clone(), hash.clone());
                Box::pin(async move {
                    if !tx.validation_use(&proof.sid, now).await? {
                        return Err(AccountError::NotValidated);
                    }
                    let owner = tx.threepid_load(EMAIL, &proof.address).await?;
                    let user = owner.ok_or(AccountError::AddressNotFound)?.user_id;
                    set_password(&core, tx, &user, &hash, None, logout).await?;
                    Ok(user)
                })
            })
            .await
    }

    /// Closes an account for ever: no password, no device, no key, no profile, no address, nothing kept for it. With
    /// `erase`, its events are from now on shown only to those who could see them. Leaving its rooms is the timeline's
    /// business ([`crate::timeline::Timeline::leave_all`]).
    ///
    /// # Errors
    /// [`AccountError::UnknownUser`].
    pub async fn deactivate(&self, user: &UserId, erase: bool) -> Result<(), AccountError> {
        let (core, user) = (self.core.clone(), user.to_owned());
        self.core
            .store
            .write("account closed", Vec::new(), move |tx| {
                let (core, user) = (core.clone(), user.clone());
                Box::pin(async move {
                    let mut row = tx.user_load(&user).await?.ok_or(AccountError::UnknownUser)?;
                    row.deactivated = true;
                    row.erased |= erase;
                    row.admin = false;
                    row.locked = false;
                    row.suspended = false;
                    tx.user_standing_set(&row).await?;
                    tx.user_password_set(&user, None).await?;
                    forget(&core, tx, &user).await?;
                    let fact = NewRow::new(Fact::Account).user(user.clone());
                    tx.log_append(if row.erased { fact.data(ERASED) } else { fact });
                    tx.log_append(NewRow::new(Fact::Profile).user(user.clone()));
                    tx.log_append(NewRow::new(Fact::DeviceList).user(user));
                    Ok(())
                })
            })
            .await
    }
}

async fn set_password(
    core: &Core,
    tx: &mut Tx,
    user: &UserId,
    hash: &str,
    kept: Option<&DeviceId>,
    logout_others: bool,
) -> Result<(), AccountError> {
    let row = tx.user_load(user).await?.ok_or(AccountError::UnknownUser)?;
    if row.deactivated {
        return Err(AccountError::Deactivated);
    }
    tx.user_password_set(user, Some(hash)).await?;
    if logout_others {
        devices::remove_except(core, tx, user, kept).await?;
    }
    Ok(())
}

/// Takes away whatever is kept for a user beside events.
async fn forget(core: &Core, tx: &mut Tx, user: &UserId) -> Result<(), AccountError> {
    devices::remove_except(core, tx, user, None).await?;
    tx.pushers_remove_except(user, None).await?;
    tx.keys_delete_all(user).await?;
    tx.leavings_delete(user).await?;
    tx.profile_remove(user).await?;
    Ok(())
}
