//! The login for apps that have no form of their own: <https://spec.matrix.org/v1.19/client-server-api/#login-fallback>.
//! What it is for, handing the answer to the app that embeds the browser, needs a script.

use super::Page;
use crate::state::Api;
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;

const FORM: &str = "<form id=\"login\"><p id=\"alert\" class=\"alert\" role=\"alert\" hidden></p>\
<label for=\"user\">User name or e-mail address</label>\
<input id=\"user\" type=\"text\" required autocomplete=\"username\" autocapitalize=\"none\" spellcheck=\"false\">\
<label for=\"password\">Password</label>\
<input id=\"password\" type=\"password\" required autocomplete=\"current-password\"><button>Sign in</button></form>\
<noscript><p class=\"alert\">This page hands you over to your app, which needs JavaScript.</p></noscript>";

const SCRIPT: &str = r"
const form = document.getElementById('login'), alertBox = document.getElementById('alert');
const say = text => { alertBox.textContent = text[0].toUpperCase() + text.slice(1); alertBox.hidden = false; };
form.addEventListener('submit', async event => {
  event.preventDefault();
  const user = document.getElementById('user').value.trim();
  const mail = user.includes('@') && !user.startsWith('@');
  const asked = new URLSearchParams(location.search);
  const body = { type: 'm.login.password', password: document.getElementById('password').value,
    identifier: mail ? { type: 'm.id.thirdparty', medium: 'email', address: user } : { type: 'm.id.user', user } };
  for (const name of ['device_id', 'initial_device_display_name']) if (asked.get(name)) body[name] = asked.get(name);
  try {
    const answer = await fetch('/_matrix/client/v3/login',
      { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
    const session = await answer.json();
    if (!answer.ok) return say(answer.status === 429 ? 'Too many tries. Please wait a minute.' : session.error);
    const app = window.matrixLogin && window.matrixLogin.onLogin ? window.matrixLogin.onLogin : window.onLogin;
    if (app) return app(session);
    const heading = document.querySelector('h1');
    heading.textContent = 'You are signed in';
    form.replaceWith(Object.assign(document.createElement('p'),
      { textContent: 'Your app did not ask for the session that was made. Open this page from the app.' }));
  } catch { say('The server cannot be reached. Please try again.'); }
});";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/_matrix/static/client/login/", get(look))
        .route("/_matrix/static/client/login", get(look))
}

async fn look(State(api): State<Api>) -> Response {
    let mut page = Page::new("Sign in").html(FORM);
    page.script = Some(SCRIPT.to_owned());
    page.show(api.core.organisation())
}
