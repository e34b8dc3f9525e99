//! Access, refresh, login and OpenID tokens. The database knows only their SHA-256.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};

statements! {
    ACCESS = "SELECT t.user_id, t.device_id, t.expires_at, t.refresh_hash, t.used, u.admin, u.guest, u.deactivated, u.locked, u.suspended FROM access_tokens t JOIN users u ON u.user_id = t.user_id WHERE t.token_hash = $1";
    ACCESS_INSERT = "INSERT INTO access_tokens (token_hash, user_id, device_id, created_at, expires_at, refresh_hash, used) VALUES ($1, $2, $3, $4, $5, $6, FALSE)";
    ACCESS_USED = "UPDATE access_tokens SET used = TRUE WHERE token_hash = $1 AND NOT used RETURNING user_id, device_id, refresh_hash";
    ACCESS_OF_DEVICE = "DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2";
    ACCESS_OF_USER = "DELETE FROM access_tokens WHERE user_id = $1";
    ACCESS_OF_REFRESH = "DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2 AND refresh_hash = $3";
    REFRESH = "SELECT user_id, device_id, next_hash FROM refresh_tokens WHERE token_hash = $1";
    REFRESH_INSERT = "INSERT INTO refresh_tokens (token_hash, user_id, device_id, created_at) VALUES ($1, $2, $3, $4)";
    REFRESH_NEXT = "UPDATE refresh_tokens SET next_hash = $2 WHERE token_hash = $1";
    REFRESH_BEFORE = "DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2 AND next_hash = $3 RETURNING token_hash";
    REFRESH_DELETE = "DELETE FROM refresh_tokens WHERE token_hash = $1";
    REFRESH_OF_DEVICE = "DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2";
    REFRESH_OF_USER = "DELETE FROM refresh_tokens WHERE user_id = $1";
    LOGIN_INSERT = "INSERT INTO login_tokens (token_hash, user_id, expires_at) VALUES ($1, $2, $3)";
    LOGIN_TAKE = "DELETE FROM login_tokens WHERE token_hash = $1 RETURNING user_id, expires_at";
    LOGIN_OF_USER = "DELETE FROM login_tokens WHERE user_id = $1";
    LOGIN_PRUNE = "DELETE FROM login_tokens WHERE expires_at < $1";
    OPENID = "SELECT user_id, expires_at FROM openid_tokens WHERE token_hash = $1";
    OPENID_INSERT = "INSERT INTO openid_tokens (token_hash, user_id, expires_at) VALUES ($1, $2, $3)";
    OPENID_OF_USER = "DELETE FROM openid_tokens WHERE user_id = $1";
    OPENID_PRUNE = "DELETE FROM openid_tokens WHERE expires_at < $1";
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

/// A refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshTokenRow {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// The device that it belongs to.
    pub device_id: OwnedDeviceId,
    /// The token that was given for it, while neither that one nor its access token was used.
    pub next_hash: Option<TokenHash>,
}

/// An access token as it is stored.
#[derive(Clone, Debug)]
pub struct NewAccessToken {
    /// The hash.
    pub hash: TokenHash,
    /// Until when it is valid, in milliseconds since the Unix epoch; none: until it is taken away.
    pub expires_at: Option<u64>,
    /// The refresh token that is given out with it.
    pub refresh_hash: Option<TokenHash>,
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
            user_id: user_id("access_tokens", &user)?,
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

    /// The refresh token with this hash.
    pub async fn refresh_token_load(&mut self, hash: &TokenHash) -> StoreResult<Option<RefreshTokenRow>> {
        let found: Option<(String, String, Option<Vec<u8>>)> =
            on_engine!(self, |c| sqlx::query_as(REFRESH).bind(&hash[..]).fetch_optional(c).await)?;
        let Some((user, device, next)) = found else { return Ok(None) };
        Ok(Some(RefreshTokenRow {
            user_id: user_id("refresh_tokens", &user)?,
            device_id: device.into(),
            next_hash: next.map(|hash| hash_column("refresh_tokens", hash)).transpose()?,
        }))
    }

    /// Whom the OpenID token with this hash names, until it expires.
    pub async fn openid_token_load(
        &mut self,
        hash: &TokenHash,
        now: u64,
    ) -> StoreResult<Option<OwnedUserId>> {
        let found: Option<(String, i64)> =
            on_engine!(self, |c| sqlx::query_as(OPENID).bind(&hash[..]).fetch_optional(c).await)?;
        match found {
            Some((user, expires)) if expires as u64 > now => Ok(Some(user_id("openid_tokens", &user)?)),
            _ => Ok(None),
        }
    }
}

fn user_id(table: &'static str, user: &str) -> StoreResult<OwnedUserId> {
    OwnedUserId::try_from(user).map_err(|error| StoreError::corrupt(table, user, error))
}

