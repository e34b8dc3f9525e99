//! Addresses of accounts, and those that are being validated.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use ruma::{OwnedUserId, UserId};

statements! {
    OF_USER = "SELECT medium, address, user_id, validated_at, added_at FROM threepids WHERE user_id = $1 ORDER BY medium, address";
    OWNER = "SELECT medium, address, user_id, validated_at, added_at FROM threepids WHERE medium = $1 AND address = $2";
    ADD = "INSERT INTO threepids (medium, address, user_id, validated_at, added_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (medium, address) DO NOTHING";
    REMOVE = "DELETE FROM threepids WHERE medium = $1 AND address = $2 AND user_id = $3";
    SESSION = "SELECT sid, purpose, medium, address, client_secret, send_attempt, next_link, created_at, letters, wrong_tokens, validated_at, used_at FROM validations WHERE sid = $1";
    SESSION_OF = "SELECT sid, purpose, medium, address, client_secret, send_attempt, next_link, created_at, letters, wrong_tokens, validated_at, used_at FROM validations WHERE purpose = $1 AND medium = $2 AND address = $3 AND client_secret = $4";
    SESSION_PUT = "INSERT INTO validations (sid, purpose, medium, address, client_secret, send_attempt, next_link, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (purpose, medium, address, client_secret) DO UPDATE SET send_attempt = excluded.send_attempt, next_link = excluded.next_link, letters = validations.letters + 1";
    SESSION_DELETE = "DELETE FROM validations WHERE sid = $1";
    SESSION_WRONG = "UPDATE validations SET wrong_tokens = wrong_tokens + 1 WHERE sid = $1";
    SESSION_VALIDATED = "UPDATE validations SET validated_at = $2 WHERE sid = $1 AND validated_at IS NULL";
    SESSION_USED = "UPDATE validations SET used_at = $2 WHERE sid = $1 AND used_at IS NULL AND validated_at IS NOT NULL";
    SESSION_PRUNE = "DELETE FROM validations WHERE created_at <= $1";
}

/// An address of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreepidRow {
    /// `email`.
    pub medium: String,
    /// The address, in small letters.
    pub address: String,
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// When its owner was found to read what is sent there, in milliseconds since the Unix epoch.
    pub validated_at: u64,
    /// When it was added to the account.
    pub added_at: u64,
}

/// An address that is being validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidationRow {
    /// Names the session.
    pub sid: String,
    /// What the address shall be good for.
    pub purpose: String,
    /// `email`.
    pub medium: String,
    /// The address, in small letters.
    pub address: String,
    /// The SHA-256, in URL-safe base64, of the secret that the client made up.
    pub client_secret: String,
    /// The newest of the client's numbers.
    pub send_attempt: i64,
    /// Where the browser goes afterwards.
    pub next_link: Option<String>,
    /// When it began, in milliseconds since the Unix epoch.
    pub created_at: u64,
    /// How many letters were sent.
    pub letters: i64,
    /// How often a wrong token was tried.
    pub wrong_tokens: i64,
    /// When the right one came.
    pub validated_at: Option<u64>,
    /// When it was used up.
    pub used_at: Option<u64>,
}

type Columns = (String, String, String, i64, i64);
type SessionColumns =
    (String, String, String, String, String, i64, Option<String>, i64, i64, i64, Option<i64>, Option<i64>);

fn decode((medium, address, user, validated_at, added_at): Columns) -> StoreResult<ThreepidRow> {
    let user_id =
        OwnedUserId::try_from(&*user).map_err(|error| StoreError::corrupt("threepids", &user, error))?;
    Ok(ThreepidRow { medium, address, user_id, validated_at: validated_at as u64, added_at: added_at as u64 })
}

fn decode_session(columns: SessionColumns) -> ValidationRow {
    let (
        sid,
        purpose,
        medium,
        address,
        client_secret,
        send_attempt,
        next_link,
        began,
        letters,
        wrong,
        at,
        used,
    ) = columns;
    ValidationRow {
        sid,
        purpose,
        medium,
        address,
        client_secret,
        send_attempt,
        next_link,
        created_at: began as u64,
        letters,
        wrong_tokens: wrong,
        validated_at: at.map(|at| at as u64),
        used_at: used.map(|at| at as u64),
    }
}

impl Conn {
    /// The addresses of a user.
    pub async fn threepids_of(&mut self, user: &UserId) -> StoreResult<Vec<ThreepidRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(OF_USER).bind(user.as_str()).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// An address with its owner, if it is anybody's.
    pub async fn threepid_load(&mut self, medium: &str, address: &str) -> StoreResult<Option<ThreepidRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(OWNER).bind(medium).bind(address).fetch_optional(c).await)?;
        found.map(decode).transpose()
    }

    /// A session.
    pub async fn validation_load(&mut self, sid: &str) -> StoreResult<Option<ValidationRow>> {
        let found: Option<SessionColumns> =
            on_engine!(self, |c| sqlx::query_as(SESSION).bind(sid).fetch_optional(c).await)?;
        Ok(found.map(decode_session))
    }

    /// The session of these four, if there is one. `client_secret`: its hash.
    pub async fn validation_of(
        &mut self,
        purpose: &str,
        medium: &str,
        address: &str,
        client_secret: &str,
    ) -> StoreResult<Option<ValidationRow>> {
        let found: Option<SessionColumns> = on_engine!(self, |c| sqlx::query_as(SESSION_OF)
            .bind(purpose)
            .bind(medium)
            .bind(address)
            .bind(client_secret)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(decode_session))
    }
}

impl crate::Tx {
    /// Gives an address to a user; false: it is somebody's already.
    pub async fn threepid_add(&mut self, row: &ThreepidRow) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let added = on_engine!(conn, |c| sqlx::query(ADD)
            .bind(&row.medium)
            .bind(&row.address)
            .bind(row.user_id.as_str())
            .bind(row.validated_at as i64)
            .bind(row.added_at as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(added > 0)
    }

    /// Takes an address from a user; false: it was not theirs.
    pub async fn threepid_remove(&mut self, medium: &str, address: &str, user: &UserId) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let gone = on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(medium)
            .bind(address)
            .bind(user.as_str())
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(gone > 0)
    }

    /// Begins a session; of one that is there the attempt and the link change, and one more letter is counted.
    pub async fn validation_put(&mut self, row: &ValidationRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_PUT)
            .bind(&row.sid)
            .bind(&row.purpose)
            .bind(&row.medium)
            .bind(&row.address)
            .bind(&row.client_secret)
            .bind(row.send_attempt)
            .bind(row.next_link.as_deref())
            .bind(row.created_at as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Ends a session.
    pub async fn validation_delete(&mut self, sid: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_DELETE).bind(sid).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Counts a wrong token.
    pub async fn validation_wrong(&mut self, sid: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_WRONG).bind(sid).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// The right token came.
    pub async fn validation_validated(&mut self, sid: &str, now: u64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_VALIDATED)
            .bind(sid)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Uses a session up; false: it was not validated, was used before, or is gone.
    pub async fn validation_use(&mut self, sid: &str, now: u64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let used = on_engine!(conn, |c| sqlx::query(SESSION_USED)
            .bind(sid)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(used > 0)
    }

    /// Drops the sessions that began before `until`.
    pub async fn validations_prune(&mut self, until: u64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_PRUNE).bind(until as i64).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
