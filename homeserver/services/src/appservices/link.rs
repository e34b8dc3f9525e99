//! Requests to application services. Their addresses are the operator's own, so they may be private.
//! <https://spec.matrix.org/v1.19/application-service-api/#homeserver---application-service-api>

use super::Appservice;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;
use waxwing_federation::net::client_config;

/// Who does not accept a connection by then is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A bridge may be slow to take in a transaction: it talks to another network meanwhile.
const TRANSACTION_LIMIT: Duration = Duration::from_mins(1);
/// A person waits for what is asked here.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);
/// A ping that takes longer tells enough.
const PING_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of an answer: lists of users or places that a person looks through.
const MAX_ANSWER: usize = 1024 * 1024;
/// Characters of an application service's answer to a ping that it is shown.
const MAX_SHOWN: usize = 1024;
/// How long the older paths are used first after the newer ones were not there: it may be updated.
const OLDER_FOR: Duration = Duration::from_hours(1);

/// Why an application service was not asked or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It has no address.
    #[error("the application service has no url")]
    NoUrl,
    /// It did not answer in time.
    #[error("the application service did not answer in time")]
    Timeout,
    /// The connection failed.
    #[error("the application service could not be reached: {0}")]
    Failed(String),
}

/// What came of a ping that did not come back.
/// <https://spec.matrix.org/v1.19/application-service-api/#pinging-1>
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// It could not be sent.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The answer was no success.
    #[error("the application service answered with status {status}")]
    BadStatus {
        /// The status.
        status: u16,
        /// What it said, shortened.
        body: String,
    },
}

/// An answer, whatever its status.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Whether the path is not known there.
    fn is_unknown_path(&self) -> bool {
        let missing = matches!(
            self.status,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        );
        let errcode = self.json::<Value>().and_then(|body| Some(body.get("errcode")?.as_str()?.to_owned()));
        missing && errcode.is_none_or(|errcode| errcode == "M_UNRECOGNIZED")
    }
}

/// A request to one application service.
pub(super) struct Call<'a> {
    pub method: Method,
    /// Below `/_matrix/app/v1/`.
    pub path: &'a [&'a str],
    /// What the path was called before `/_matrix/app/v1/`; none: there was none.
    pub older: Option<&'a [&'a str]>,
    pub query: &'a [(&'a str, &'a str)],
    pub body: Option<Bytes>,
    pub limit: Duration,
}

impl<'a> Call<'a> {
    /// A question.
    pub fn get(path: &'a [&'a str], older: &'a [&'a str]) -> Call<'a> {
        let older = Some(older);
        Call { method: Method::GET, path, older, query: &[], body: None, limit: QUESTION_LIMIT }
    }
}

/// Sends requests to application services. A handle: clones share everything.
#[derive(Clone)]
pub struct Link {
    client: reqwest::Client,
    /// Until when the older paths are used first.
    older: Arc<Mutex<HashMap<Arc<str>, Instant>>>,
}

impl Link {
    /// `extra_roots`: certificate authorities (DER) that are trusted beside the system's.
    ///
    /// # Errors
    /// What the TLS library says.
    pub fn new(extra_roots: &[Vec<u8>], user_agent: &str) -> Result<Link, String> {
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(user_agent);
        let roots: Vec<_> = extra_roots.iter().map(|root| root.clone().into()).collect();
        let builder = match client_config(&roots) {
            Ok(config) => builder.tls_backend_preconfigured((*config).clone()),
            Err(error) => {
                tracing::warn!(%error, "application services cannot be reached over https");
                builder.tls_certs_only([])
            }
        };
        let client = builder.build().map_err(|error| error.to_string())?;
        Ok(Link { client, older: Arc::default() })
    }

    /// Sends a transaction. Whether it was accepted; the error says why not.
    pub(super) async fn transaction(
        &self,
        appservice: &Appservice,
        id: &str,
        body: Bytes,
    ) -> Result<StatusCode, LinkError> {
        let call = Call {
            method: Method::PUT,
            path: &["transactions", id],
            older: Some(&["transactions", id]),
            query: &[],
            body: Some(body),
            limit: TRANSACTION_LIMIT,
        };
        self.call(appservice, &call).await.map(|answer| answer.status)
    }