impl crate::Tx {
    /// Stores an access token.
    pub async fn access_token_insert(
        &mut self,
        token: &NewAccessToken,
        user: &UserId,
        device: &DeviceId,
        now: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(ACCESS_INSERT)
            .bind(&token.hash[..])
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(now as i64)
            .bind(token.expires_at.map(|at| at as i64))
            .bind(token.refresh_hash.as_ref().map(|hash| &hash[..]))
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Notes the first use of an access token; gives the refresh token that came with it.
    pub async fn access_token_used(
        &mut self,
        hash: &TokenHash,
    ) -> StoreResult<Option<(OwnedUserId, OwnedDeviceId, TokenHash)>> {
        let conn = self.writing().await?;
        let found: Option<(String, Option<String>, Option<Vec<u8>>)> =
            on_engine!(conn, |c| sqlx::query_as(ACCESS_USED).bind(&hash[..]).fetch_optional(c).await)?;
        let Some((user, Some(device), Some(refresh))) = found else { return Ok(None) };
        Ok(Some((user_id("access_tokens", &user)?, device.into(), hash_column("access_tokens", refresh)?)))
    }

    /// Takes away all tokens of a device.
    pub async fn tokens_delete_of_device(&mut self, user: &UserId, device: &DeviceId) -> StoreResult<()> {
        let conn = self.writing().await?;
        for text in [ACCESS_OF_DEVICE, REFRESH_OF_DEVICE] {
            on_engine!(&mut *conn, |c| sqlx::query(text)
                .bind(user.as_str())
                .bind(device.as_str())
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }

    /// Takes away all tokens of a user, of every kind.
    pub async fn tokens_delete_of_user(&mut self, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        for text in [ACCESS_OF_USER, REFRESH_OF_USER, LOGIN_OF_USER, OPENID_OF_USER] {
            on_engine!(&mut *conn, |c| sqlx::query(text).bind(user.as_str()).execute(c).await.map(|_| ()))?;
        }
        Ok(())
    }

    /// Stores a refresh token.
    pub async fn refresh_token_insert(
        &mut self,
        hash: &TokenHash,
        user: &UserId,
        device: &DeviceId,
        now: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REFRESH_INSERT)
            .bind(&hash[..])
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(now as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Notes what a refresh token was exchanged for.
    pub async fn refresh_token_next(&mut self, hash: &TokenHash, next: &TokenHash) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REFRESH_NEXT)
            .bind(&hash[..])
            .bind(&next[..])
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Takes away a refresh token and the access tokens that came with it.
    pub async fn refresh_token_delete(
        &mut self,
        hash: &TokenHash,
        user: &UserId,
        device: &DeviceId,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(&mut *conn, |c| sqlx::query(REFRESH_DELETE).bind(&hash[..]).execute(c).await.map(|_| ()))?;
        on_engine!(&mut *conn, |c| sqlx::query(ACCESS_OF_REFRESH)
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(&hash[..])
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Takes away the refresh token that was exchanged for `hash`, and the access tokens that came with it.
    pub async fn refresh_token_delete_before(
        &mut self,
        hash: &TokenHash,
        user: &UserId,
        device: &DeviceId,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        let before: Vec<(Vec<u8>,)> = on_engine!(conn, |c| sqlx::query_as(REFRESH_BEFORE)
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(&hash[..])
            .fetch_all(c)
            .await)?;
        for (before,) in before {
            self.refresh_token_delete(&hash_column("refresh_tokens", before)?, user, device).await?;
        }
        Ok(())
    }

    /// Stores a login token, and drops those that have expired.
    pub async fn login_token_insert(
        &mut self,
        hash: &TokenHash,
        user: &UserId,
        expires_at: u64,
        now: u64,
    ) -> StoreResult<()> {
        self.short_token_insert([LOGIN_PRUNE, LOGIN_INSERT], hash, user, expires_at, now).await
    }

    /// Takes a login token: it is good once. Gives whose it was, unless it had expired.
    pub async fn login_token_take(&mut self, hash: &TokenHash, now: u64) -> StoreResult<Option<OwnedUserId>> {
        let conn = self.writing().await?;
        let found: Option<(String, i64)> =
            on_engine!(conn, |c| sqlx::query_as(LOGIN_TAKE).bind(&hash[..]).fetch_optional(c).await)?;
        match found {
            Some((user, expires)) if expires as u64 > now => Ok(Some(user_id("login_tokens", &user)?)),
            _ => Ok(None),
        }
    }

    /// Stores an OpenID token, and drops those that have expired.
    pub async fn openid_token_insert(
        &mut self,
        hash: &TokenHash,
        user: &UserId,
        expires_at: u64,
        now: u64,
    ) -> StoreResult<()> {
        self.short_token_insert([OPENID_PRUNE, OPENID_INSERT], hash, user, expires_at, now).await
    }

    async fn short_token_insert(
        &mut self,
        [prune, insert]: [&'static str; 2],
        hash: &TokenHash,
        user: &UserId,
        expires_at: u64,
        now: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(&mut *conn, |c| sqlx::query(prune).bind(now as i64).execute(c).await.map(|_| ()))?;
        on_engine!(&mut *conn, |c| sqlx::query(insert)
            .bind(&hash[..])
            .bind(user.as_str())
            .bind(expires_at as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
