//! User-interactive authentication: <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>.
//!
//! A session is a row, so that any node can go on with it, and is bound to one endpoint and one user.

use super::{AccountError, Accounts};
use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::Duration;
use waxwing_model::opaque_id;
use waxwing_storage::StoreError;

/// How long a session lives.
const LIFETIME: Duration = Duration::from_hours(1);

/// The stages that exist here.
pub mod stage {
    /// The password.
    pub const PASSWORD: &str = "m.login.password";
    /// Nothing.
    pub const DUMMY: &str = "m.login.dummy";
    /// A registration token.
    pub const REGISTRATION_TOKEN: &str = "m.login.registration_token";
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct UiaRequest<'a> {
    /// The method and the path: what a session is bound to.
    pub endpoint: &'a str,
    /// Who asks; none: a registration.
    pub user: Option<&'a UserId>,
    /// The body, whose `auth` is read.
    pub json: &'a [u8],
    /// Each flow is a list of stages; one of them must be gone through.
    pub flows: &'a [&'a [&'a str]],
}

/// What a finished session leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UiaDone {
    /// The registration token that was shown.
    pub registration_token: Option<String>,
}

/// Why the request does not go on.
#[derive(Debug, thiserror::Error)]
pub enum UiaError {
    /// More stages are needed: 401 with this body.
    #[error("user-interactive authentication is needed")]
    Needed(Map<String, Value>),
    /// The session belongs to another endpoint or another user.
    #[error("the session was begun for something else")]
    OtherRequest,
    /// Someone else's password does not help.
    #[error("the authentication is for another user")]
    OtherUser,
    /// The body cannot be read.
    #[error("the body cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Something failed.
    #[error(transparent)]
    Account(#[from] AccountError),
}

impl From<StoreError> for UiaError {
    fn from(error: StoreError) -> UiaError {
        UiaError::Account(error.into())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    endpoint: String,
    user: Option<OwnedUserId>,
    completed: Vec<String>,
    registration_token: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    auth: Option<Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(rename = "type")]
    kind: Option<String>,
    session: Option<String>,
    identifier: Option<Identifier>,
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Identifier {
    user: Option<String>,
}

/// Why a stage was not passed: errcode and message.
type Refusal = (&'static str, &'static str);

impl Accounts {
    /// Goes on with, or begins, the authentication of a request.
    ///
    /// # Errors
    /// [`UiaError::Needed`] until a flow is completed. A request without `auth` never passes.
    pub async fn uia(&self, request: UiaRequest<'_>) -> Result<UiaDone, UiaError> {
        let body: Body =
            if request.json.is_empty() { Body { auth: None } } else { serde_json::from_slice(request.json)? };
        let (id, mut state) = self.uia_state(&request, body.auth.as_ref()).await?;
        let Some(auth) = body.auth else {
            return Err(self.uia_needed(&request, &id, &state, None).await?);
        };
        let mut refusal = None;
        if let Some(kind) = &auth.kind
            && !state.completed.contains(kind)
        {
            match self.uia_stage(&request, kind, &auth, &mut state).await? {
                Ok(()) => state.completed.push(kind.clone()),
                Err(refused) => refusal = Some(refused),
            }
        }
        let complete = |flow: &&[&str]| {
            flow.iter().all(|stage| state.completed.iter().any(|completed| completed == stage))
        };
        if refusal.is_none() && request.flows.iter().any(complete) {
            return Ok(UiaDone { registration_token: state.registration_token });
        }
        Err(self.uia_needed(&request, &id, &state, refusal).await?)
    }

