//! Pages that people see in a browser: small, without frames, cookies or anything from elsewhere, and, but for the login
//! of embedded browsers, without scripts. Forms post to where they came from.

mod confirm;
mod fallback;
mod login;

use crate::state::Api;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use std::fmt::Write;

/// The largest form: an address and a token.
const MAX_FORM: usize = 16 * 1024;

pub(crate) fn routes() -> Router<Api> {
    Router::new().merge(confirm::routes()).merge(fallback::routes()).merge(login::routes())
}

const STYLE: &str = "\
:root{color-scheme:light dark;--back:#f3f5f8;--card:#fff;--ink:#1b2430;--soft:#566171;--line:#cfd6df;--go:#1f5fbf;\
--go-ink:#fff;--bad:#b3261e;--good:#1a7f4b}\
@media(prefers-color-scheme:dark){:root{--back:#12161c;--card:#1b212a;--ink:#e8ecf1;--soft:#a3adba;--line:#3a4452;\
--go:#6ea3f2;--go-ink:#0d1522;--bad:#ff8a80;--good:#7ddba8}}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;display:flex;flex-direction:column;align-items:center;justify-content:center;\
padding:24px 16px;background:var(--back);color:var(--ink);\
font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif}\
main{width:100%;max-width:440px;background:var(--card);border-radius:16px;padding:32px 28px;\
box-shadow:0 1px 2px rgb(0 0 0/.08),0 8px 28px rgb(0 0 0/.08)}\
.who{margin:0 0 20px;color:var(--soft);font-size:14px;font-weight:600}\
h1{margin:0 0 12px;font-size:24px;line-height:1.25;letter-spacing:-.01em}\
p{margin:0 0 16px}.soft{color:var(--soft);font-size:14px}.soft:last-child{margin-bottom:0}\
.good h1::before,.bad h1::before{display:flex;width:44px;height:44px;margin:0 0 16px;border-radius:50%;\
align-items:center;justify-content:center;color:var(--card);font-size:22px}\
.good h1::before{content:'\\2713';background:var(--good)}.bad h1::before{content:'!';background:var(--bad)}\
.alert{border-left:3px solid var(--bad);padding:2px 0 2px 12px;color:var(--bad)}\
label{display:block;margin:0 0 6px;font-weight:600;font-size:14px}\
input[type=text],input[type=email],input[type=password]{width:100%;margin:0 0 16px;padding:11px 12px;font:inherit;\
color:inherit;background:transparent;border:1px solid var(--line);border-radius:10px}\
button,.button{display:block;width:100%;padding:12px 16px;border:0;border-radius:10px;background:var(--go);\
color:var(--go-ink);font:inherit;font-weight:600;text-align:center;text-decoration:none;cursor:pointer}\
button:hover,.button:hover{filter:brightness(1.08)}\
button.plain{margin-top:10px;background:transparent;color:var(--go);border:1px solid var(--line)}\
:focus-visible{outline:3px solid var(--go);outline-offset:2px}\
ul{margin:0 0 20px;padding:0 0 0 20px}a{color:var(--go)}strong{overflow-wrap:anywhere}";

/// How a page ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// Something is to be done.
    Plain,
    /// Something is done.
    Good,
    /// Something failed.
    Bad,
}

/// A page.
struct Page {
    status: StatusCode,
    title: String,
    mood: Mood,
    body: String,
    script: Option<String>,
    /// Where forms may lead beside here.
    form_to: Option<String>,
}

impl Page {
    fn new(title: impl Into<String>) -> Page {
        Page {
            status: StatusCode::OK,
            title: title.into(),
            mood: Mood::Plain,
            body: String::new(),
            script: None,
            form_to: None,
        }
    }

    fn mood(mut self, mood: Mood) -> Page {
        self.mood = mood;
        self
    }

    fn status(mut self, status: StatusCode) -> Page {
        self.status = status;
        self
    }

    /// A paragraph of text.
    fn say(mut self, text: &str) -> Page {
        let _ = write!(self.body, "<p>{}</p>", escape(text));
        self
    }

    /// A paragraph that matters less.
    fn soft(mut self, text: &str) -> Page {
        let _ = write!(self.body, "<p class=\"soft\">{}</p>", escape(text));
        self
    }

    /// Why the form did not do.
    fn alert(mut self, text: &str) -> Page {
        let _ = write!(self.body, "<p class=\"alert\" role=\"alert\">{}</p>", escape(text));
        self
    }

    /// HTML that is made here.
    fn html(mut self, html: &str) -> Page {
        self.body.push_str(html);
        self
    }

    /// The page as it is sent; `who` is whose it is.
    fn show(self, who: &str) -> Response {
        let nonce = self.script.as_ref().map(|_| waxwing_model::opaque_id(24));
        let script = match (&self.script, &nonce) {
            (Some(script), Some(nonce)) => format!("<script nonce=\"{nonce}\">{script}</script>"),
            _ => String::new(),
        };
        let class = match self.mood {
            Mood::Plain => "",
            Mood::Good => " class=\"good\"",
            Mood::Bad => " class=\"bad\"",
        };
        let html = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta name=\"robots\" content=\"noindex\"><title>{title} · {who}</title><style>{STYLE}</style></head>\
             <body><main{class}><p class=\"who\">{who}</p><h1>{title}</h1>{body}</main>{script}</body></html>",
            title = escape(&self.title),
            who = escape(who),
            body = self.body,
        );
        let scripts = nonce.map(|nonce| format!("script-src 'nonce-{nonce}';connect-src 'self';"));
        let policy = format!(
            "default-src 'none';style-src 'unsafe-inline';{}form-action 'self'{}{};frame-ancestors 'none';base-uri 'none'",
            scripts.unwrap_or_default(),
            if self.form_to.is_some() { " " } else { "" },
            self.form_to.as_deref().unwrap_or_default(),
        );
        let mut response = Response::new(Body::from(html));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let fixed = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            // Addresses of these pages hold what nobody else should see.
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "DENY"),
        ];
        for (name, value) in fixed {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(policy) = HeaderValue::from_str(&policy) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        response
    }
}

/// A hidden field of a form.
fn hidden(name: &str, value: &str) -> String {
    format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">", escape(value))
}

/// Text as it may stand in HTML and in quoted attributes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// A page for a request that the server itself could not answer.
fn failed(api: &Api, error: &crate::error::ApiError) -> Response {
    let limited = error.status == StatusCode::TOO_MANY_REQUESTS;
    let title = if limited { "That was a lot at once" } else { "That did not work" };
    Page::new(title)
        .mood(Mood::Bad)
        .status(error.status)
        .say(if limited { "Please wait a minute and try again." } else { "Please try again later." })
        .show(api.core.organisation())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_words_stay_words() {
        let text = "<script>alert('x')</script>";
        let page = Page::new(text).say(text).alert(text).soft(text).html(&hidden("a", "\"><b>"));
        assert!(!page.body.contains("<script") && !page.body.contains("<b>"));
        let response = page.show(text);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("script-src"), "{policy}");
    }
}
