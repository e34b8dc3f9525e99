//! Another server: it signs events, and that is all.

use crate::room::{Home, SEED, Tip, build};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use ruma::{OwnedServerName, OwnedUserId, ServerName};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use url::Url;
use waxwing_federation::keys::OwnKeys;
use waxwing_federation::signing::Identity;
use waxwing_federation::transport::{Request, Response, Transport, TransportError, WebRequest};
use waxwing_model::{Clock, Event};
use waxwing_rooms::KeyPair;

/// Its name.
pub const NAME: &str = "elsewhere.test";

fn key() -> KeyPair {
    KeyPair::from_seed([SEED + 1; 32], "k").expect("a key")
}

/// The way there: it tells its keys and nothing else.
pub struct Way;

#[async_trait]
impl Transport for Way {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        if !request.path_and_query.starts_with("/_matrix/key/") {
            return Err(TransportError::Connection("it only signs".to_owned()));
        }
        let identity = Identity::new(NAME.try_into().expect("a name"), Arc::new(key())).expect("a key");
        let own = OwnKeys::new(identity, Vec::new());
        let document = own.document(Clock::System.millis()).expect("a document");
        let body = Bytes::from(document.get().to_owned());
        Ok(Response::complete(StatusCode::OK, HeaderMap::new(), body))
    }
    async fn fetch(&self, _: &Url, _: Duration) -> Result<Response, TransportError> {
        Err(TransportError::Connection("no web here".to_owned()))
    }
    async fn call(&self, _: WebRequest) -> Result<Response, TransportError> {
        Err(TransportError::Connection("no web here".to_owned()))
    }
}

/// Its people, who are in the room.
pub struct Elsewhere {
    name: OwnedServerName,
    key: KeyPair,
    people: Vec<OwnedUserId>,
}

impl Elsewhere {
    pub async fn new(home: &mut Home, people: usize) -> Elsewhere {
        let name = OwnedServerName::try_from(NAME).expect("a name");
        let people = (0..people).map(|n| OwnedUserId::try_from(format!("@guest{n}:{NAME}")).expect("a user"));
        let this = Elsewhere { name, key: key(), people: people.collect() };
        for person in &this.people {
            let tip = home.tip().await;
            let join =
                this.make(&tip, person, "m.room.member", person.as_str(), json!({ "membership": "join" }));
            home.receive(&this.name, &join).await;
        }
        this
    }

    pub fn name(&self) -> &ServerName {
        &self.name
    }

    pub fn moderator(&self) -> &OwnedUserId {
        &self.people[0]
    }

    pub fn member(&self, number: usize) -> OwnedUserId {
        self.people[number].clone()
    }

    fn make(&self, tip: &Tip, who: &OwnedUserId, kind: &str, key: &str, content: Value) -> Arc<Event> {
        Arc::new(build(tip, who, kind, key, &content, &self.name, &self.key))
    }

    /// A new name for one of its people.
    pub fn renamed(&self, tip: &Tip, number: usize) -> Arc<Event> {
        let who = self.moderator();
        let content = json!({ "membership": "join", "displayname": format!("Guest of name {number}") });
        self.make(tip, who, "m.room.member", who.as_str(), content)
    }

    /// One step of a branch: names, and every fourth something that may contradict what is said at home.
    pub fn speak(&self, tip: &Tip, branch: usize, step: usize) -> Arc<Event> {
        let moderator = self.moderator();
        match step % 8 {
            3 => {
                let content = json!({ "topic": format!("Elsewhere, branch {branch}, step {step}") });
                self.make(tip, moderator, "m.room.topic", "", content)
            }
            7 => {
                let mut levels: Value = tip.content("m.room.power_levels", "");
                levels["events"]["org.example.branch"] = (branch % 50).into();
                self.make(tip, moderator, "m.room.power_levels", "", levels)
            }
            _ => {
                let who = &self.people[step % self.people.len()];
                // Whoever was thrown out comes back.
                let content =
                    json!({ "membership": "join", "displayname": format!("Guest {branch}, {step}") });
                self.make(tip, who, "m.room.member", who.as_str(), content)
            }
        }
    }
}