    /// The session that the request names, or a new one.
    async fn uia_state(
        &self,
        request: &UiaRequest<'_>,
        auth: Option<&Auth>,
    ) -> Result<(String, State), UiaError> {
        if let Some(id) = auth.and_then(|auth| auth.session.as_deref()) {
            let since = self.core.now().saturating_sub(LIFETIME.as_millis() as u64);
            let found = self.core.store.read().await?.uia_session_load(id, since).await?;
            if let Some(state) = found.and_then(|data| serde_json::from_str::<State>(&data).ok()) {
                if state.endpoint != request.endpoint || state.user.as_deref() != request.user {
                    return Err(UiaError::OtherRequest);
                }
                return Ok((id.to_owned(), state));
            }
        }
        let state = State {
            endpoint: request.endpoint.to_owned(),
            user: request.user.map(ToOwned::to_owned),
            completed: Vec::new(),
            registration_token: None,
        };
        Ok((opaque_id(24), state))
    }

    async fn uia_stage(
        &self,
        request: &UiaRequest<'_>,
        kind: &str,
        auth: &Auth,
        state: &mut State,
    ) -> Result<Result<(), Refusal>, UiaError> {
        if !request.flows.iter().any(|flow| flow.contains(&kind)) {
            return Ok(Err(("M_UNRECOGNIZED", "This stage is in no flow")));
        }
        match kind {
            stage::DUMMY => Ok(Ok(())),
            stage::PASSWORD => self.uia_password(request, auth).await,
            stage::REGISTRATION_TOKEN => {
                let Some(token) = &auth.token else {
                    return Ok(Err(("M_MISSING_PARAM", "The token is missing")));
                };
                if !self.registration_token_valid(token).await? {
                    return Ok(Err(("M_UNAUTHORIZED", "The registration token is not valid")));
                }
                state.registration_token = Some(token.clone());
                Ok(Ok(()))
            }
            _ => Ok(Err(("M_UNRECOGNIZED", "This stage is not known"))),
        }
    }

    async fn uia_password(
        &self,
        request: &UiaRequest<'_>,
        auth: &Auth,
    ) -> Result<Result<(), Refusal>, UiaError> {
        let Some(password) = &auth.password else {
            return Ok(Err(("M_MISSING_PARAM", "The password is missing")));
        };
        let named = auth.identifier.as_ref().and_then(|identifier| identifier.user.as_deref());
        let asker = request.user.map(UserId::as_str);
        let Some(name) = named.or(auth.user.as_deref()).or(asker) else {
            return Ok(Err(("M_MISSING_PARAM", "The user is missing")));
        };
        match self.check_password(name, password).await {
            Ok(user) if request.user.is_some_and(|asker| asker != user) => Err(UiaError::OtherUser),
            Ok(_) => Ok(Ok(())),
            Err(AccountError::WrongPassword | AccountError::Deactivated) => {
                Ok(Err(("M_FORBIDDEN", "Wrong password")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps the session and says what is still needed.
    async fn uia_needed(
        &self,
        request: &UiaRequest<'_>,
        id: &str,
        state: &State,
        refusal: Option<Refusal>,
    ) -> Result<UiaError, UiaError> {
        let (key, data, now) = (id.to_owned(), serde_json::to_string(state)?, self.core.now());
        let until = now.saturating_sub(LIFETIME.as_millis() as u64);
        self.core
            .store
            .write("uia session", Vec::new(), move |tx| {
                let (key, data) = (key.clone(), data.clone());
                Box::pin(async move {
                    tx.uia_sessions_prune(until).await?;
                    tx.uia_session_put(&key, &data, now).await
                })
            })
            .await?;
        let flows: Vec<Value> = request.flows.iter().map(|flow| json!({ "stages": flow })).collect();
        let mut body = Map::new();
        body.insert("flows".to_owned(), flows.into());
        body.insert("params".to_owned(), json!({}));
        body.insert("session".to_owned(), id.into());
        body.insert("completed".to_owned(), state.completed.clone().into());
        if let Some((errcode, message)) = refusal {
            body.insert("errcode".to_owned(), errcode.into());
            body.insert("error".to_owned(), message.into());
        }
        Ok(UiaError::Needed(body))
    }
}
