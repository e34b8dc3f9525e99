//! Who we are on which server: registration, login, logout, and user-interactive authentication.

use std::path::{Path, PathBuf};

use client_ruma::{
    OwnedDeviceId, OwnedUserId, UserId,
    api::client::{
        account::register,
        session::{login, logout},
        uiaa::{
            AuthData, AuthType, Dummy, MatrixUserIdentifier, Password, RegistrationToken, Terms, UiaaInfo,
            UserIdentifier,
        },
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    client::Client,
    error::{Error, Result},
    home::Home,
    http::{Http, Secret, ServerVersions, discover},
};

pub(crate) const SESSION_FILE: &str = "session.json";
pub(crate) const STATE_FILE: &str = "state.json";
pub(crate) const KEYS_DIRECTORY: &str = "keys";
const DEFAULT_DEVICE_NAME: &str = "Waxwing client";
/// Authentication stages are few; a server that keeps asking is broken.
const MAX_AUTH_STAGES: usize = 8;

/// What a home directory remembers about its account.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    pub homeserver: String,
    pub user_id: OwnedUserId,
    pub device_id: OwnedDeviceId,
    pub access_token: Secret,
    pub versions: ServerVersions,
}

/// What we may answer when the server asks who we are.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub registration_token: Option<Secret>,
}

impl Credentials {
    pub fn password(user: &UserId, password: impl Into<Secret>) -> Self {
        Self { user: Some(user.to_string()), password: Some(password.into()), registration_token: None }
    }

    /// Picks the next stage we can serve, out of the shortest flow that consists of such stages only.
    ///
    /// <https://spec.matrix.org/v1.18/client-server-api/#user-interactive-authentication-api>
    pub fn answer(&self, info: &UiaaInfo) -> Result<AuthData> {
        let open = |stages: &[AuthType]| -> Vec<AuthType> {
            stages.iter().filter(|stage| !info.completed.contains(stage)).cloned().collect()
        };
        let mut flows: Vec<Vec<AuthType>> = info.flows.iter().map(|flow| open(&flow.stages)).collect();
        flows.sort_by_key(Vec::len);
        flows
            .iter()
            .filter(|stages| stages.iter().all(|stage| self.stage(stage, info).is_some()))
            .find_map(|stages| stages.first().and_then(|stage| self.stage(stage, info)))
            .ok_or_else(|| Error::AuthenticationStage(describe(info)))
    }

    fn stage(&self, stage: &AuthType, info: &UiaaInfo) -> Option<AuthData> {
        let session = info.session.clone();
        match stage {
            AuthType::Dummy => {
                let mut dummy = Dummy::new();
                dummy.session = session;
                Some(AuthData::Dummy(dummy))
            }
            AuthType::Terms => {
                let mut terms = Terms::new();
                terms.session = session;
                Some(AuthData::Terms(terms))
            }
            AuthType::RegistrationToken => {
                let mut token = RegistrationToken::new(self.registration_token.as_ref()?.expose().to_owned());
                token.session = session;
                Some(AuthData::RegistrationToken(token))
            }
            AuthType::Password => {
                let mut password = Password::new(
                    UserIdentifier::Matrix(MatrixUserIdentifier::new(self.user.clone()?)),
                    self.password.as_ref()?.expose().to_owned(),
                );
                password.session = session;
                Some(AuthData::Password(password))
            }
            _ => None,
        }
    }
}

fn describe(info: &UiaaInfo) -> String {
    let flow = |stages: &[AuthType]| {
        stages.iter().map(|stage| stage.as_str().to_owned()).collect::<Vec<_>>().join(" + ")
    };
    let flows: Vec<String> = info.flows.iter().map(|found| flow(&found.stages)).collect();
    let refusal = info.auth_error.as_ref().map(|error| format!(" ({})", error.message)).unwrap_or_default();
    format!("{}{refusal}", flows.join(" or "))
}

/// Runs `call` until the server has all the proof it wants.
pub(crate) async fn authenticate<T, F>(credentials: &Credentials, call: F) -> Result<T>
where
    F: AsyncFn(Option<AuthData>) -> Result<T>,
{
    let mut auth = None;
    let mut completed = 0;
    for stage in 0..MAX_AUTH_STAGES {
        match call(auth.take()).await {
            Err(Error::AuthenticationRequired(info)) => {
                // The same list of completed stages twice means that our last answer was refused.
                if stage > 0 && info.completed.len() <= completed && info.auth_error.is_some() {
                    return Err(Error::AuthenticationStage(describe(&info)));
                }
                completed = info.completed.len();
                auth = Some(credentials.answer(&info)?);
            }
            other => return other,
        }
    }
    Err(Error::AuthenticationStage("too many stages".to_owned()))
}

/// Collects what a new device needs, then registers an account or logs in to one.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    homeserver: String,
    home: PathBuf,
    device_name: String,
    registration_token: Option<Secret>,
    passphrase: Option<Secret>,
}

impl ClientBuilder {
    pub(crate) fn new(homeserver: &str, home: &Path) -> Self {
        Self {
            homeserver: homeserver.to_owned(),
            home: home.to_owned(),
            device_name: DEFAULT_DEVICE_NAME.to_owned(),
            registration_token: None,
            passphrase: None,
        }
    }

