//! Other networks: what application services say of them, put together, and the lists of rooms that they keep.
//! <https://spec.matrix.org/v1.19/client-server-api/#third-party-networks>

use super::link::Call;
use super::{Appservice, Appservices, Queries};
use crate::Core;
use futures_util::future::join_all;
use parking_lot::Mutex;
use ruma::{RoomAliasId, RoomId, UserId};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use waxwing_storage::StoreError;

/// How long what an application service says of its network is believed: it changes when it is configured anew.
const REMEMBER: Duration = Duration::from_mins(10);
/// How long one that did not answer is not asked again: clients ask for all networks at once.
const REMEMBER_SILENCE: Duration = Duration::from_secs(30);
/// Search fields of one question.
const MAX_FIELDS: usize = 50;
/// Bytes of a network's name.
const LONGEST_NETWORK: usize = 255;

/// Why a question about another network has no answer.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// No application service bridges to it, or none knows the user or place.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// A parameter has a value that it cannot have.
    #[error("{0}")]
    InvalidParam(&'static str),
    /// Only application services keep such lists.
    #[error("only application services do that")]
    NotAppservice,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Users,
    Places,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Kind::Users => "user",
            Kind::Places => "location",
        }
    }

    /// The field that a result must have beside `protocol` and `fields`.
    fn id(self) -> &'static str {
        match self {
            Kind::Users => "userid",
            Kind::Places => "alias",
        }
    }
}

type Known = HashMap<(Arc<str>, String), (Instant, Option<Map<String, Value>>)>;

/// Other networks. A handle: clones share everything.
#[derive(Clone)]
pub struct Networks {
    core: Core,
    queries: Queries,
    known: Arc<Mutex<Known>>,
}

impl Networks {
    /// Over the application services that `queries` asks.
    pub fn new(core: Core, queries: Queries) -> Networks {
        Networks { core, queries, known: Arc::default() }
    }

    fn appservices(&self) -> &Appservices {
        self.queries.appservices()
    }

    fn of_protocol(&self, protocol: &str) -> Vec<&Arc<Appservice>> {
        let bridges = |one: &&Arc<Appservice>| one.protocols.iter().any(|other| other == protocol);
        self.appservices().all().iter().filter(|one| one.url.is_some()).filter(bridges).collect()
    }

    /// Every network that an application service answers for: its name and what clients need to search it.
    pub async fn protocols(&self) -> BTreeMap<String, Value> {
        let all = self.appservices().all().iter();
        let names: BTreeSet<&String> = all.flat_map(|one| one.protocols.iter()).collect();
        let asked = names.into_iter().map(|name| async move { (name.clone(), self.protocol(name).await) });
        let found = join_all(asked).await.into_iter();
        found.filter_map(|(name, answer)| Some((name, answer.ok()?))).collect()
    }

    /// One network. The instances of several application services stand beside each other, each with an id of its own
    /// here, by which its list of rooms is asked for.
    ///
    /// # Errors
    /// [`NetworksError::NotFound`] where no application service bridges to it, or none answers.
    pub async fn protocol(&self, name: &str) -> Result<Value, NetworksError> {
        let asked = self.of_protocol(name).into_iter().map(|one| self.protocol_of(one, name));
        let mut whole: Option<Map<String, Value>> = None;
        for mut answer in join_all(asked).await.into_iter().flatten() {
            match &mut whole {
                None => whole = Some(answer),
                Some(whole) => {
                    let more = answer.get_mut("instances").and_then(Value::as_array_mut).map(std::mem::take);
                    if let Some(Value::Array(instances)) = whole.get_mut("instances") {
                        instances.extend(more.unwrap_or_default());
                    }
                }
            }
        }
        whole.map(Value::Object).ok_or(NetworksError::NotFound("protocol"))
    }

