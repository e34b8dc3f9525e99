//! Accounts and their devices.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sqlx::AssertSqlSafe;

statements! {
    USER = "SELECT user_id, password_hash, admin, guest, deactivated, locked, suspended, erased, appservice, created_at FROM users WHERE user_id = $1";
    USER_INSERT = "INSERT INTO users (user_id, password_hash, admin, guest, appservice, created_at) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (user_id) DO NOTHING";
    USER_PASSWORD = "UPDATE users SET password_hash = $2 WHERE user_id = $1";
    USER_STANDING = "UPDATE users SET admin = $2, guest = $3, locked = $4, suspended = $5, deactivated = $6, erased = $7 WHERE user_id = $1";
    USERS = "SELECT user_id, password_hash, admin, guest, deactivated, locked, suspended, erased, appservice, created_at FROM users WHERE user_id > $1 ORDER BY user_id LIMIT $2";
    USERS_COUNT = "SELECT COUNT(*) FROM users";
    ERASED = "SELECT user_id FROM users WHERE erased";
    CLOSED_IN_ROOMS = "SELECT DISTINCT u.user_id FROM users u JOIN members m ON m.user_id = u.user_id WHERE u.deactivated AND m.membership IN ('join', 'invite', 'knock') ORDER BY u.user_id LIMIT $1";
    HIDDEN = "SELECT user_id FROM users WHERE (deactivated OR locked) AND user_id IN ($list)";
    ANY_USER = "SELECT user_id FROM users WHERE NOT guest AND appservice IS NULL LIMIT 1";
    DEVICES = "SELECT user_id, device_id, display_name, created_at, last_seen_at, last_seen_ip, user_agent FROM devices WHERE user_id = $1 ORDER BY created_at, device_id";
    DEVICE = "SELECT user_id, device_id, display_name, created_at, last_seen_at, last_seen_ip, user_agent FROM devices WHERE user_id = $1 AND device_id = $2";
    DEVICE_INSERT = "INSERT INTO devices (user_id, device_id, display_name, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (user_id, device_id) DO NOTHING";
    DEVICE_RENAME = "UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2";
    DEVICE_DELETE = "DELETE FROM devices WHERE user_id = $1 AND device_id = $2";
    TRANSACTIONS_OF_DEVICE = "DELETE FROM transactions WHERE user_id = $1 AND device_id = $2";
    DEVICE_SEEN = "UPDATE devices SET last_seen_at = $3, last_seen_ip = $4, user_agent = $5 WHERE user_id = $1 AND device_id = $2";
}

/// An account of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// The user.
    pub user_id: OwnedUserId,
    /// The password's Argon2 hash in PHC form; none: the account has no password.
    pub password_hash: Option<String>,
    /// An administrator of this server.
    pub admin: bool,
    /// A guest.
    pub guest: bool,
    /// Closed for ever; the id is never given again.
    pub deactivated: bool,
    /// Locked.
    pub locked: bool,
    /// Suspended.
    pub suspended: bool,
    /// Closed, and its events are shown only to those who could see them before.
    pub erased: bool,
    /// The application service that made it.
    pub appservice: Option<String>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_at: u64,
}

/// A device of an account of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// What the user calls it.
    pub display_name: Option<String>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_at: u64,
    /// When it last made a request, to the minute.
    pub last_seen_at: Option<u64>,
    /// From where.
    pub last_seen_ip: Option<String>,
    /// What it called itself.
    pub user_agent: Option<String>,
}

type UserColumns = (String, Option<String>, bool, bool, bool, bool, bool, bool, Option<String>, i64);
type DeviceColumns = (String, String, Option<String>, i64, Option<i64>, Option<String>, Option<String>);

fn user_id(table: &'static str, user: &str) -> StoreResult<OwnedUserId> {
    OwnedUserId::try_from(user).map_err(|error| StoreError::corrupt(table, user, error))
}

fn decode_user(columns: UserColumns) -> StoreResult<UserRow> {
    let (user, password_hash, admin, guest, deactivated, locked, suspended, erased, appservice, at) = columns;
    Ok(UserRow {
        user_id: user_id("users", &user)?,
        password_hash,
        admin,
        guest,
        deactivated,
        locked,
        suspended,
        erased,
        appservice,
        created_at: at as u64,
    })
}

fn decode_device(columns: DeviceColumns) -> StoreResult<DeviceRow> {
    let (user, device, display_name, created_at, last_seen_at, last_seen_ip, user_agent) = columns;
    Ok(DeviceRow {
        user_id: user_id("devices", &user)?,
        device_id: device.into(),
        display_name,
        created_at: created_at as u64,
        last_seen_at: last_seen_at.map(|at| at as u64),
        last_seen_ip,
        user_agent,
    })
}

impl Conn {
    /// The account with this id, closed ones too.
    pub async fn user_load(&mut self, user: &UserId) -> StoreResult<Option<UserRow>> {
        let found: Option<UserColumns> =
            on_engine!(self, |c| sqlx::query_as(USER).bind(user.as_str()).fetch_optional(c).await)?;
        found.map(decode_user).transpose()
    }

    /// Accounts after `after` in the order of their ids, closed ones too.
    pub async fn users_after(&mut self, after: &str, limit: i64) -> StoreResult<Vec<UserRow>> {
        let found: Vec<UserColumns> =
            on_engine!(self, |c| sqlx::query_as(USERS).bind(after).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode_user).collect()
    }

