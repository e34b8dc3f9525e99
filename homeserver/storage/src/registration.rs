//! Registration tokens, and the sessions of user-interactive authentication.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;

statements! {
    TOKEN = "SELECT token, uses_allowed, completed, expires_at, admin FROM registration_tokens WHERE token = $1";
    TOKENS = "SELECT token, uses_allowed, completed, expires_at, admin FROM registration_tokens ORDER BY token";
    TOKEN_ADMIN = "SELECT token, uses_allowed, completed, expires_at, admin FROM registration_tokens WHERE admin AND completed = 0 ORDER BY token LIMIT 1";
    TOKEN_INSERT = "INSERT INTO registration_tokens (token, uses_allowed, expires_at, admin) VALUES ($1, $2, $3, $4) ON CONFLICT (token) DO NOTHING";
    TOKEN_USE = "UPDATE registration_tokens SET completed = completed + 1 WHERE token = $1 AND (uses_allowed IS NULL OR completed < uses_allowed) AND (expires_at IS NULL OR expires_at > $2)";
    TOKEN_DELETE = "DELETE FROM registration_tokens WHERE token = $1";
    SESSION = "SELECT data FROM uia_sessions WHERE session = $1 AND created_at > $2";
    SESSION_PUT = "INSERT INTO uia_sessions (session, data, created_at) VALUES ($1, $2, $3) ON CONFLICT (session) DO UPDATE SET data = excluded.data";
    SESSION_DELETE = "DELETE FROM uia_sessions WHERE session = $1";
    SESSION_PRUNE = "DELETE FROM uia_sessions WHERE created_at <= $1";
}

/// A registration token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationTokenRow {
    /// The token, in the clear: administrators read it out to people.
    pub token: String,
    /// How many accounts may be made with it; none: any number.
    pub uses_allowed: Option<i64>,
    /// How many were.
    pub completed: i64,
    /// Until when it is valid, in milliseconds since the Unix epoch; none: for ever.
    pub expires_at: Option<u64>,
    /// Whoever registers with it becomes an administrator.
    pub admin: bool,
}

type Columns = (String, Option<i64>, i64, Option<i64>, bool);

fn decode((token, uses_allowed, completed, expires_at, admin): Columns) -> RegistrationTokenRow {
    RegistrationTokenRow { token, uses_allowed, completed, expires_at: expires_at.map(|at| at as u64), admin }
}

impl Conn {
    /// The registration token of this text.
    pub async fn registration_token_load(
        &mut self,
        token: &str,
    ) -> StoreResult<Option<RegistrationTokenRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(TOKEN).bind(token).fetch_optional(c).await)?;
        Ok(found.map(decode))
    }

    /// All registration tokens.
    pub async fn registration_tokens_all(&mut self) -> StoreResult<Vec<RegistrationTokenRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(TOKENS).fetch_all(c).await)?;
        Ok(found.into_iter().map(decode).collect())
    }

    /// The token of the first administrator, while nobody has used it.
    pub async fn registration_token_admin(&mut self) -> StoreResult<Option<RegistrationTokenRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(TOKEN_ADMIN).fetch_optional(c).await)?;
        Ok(found.map(decode))
    }

    /// The data of a session that was begun after `since`.
    pub async fn uia_session_load(&mut self, session: &str, since: u64) -> StoreResult<Option<String>> {
        let found: Option<(String,)> = on_engine!(self, |c| sqlx::query_as(SESSION)
            .bind(session)
            .bind(since as i64)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(data,)| data))
    }
}

impl crate::Tx {
    /// Makes a registration token; false: it is there already.
    pub async fn registration_token_insert(&mut self, row: &RegistrationTokenRow) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let made = on_engine!(conn, |c| sqlx::query(TOKEN_INSERT)
            .bind(&row.token)
            .bind(row.uses_allowed)
            .bind(row.expires_at.map(|at| at as i64))
            .bind(row.admin)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(made > 0)
    }

    /// Counts one use; false: it is used up, expired or unknown.
    pub async fn registration_token_use(&mut self, token: &str, now: u64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let used = on_engine!(conn, |c| sqlx::query(TOKEN_USE)
            .bind(token)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(used > 0)
    }

    /// Takes a registration token away.
    pub async fn registration_token_delete(&mut self, token: &str) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let gone = on_engine!(conn, |c| sqlx::query(TOKEN_DELETE)
            .bind(token)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(gone > 0)
    }

    /// Keeps the data of a session.
    pub async fn uia_session_put(&mut self, session: &str, data: &str, now: u64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_PUT)
            .bind(session)
            .bind(data)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Ends a session.
    pub async fn uia_session_delete(&mut self, session: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_DELETE).bind(session).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Drops the sessions that were begun before `until`.
    pub async fn uia_sessions_prune(&mut self, until: u64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SESSION_PRUNE).bind(until as i64).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