    async fn protocol_of(&self, appservice: &Appservice, name: &str) -> Option<Map<String, Value>> {
        let key = (Arc::clone(&appservice.id), name.to_owned());
        if let Some((until, answer)) = self.known.lock().get(&key)
            && *until > Instant::now()
        {
            return answer.clone();
        }
        let path = ["thirdparty", "protocol", name];
        let answer =
            self.ask(appservice, &path, &[]).await.and_then(|answer| protocol(answer, &appservice.id));
        let lifetime = if answer.is_some() { REMEMBER } else { REMEMBER_SILENCE };
        self.known.lock().insert(key, (Instant::now() + lifetime, answer.clone()));
        answer
    }

    /// Users of a network that fit `fields`.
    ///
    /// # Errors
    /// [`NetworksError::NotFound`] for a network that no application service bridges to.
    pub async fn users(
        &self,
        protocol: &str,
        fields: &BTreeMap<String, String>,
    ) -> Result<Vec<Value>, NetworksError> {
        self.search(Kind::Users, protocol, fields).await
    }

    /// Places of a network that fit `fields`.
    ///
    /// # Errors
    /// As [`Networks::users`].
    pub async fn places(
        &self,
        protocol: &str,
        fields: &BTreeMap<String, String>,
    ) -> Result<Vec<Value>, NetworksError> {
        self.search(Kind::Places, protocol, fields).await
    }

    async fn search(
        &self,
        kind: Kind,
        protocol: &str,
        fields: &BTreeMap<String, String>,
    ) -> Result<Vec<Value>, NetworksError> {
        if fields.len() > MAX_FIELDS {
            return Err(NetworksError::InvalidParam("too many fields"));
        }
        let asked = self.of_protocol(protocol);
        if asked.is_empty() {
            return Err(NetworksError::NotFound("protocol"));
        }
        let query: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Ok(self.gather(kind, &asked, &["thirdparty", kind.path(), protocol], &query).await)
    }

    /// What a user of this server is on other networks.
    ///
    /// # Errors
    /// [`NetworksError::NotFound`] when nobody knows.
    pub async fn users_of(&self, user: &UserId) -> Result<Vec<Value>, NetworksError> {
        self.look_up(Kind::Users, &[("userid", user.as_str())]).await
    }

    /// What the room of an alias is on other networks.
    ///
    /// # Errors
    /// [`NetworksError::NotFound`] when nobody knows.
    pub async fn places_of(&self, alias: &RoomAliasId) -> Result<Vec<Value>, NetworksError> {
        self.look_up(Kind::Places, &[("alias", alias.as_str())]).await
    }

    async fn look_up(&self, kind: Kind, query: &[(&str, &str)]) -> Result<Vec<Value>, NetworksError> {
        let all = self.appservices().all().iter();
        let asked: Vec<_> = all.filter(|one| one.url.is_some() && !one.protocols.is_empty()).collect();
        let found = self.gather(kind, &asked, &["thirdparty", kind.path()], query).await;
        if found.is_empty() { Err(NetworksError::NotFound("mapping")) } else { Ok(found) }
    }