    /// Asks an application service to answer; gives how long it took.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping(
        &self,
        appservice: &Appservice,
        transaction: Option<&str>,
    ) -> Result<Duration, PingError> {
        let body = match transaction {
            Some(id) => json!({ "transaction_id": id }),
            None => json!({}),
        };
        let call = Call {
            method: Method::POST,
            path: &["ping"],
            older: None,
            query: &[],
            body: Some(body.to_string().into()),
            limit: PING_LIMIT,
        };
        let began = Instant::now();
        let answer = self.call(appservice, &call).await?;
        if answer.status.is_success() {
            return Ok(began.elapsed());
        }
        let body = String::from_utf8_lossy(&answer.body).chars().take(MAX_SHOWN).collect();
        Err(PingError::BadStatus { status: answer.status.as_u16(), body })
    }

    /// Sends a request; where the newer path is not known, to the older one too.
    /// <https://spec.matrix.org/v1.19/application-service-api/#legacy-routes>
    pub(super) async fn call(&self, appservice: &Appservice, call: &Call<'_>) -> Result<Answer, LinkError> {
        let Some(older) = call.older else { return self.send(appservice, call, None).await };
        let known = self.older.lock().get(&appservice.id).is_some_and(|until| *until > Instant::now());
        if !known {
            let answer = self.send(appservice, call, None).await?;
            if !answer.is_unknown_path() {
                return Ok(answer);
            }
        }
        let answer = self.send(appservice, call, Some(older)).await?;
        if answer.status.is_success() && !known {
            self.older.lock().insert(Arc::clone(&appservice.id), Instant::now() + OLDER_FOR);
        } else if known && answer.is_unknown_path() {
            self.older.lock().remove(&appservice.id);
        }
        Ok(answer)
    }

    async fn send(
        &self,
        appservice: &Appservice,
        call: &Call<'_>,
        older: Option<&[&str]>,
    ) -> Result<Answer, LinkError> {
        let mut url = address(appservice, call, older)?;
        for (name, value) in call.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        if older.is_some() {
            // Who knows the older paths only knows the older place of the token only.
            url.query_pairs_mut().append_pair("access_token", &appservice.hs_token);
        }
        let mut request = self.client.request(call.method.clone(), url).bearer_auth(&appservice.hs_token);
        if let Some(body) = &call.body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        let asked = async {
            let response = request.send().await?;
            let status = response.status();
            Ok(Answer { status, body: read(response).await? })
        };
        match tokio::time::timeout(call.limit, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(LinkError::Timeout),
        }
    }
}

/// Without the address, which may hold the token.
impl From<reqwest::Error> for LinkError {
    fn from(error: reqwest::Error) -> LinkError {
        if error.is_timeout() {
            return LinkError::Timeout;
        }
        let error = error.without_url();
        let mut words = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            words = format!("{words}: {cause}");
            source = cause.source();
        }
        LinkError::Failed(words)
    }
}

fn address(appservice: &Appservice, call: &Call<'_>, older: Option<&[&str]>) -> Result<Url, LinkError> {
    let base = appservice.url.as_deref().ok_or(LinkError::NoUrl)?;
    let mut url = Url::parse(base).map_err(|error| LinkError::Failed(error.to_string()))?;
    {
        let mut segments =
            url.path_segments_mut().map_err(|()| LinkError::Failed("the url has no path".to_owned()))?;
        segments.pop_if_empty();
        match older {
            Some(path) => segments.extend(path),
            None => segments.extend(["_matrix", "app", "v1"]).extend(call.path),
        };
    }
    Ok(url)
}

async fn read(mut response: reqwest::Response) -> Result<Bytes, LinkError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(LinkError::Failed(format!("an answer of more than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
