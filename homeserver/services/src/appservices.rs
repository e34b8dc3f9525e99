//! Application services: who they are and whom they may speak for.
//! <https://spec.matrix.org/v1.19/application-service-api/#registration>

use regex::Regex;
use ruma::api::appservice::{Namespace, Registration};
use ruma::{OwnedServerName, OwnedUserId, RoomAliasId, RoomId, UserId};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the registrations cannot be used. The server does not start with such.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, #[source] std::io::Error),
    /// A file is no registration.
    #[error("{0} is no registration: {1}")]
    Parse(PathBuf, String),
    /// Two registrations share an id or a token.
    #[error("{0}: another registration has the same {1}")]
    Duplicate(PathBuf, &'static str),
}

/// One application service.
#[derive(Clone, Debug)]
pub struct Appservice {
    /// What its file says.
    pub registration: Registration,
    /// The id, shared.
    pub id: Arc<str>,
    /// The user that it is itself.
    pub sender: OwnedUserId,
    users: Vec<(Regex, bool)>,
    aliases: Vec<(Regex, bool)>,
    rooms: Vec<(Regex, bool)>,
}

fn compile(namespaces: &[Namespace]) -> Result<Vec<(Regex, bool)>, regex::Error> {
    let compile = |namespace: &Namespace| {
        // The whole id must match from its beginning, as other servers have it.
        Ok((Regex::new(&format!("^(?:{})", namespace.regex))?, namespace.exclusive))
    };
    namespaces.iter().map(compile).collect()
}

fn matches(namespaces: &[(Regex, bool)], id: &str) -> bool {
    namespaces.iter().any(|(regex, _)| regex.is_match(id))
}

fn claims(namespaces: &[(Regex, bool)], id: &str) -> bool {
    namespaces.iter().any(|(regex, exclusive)| *exclusive && regex.is_match(id))
}

impl Appservice {
    fn new(registration: Registration, server: &OwnedServerName) -> Result<Appservice, String> {
        let sender = UserId::parse_with_server_name(registration.sender_localpart.as_str(), server)
            .map_err(|error| error.to_string())?;
        let namespaces = &registration.namespaces;
        let compile = |list: &[Namespace]| compile(list).map_err(|error| error.to_string());
        Ok(Appservice {
            id: registration.id.as_str().into(),
            sender,
            users: compile(&namespaces.users)?,
            aliases: compile(&namespaces.aliases)?,
            rooms: compile(&namespaces.rooms)?,
            registration,
        })
    }

    /// Whether the user is in its namespaces, or is itself.
    pub fn has_user(&self, user: &UserId) -> bool {
        user == self.sender || matches(&self.users, user.as_str())
    }

    /// Whether the alias is in its namespaces.
    pub fn has_alias(&self, alias: &RoomAliasId) -> bool {
        matches(&self.aliases, alias.as_str())
    }

    /// Whether the room is in its namespaces.
    pub fn has_room(&self, room: &RoomId) -> bool {
        matches(&self.rooms, room.as_str())
    }

    /// Whether the rate limits count for it.
    pub fn is_rate_limited(&self) -> bool {
        self.registration.rate_limited.unwrap_or(true)
    }
}

/// The application services of this server.
#[derive(Debug, Default)]
pub struct Appservices {
    all: Vec<Appservice>,
}

impl Appservices {
    /// Reads every `*.yaml` (and `*.yml`) of `folder`, in order of their names.
    ///
    /// # Errors
    /// [`RegistrationError`]: none is passed over.
    pub fn read(folder: &Path, server: &OwnedServerName) -> Result<Appservices, RegistrationError> {
        let unreadable = |path: &Path, error| RegistrationError::Read(path.to_owned(), error);
        let mut paths = Vec::new();
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                tracing::warn!(folder = %folder.display(), "there is no folder of application services");
                return Ok(Appservices::default());
            }
            Err(error) => return Err(unreadable(folder, error)),
        };
        for entry in entries {
            let path = entry.map_err(|error| unreadable(folder, error))?.path();
            if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                paths.push(path);
            }
        }
        paths.sort();
        let mut found = Appservices::default();
        for path in paths {
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
            found.add(&text, server).map_err(|error| match error {
                AddError::Parse(why) => RegistrationError::Parse(path, why),
                AddError::Duplicate(what) => RegistrationError::Duplicate(path, what),
            })?;
        }
        Ok(found)
    }

    fn add(&mut self, yaml: &str, server: &OwnedServerName) -> Result<(), AddError> {
        let registration: Registration =
            serde_yaml_ng::from_str(yaml).map_err(|error| AddError::Parse(error.to_string()))?;
        for other in &self.all {
            if other.registration.id == registration.id {
                return Err(AddError::Duplicate("id"));
            }
            if other.registration.as_token == registration.as_token {
                return Err(AddError::Duplicate("as_token"));
            }
        }
        self.all.push(Appservice::new(registration, server).map_err(AddError::Parse)?);
        Ok(())
    }

    /// All of them.
    pub fn all(&self) -> &[Appservice] {
        &self.all
    }

    /// The one with this id.
    pub fn by_id(&self, id: &str) -> Option<&Appservice> {
        self.all.iter().find(|appservice| appservice.registration.id == id)
    }

    /// The one with this `as_token`. Takes the same time whichever byte differs.
    pub fn by_token(&self, token: &str) -> Option<&Appservice> {
        self.all.iter().find(|appservice| same(appservice.registration.as_token.as_bytes(), token.as_bytes()))
    }

    /// The one that alone may make this user.
    pub fn exclusive_owner(&self, user: &UserId) -> Option<&Appservice> {
        self.all.iter().find(|one| user == one.sender || claims(&one.users, user.as_str()))
    }

    /// The one that alone may make this alias.
    pub fn exclusive_alias_owner(&self, alias: &RoomAliasId) -> Option<&Appservice> {
        self.all.iter().find(|one| claims(&one.aliases, alias.as_str()))
    }

    /// Whether the application service with this id may make and use this user.
    pub fn may_use(&self, id: &str, user: &UserId) -> bool {
        self.by_id(id).is_some_and(|appservice| appservice.has_user(user))
    }

    /// Whether the rate limits count for the application service with this id.
    pub fn is_rate_limited(&self, id: &str) -> bool {
        self.by_id(id).is_none_or(Appservice::is_rate_limited)
    }
}

enum AddError {
    Parse(String),
    Duplicate(&'static str),
}

fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{owned_server_name, user_id};

    const BRIDGE: &str = r#"
id: "bridge"
url: ~
as_token: "as"
hs_token: "hs"
sender_localpart: "bot"
rate_limited: false
namespaces:
  users:
    - exclusive: true
      regex: "@_bridge_.*:x.example"
  aliases: []
"#;

    #[test]
    fn a_registration_is_read_and_asked() {
        let server = owned_server_name!("x.example");
        let mut all = Appservices::default();
        assert!(all.add(BRIDGE, &server).is_ok());
        assert!(matches!(all.add(BRIDGE, &server), Err(AddError::Duplicate("id"))));
        let bridge = all.by_token("as").unwrap();
        assert!(bridge.has_user(user_id!("@_bridge_a:x.example")));
        assert!(bridge.has_user(user_id!("@bot:x.example")));
        assert!(!bridge.has_user(user_id!("@alice:x.example")));
        assert!(all.exclusive_owner(user_id!("@_bridge_a:x.example")).is_some());
        assert!(!all.is_rate_limited("bridge") && all.is_rate_limited("other"));
        assert!(all.by_token("at").is_none());
    }
}