    /// Asks several at once. Those that do not answer, and results that are none, are passed over.
    async fn gather(
        &self,
        kind: Kind,
        asked: &[&Arc<Appservice>],
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Vec<Value> {
        let answers = join_all(asked.iter().map(|one| self.ask(one, path, query))).await;
        let lists = answers.into_iter().flatten().filter_map(|answer| match answer {
            Value::Array(list) => Some(list),
            _ => None,
        });
        lists.flatten().filter(|result| is_result(kind, result)).collect()
    }

    async fn ask(&self, appservice: &Appservice, path: &[&str], query: &[(&str, &str)]) -> Option<Value> {
        let older: Vec<&str> =
            ["_matrix", "app", "unstable"].into_iter().chain(path.iter().copied()).collect();
        let call = Call { query, ..Call::get(path, &older) };
        match self.queries.link().call(appservice, &call).await {
            Ok(answer) if answer.status.is_success() => answer.json(),
            Ok(_) => None,
            Err(error) => {
                tracing::info!(appservice = %appservice.id, %error, "a network could not be asked about");
                None
            }
        }
    }

    /// Puts a room into an application service's list for one of its networks, or takes it out.
    /// <https://spec.matrix.org/v1.19/application-service-api/#published-room-directories>
    ///
    /// # Errors
    /// [`NetworksError::NotAppservice`], [`NetworksError::NotFound`] for an unknown room.
    pub async fn list_room(
        &self,
        appservice: Option<&str>,
        network: &str,
        room: &RoomId,
        listed: bool,
    ) -> Result<(), NetworksError> {
        let id = appservice.ok_or(NetworksError::NotAppservice)?.to_owned();
        if network.is_empty() || network.len() > LONGEST_NETWORK {
            return Err(NetworksError::InvalidParam("the network's name is empty or too long"));
        }
        if listed && self.core.store.read().await?.room_load(room).await?.is_none() {
            return Err(NetworksError::NotFound("room"));
        }
        let input = Arc::new((id, network.to_owned(), room.to_owned()));
        self.core
            .store
            .write("list of a network", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (id, network, room) = &*input;
                    Ok(tx.appservice_room_set(id, network, room, listed).await?)
                })
            })
            .await
    }
}

/// The id by which an instance's list of rooms is asked for.
fn instance_id(appservice: &str, network: &str) -> String {
    format!("{appservice}|{network}")
}

/// The application service and the network that an instance's id names.
pub(crate) fn of_instance<'a>(appservices: &Appservices, instance: &'a str) -> Option<(Arc<str>, &'a str)> {
    let network = |one: &Arc<Appservice>| instance.strip_prefix(&*one.id)?.strip_prefix('|');
    appservices.all().iter().find_map(|one| Some((Arc::clone(&one.id), network(one)?)))
}

/// What an application service says of a network, as clients are told; none where it is not as specified.
/// <https://spec.matrix.org/v1.19/application-service-api/#get_matrixappv1thirdpartyprotocolprotocol>
fn protocol(answer: Value, appservice: &str) -> Option<Map<String, Value>> {
    let Value::Object(mut answer) = answer else { return None };
    let lists = answer.get("user_fields")?.is_array() && answer.get("location_fields")?.is_array();
    if !lists || !answer.get("field_types")?.is_object() {
        return None;
    }
    if !answer.get("icon").is_some_and(Value::is_string) {
        answer.insert("icon".to_owned(), String::new().into());
    }
    let instances = answer.get_mut("instances")?.as_array_mut()?;
    instances.retain(|instance| {
        instance.get("network_id").is_some_and(Value::is_string)
            && instance.get("desc").is_some_and(Value::is_string)
            && instance.get("fields").is_some_and(Value::is_object)
    });
    for instance in instances.iter_mut().filter_map(Value::as_object_mut) {
        let network = instance.get("network_id").and_then(Value::as_str).unwrap_or_default();
        let id = instance_id(appservice, network);
        instance.insert("instance_id".to_owned(), id.into());
    }
    Some(answer)
}

fn is_result(kind: Kind, result: &Value) -> bool {
    result.get(kind.id()).is_some_and(Value::is_string)
        && result.get("protocol").is_some_and(Value::is_string)
        && result.get("fields").is_some_and(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn instances_get_ids_and_nonsense_goes() {
        let answer = json!({
            "user_fields": ["nick"], "location_fields": [], "field_types": {},
            "instances": [{ "network_id": "n", "desc": "N", "fields": {} }, { "desc": "no id" }],
        });
        let found = Value::Object(protocol(answer, "irc").unwrap());
        assert_eq!(found["instances"].as_array().unwrap().len(), 1);
        assert_eq!(found["instances"][0]["instance_id"], "irc|n");
        assert_eq!(found["icon"], "");
        assert!(protocol(json!({ "instances": [] }), "irc").is_none());
        let user = json!({ "userid": "@a:b", "protocol": "irc", "fields": {} });
        assert!(is_result(Kind::Users, &user) && !is_result(Kind::Places, &user));
    }
}