    /// How many accounts there are, closed ones too.
    pub async fn users_count(&mut self) -> StoreResult<i64> {
        let (count,): (i64,) = on_engine!(self, |c| sqlx::query_as(USERS_COUNT).fetch_one(c).await)?;
        Ok(count)
    }

    /// Those whose events are shown only to who could see them before.
    pub async fn users_erased(&mut self) -> StoreResult<Vec<OwnedUserId>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(ERASED).fetch_all(c).await)?;
        found.into_iter().map(|(user,)| user_id("users", &user)).collect()
    }

    /// Closed accounts that are in rooms or invited still, at most `limit`.
    pub async fn users_closed_in_rooms(&mut self, limit: i64) -> StoreResult<Vec<OwnedUserId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(CLOSED_IN_ROOMS).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(|(user,)| user_id("users", &user)).collect()
    }

    /// Those of `users` whose accounts are closed or locked.
    pub async fn users_hidden(&mut self, users: &[OwnedUserId]) -> StoreResult<Vec<OwnedUserId>> {
        let mut hidden = Vec::new();
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(HIDDEN, 1, chunk.len());
            let found: Vec<(String,)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (user,) in found {
                hidden.push(user_id("users", &user)?);
            }
        }
        Ok(hidden)
    }

    /// Whether there is an account, those of guests and application services aside.
    pub async fn users_any(&mut self) -> StoreResult<bool> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(ANY_USER).fetch_optional(c).await)?;
        Ok(found.is_some())
    }

    /// The devices of a user, oldest first.
    pub async fn devices_of(&mut self, user: &UserId) -> StoreResult<Vec<DeviceRow>> {
        let found: Vec<DeviceColumns> =
            on_engine!(self, |c| sqlx::query_as(DEVICES).bind(user.as_str()).fetch_all(c).await)?;
        found.into_iter().map(decode_device).collect()
    }

    /// One device.
    pub async fn device_load(&mut self, user: &UserId, device: &DeviceId) -> StoreResult<Option<DeviceRow>> {
        let found: Option<DeviceColumns> = on_engine!(self, |c| sqlx::query_as(DEVICE)
            .bind(user.as_str())
            .bind(device.as_str())
            .fetch_optional(c)
            .await)?;
        found.map(decode_device).transpose()
    }
}

impl crate::Tx {
    /// Makes an account; false: the id is taken, by a closed account perhaps.
    pub async fn user_insert(&mut self, row: &UserRow) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let made = on_engine!(conn, |c| sqlx::query(USER_INSERT)
            .bind(row.user_id.as_str())
            .bind(row.password_hash.as_deref())
            .bind(row.admin)
            .bind(row.guest)
            .bind(row.appservice.as_deref())
            .bind(row.created_at as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(made > 0)
    }

    /// Sets or takes away the password; false: there is no such account.
    pub async fn user_password_set(&mut self, user: &UserId, hash: Option<&str>) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let set = on_engine!(conn, |c| sqlx::query(USER_PASSWORD)
            .bind(user.as_str())
            .bind(hash)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(set > 0)
    }

    /// Sets the flags of an account: administrator, guest, locked, suspended, deactivated, erased.
    pub async fn user_standing_set(&mut self, row: &UserRow) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let set = on_engine!(conn, |c| sqlx::query(USER_STANDING)
            .bind(row.user_id.as_str())
            .bind(row.admin)
            .bind(row.guest)
            .bind(row.locked)
            .bind(row.suspended)
            .bind(row.deactivated)
            .bind(row.erased)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(set > 0)
    }

    /// Makes a device; false: it is there already, with the name that it has.
    pub async fn device_insert(
        &mut self,
        user: &UserId,
        device: &DeviceId,
        name: Option<&str>,
        now: u64,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let made = on_engine!(conn, |c| sqlx::query(DEVICE_INSERT)
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(name)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(made > 0)
    }

    /// Renames a device; false: there is no such device.
    pub async fn device_rename(
        &mut self,
        user: &UserId,
        device: &DeviceId,
        name: Option<&str>,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let set = on_engine!(conn, |c| sqlx::query(DEVICE_RENAME)
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(name)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(set > 0)
    }

    /// Deletes the row of a device, and what it was answered: transaction ids die with it. False: there is no such device.
    pub async fn device_delete(&mut self, user: &UserId, device: &DeviceId) -> StoreResult<bool> {
        self.transactions_forget(user, Some(device.as_str()));
        let conn = self.writing().await?;
        on_engine!(&mut *conn, |c| sqlx::query(TRANSACTIONS_OF_DEVICE)
            .bind(user.as_str())
            .bind(device.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        let gone = on_engine!(conn, |c| sqlx::query(DEVICE_DELETE)
            .bind(user.as_str())
            .bind(device.as_str())
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(gone > 0)
    }

    /// Notes when and from where a device was seen.
    pub async fn device_seen(
        &mut self,
        user: &UserId,
        device: &DeviceId,
        at: u64,
        ip: &str,
        agent: Option<&str>,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DEVICE_SEEN)
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(at as i64)
            .bind(ip)
            .bind(agent)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
