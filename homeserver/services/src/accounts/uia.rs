//! User-interactive authentication: <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>.
//!
//! A session is a row, so that any node can go on with it, and is bound to one endpoint and one user. A stage may also
//! be passed on a page in a browser ([`Accounts::uia_fallback`]); the client then shows the session alone.

use super::addresses::{Proof, Purpose};
use super::sessions::LoginName;
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
    /// An e-mail address.
    pub const EMAIL: &str = "m.login.email.identity";
    /// The terms of service.
    pub const TERMS: &str = "m.login.terms";
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct UiaRequest<'a> {
    /// The method and the path: what a session is bound to.
    pub endpoint: &'a str,
    /// Who asks; none: somebody without a token.
    pub user: Option<&'a UserId>,
    /// The body, whose `auth` is read.
    pub json: &'a [u8],
    /// Each flow is a list of stages; one of them must be gone through.
    pub flows: &'a [Vec<&'static str>],
}

/// What a finished session leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UiaDone {
    /// The registration token that was shown.
    pub registration_token: Option<String>,
    /// The address that was shown.
    pub email: Option<Proof>,
    /// Whose password was shown, where the request came without a token.
    pub user: Option<OwnedUserId>,
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
pub(super) struct State {
    pub endpoint: String,
    pub user: Option<OwnedUserId>,
    pub completed: Vec<String>,
    pub registration_token: Option<String>,
    #[serde(default)]
    pub email: Option<Proof>,
    #[serde(default)]
    pub shown_user: Option<OwnedUserId>,
    /// The address session that the page of the fallback began: its id and secret.
    #[serde(default)]
    pub page_email: Option<(String, String)>,
}

impl State {
    /// What an address must have been validated for.
    pub fn purpose(&self) -> Purpose {
        if self.endpoint.ends_with("/register") { Purpose::Register } else { Purpose::Password }
    }
}

#[derive(Deserialize)]
struct Body {
    auth: Option<Auth>,
}

#[derive(Default, Deserialize)]
pub(super) struct Auth {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub session: Option<String>,
    pub identifier: Option<Identifier>,
    pub user: Option<String>,
    pub medium: Option<String>,
    pub address: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
    // Clients write it both ways.
    #[serde(alias = "threepidCreds")]
    pub threepid_creds: Option<ThreepidCreds>,
}

#[derive(Deserialize)]
pub(super) struct ThreepidCreds {
    pub sid: String,
    pub client_secret: String,
}

#[derive(Deserialize)]
pub(super) struct Identifier {
    user: Option<String>,
    medium: Option<String>,
    address: Option<String>,
}

impl Auth {
    /// The name that the password is for.
    fn name(&self) -> Option<LoginName<'_>> {
        let (user, medium, address) = match &self.identifier {
            Some(it) => (it.user.as_deref().or(self.user.as_deref()), &it.medium, &it.address),
            None => (self.user.as_deref(), &self.medium, &self.address),
        };
        match (user, medium, address) {
            (Some(user), _, _) => Some(LoginName::User(user)),
            (None, Some(medium), Some(address)) => Some(LoginName::Address { medium, address }),
            _ => None,
        }
    }
}

