//! What administrators see of accounts and do to them:
//! <https://spec.matrix.org/v1.19/client-server-api/#server-administration>, and what their tools know beyond that.

use super::{AccountError, Accounts, Requester};
use ruma::UserId;
use waxwing_storage::{DeviceRow, Fact, NewRow, UserRow};

/// What an administrator can do to an account and take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Locked: <https://spec.matrix.org/v1.19/client-server-api/#account-locking>.
    Locked,
    /// Suspended: <https://spec.matrix.org/v1.19/client-server-api/#account-suspension>.
    Suspended,
}

/// A change of the flags of an account by whoever runs the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Locks or unlocks.
    Locked(bool),
    /// Suspends, or ends that.
    Suspended(bool),
    /// Makes an administrator, or no longer.
    Admin(bool),
}

/// Accounts, a page at a time.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the order of their ids.
    pub users: Vec<UserRow>,
    /// How many there are in all.
    pub total: u64,
    /// Where the next page begins; none: this was the last.
    pub next: Option<String>,
}

/// Accounts on one page at most.
const MAX_PAGE: usize = 1000;

impl Accounts {
    /// Whether an account is locked or suspended.
    ///
    /// # Errors
    /// [`AccountError::NotAdmin`] before anything is looked up, [`AccountError::RemoteUser`],
    /// [`AccountError::UnknownUser`].
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
    ///
    /// # Errors
    /// As [`Accounts::standing`]; [`AccountError::Protected`] for oneself and for other administrators.
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
        self.change(
            user,
            match which {
                Standing::Locked => Change::Locked(on),
                Standing::Suspended => Change::Suspended(on),
            },
        )
        .await
    }

    /// Changes an account on behalf of whoever runs the server.
    ///
    /// # Errors
    /// [`AccountError::UnknownUser`], [`AccountError::Deactivated`].
    pub async fn change(&self, user: &UserId, change: Change) -> Result<(), AccountError> {
        let user = user.to_owned();
        self.core
            .store
            .write("account standing", Vec::new(), move |tx| {
                let user = user.clone();
                Box::pin(async move {
                    let mut row = tx.user_load(&user).await?.ok_or(AccountError::UnknownUser)?;
                    if row.deactivated {
                        return Err(AccountError::Deactivated);
                    }
                    match change {
                        Change::Locked(on) => row.locked = on,
                        Change::Suspended(on) => row.suspended = on,
                        Change::Admin(on) => row.admin = on,
                    }
                    tx.user_standing_set(&row).await?;
                    tx.log_append(NewRow::new(Fact::Account).user(user));
                    Ok(())
                })
            })
            .await
    }

    /// The devices of a user with when and from where they were seen; for the user and for administrators.
    ///
    /// # Errors
    /// As [`Accounts::standing`].
    pub async fn whois(&self, by: &Requester, user: &UserId) -> Result<Vec<DeviceRow>, AccountError> {
        if by.user_id != user {
            self.governed(by, user).await?;
        }
        self.devices(user).await
    }

    /// Sets the password of an account; its sessions end, if `logout`.
    ///
    /// # Errors
    /// As [`Accounts::standing`]; [`AccountError::WeakPassword`].
    pub async fn set_password_of(
        &self,
        by: &Requester,
        user: &UserId,
        password: &str,
        logout: bool,
    ) -> Result<(), AccountError> {
        self.governed(by, user).await?;
        self.change_password(user, password, None, logout).await
    }

    /// The account, for an administrator. Rights are checked before anything is looked up.
    ///
    /// # Errors
    /// As [`Accounts::standing`].
    pub async fn governed(&self, by: &Requester, user: &UserId) -> Result<UserRow, AccountError> {
        if !by.is_admin {
            return Err(AccountError::NotAdmin);
        }
        if !self.core.is_local(user) {
            return Err(AccountError::RemoteUser);
        }
        self.user(user).await?.filter(|row| !row.deactivated).ok_or(AccountError::UnknownUser)
    }

    /// Accounts after `after` (a user id; empty: from the start), closed ones too. `limit`: at most so many.
    pub async fn list(&self, after: &str, limit: usize) -> Result<Page, AccountError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut conn = self.core.store.read().await?;
        let mut users = conn.users_after(after, limit as i64 + 1).await?;
        let total = conn.users_count().await? as u64;
        let more = users.len() > limit;
        users.truncate(limit);
        let next = users.last().filter(|_| more).map(|row| row.user_id.to_string());
        Ok(Page { users, total, next })
    }
}
