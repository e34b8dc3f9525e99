//! People for the server to serve: open registration, registration tokens, or the shared-secret registration that
//! Synapse has and others took over.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;
use waxwing_client::Secret;

use super::http::{Call, Connection, Failure, Server};

/// Stages that are gone through before a registration is given up.
const MOST_STAGES: usize = 4;

/// How an account is made.
#[derive(Debug)]
pub enum Registration {
    /// Whoever asks.
    Open,
    /// Whoever has this token.
    Token(Secret),
    /// Whoever knows this secret, without the interactive steps.
    SharedSecret(Secret),
}

/// A person with one device.
#[derive(Debug)]
pub struct User {
    pub server: Server,
    pub id: String,
    pub device: String,
    /// The value of the Authorization header.
    pub authorization: HeaderValue,
}

#[derive(Deserialize)]
struct Registered {
    user_id: String,
    device_id: String,
    access_token: String,
}

#[derive(Deserialize)]
struct Challenge {
    session: Option<String>,
    #[serde(default)]
    completed: Vec<String>,
    flows: Vec<Flow>,
}

#[derive(Deserialize)]
struct Flow {
    stages: Vec<String>,
}

impl User {
    /// The name of the server on which this person has the account.
    pub fn server_name(&self) -> &str {
        self.id.split_once(':').map_or("", |(_, server)| server)
    }
}

/// Makes an account.
pub async fn register(
    connection: &mut Connection,
    server: &Server,
    registration: &Registration,
    name: &str,
) -> Result<User> {
    let body = match registration {
        Registration::SharedSecret(secret) => with_secret(connection, secret, name).await?,
        _ => with_stages(connection, registration, name).await?,
    };
    let registered: Registered = serde_json::from_slice(&body).context("the answer to a registration")?;
    let mut authorization = HeaderValue::from_str(&format!("Bearer {}", registered.access_token))
        .context("the access token cannot be sent back")?;
    authorization.set_sensitive(true);
    Ok(User { server: server.clone(), id: registered.user_id, device: registered.device_id, authorization })
}

async fn with_stages(
    connection: &mut Connection,
    registration: &Registration,
    name: &str,
) -> Result<bytes::Bytes> {
    let mut body = json!({"username": name, "password": password(name), "inhibit_login": false});
    if matches!(registration, Registration::Open) {
        body["auth"] = json!({"type": "m.login.dummy"});
    }
    for _ in 0..MOST_STAGES {
        let call = Call::post("/_matrix/client/v3/register", body.to_string());
        let answer = match connection.prepare(&call).await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Refused { status: 401, answer, .. }) => answer,
            Err(failure) => return Err(failure).context("cannot register"),
        };
        let challenge: Challenge = serde_json::from_slice(&answer).context("the stages of a registration")?;
        body["auth"] = next_stage(&challenge, registration)?;
    }
    bail!("the server has ever more stages of registration")
}

/// What to say next: the first stage that is not completed, of a flow that can be gone through.
fn next_stage(challenge: &Challenge, registration: &Registration) -> Result<Value> {
    let token = match registration {
        Registration::Token(token) => Some(token),
        _ => None,
    };
    let passable = |stage: &String| match stage.as_str() {
        "m.login.dummy" => true,
        "m.login.registration_token" => token.is_some(),
        _ => false,
    };
    let flow = challenge.flows.iter().find(|flow| flow.stages.iter().all(passable));
    let stage = flow.and_then(|flow| flow.stages.iter().find(|stage| !challenge.completed.contains(stage)));
    let Some(stage) = stage else {
        bail!("no account without a registration token, a shared secret, or open registration");
    };
    let mut auth = json!({"type": stage, "session": challenge.session});
    if let Some(token) = token.filter(|_| stage == "m.login.registration_token") {
        auth["token"] = json!(token.expose());
    }
    Ok(auth)
}

async fn with_secret(connection: &mut Connection, secret: &Secret, name: &str) -> Result<bytes::Bytes> {
    const PATH: &str = "/_synapse/admin/v1/register";
    #[derive(Deserialize)]
    struct Nonce {
        nonce: String,
    }
    let answer = connection.prepare(&Call::get(PATH)).await.context("shared-secret registration")?;
    let Nonce { nonce } = serde_json::from_slice(&answer).context("the nonce of a registration")?;
    let password = password(name);
    let mac = registration_mac(secret, &nonce, name, &password)?;
    let body = json!({"nonce": nonce, "username": name, "password": password, "admin": false, "mac": mac})
        .to_string();
    connection.prepare(&Call::post(PATH, body)).await.context("shared-secret registration")
}

/// HMAC-SHA1 over nonce, name, password and `notadmin`, with NUL between them, in hexadecimal.
fn registration_mac(secret: &Secret, nonce: &str, name: &str, password: &str) -> Result<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes()).context("the shared secret")?;
    mac.update([nonce, name, password, "notadmin"].join("\0").as_bytes());
    let mut hex = String::new();
    for byte in mac.finalize().into_bytes() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

/// Nobody logs in with it: the accounts are for one run.
fn password(name: &str) -> String {
    format!("{name}-load-driver-7Qw!")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_the_one_servers_expect() {
        // printf 'abcd\0bob\0secret\0notadmin' | openssl dgst -sha1 -hmac shared
        let mac = registration_mac(&Secret::new("shared"), "abcd", "bob", "secret").unwrap();
        assert_eq!(mac, "3d1898a459a69e9d66c33d83087dde126693bc56");
    }

    #[test]
    fn stages_are_gone_through_in_order() {
        let challenge = |completed: &[&str]| Challenge {
            session: Some("s".to_owned()),
            completed: completed.iter().map(ToString::to_string).collect(),
            flows: vec![
                Flow { stages: vec!["m.login.email.identity".to_owned()] },
                Flow { stages: vec!["m.login.registration_token".to_owned(), "m.login.dummy".to_owned()] },
            ],
        };
        let token = Registration::Token(Secret::new("t"));
        let first = next_stage(&challenge(&[]), &token).unwrap();
        assert_eq!(first, json!({"type": "m.login.registration_token", "session": "s", "token": "t"}));
        let second = next_stage(&challenge(&["m.login.registration_token"]), &token).unwrap();
        assert_eq!(second, json!({"type": "m.login.dummy", "session": "s"}));
        assert!(next_stage(&challenge(&[]), &Registration::Open).is_err());
    }
}
