//! E-mail addresses of accounts: <https://spec.matrix.org/v1.19/client-server-api/#adding-account-administrative-contact-information>.
//!
//! The server validates them itself; it knows no identity server. What an address belongs to is never told to who
//! asks, only to who reads the mail that is sent there.

mod address;
mod letters;
mod validation;

pub use validation::{Confirmed, Proof, Purpose, TokenRequest};

use super::{AccountError, Accounts};
use ruma::UserId;
use waxwing_storage::{ThreepidRow, Tx};

/// The medium of e-mail addresses.
pub const EMAIL: &str = "email";
/// Addresses of one account: more are no contact information.
const MAX_ADDRESSES: usize = 20;

impl Accounts {
    /// The addresses of a user.
    pub async fn addresses(&self, user: &UserId) -> Result<Vec<ThreepidRow>, AccountError> {
        Ok(self.core.store.read().await?.threepids_of(user).await?)
    }

    /// Adds the address of a validated session to an account, and uses the session up.
    ///
    /// # Errors
    /// [`AccountError::NotValidated`], [`AccountError::AddressInUse`] when it is someone else's,
    /// [`AccountError::AddressDenied`] for too many addresses.
    pub async fn add_address(
        &self,
        user: &UserId,
        sid: &str,
        client_secret: &str,
    ) -> Result<(), AccountError> {
        let proof = self.proof(sid, client_secret, Purpose::Add).await?;
        let (user, now) = (user.to_owned(), self.core.now());
        self.core
            .store
            .write("address added", Vec::new(), move |tx| {
                let (user, proof) = (user.clone(), proof.clone());
                Box::pin(async move {
                    if tx.threepids_of(&user).await?.len() >= MAX_ADDRESSES {
                        return Err(AccountError::AddressDenied);
                    }
                    give(tx, &user, &proof, now).await
                })
            })
            .await
    }

    /// Takes an address from an account.
    ///
    /// # Errors
    /// [`AccountError::AddressNotFound`] when it is not the user's.
    pub async fn remove_address(&self, user: &UserId, medium: &str, text: &str) -> Result<(), AccountError> {
        let text =
            if medium == EMAIL { address::canonical(text).unwrap_or_default() } else { text.to_owned() };
        let (user, medium) = (user.to_owned(), medium.to_owned());
        let gone = self
            .core
            .store
            .write("address removed", Vec::new(), move |tx| {
                let (user, medium, text) = (user.clone(), medium.clone(), text.clone());
                Box::pin(
                    async move { Ok::<_, AccountError>(tx.threepid_remove(&medium, &text, &user).await?) },
                )
            })
            .await?;
        if gone { Ok(()) } else { Err(AccountError::AddressNotFound) }
    }

    /// Whose address this is.
    pub(super) async fn owner_of(
        &self,
        medium: &str,
        text: &str,
    ) -> Result<Option<ThreepidRow>, AccountError> {
        if medium != EMAIL {
            return Ok(None);
        }
        let Some(text) = address::canonical(text) else { return Ok(None) };
        Ok(self.core.store.read().await?.threepid_load(medium, &text).await?)
    }
}

/// Uses a proof up and gives its address to a user.
///
/// # Errors
/// [`AccountError::NotValidated`] when it was used before, [`AccountError::AddressInUse`].
pub(super) async fn give(tx: &mut Tx, user: &UserId, proof: &Proof, now: u64) -> Result<(), AccountError> {
    if !tx.validation_use(&proof.sid, now).await? {
        return Err(AccountError::NotValidated);
    }
    let row = ThreepidRow {
        medium: EMAIL.to_owned(),
        address: proof.address.clone(),
        user_id: user.to_owned(),
        validated_at: proof.validated_at,
        added_at: now,
    };
    if tx.threepid_add(&row).await? {
        return Ok(());
    }
    let owner = tx.threepid_load(EMAIL, &proof.address).await?;
    if owner.is_some_and(|owner| owner.user_id == user) { Ok(()) } else { Err(AccountError::AddressInUse) }
}
