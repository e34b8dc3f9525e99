//! Stages of user-interactive authentication in a browser: <https://spec.matrix.org/v1.19/client-server-api/#fallback>.

use super::confirm::form;
use super::{Mood, Page, escape, failed, hidden};
use crate::error::{ApiError, ApiResult};
use crate::extract::address;
use crate::limits::Limited;
use crate::state::Api;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use waxwing_services::accounts::{AccountError, FallbackInput, FallbackStep, UiaError, stage};

/// What tells the app that the stage is done, whether it embeds the browser or opened this window.
const DONE: &str = "if(window.onAuthDone){window.onAuthDone()}\
else if(window.opener&&window.opener.postMessage){window.opener.postMessage('authDone','*')}";

pub(super) fn routes() -> Router<Api> {
    ["r0", "v3", "unstable"].into_iter().fold(Router::new(), |router, version| {
        router.route(&format!("/_matrix/client/{version}/auth/{{kind}}/fallback/web"), get(look).post(take))
    })
}

#[derive(Deserialize)]
struct Asked {
    session: Option<String>,
}

/// `GET`: the form of the stage.
async fn look(
    State(api): State<Api>,
    Path(kind): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let session = asked.ok().and_then(|Query(asked)| asked.session).unwrap_or_default();
    match api.accounts.fallback_step(&session, &kind).await {
        Ok(step) => show(&api, &kind, &session, &step),
        Err(error) => wrong(&api, error),
    }
}

#[derive(Deserialize)]
struct Filled {
    session: String,
    token: Option<String>,
    password: Option<String>,
    email: Option<String>,
    confirmed: Option<String>,
}

/// `POST`: what was filled in.
async fn take(State(api): State<Api>, Path(kind): Path<String>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let filled: Filled = match form(body).await {
        Ok(filled) => filled,
        Err(error) => return failed(&api, &error),
    };
    let input = match filled {
        Filled { token: Some(token), .. } => FallbackInput::Token(token.trim().to_owned()),
        Filled { password: Some(password), .. } => FallbackInput::Password(password),
        Filled { confirmed: Some(_), .. } => FallbackInput::EmailConfirmed,
        Filled { email: Some(email), .. } => FallbackInput::Email(email),
        _ => FallbackInput::Agree,
    };
    if let Err(error) = count(&api, &parts, &input) {
        return failed(&api, &error);
    }
    match api.accounts.uia_fallback(&filled.session, &kind, input).await {
        Ok(step) => show(&api, &kind, &filled.session, &step),
        Err(UiaError::Account(error)) => wrong(&api, error),
        Err(error) => failed(&api, &ApiError::from(error)),
    }
}

/// Guesses and letters are counted as at the endpoints of clients.
fn count(api: &Api, parts: &Parts, input: &FallbackInput) -> ApiResult<()> {
    let limited = match input {
        FallbackInput::Agree | FallbackInput::EmailConfirmed => return Ok(()),
        FallbackInput::Token(_) => Limited::Registration,
        FallbackInput::Password(_) => Limited::Login,
        FallbackInput::Email(email) => {
            api.limits.check(Limited::Mail, &email.trim().to_lowercase())?;
            Limited::Mail
        }
    };
    api.limits.check(limited, &address(parts).to_string())
}

fn wrong(api: &Api, error: AccountError) -> Response {
    let say = match error {
        AccountError::NoSession => "This page has expired. Please go back to your app and begin again.",
        AccountError::InvalidParam(_) => "This server does not know this step.",
        error => return failed(api, &ApiError::from(error)),
    };
    let page = Page::new("This page does not work").mood(Mood::Bad).status(StatusCode::NOT_FOUND).say(say);
    page.show(api.core.organisation())
}

fn show(api: &Api, kind: &str, session: &str, step: &FallbackStep) -> Response {
    let who = api.core.organisation();
    if *step == FallbackStep::Done {
        let mut page = Page::new("Thank you").mood(Mood::Good).say("You may go back to your app now.");
        page.script = Some(DONE.to_owned());
        return page.show(who);
    }
    let (title, about, fields) = stage_form(api, kind, step);
    let mut page = Page::new(title);
    if let FallbackStep::Refused(why) = step {
        page = page.alert(why).status(StatusCode::BAD_REQUEST);
    }
    let form = format!("<form method=\"post\">{}{fields}</form>", hidden("session", session));
    page.say(about).html(&form).show(who)
}

fn stage_form(api: &Api, kind: &str, step: &FallbackStep) -> (&'static str, &'static str, String) {
    match kind {
        stage::TERMS => {
            let terms = &api.core.settings.accounts.terms;
            let documents = terms.policies.iter().map(|(title, url)| {
                let (title, url) = (escape(title), escape(url));
                format!("<li><a href=\"{url}\" target=\"_blank\" rel=\"noopener noreferrer\">{title}</a></li>")
            });
            let list: String = documents.collect();
            let fields = format!("<ul>{list}</ul><button>I agree</button>");
            ("Terms of service", "Please read and agree to these documents:", fields)
        }
        stage::REGISTRATION_TOKEN => (
            "Registration token",
            "Whoever runs this server has given you a token. Please enter it here.",
            "<label for=\"token\">Token</label><input id=\"token\" name=\"token\" type=\"text\" required \
             autocomplete=\"off\" autocapitalize=\"none\" spellcheck=\"false\"><button>Go on</button>"
                .to_owned(),
        ),
        stage::PASSWORD => (
            "Confirm it is you",
            "Please enter the password of your account.",
            "<label for=\"password\">Password</label><input id=\"password\" name=\"password\" type=\"password\" \
             required autocomplete=\"current-password\"><button>Go on</button>"
                .to_owned(),
        ),
        stage::EMAIL if *step == FallbackStep::LetterSent || matches!(step, FallbackStep::Refused(why) if why.contains("letter has not")) => (
            "Look into your mailbox",
            "A letter is on its way to you. Follow the link in it, then come back to this page.",
            "<button name=\"confirmed\" value=\"yes\">I have followed the link</button>".to_owned(),
        ),
        stage::EMAIL => (
            "Your e-mail address",
            "This server asks for an e-mail address. You will get a letter with a link.",
            "<label for=\"email\">E-mail address</label><input id=\"email\" name=\"email\" type=\"email\" required \
             autocomplete=\"email\"><button>Send the letter</button>"
                .to_owned(),
        ),
        _ => ("One more step", "Press the button to go on.", "<button>Go on</button>".to_owned()),
    }
}