/// Why a stage was not passed: errcode and message.
pub(super) type Refusal = (&'static str, &'static str);

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
            let refused = if request.flows.iter().any(|flow| flow.contains(&&**kind)) {
                self.uia_stage(kind, &auth, &mut state).await?
            } else {
                Err(("M_UNRECOGNIZED", "This stage is in no flow"))
            };
            match refused {
                Ok(()) => state.completed.push(kind.clone()),
                Err(refused) => refusal = Some(refused),
            }
        }
        let complete = |flow: &Vec<&str>| {
            flow.iter().all(|stage| state.completed.iter().any(|completed| completed == stage))
        };
        if refusal.is_none() && request.flows.iter().any(complete) {
            let State { registration_token, email, shown_user, .. } = state;
            return Ok(UiaDone { registration_token, email, user: shown_user });
        }
        Err(self.uia_needed(&request, &id, &state, refusal).await?)
    }

    /// The session that the request names, or a new one.
    async fn uia_state(
        &self,
        request: &UiaRequest<'_>,
        auth: Option<&Auth>,
    ) -> Result<(String, State), UiaError> {
        if let Some(id) = auth.and_then(|auth| auth.session.as_deref())
            && let Some(state) = self.uia_load(id).await?
        {
            if state.endpoint != request.endpoint || state.user.as_deref() != request.user {
                return Err(UiaError::OtherRequest);
            }
            return Ok((id.to_owned(), state));
        }
        let state = State {
            endpoint: request.endpoint.to_owned(),
            user: request.user.map(ToOwned::to_owned),
            completed: Vec::new(),
            registration_token: None,
            email: None,
            shown_user: None,
            page_email: None,
        };
        Ok((opaque_id(24), state))
    }

    pub(super) async fn uia_load(&self, id: &str) -> Result<Option<State>, AccountError> {
        let since = self.core.now().saturating_sub(LIFETIME.as_millis() as u64);
        let found = self.core.store.read().await?.uia_session_load(id, since).await?;
        Ok(found.and_then(|data| serde_json::from_str::<State>(&data).ok()))
    }

    pub(super) async fn uia_save(&self, id: &str, state: &State) -> Result<(), UiaError> {
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
        Ok(())
    }

    /// Tries one stage.
    pub(super) async fn uia_stage(
        &self,
        kind: &str,
        auth: &Auth,
        state: &mut State,
    ) -> Result<Result<(), Refusal>, UiaError> {
        match kind {
            stage::DUMMY | stage::TERMS => Ok(Ok(())),
            stage::PASSWORD => self.uia_password(auth, state).await,
            stage::EMAIL => {
                let Some(creds) = &auth.threepid_creds else {
                    return Ok(Err(("M_MISSING_PARAM", "threepid_creds is missing")));
                };
                match self.proof(&creds.sid, &creds.client_secret, state.purpose()).await {
                    Ok(proof) => {
                        state.email = Some(proof);
                        Ok(Ok(()))
                    }
                    Err(AccountError::NotValidated) => {
                        Ok(Err(("M_UNAUTHORIZED", "The e-mail address is not confirmed yet")))
                    }
                    Err(error) => Err(error.into()),
                }
            }
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

    async fn uia_password(&self, auth: &Auth, state: &mut State) -> Result<Result<(), Refusal>, UiaError> {
        let Some(password) = &auth.password else {
            return Ok(Err(("M_MISSING_PARAM", "The password is missing")));
        };
        let asker = state.user.as_deref().map(|user| LoginName::User(user.as_str()));
        let Some(name) = auth.name().or(asker) else {
            return Ok(Err(("M_MISSING_PARAM", "The user is missing")));
        };
        match self.check_password(name, password).await {
            Ok(user) if state.user.as_ref().is_some_and(|asker| *asker != user) => Err(UiaError::OtherUser),
            Ok(user) => {
                state.shown_user = Some(user);
                Ok(Ok(()))
            }
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
        self.uia_save(id, state).await?;
        let flows: Vec<Value> = request.flows.iter().map(|flow| json!({ "stages": flow })).collect();
        let mut body = Map::new();
        let terms = request.flows.iter().any(|flow| flow.contains(&stage::TERMS));
        body.insert("flows".to_owned(), flows.into());
        let params = if terms { json!({ stage::TERMS: self.terms() }) } else { json!({}) };
        body.insert("params".to_owned(), params);
        body.insert("session".to_owned(), id.into());
        body.insert("completed".to_owned(), state.completed.clone().into());
        if let Some((errcode, message)) = refusal {
            body.insert("errcode".to_owned(), errcode.into());
            body.insert("error".to_owned(), message.into());
        }
        Ok(UiaError::Needed(body))
    }

    /// The documents of [`stage::TERMS`], as clients read them:
    /// <https://spec.matrix.org/v1.19/client-server-api/#terms-of-service-at-registration>.
    fn terms(&self) -> Value {
        let terms = &self.core.settings.accounts.terms;
        let policies = terms.policies.iter().map(|(title, url)| {
            let id: String = title.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            let mut policy = Map::new();
            policy.insert("version".to_owned(), terms.version.as_str().into());
            policy.insert(terms.language.clone(), json!({ "name": title, "url": url }));
            (id, Value::Object(policy))
        });
        json!({ "policies": policies.collect::<Map<_, _>>() })
    }
}
