//! Accounts on a real database: tokens live and die as the specification says.

use ruma::{RoomVersionId, device_id, user_id};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::accounts::{
    AccountError, Accounts, AuthError, DeviceWish, LoginName, NewAccount, RegistrationTokenRow, Session,
    Standing, UiaDone, UiaError, UiaRequest, stage,
};
use waxwing_services::appservices::Appservices;
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::Store;

struct Server {
    accounts: Accounts,
    clock: Clock,
    _dir: tempfile::TempDir,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}", dir.path().join("test.db").display())).await.unwrap();
    let clock = Clock::manual(1_000_000_000_000);
    let core = Core {
        server_name: "test".try_into().unwrap(),
        clock: clock.clone(),
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Token,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy::default(),
            default_room_version: RoomVersionId::V12,
            presence: false,
            max_upload_bytes: 1,
            password: PasswordCost { memory_kib: 8, iterations: 1 },
            everyone_publishes_rooms: true,
            federation: false,
            push: waxwing_services::PushSettings::default(),
            accounts: waxwing_services::AccountSettings::default(),
        }),
    };
    Server { accounts: Accounts::new(core, Arc::new(Appservices::default()), None), clock, _dir: dir }
}

async fn alice(server: &Server, refresh: bool) -> Session {
    let session = Some(DeviceWish { refresh, ..DeviceWish::default() });
    let new = NewAccount {
        username: Some("Alice".to_owned()),
        password: Some("secret".to_owned()),
        session,
        ..NewAccount::default()
    };
    server.accounts.create(new).await.unwrap().session.unwrap()
}

async fn valid(server: &Server, token: &str) -> bool {
    server.accounts.authenticate(token).await.is_ok()
}