    pub fn device_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.device_name);
        self
    }

    pub fn registration_token(mut self, token: impl Into<Secret>) -> Self {
        self.registration_token = Some(token.into());
        self
    }

    /// Encrypts the key store in the home directory.
    pub fn passphrase(mut self, passphrase: impl Into<Secret>) -> Self {
        self.passphrase = Some(passphrase.into());
        self
    }

    /// Registers `username` and uploads the keys of this device.
    pub async fn register(self, username: &str, password: &str) -> Result<Client> {
        let (home, http, versions) = self.prepare().await?;
        let credentials =
            Credentials { registration_token: self.registration_token.clone(), ..Default::default() };
        let answer = authenticate(&credentials, async |auth| {
            let mut request = register::v3::Request::new();
            request.username = Some(username.to_owned());
            request.password = Some(password.to_owned());
            request.initial_device_display_name = Some(self.device_name.clone());
            request.auth = auth;
            http.send(request).await
        })
        .await?;
        let (Some(access_token), Some(device_id)) = (answer.access_token, answer.device_id) else {
            return Err(Error::Answer("registered, but without a session: log in".to_owned()));
        };
        let session = Session {
            homeserver: http.base().to_owned(),
            user_id: answer.user_id,
            device_id,
            access_token: access_token.into(),
            versions,
        };
        self.begin(home, http, session).await
    }

    /// Logs in with a password and uploads the keys of this device.
    pub async fn login(self, username: &str, password: &str) -> Result<Client> {
        let (home, http, versions) = self.prepare().await?;
        let identifier = UserIdentifier::Matrix(MatrixUserIdentifier::new(username.to_owned()));
        let password = login::v3::Password::new(identifier, password.to_owned());
        let mut request = login::v3::Request::new(login::v3::LoginInfo::Password(password));
        request.initial_device_display_name = Some(self.device_name.clone());
        let answer = http.send(request).await?;
        let session = Session {
            homeserver: http.base().to_owned(),
            user_id: answer.user_id,
            device_id: answer.device_id,
            access_token: answer.access_token.into(),
            versions,
        };
        self.begin(home, http, session).await
    }

    async fn prepare(&self) -> Result<(Home, Http, ServerVersions)> {
        let home = Home::open(&self.home)?;
        if home.read::<Session>(SESSION_FILE)?.is_some() {
            return Err(Error::AlreadyLoggedIn(self.home.clone()));
        }
        let http = Http::new(&discover(&self.homeserver).await?)?;
        let versions = http.fetch_versions().await?;
        http.set_versions(&versions);
        Ok((home, http, versions))
    }

    async fn begin(self, home: Home, http: Http, session: Session) -> Result<Client> {
        // Keys and rooms of an earlier session belong to another device.
        home.remove(KEYS_DIRECTORY)?;
        home.remove(STATE_FILE)?;
        home.write(SESSION_FILE, &session)?;
        let client = Client::start(home, http, session, self.passphrase.as_ref()).await?;
        client.send_outgoing().await?;
        Ok(client)
    }
}

impl Client {
    /// Ends the session on the server and forgets it, keys included.
    pub async fn logout(self) -> Result<()> {
        self.http().send(logout::v3::Request::new()).await?;
        let home = self.home();
        home.remove(SESSION_FILE)?;
        home.remove(STATE_FILE)?;
        home.remove(KEYS_DIRECTORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(json: &str) -> UiaaInfo {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_shortest_servable_flow_wins() {
        let asked = info(
            r#"{"session":"s","flows":[
                {"stages":["m.login.recaptcha"]},
                {"stages":["m.login.registration_token","m.login.dummy"]},
                {"stages":["m.login.dummy"]}]}"#,
        );
        let answer = Credentials::default().answer(&asked).unwrap();
        assert!(matches!(answer, AuthData::Dummy(dummy) if dummy.session.as_deref() == Some("s")));
    }

    #[test]
    fn a_token_is_offered_only_when_we_have_one() {
        let asked = info(r#"{"session":"s","flows":[{"stages":["m.login.registration_token"]}]}"#);
        let refused = Credentials::default().answer(&asked).unwrap_err();
        assert!(refused.to_string().contains("m.login.registration_token"));
        let credentials = Credentials { registration_token: Some("let-me-in".into()), ..Default::default() };
        assert!(matches!(credentials.answer(&asked), Ok(AuthData::RegistrationToken(_))));
    }

    #[test]
    fn completed_stages_are_not_repeated() {
        let asked = info(
            r#"{"session":"s","completed":["m.login.registration_token"],
                "flows":[{"stages":["m.login.registration_token","m.login.dummy"]}]}"#,
        );
        let credentials = Credentials { registration_token: Some("let-me-in".into()), ..Default::default() };
        assert!(matches!(credentials.answer(&asked), Ok(AuthData::Dummy(_))));
    }

    #[tokio::test]
    async fn a_refused_answer_ends_the_conversation() {
        let user = UserId::parse("@alice:example.org").unwrap();
        let credentials = Credentials::password(&user, "wrong");
        let result: Result<()> = authenticate(&credentials, async |auth| {
            let error =
                if auth.is_some() { r#","errcode":"M_FORBIDDEN","error":"wrong password""# } else { "" };
            let json = format!(r#"{{"session":"s","flows":[{{"stages":["m.login.password"]}}]{error}}}"#);
            Err(Error::AuthenticationRequired(Box::new(info(&json))))
        })
        .await;
        assert!(result.unwrap_err().to_string().contains("wrong password"));
    }
}
