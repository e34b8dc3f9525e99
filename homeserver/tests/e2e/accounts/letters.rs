//! Addresses: registration with one, adding one, logging in with it, a new password by it.

use super::{Session, add_address, addressed, ask, confirm, login, named, with_password};
use crate::http::Raw;
use crate::site::{Shape, Site};
use crate::smtp::MailServer;
use reqwest::Method;
use serde_json::{Value, json};

const REGISTER: &str = "/_matrix/client/v3/register";
const PASSWORD: &str = "/_matrix/client/v3/account/password";

fn flows(body: &Value) -> Vec<Vec<String>> {
    let flows = body["flows"].as_array().unwrap().iter();
    flows.map(|flow| serde_json::from_value(flow["stages"].clone()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_made_with_an_address_on_many_nodes() {
    let mail = MailServer::start(true).await;
    let mut settings = mail.settings();
    settings.extend(["email.required=true".to_owned(), "log.level=debug".to_owned()]);
    for shape in [Shape::Sqlite, Shape::TwoNodes] {
        if let Some(site) = Site::start_with(shape, &settings).await {
            an_account_with_an_address(&site, &mail).await;
        }
    }
}

async fn an_account_with_an_address(site: &Site, mail: &MailServer) {
    let raw = Raw::nobody(&site.url);
    let wanted = json!({"username": "alice", "password": "correct horse"});
    let asked = raw.post(REGISTER, wanted.clone()).await;
    assert_eq!(asked.status.as_u16(), 401);
    let with_token = vec!["m.login.registration_token", "m.login.email.identity"];
    assert_eq!(flows(&asked.body), [vec!["m.login.email.identity"], with_token]);
    let body = |attempt: u32| {
        json!({
            "email": "Alice@Example.org", "client_secret": "s3cret", "send_attempt": attempt,
            "next_link": "https://app.example/#/registered",
        })
    };
    let sid = ask(&raw, "register", body(1)).await.fine()["sid"].as_str().unwrap().to_owned();
    let first = mail.take("alice@example.org").await;
    assert_eq!(first.header("From"), "Aviary <birds@aviary.example>");
    // The same number again is the same request again.
    assert_eq!(ask(&raw, "register", body(1)).await.fine()["sid"], sid);
    mail.nothing().await;
    assert_eq!(ask(&raw, "register", body(2)).await.fine()["sid"], sid);
    let second = mail.take("alice@example.org").await;
    assert_eq!(first.link(), second.link(), "the first letter is as good as the second");

    let session = Session { sid, secret: "s3cret".to_owned() };
    let mut wanted = wanted;
    wanted["auth"] = session.auth();
    wanted["auth"]["session"] = asked.body["session"].clone();
    raw.post(REGISTER, wanted.clone()).await.refused(401, "M_UNAUTHORIZED");
    // Programs that open every link confirm nothing.
    let page = raw.get(&first.link()).await;
    assert!(page.status.is_success() && page.body.as_str().unwrap().contains("alice@example.org"));
    raw.post(REGISTER, wanted.clone()).await.refused(401, "M_UNAUTHORIZED");
    follow(&raw, &first.link()).await;
    let made = raw.post(REGISTER, wanted.clone()).await.fine();
    let alice = raw.with_token(made["access_token"].as_str().unwrap());
    let addresses = alice.get("/_matrix/client/v3/account/3pid").await.fine();
    assert_eq!(addresses["threepids"][0]["address"], "alice@example.org");
    assert!(
        addresses["threepids"][0]["validated_at"].as_u64() <= addresses["threepids"][0]["added_at"].as_u64()
    );
    login(&raw, addressed("ALICE@example.org"), "correct horse").await.fine();
    login(&raw, addressed("alice@example.org"), "wrong").await.refused(403, "M_FORBIDDEN");
    login(&raw, addressed("nobody@example.org"), "correct horse").await.refused(403, "M_FORBIDDEN");

    // What was used is used up.
    let mut again = wanted.clone();
    again["username"] = "mallory".into();
    again["auth"].as_object_mut().unwrap().remove("session");
    raw.post(REGISTER, again).await.refused(401, "M_UNAUTHORIZED");
    // An address that is taken: the one who asks is told nothing, the one who reads the mail is.
    let asked = Session::ask(&raw, "register", "alice@example.org", "another").await;
    let letter = mail.take("alice@example.org").await;
    assert!(letter.text().contains("It belongs to an account already") && !letter.text().contains("http"));
    assert_ne!(asked.sid, session.sid);
    let token = second.link().split("token=").nth(1).unwrap().to_owned();
    for node in &site.nodes {
        assert!(
            !node.logged().contains(&token) && !node.logged().contains("s3cret"),
            "a secret is in the log"
        );
    }
}

/// Opens the page, presses its button, and is sent on to where the app wants it.
async fn follow(raw: &Raw, link: &str) {
    let client = crate::http::passing_on();
    let request = client
        .request(Method::POST, format!("{}/_waxwing/email/confirm", raw.base))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(link.split_once('?').unwrap().1.to_owned());
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 303);
    assert_eq!(answer.headers()["location"], "https://app.example/#/registered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_sets_a_new_password_once() {
    let mail = MailServer::start(false).await;
    let site = Site::start_with(Shape::Sqlite, &mail.settings()).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    add_address(&alice, &mail, "Alice@example.org").await;
    let raw = Raw::nobody(&site.url);

    // Nobody's address: a letter without a link, and nothing to go on with.
    let lost = Session::ask(&raw, "account/password", "bob@example.org", "b").await;
    assert!(mail.take("bob@example.org").await.text().contains("There is no such account"));
    let refused = raw.post(PASSWORD, json!({"new_password": "x y z", "auth": lost.auth()})).await;
    refused.refused(401, "M_UNAUTHORIZED");

    // A mail server that is busy at first.
    mail.busy(1);
    let session = Session::ask(&raw, "account/password", "alice@example.org", "a").await;
    let letter = mail.take("alice@example.org").await;
    assert_eq!(letter.header("Subject"), "Set a new password for localhost");
    let asked = raw.post(PASSWORD, json!({"new_password": "a new password"})).await;
    assert_eq!(flows(&asked.body), [["m.login.email.identity"]]);
    let mut body = json!({"new_password": "a new password", "auth": session.auth()});
    body["auth"]["session"] = asked.body["session"].clone();
    raw.post(PASSWORD, body.clone()).await.refused(401, "M_UNAUTHORIZED");
    assert!(confirm(&raw, &letter.link()).await.status.is_success());
    raw.post(PASSWORD, body.clone()).await.fine();
    // Every session has ended, and the old password is none.
    alice.get("/_matrix/client/v3/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    login(&raw, named("alice"), "correct horse").await.refused(403, "M_FORBIDDEN");
    let made = login(&raw, named("alice"), "a new password").await.fine();
    // The letter and its session are used up.
    body["new_password"] = "another one".into();
    let again = raw.post(PASSWORD, body.clone()).await;
    assert!(
        matches!(
            (again.status.as_u16(), again.code()),
            (400, "M_THREEPID_AUTH_FAILED") | (401, "M_UNAUTHORIZED")
        ),
        "{}",
        again.body
    );
    body["auth"].as_object_mut().unwrap().remove("session");
    raw.post(PASSWORD, body).await.refused(401, "M_UNAUTHORIZED");
    assert_eq!(raw.get(&letter.link()).await.status.as_u16(), 410);

    // Sessions stay where that is wanted.
    let alice = raw.with_token(made["access_token"].as_str().unwrap());
    let session = Session::ask(&raw, "account/password", "alice@example.org", "c").await;
    assert!(confirm(&raw, &mail.take("alice@example.org").await.link()).await.status.is_success());
    let kept = json!({"new_password": "a third one", "logout_devices": false, "auth": session.auth()});
    raw.post(PASSWORD, kept).await.fine();
    alice.get("/_matrix/client/v3/account/whoami").await.fine();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_added_and_taken_away() {
    let mail = MailServer::start(false).await;
    let site = Site::start_with(Shape::Sqlite, &mail.settings()).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.fine();
    assert_eq!(capabilities["capabilities"]["m.3pid_changes"]["enabled"], true);
    add_address(&alice, &mail, "alice@example.org").await;
    let list = "/_matrix/client/v3/account/3pid";
    let addresses = alice.get(list).await.fine();
    assert_eq!(addresses["threepids"].as_array().unwrap().len(), 1);
    let gone = json!({"medium": "email", "address": "ALICE@example.org"});
    let answer = alice.post("/_matrix/client/v3/account/3pid/delete", gone.clone()).await.fine();
    assert_eq!(answer, json!({"id_server_unbind_result": "no-support"}));
    assert_eq!(alice.get(list).await.fine(), json!({"threepids": []}));
    login(&alice, addressed("alice@example.org"), "correct horse").await.refused(403, "M_FORBIDDEN");
    // It is free again.
    let bob = Raw::register(&site.url, "bob").await;
    let session = Session::ask(&bob, "account/3pid", "alice@example.org", "b").await;
    let link = mail.take("alice@example.org").await.link();
    assert!(confirm(&bob, &link).await.status.is_success());
    let add = "/_matrix/client/v3/account/3pid/add";
    with_password(&bob, add, session.creds(), "correct horse").await.fine();
    let bound =
        json!({"client_secret": "b", "sid": session.sid, "id_server": "is.example", "id_access_token": "t"});
    bob.post("/_matrix/client/v3/account/3pid/bind", bound.clone())
        .await
        .refused(400, "M_SERVER_NOT_TRUSTED");
    bob.post(list, json!({"three_pid_creds": bound})).await.refused(403, "M_THREEPID_AUTH_FAILED");
}
