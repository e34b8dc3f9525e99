//! Accounts as people have them: addresses, letters, pages, notices, closing.

mod admin;
mod closing;
mod guests;
mod letters;
mod misuse;
mod pages;
mod small;

use crate::http::{Answer, Raw};
use crate::site::Site;
use crate::smtp::MailServer;
use reqwest::Method;
use serde_json::{Value, json};
use waxwing_storage::StoreError;

/// A client's part of a validation: what it made up and what it was told.
#[derive(Clone)]
pub struct Session {
    pub sid: String,
    pub secret: String,
}

impl Session {
    /// Asks for a letter. `kind`: `register`, `account/3pid` or `account/password`.
    pub async fn ask(raw: &Raw, kind: &str, email: &str, secret: &str) -> Session {
        let asked = ask(raw, kind, json!({"email": email, "client_secret": secret, "send_attempt": 1})).await;
        let sid = asked.fine()["sid"].as_str().unwrap().to_owned();
        Session { sid, secret: secret.to_owned() }
    }

    pub fn creds(&self) -> Value {
        json!({"sid": self.sid, "client_secret": self.secret})
    }

    /// The stage of the user-interactive authentication.
    pub fn auth(&self) -> Value {
        json!({"type": "m.login.email.identity", "threepid_creds": self.creds()})
    }
}

pub async fn ask(raw: &Raw, kind: &str, body: Value) -> Answer {
    raw.with_token("").post(&format!("/_matrix/client/v3/{kind}/email/requestToken"), body).await
}

/// Presses the button of the page that a link opens.
pub async fn confirm(raw: &Raw, link: &str) -> Answer {
    let query = link.split_once('?').unwrap().1;
    let form: &[(&str, &[u8])] = &[("content-type", b"application/x-www-form-urlencoded")];
    let sent = raw.with_token("").send_with(Method::POST, "/_waxwing/email/confirm", form, query).await;
    sent.unwrap().0
}

/// Gives an account an address, by a letter.
pub async fn add_address(raw: &Raw, mail: &MailServer, email: &str) {
    let session = Session::ask(raw, "account/3pid", email, "secret-of-the-client").await;
    let letter = mail.take(&email.to_lowercase()).await;
    assert!(confirm(raw, &letter.link()).await.status.is_success());
    let added =
        with_password(raw, "/_matrix/client/v3/account/3pid/add", session.creds(), "correct horse").await;
    assert_eq!(added.fine(), json!({}));
}

/// A request that wants the password of the one who makes it.
pub async fn with_password(raw: &Raw, path: &str, mut body: Value, password: &str) -> Answer {
    let asked = raw.post(path, body.clone()).await;
    assert_eq!(asked.status.as_u16(), 401, "{}", asked.body);
    body["auth"] = json!({
        "type": "m.login.password", "session": asked.body["session"], "password": password,
        "identifier": {"type": "m.id.user", "user": raw.user},
    });
    raw.post(path, body).await
}

pub async fn login(raw: &Raw, identifier: Value, password: &str) -> Answer {
    let body = json!({"type": "m.login.password", "identifier": identifier, "password": password});
    raw.with_token("").post("/_matrix/client/v3/login", body).await
}

pub fn named(user: &str) -> Value {
    json!({"type": "m.id.user", "user": user})
}

pub fn addressed(email: &str) -> Value {
    json!({"type": "m.id.thirdparty", "medium": "email", "address": email})
}

/// An account that the operator has made an administrator.
pub async fn administrator(site: &Site) -> Raw {
    let root = Raw::register(&site.url, "root").await;
    let user = root.user.clone();
    let raised: Result<bool, StoreError> = site
        .store()
        .await
        .write("test", Vec::new(), move |tx| {
            let user = user.clone();
            Box::pin(async move {
                let mut row = tx.user_load(user.as_str().try_into().unwrap()).await?.unwrap();
                row.admin = true;
                tx.user_standing_set(&row).await
            })
        })
        .await;
    assert!(raised.unwrap());
    let body = login(&root, named("root"), "correct horse").await.fine();
    root.with_token(body["access_token"].as_str().unwrap())
}
