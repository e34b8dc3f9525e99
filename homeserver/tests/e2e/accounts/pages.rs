//! The pages of user-interactive authentication, as somebody without scripts goes through them.

use crate::http::{Answer, Raw};
use crate::site::{Shape, Site};
use crate::smtp::MailServer;
use reqwest::Method;
use serde_json::json;

const REGISTER: &str = "/_matrix/client/v3/register";

async fn fill(raw: &Raw, kind: &str, fields: &str) -> (Answer, String) {
    let path = format!("/_matrix/client/v3/auth/{kind}/fallback/web");
    let form: &[(&str, &[u8])] = &[("content-type", b"application/x-www-form-urlencoded")];
    let (answer, headers) = raw.send_with(Method::POST, &path, form, fields).await.unwrap();
    let policy = headers["content-security-policy"].to_str().unwrap().to_owned();
    (answer, policy)
}

fn text(answer: &Answer) -> &str {
    answer.body.as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_registers_through_pages() {
    let mail = MailServer::start(false).await;
    let mut settings = mail.settings();
    settings.extend([
        "registration=token".to_owned(),
        "email.required=true".to_owned(),
        "organisation=Birds & <Friends>".to_owned(),
        r#"terms.policies={ "Privacy policy" = "https://aviary.example/privacy" }"#.to_owned(),
    ]);
    let site = Site::start_with(Shape::Sqlite, &settings).await.unwrap();
    let raw = Raw::nobody(&site.url);
    let made = site.nodes[0].run(&["user", "list"]).await;
    assert!(made.status.success());
    let token = waxwing_storage::RegistrationTokenRow {
        token: "letmein".to_owned(),
        uses_allowed: Some(1),
        completed: 0,
        expires_at: None,
        admin: false,
    };
    let stored: Result<bool, waxwing_storage::StoreError> = site
        .store()
        .await
        .write("test", Vec::new(), move |tx| {
            let token = token.clone();
            Box::pin(async move { tx.registration_token_insert(&token).await })
        })
        .await;
    assert!(stored.unwrap());
    let wanted = json!({"username": "alice", "password": "correct horse"});
    let asked = raw.post(REGISTER, wanted.clone()).await;
    let stages = json!(["m.login.terms", "m.login.registration_token", "m.login.email.identity"]);
    assert_eq!(asked.body["flows"], json!([{ "stages": stages }]));
    let policies = &asked.body["params"]["m.login.terms"]["policies"];
    let policy =
        json!({"version": "1", "en": {"name": "Privacy policy", "url": "https://aviary.example/privacy"}});
    assert_eq!(policies, &json!({"privacy_policy": policy}));
    let session = asked.body["session"].as_str().unwrap();

    let page =
        raw.get(&format!("/_matrix/client/v3/auth/m.login.terms/fallback/web?session={session}")).await;
    assert!(
        text(&page).contains("https://aviary.example/privacy")
            && text(&page).contains("Birds &amp; &lt;Friends&gt;")
    );
    let own = format!("session={session}");
    let (done, policy) = fill(&raw, "m.login.terms", &own).await;
    assert!(text(&done).contains("onAuthDone") && policy.contains("script-src 'nonce-"));
    let (refused, policy) = fill(&raw, "m.login.registration_token", &format!("{own}&token=wrong")).await;
    assert_eq!(refused.status.as_u16(), 400);
    assert!(text(&refused).contains("not valid") && !policy.contains("script-src"));
    let (done, _) = fill(&raw, "m.login.registration_token", &format!("{own}&token=letmein")).await;
    assert!(text(&done).contains("onAuthDone"));
    let (refused, _) = fill(&raw, "m.login.email.identity", &format!("{own}&email=nonsense")).await;
    assert!(text(&refused).contains("not an e-mail address"));
    let (sent, _) = fill(&raw, "m.login.email.identity", &format!("{own}&email=alice%40example.org")).await;
    assert!(text(&sent).contains("Look into your mailbox"));
    let (early, _) = fill(&raw, "m.login.email.identity", &format!("{own}&confirmed=yes")).await;
    assert!(text(&early).contains("not been followed") && text(&early).contains("name=\"confirmed\""));
    let link = mail.take("alice@example.org").await.link();
    assert!(super::confirm(&raw, &link).await.status.is_success());
    let (done, _) = fill(&raw, "m.login.email.identity", &format!("{own}&confirmed=yes")).await;
    assert!(text(&done).contains("onAuthDone"));
    let mut wanted = wanted;
    wanted["auth"] = json!({"session": session});
    let made = raw.post(REGISTER, wanted).await.fine();
    let alice = raw.with_token(made["access_token"].as_str().unwrap());
    let addresses = alice.get("/_matrix/client/v3/account/3pid").await.fine();
    assert_eq!(addresses["threepids"][0]["address"], "alice@example.org");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_lead_nowhere_say_so() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let raw = Raw::nobody(&site.url);
    for path in [
        "/_matrix/client/v3/auth/m.login.dummy/fallback/web?session=none",
        "/_matrix/client/v3/auth/m.login.dummy/fallback/web",
        "/_matrix/client/v3/auth/m.login.nonsense/fallback/web?session=none",
        "/_matrix/client/v3/auth/%3Cscript%3E/fallback/web?session=%22%3E%3Cscript%3E",
    ] {
        let page = raw.get(path).await;
        assert_eq!(page.status.as_u16(), 404, "{path}");
        assert!(!text(&page).contains("<script>"), "{path}");
    }
    let (page, _) = fill(&raw, "m.login.terms", "session=none").await;
    assert_eq!(page.status.as_u16(), 404);
    let login = raw.get("/_matrix/static/client/login/").await;
    assert!(text(&login).contains("matrixLogin"));
}
