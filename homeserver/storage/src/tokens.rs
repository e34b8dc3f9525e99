//! Access, refresh, login and OpenID tokens. The database knows only their SHA-256.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use ruma::{OwnedDeviceId, OwnedUserId};

statements! {
    ACCESS = "SELECT t.user_id, t.device_id, t.expires_at, t.refresh_hash, t.used, u.admin, u.guest, u.deactivated, u.locked, u.suspended FROM access_tokens t JOIN users u ON u.user_id = t.user_id WHERE t.token_hash = $1";
}

/// A token's SHA-256.
pub type TokenHash = [u8; 32];

/// An access token and the standing of whom it speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessTokenRow {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// The device that it belongs to.
    pub device_id: Option<OwnedDeviceId>,
    /// When it stops to be valid, in milliseconds since the Unix epoch; none: never.
    pub expires_at: Option<u64>,
    /// The refresh token that was given out with it.
    pub refresh_hash: Option<TokenHash>,
    /// Whether a request came with it already.
    pub used: bool,
    /// The user is an administrator.
    pub admin: bool,
    /// The user is a guest.
    pub guest: bool,
    /// The account is closed for ever.
    pub deactivated: bool,
    /// The account is locked.
    pub locked: bool,
    /// The account is suspended.
    pub suspended: bool,
}

type Columns = (String, Option<String>, Option<i64>, Option<Vec<u8>>, bool, bool, bool, bool, bool, bool);

pub(crate) fn hash_column(table: &'static str, bytes: Vec<u8>) -> StoreResult<TokenHash> {
    TokenHash::try_from(bytes).map_err(|_| StoreError::corrupt(table, "?", "a hash of a wrong length"))
}

impl Conn {
    /// The access token with this hash.
    pub async fn access_token_load(&mut self, hash: &TokenHash) -> StoreResult<Option<AccessTokenRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(ACCESS).bind(&hash[..]).fetch_optional(c).await)?;
        let Some((user, device, expires, refresh, used, admin, guest, deactivated, locked, suspended)) =
            found
        else {
            return Ok(None);
        };
        Ok(Some(AccessTokenRow {
            user_id: OwnedUserId::try_from(user.as_str())
                .map_err(|error| StoreError::corrupt("access_tokens", user, error))?,
            device_id: device.map(OwnedDeviceId::from),
            expires_at: expires.map(|at| at as u64),
            refresh_hash: refresh.map(|hash| hash_column("access_tokens", hash)).transpose()?,
            used,
            admin,
            guest,
            deactivated,
            locked,
            suspended,
        }))
    }
}
