//! OpenID: <https://spec.matrix.org/v1.19/client-server-api/#openid>.

use super::{AccountError, Accounts, token_hash};
use ruma::{OwnedUserId, UserId};
use std::time::Duration;
use waxwing_model::secret_token;

/// How long an OpenID token is good.
pub const OPENID_LIFETIME: Duration = Duration::from_hours(1);

impl Accounts {
    /// A token with which a third party can ask who the user is; good for [`OPENID_LIFETIME`].
    pub async fn openid_token(&self, user: &UserId) -> Result<String, AccountError> {
        let token = secret_token("wxo_");
        let (hash, user, now) = (token_hash(&token), user.to_owned(), self.core.now());
        let expires = now + OPENID_LIFETIME.as_millis() as u64;
        self.core
            .store
            .write("openid token", Vec::new(), move |tx| {
                let user = user.clone();
                Box::pin(async move { tx.openid_token_insert(&hash, &user, expires, now).await })
            })
            .await?;
        Ok(token)
    }

    /// Whom an OpenID token names: what `GET /_matrix/federation/v1/openid/userinfo` answers.
    pub async fn openid_user(&self, token: &str) -> Result<Option<OwnedUserId>, AccountError> {
        let now = self.core.now();
        Ok(self.core.store.read().await?.openid_token_load(&token_hash(token), now).await?)
    }
}
