//! Passwords: Argon2id on blocking threads, so many at once as there are cores, so that a flood of logins neither
//! takes the memory nor stops the requests of others.

use super::AccountError;
use crate::PasswordCost;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use std::sync::Arc;
use tokio::sync::{OnceCell, Semaphore};

/// Longer passwords only make the server hash more.
const LONGEST: usize = 512;

pub(super) struct Hasher {
    cost: PasswordCost,
    permits: Arc<Semaphore>,
    /// The hash of nothing that anyone knows, checked where there is no account, so that the time says nothing.
    nobody: OnceCell<String>,
}

impl Hasher {
    pub fn new(cost: PasswordCost) -> Hasher {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Hasher { cost, permits: Arc::new(Semaphore::new(cores)), nobody: OnceCell::new() }
    }

    /// Hashes a new password.
    pub async fn hash(&self, password: &str) -> Result<String, AccountError> {
        if password.is_empty() || password.len() > LONGEST {
            return Err(AccountError::WeakPassword);
        }
        let cost = self.cost;
        let password = password.to_owned();
        self.blocking(move || {
            let params = Params::new(cost.memory_kib, cost.iterations, 1, None)
                .map_err(|error| AccountError::Hash(error.to_string()))?;
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
                .map_err(|error| AccountError::Hash(error.to_string()))
        })
        .await
    }

    /// Whether the password fits. With `hash` absent it takes as long and says no.
    pub async fn verify(&self, password: &str, hash: Option<&str>) -> Result<bool, AccountError> {
        if password.len() > LONGEST {
            return Ok(false);
        }
        let known = hash.is_some();
        let hash = match hash {
            Some(hash) => hash.to_owned(),
            None => {
                let secret = waxwing_model::secret_token("");
                self.nobody.get_or_try_init(|| self.hash(&secret)).await?.clone()
            }
        };
        let password = password.to_owned();
        let fits = self
            .blocking(move || {
                let parsed =
                    PasswordHash::new(&hash).map_err(|error| AccountError::Hash(error.to_string()))?;
                Ok(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
            })
            .await?;
        Ok(fits && known)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, AccountError> + Send + 'static,
    ) -> Result<T, AccountError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|error| AccountError::Hash(error.to_string()))?;
        tokio::task::spawn_blocking(move || {
            let _until_done = permit;
            work()
        })
        .await
        .map_err(|error| AccountError::Hash(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_right_password_fits() {
        let hasher = Hasher::new(PasswordCost { memory_kib: 64, iterations: 1 });
        let hash = hasher.hash("übers3kr1t").await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(hasher.verify("übers3kr1t", Some(&hash)).await.unwrap());
        assert!(!hasher.verify("ubers3kr1t", Some(&hash)).await.unwrap());
        assert!(!hasher.verify("übers3kr1t", None).await.unwrap());
        assert!(matches!(hasher.hash("").await, Err(AccountError::WeakPassword)));
    }
}