#[tokio::test]
async fn a_token_dies_with_its_device_also_in_memory() {
    let server = server().await;
    let session = alice(&server, false).await;
    assert_eq!(session.user_id, "@alice:test");
    assert!(valid(&server, &session.access_token).await && valid(&server, &session.access_token).await);
    server.accounts.logout(&session.user_id, &session.device_id).await.unwrap();
    assert!(!valid(&server, &session.access_token).await);
    assert!(server.accounts.devices(&session.user_id).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_login_to_the_same_device_ends_its_old_token() {
    let server = server().await;
    let first = alice(&server, false).await;
    assert!(valid(&server, &first.access_token).await);
    let wish = DeviceWish { device_id: Some(first.device_id.clone()), ..DeviceWish::default() };
    let second = server.accounts.login_password(LoginName::User("ALICE"), "secret", wish).await.unwrap();
    assert!(!valid(&server, &first.access_token).await);
    assert!(valid(&server, &second.access_token).await);
}

#[tokio::test]
async fn a_refresh_token_lives_until_its_successor_is_used() {
    let server = server().await;
    let first = alice(&server, true).await;
    let old = first.refresh_token.unwrap();
    let lost = server.accounts.refresh(&old).await.unwrap();
    let second = server.accounts.refresh(&old).await.unwrap();
    assert!(!valid(&server, &lost.access_token).await, "what was lost is dead");
    assert!(valid(&server, &first.access_token).await, "the successor is not used yet");
    assert!(valid(&server, &second.access_token).await);
    assert!(!valid(&server, &first.access_token).await);
    assert!(matches!(server.accounts.refresh(&old).await, Err(AccountError::BadRefreshToken)));
    // Used itself, a refresh token ends its predecessor too.
    let third = server.accounts.refresh(&second.refresh_token.clone().unwrap()).await.unwrap();
    server.accounts.refresh(&third.refresh_token.unwrap()).await.unwrap();
    let dead = server.accounts.refresh(&second.refresh_token.unwrap()).await;
    assert!(matches!(dead, Err(AccountError::BadRefreshToken)));
}

#[tokio::test]
async fn an_access_token_expires_softly() {
    let server = server().await;
    let session = alice(&server, true).await;
    assert!(valid(&server, &session.access_token).await);
    server.clock.advance(session.expires_in.unwrap().as_millis() as u64);
    let error = server.accounts.authenticate(&session.access_token).await.unwrap_err();
    assert!(matches!(error, AuthError::Expired));
}

#[tokio::test]
async fn a_locked_account_is_known_as_such_at_once() {
    let server = server().await;
    let session = alice(&server, false).await;
    let mut admin = (*server.accounts.authenticate(&session.access_token).await.unwrap()).clone();
    admin.user_id = user_id!("@admin:test").to_owned();
    let lock = |by, on| server.accounts.set_standing(by, user_id!("@alice:test"), Standing::Locked, on);
    let nobody = admin.clone();
    admin.is_admin = true;
    assert!(matches!(lock(&nobody, true).await, Err(AccountError::NotAdmin)));
    lock(&admin, true).await.unwrap();
    assert!(server.accounts.authenticate(&session.access_token).await.unwrap().is_locked);
    let login =
        server.accounts.login_password(LoginName::User("alice"), "secret", DeviceWish::default()).await;
    assert!(matches!(login, Err(AccountError::Locked)));
}

#[tokio::test]
async fn a_closed_account_stays_taken() {
    let server = server().await;
    let session = alice(&server, false).await;
    server.accounts.deactivate(&session.user_id, true).await.unwrap();
    assert!(!valid(&server, &session.access_token).await);
    let login =
        server.accounts.login_password(LoginName::User("alice"), "secret", DeviceWish::default()).await;
    assert!(matches!(login, Err(AccountError::Deactivated)));
    assert!(matches!(server.accounts.check_available("alice").await, Err(AccountError::UserInUse)));
}

#[tokio::test]
async fn the_first_administrator_registers_once() {
    let server = server().await;
    let token = server.accounts.first_token().await.unwrap().unwrap();
    assert_eq!(server.accounts.first_token().await.unwrap().as_ref(), Some(&token));
    let new = |name: &str| NewAccount {
        username: Some(name.to_owned()),
        registration_token: Some(token.clone()),
        ..NewAccount::default()
    };
    server.accounts.create(new("boss")).await.unwrap();
    assert!(server.accounts.user(user_id!("@boss:test")).await.unwrap().unwrap().admin);
    assert!(matches!(server.accounts.create(new("thief")).await, Err(AccountError::BadRegistrationToken)));
    assert_eq!(server.accounts.first_token().await.unwrap(), None);
}

async fn uia(
    server: &Server,
    endpoint: &str,
    body: Value,
    flow: &[&'static str],
) -> Result<UiaDone, UiaError> {
    let json = body.to_string();
    let user = (flow != [stage::REGISTRATION_TOKEN]).then(|| user_id!("@alice:test"));
    server.accounts.uia(UiaRequest { endpoint, user, json: json.as_bytes(), flows: &[flow.to_vec()] }).await
}

fn needed(answer: Result<UiaDone, UiaError>) -> Map<String, Value> {
    match answer {
        Err(UiaError::Needed(body)) => body,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_is_bound_to_what_it_was_begun_for() {
    let server = server().await;
    alice(&server, false).await;
    let flow = [stage::PASSWORD];
    let begun = needed(uia(&server, "DELETE /a", json!({}), &flow).await);
    let session = &begun["session"];
    let wrong = json!({ "auth": { "type": stage::PASSWORD, "session": session, "password": "no" } });
    assert_eq!(needed(uia(&server, "DELETE /a", wrong, &flow).await)["errcode"], "M_FORBIDDEN");
    let right = json!({ "auth": { "type": stage::PASSWORD, "session": session, "password": "secret" } });
    assert!(matches!(uia(&server, "DELETE /b", right.clone(), &flow).await, Err(UiaError::OtherRequest)));
    uia(&server, "DELETE /a", right, &flow).await.unwrap();
}

#[tokio::test]
async fn a_registration_token_is_shown_and_then_counted() {
    let server = server().await;
    let row = RegistrationTokenRow {
        token: "t".to_owned(),
        uses_allowed: Some(1),
        completed: 0,
        expires_at: None,
        admin: false,
    };
    assert!(server.accounts.registration_token_create(row).await.unwrap());
    let flow = [stage::REGISTRATION_TOKEN];
    let wrong = json!({ "auth": { "type": stage::REGISTRATION_TOKEN, "token": "x" } });
    assert_eq!(needed(uia(&server, "POST /register", wrong, &flow).await)["errcode"], "M_UNAUTHORIZED");
    let right = json!({ "auth": { "type": stage::REGISTRATION_TOKEN, "token": "t" } });
    let done = uia(&server, "POST /register", right, &flow).await.unwrap();
    assert_eq!(done.registration_token.as_deref(), Some("t"));
    assert!(server.accounts.registration_token_valid("t").await.unwrap());
    let new = NewAccount { registration_token: done.registration_token, ..NewAccount::default() };
    server.accounts.create(new).await.unwrap();
    assert!(!server.accounts.registration_token_valid("t").await.unwrap());
}

#[tokio::test]
async fn a_login_token_is_good_once() {
    let server = server().await;
    alice(&server, false).await;
    let token = server.accounts.login_token(user_id!("@alice:test")).await.unwrap();
    let wish = DeviceWish { device_id: Some(device_id!("NEW").to_owned()), ..DeviceWish::default() };
    let session = server.accounts.login_with_token(&token, wish).await.unwrap();
    assert_eq!(session.device_id, "NEW");
    let again = server.accounts.login_with_token(&token, DeviceWish::default()).await;
    assert!(matches!(again, Err(AccountError::BadLoginToken)));
}
