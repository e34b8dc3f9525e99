//! Sessions, secrets and tokens in the wrong hands.

use super::{Session, add_address, ask, confirm, with_password};
use crate::http::Raw;
use crate::site::{Shape, Site};
use crate::smtp::MailServer;
use serde_json::json;

const ADD: &str = "/_matrix/client/v3/account/3pid/add";
const SUBMIT: &str = "/_waxwing/email/submit_token";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_good_for_its_client_and_its_purpose_alone() {
    let mail = MailServer::start(false).await;
    let site = Site::start_with(Shape::Sqlite, &mail.settings()).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let eve = Raw::register(&site.url, "eve").await;
    let session = Session::ask(&alice, "account/3pid", "alice@example.org", "hers").await;
    let link = mail.take("alice@example.org").await.link();
    // Not validated yet.
    let early = with_password(&alice, ADD, session.creds(), "correct horse").await;
    early.refused(400, "M_THREEPID_AUTH_FAILED");
    assert!(confirm(&alice, &link).await.status.is_success());
    for creds in [
        json!({"sid": session.sid, "client_secret": "guessed"}),
        json!({"sid": "nothing", "client_secret": "hers"}),
    ] {
        with_password(&eve, ADD, creds, "correct horse").await.refused(400, "M_THREEPID_AUTH_FAILED");
    }
    // What was validated to be added makes no account and sets no password.
    let auth = session.auth();
    let body = json!({"username": "mallory", "password": "correct horse", "auth": auth});
    assert_eq!(eve.post("/_matrix/client/v3/register", body).await.status.as_u16(), 401);
    let body = json!({"new_password": "stolen goods", "auth": auth});
    let stolen = eve.with_token("").post("/_matrix/client/v3/account/password", body).await;
    stolen.refused(401, "M_UNAUTHORIZED");
    let added = with_password(&alice, ADD, session.creds(), "correct horse").await;
    added.fine();
    // Used up, also for its owner.
    let again = with_password(&alice, ADD, session.creds(), "correct horse").await;
    again.refused(400, "M_THREEPID_AUTH_FAILED");
    // Two validate one address; it becomes the first one's.
    let (one, two) = ("one@example.org", "two");
    let first = Session::ask(&alice, "account/3pid", one, "first").await;
    assert!(confirm(&alice, &mail.take(one).await.link()).await.status.is_success());
    let second = Session::ask(&eve, "account/3pid", one, two).await;
    assert!(confirm(&eve, &mail.take(one).await.link()).await.status.is_success());
    with_password(&alice, ADD, first.creds(), "correct horse").await.fine();
    with_password(&eve, ADD, second.creds(), "correct horse").await.refused(400, "M_THREEPID_IN_USE");
    // Nobody's address is taken away by another.
    let gone = json!({"medium": "email", "address": one});
    eve.post("/_matrix/client/v3/account/3pid/delete", gone).await.fine();
    let kept = alice.get("/_matrix/client/v3/account/3pid").await.fine();
    assert_eq!(kept["threepids"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_not_guessed() {
    let mail = MailServer::start(false).await;
    let site = Site::start_with(Shape::Sqlite, &mail.settings()).await.unwrap();
    let raw = Raw::nobody(&site.url);
    let session = Session::ask(&raw, "register", "alice@example.org", "hers").await;
    let link = mail.take("alice@example.org").await.link();
    let token = link.split("token=").nth(1).unwrap();
    let submit =
        |secret: &str, token: &str| json!({"sid": session.sid, "client_secret": secret, "token": token});
    raw.post(SUBMIT, submit("guessed", token)).await.refused(400, "M_NO_VALID_SESSION");
    raw.post(SUBMIT, json!({"sid": "x"})).await.refused(400, "M_MISSING_PARAM");
    for _ in 0..3 {
        raw.post(SUBMIT, submit("hers", "AAAA")).await.refused(400, "M_TOKEN_INCORRECT");
    }
    let done = raw.post(SUBMIT, submit("hers", token)).await.fine();
    assert_eq!(done, json!({"success": true}));
    // Another session, whose tries are used up by pages that guess.
    let other = Session::ask(&raw, "register", "bob@example.org", "his").await;
    let link = mail.take("bob@example.org").await.link();
    for guess in 0..5 {
        let page = raw.get(&format!("/_waxwing/email/confirm?sid={}&token=AAA{guess}", other.sid)).await;
        assert_eq!(page.status.as_u16(), 400);
    }
    assert_eq!(raw.get(&link).await.status.as_u16(), 410);
    assert_eq!(confirm(&raw, &link).await.status.as_u16(), 410);
    // The client asks for a new letter, and gets a new session.
    let body = json!({"email": "bob@example.org", "client_secret": "his", "send_attempt": 1});
    let fresh = ask(&raw, "register", body).await.fine();
    assert_ne!(fresh["sid"], other.sid);
    let fresh = mail.take("bob@example.org").await.link();
    assert!(confirm(&raw, &fresh).await.status.is_success());
    for page in [
        "/_waxwing/email/confirm",
        "/_waxwing/email/confirm?sid=a",
        "/_waxwing/email/confirm?sid=a&token=%FF",
    ] {
        assert_eq!(raw.get(page).await.status.as_u16(), 400, "{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_and_links_have_rules() {
    let mail = MailServer::start(false).await;
    let mut settings = mail.settings();
    settings.push(r#"email.allowed_domains=["example.org"]"#.to_owned());
    settings.push(r#"email.next_link_domains=["app.example"]"#.to_owned());
    let site = Site::start_with(Shape::Sqlite, &settings).await.unwrap();
    let raw = Raw::nobody(&site.url);
    let body = |field: &str, value: serde_json::Value| {
        let mut body = json!({"email": "alice@example.org", "client_secret": "s", "send_attempt": 1});
        body[field] = value;
        body
    };
    let wrong = [
        ("email", json!("alice"), 400, "M_INVALID_PARAM"),
        ("email", json!("alice@example.org\r\nBcc: eve@example.org"), 400, "M_INVALID_PARAM"),
        ("email", json!(["alice@example.org"]), 400, "M_BAD_JSON"),
        ("email", json!("alice@evil.example"), 403, "M_THREEPID_DENIED"),
        ("client_secret", json!(""), 400, "M_INVALID_PARAM"),
        ("client_secret", json!("ä"), 400, "M_INVALID_PARAM"),
        ("send_attempt", json!(-1), 400, "M_BAD_JSON"),
        ("next_link", json!("javascript:alert(1)"), 400, "M_INVALID_PARAM"),
        ("next_link", json!("https://evil.example/"), 400, "M_INVALID_PARAM"),
    ];
    for kind in ["register", "account/3pid"] {
        for (field, value, status, code) in &wrong {
            ask(&raw, kind, body(field, value.clone())).await.refused(*status, code);
        }
        ask(&raw, kind, json!({"email": "alice@example.org"})).await.refused(400, "M_MISSING_PARAM");
    }
    for kind in ["register", "account/3pid", "account/password"] {
        let path = format!("/_matrix/client/v3/{kind}/msisdn/requestToken");
        let telephone =
            json!({"client_secret": "s", "country": "GB", "phone_number": "07700900001", "send_attempt": 1});
        raw.post(&path, telephone).await.refused(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED");
    }
    mail.nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_mail_server_there_are_no_addresses() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let body = json!({"email": "alice@example.org", "client_secret": "s", "send_attempt": 1});
    for kind in ["register", "account/3pid", "account/password"] {
        ask(&alice, kind, body.clone()).await.refused(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED");
    }
    let creds = json!({"sid": "a", "client_secret": "b"});
    alice.post(ADD, creds).await.refused(403, "M_THREEPID_DENIED");
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.fine();
    assert_eq!(capabilities["capabilities"]["m.3pid_changes"]["enabled"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_fills_a_mailbox() {
    let mail = MailServer::start(false).await;
    let mut settings = mail.settings();
    settings.push("rate_limits.enabled=true".to_owned());
    let site = Site::start_with(Shape::Sqlite, &settings).await.unwrap();
    let raw = Raw::nobody(&site.url);
    let mut refused = 0;
    for attempt in 0..15 {
        let secret = format!("secret-{attempt}");
        let body = json!({"email": "alice@example.org", "client_secret": secret, "send_attempt": 1});
        let answer = ask(&raw, "register", body).await;
        refused += u32::from(answer.status.as_u16() == 429);
    }
    assert!(refused >= 4, "{refused} of 15 were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_says_nothing_of_whose_address_it_is() {
    let mail = MailServer::start(false).await;
    let site = Site::start_with(Shape::Sqlite, &mail.settings()).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    add_address(&alice, &mail, "alice@example.org").await;
    for kind in ["register", "account/3pid", "account/password"] {
        for email in ["alice@example.org", "nobody@example.org"] {
            let body = json!({"email": email, "client_secret": kind.replace('/', "-"), "send_attempt": 1});
            let answer = ask(&alice, kind, body).await.fine();
            let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["sid"]);
            assert_eq!(answer["sid"].as_str().unwrap().len(), 24);
            mail.take(email).await;
        }
    }
}
