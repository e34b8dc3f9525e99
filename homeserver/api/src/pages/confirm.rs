//! The page that the link in a letter opens. Opening it confirms nothing: mail programs and scanners open links too.

use super::{MAX_FORM, Mood, Page, failed, hidden};
use crate::error::{ApiError, ApiResult};
use crate::extract::{address, json, read_body};
use crate::limits::Limited;
use crate::state::Api;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;
use waxwing_services::accounts::{AccountError, Confirmed, Purpose};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/_waxwing/email/confirm", get(look).post(confirm))
        .route("/_waxwing/email/submit_token", post(submit))
}

#[derive(Deserialize)]
struct Link {
    sid: String,
    token: String,
}

/// `GET`: what would be confirmed, and a button.
async fn look(
    State(api): State<Api>,
    link: Result<Query<Link>, QueryRejection>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    if let Err(error) = api.limits.check(Limited::Token, &address(&parts).to_string()) {
        return failed(&api, &error);
    }
    let Ok(Query(link)) = link else { return dead(&api, &AccountError::NoSession) };
    match api.accounts.look_at_link(&link.sid, &link.token).await {
        Ok(found) if found.already => done(&api, &found),
        Ok(found) => ask(&api, &found, &link),
        Err(error) => dead(&api, &error),
    }
}

fn ask(api: &Api, found: &Confirmed, link: &Link) -> Response {
    let (title, say, button) = match found.purpose {
        Purpose::Register => {
            ("Confirm your e-mail address", "You are about to use this address for a new account:", "Confirm")
        }
        Purpose::Add => {
            ("Confirm your e-mail address", "You are about to add this address to your account:", "Confirm")
        }
        Purpose::Password => (
            "Set a new password",
            "Somebody wants to set a new password for the account with this address. Go on only if that is you.",
            "It is me, go on",
        ),
    };
    let form = format!(
        "<p><strong>{}</strong></p><form method=\"post\" action=\"/_waxwing/email/confirm\">{}{}<button>{button}</button></form>",
        super::escape(&found.address),
        hidden("sid", &link.sid),
        hidden("token", &link.token),
    );
    let mut page = Page::new(title).say(say).html(&form);
    page.form_to = found.next_link.as_deref().and_then(origin);
    page.html("<p></p>")
        .soft("If it is not you, close this page: nothing will change.")
        .show(api.core.organisation())
}

/// The origin of a link, for the policy of a page whose form leads there.
fn origin(link: &str) -> Option<String> {
    Url::parse(link).ok().map(|url| url.origin().ascii_serialization())
}

/// `POST` of the page: the address is confirmed. The browser goes on to where the client wants it.
async fn confirm(State(api): State<Api>, request: Request) -> Response {
    match confirmed(&api, request).await {
        Ok(Ok(found)) => match found.next_link.as_deref().map(HeaderValue::from_str) {
            Some(Ok(next)) => {
                let mut response = StatusCode::SEE_OTHER.into_response();
                response.headers_mut().insert(header::LOCATION, next);
                response
                    .headers_mut()
                    .insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
                response
            }
            _ => done(&api, &found),
        },
        Ok(Err(error)) => dead(&api, &error),
        Err(error) => failed(&api, &error),
    }
}

async fn confirmed(api: &Api, request: Request) -> ApiResult<Result<Confirmed, AccountError>> {
    let (parts, body) = request.into_parts();
    api.limits.check(Limited::Token, &address(&parts).to_string())?;
    let link: Link = form(body).await?;
    Ok(api.accounts.confirm_link(&link.sid, &link.token).await)
}

/// The fields of a form.
pub(super) async fn form<T: serde::de::DeserializeOwned>(body: Body) -> ApiResult<T> {
    let body = read_body(body, MAX_FORM).await?;
    let mut request = http::Request::new(Body::from(body));
    *request.method_mut() = http::Method::POST;
    let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    let form = Form::<T>::from_request(request, &()).await.map_err(ApiError::invalid_param)?;
    Ok(form.0)
}

fn done(api: &Api, found: &Confirmed) -> Response {
    let say = match found.purpose {
        Purpose::Register => "Your address is confirmed. Go back to your app to finish your registration.",
        Purpose::Add => "Your address is confirmed. Go back to your app to finish adding it.",
        Purpose::Password => "Thank you. Go back to your app to choose the new password.",
    };
    let page = Page::new("Confirmed").mood(Mood::Good).say(say);
    page.soft("You can close this page.").show(api.core.organisation())
}

fn dead(api: &Api, error: &AccountError) -> Response {
    let (status, say) = match error {
        AccountError::Store(error) => return failed(api, &ApiError::internal(error)),
        AccountError::SessionExpired => {
            (StatusCode::GONE, "This link has expired or was used. Ask your app for a new letter.")
        }
        _ => (
            StatusCode::BAD_REQUEST,
            "This link is not valid. Perhaps a part of it was lost: open it from the letter once more, or ask your app for a new one.",
        ),
    };
    Page::new("This link does not work").mood(Mood::Bad).status(status).say(say).show(api.core.organisation())
}

#[derive(Deserialize)]
struct Submit {
    sid: String,
    client_secret: String,
    token: String,
}

/// `POST /_waxwing/email/submit_token`: the same by a client that was told the token, with the parameters and errors of
/// <https://spec.matrix.org/v1.19/identity-service-api/#post_matrixidentityv2validateemailsubmittoken>.
async fn submit(State(api): State<Api>, request: Request) -> ApiResult<Json<Value>> {
    let (parts, body) = request.into_parts();
    api.limits.check(Limited::Token, &address(&parts).to_string())?;
    let submit: Submit = json(&read_body(body, MAX_FORM).await?)?;
    api.accounts.submit_token(&submit.sid, &submit.client_secret, &submit.token).await?;
    Ok(Json(json!({ "success": true })))
}
