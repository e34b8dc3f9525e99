//! Application services: who they are, whom they may speak for, what they are told and asked.
//! <https://spec.matrix.org/v1.19/application-service-api/>

mod feed;
mod link;
mod networks;
mod queries;
mod registration;

pub use feed::Feeds;
pub use link::{Link, LinkError, PingError};
pub(crate) use networks::of_instance;
pub use networks::{Networks, NetworksError};
pub use queries::{Queries, QueryError};
pub use registration::Appservice;

use ruma::{OwnedServerName, RoomAliasId, UserId};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a registration file: they are written by hand or by a bridge, and are small.
const MAX_FILE: u64 = 1024 * 1024;

/// Why the registrations cannot be used. The server does not start with such.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, #[source] std::io::Error),
    /// A file is no registration.
    #[error("{0} is no registration of an application service: {1}")]
    Parse(PathBuf, String),
    /// Two registrations share an id, a token or the user that they are themselves.
    #[error("{0}: the registration {1} has the same {2}")]
    Duplicate(PathBuf, String, &'static str),
}

/// The application services of this server.
#[derive(Debug, Default)]
pub struct Appservices {
    all: Vec<Arc<Appservice>>,
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
            let size = std::fs::metadata(&path).map_err(|error| unreadable(&path, error))?.len();
            if size > MAX_FILE {
                return Err(RegistrationError::Parse(path, format!("it has more than {MAX_FILE} bytes")));
            }
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
            found.add(&text, server, &path)?;
        }
        Ok(found)
    }

    fn add(&mut self, yaml: &str, server: &OwnedServerName, path: &Path) -> Result<(), RegistrationError> {
        let new =
            Appservice::parse(yaml, server).map_err(|why| RegistrationError::Parse(path.to_owned(), why))?;
        for other in &self.all {
            let same = [
                ("id", other.id == new.id),
                ("as_token", other.as_token == new.as_token),
                ("sender_localpart", other.sender == new.sender),
            ];
            if let Some((what, _)) = same.into_iter().find(|(_, same)| *same) {
                return Err(RegistrationError::Duplicate(path.to_owned(), other.id.to_string(), what));
            }
        }
        self.all.push(Arc::new(new));
        Ok(())
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Appservice>] {
        &self.all
    }

    /// The one with this id.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Appservice>> {
        self.all.iter().find(|appservice| &*appservice.id == id)
    }

    /// The one with this `as_token`. Takes the same time whichever byte differs.
    pub fn by_token(&self, token: &str) -> Option<&Arc<Appservice>> {
        self.all.iter().find(|appservice| same(appservice.as_token.as_bytes(), token.as_bytes()))
    }

    /// The one that alone may make this user.
    pub fn exclusive_owner(&self, user: &UserId) -> Option<&Arc<Appservice>> {
        let itself = self.all.iter().find(|one| one.sender == user);
        itself.or_else(|| self.all.iter().find(|one| one.has_user_alone(user)))
    }

    /// The one that alone may make this alias.
    pub fn exclusive_alias_owner(&self, alias: &RoomAliasId) -> Option<&Arc<Appservice>> {
        self.all.iter().find(|one| one.has_alias_alone(alias))
    }

    /// Whether the application service with this id may make and use this user: its namespaces have it, and no other
    /// has it alone.
    pub fn may_use(&self, id: &str, user: &UserId) -> bool {
        self.by_id(id).is_some_and(|appservice| appservice.has_user(user))
            && self.exclusive_owner(user).is_none_or(|owner| &*owner.id == id)
    }

    /// Whether this alias may be made or removed: by the application service with this id if its namespaces have it, by
    /// people (`None`) if no application service has it alone.
    pub fn may_use_alias(&self, id: Option<&str>, alias: &RoomAliasId) -> bool {
        let owner = self.exclusive_alias_owner(alias);
        match id {
            Some(id) => {
                self.by_id(id).is_some_and(|appservice| appservice.has_alias(alias))
                    && owner.is_none_or(|owner| &*owner.id == id)
            }
            None => owner.is_none(),
        }
    }

    /// Whether the rate limits count for a user that the application service with this id speaks for.
    pub fn is_rate_limited(&self, id: &str, user: &UserId) -> bool {
        self.by_id(id).is_none_or(|appservice| appservice.is_rate_limited(user))
    }
}

fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{owned_server_name, room_alias_id, user_id};

    fn yaml(id: &str, token: &str, exclusive: bool) -> String {
        format!(
            "{{id: {id}, url: null, as_token: {token}, hs_token: hs, sender_localpart: {id}bot, namespaces: {{\
             users: [{{exclusive: {exclusive}, regex: \"@_x_.*\"}}], \
             aliases: [{{exclusive: {exclusive}, regex: \"#_x_.*\"}}]}}}}"
        )
    }

    #[test]
    fn ids_and_tokens_are_unique_and_exclusive_means_alone() {
        let (server, path) = (owned_server_name!("x.example"), Path::new("one.yaml"));
        let mut all = Appservices::default();
        all.add(&yaml("one", "a", true), &server, path).unwrap();
        let duplicate = |id: &str, token: &str, all: &mut Appservices| match all.add(
            &yaml(id, token, false),
            &server,
            path,
        ) {
            Err(RegistrationError::Duplicate(_, _, what)) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(duplicate("one", "b", &mut all), "id");
        assert_eq!(duplicate("two", "a", &mut all), "as_token");
        all.add(&yaml("two", "b", false), &server, path).unwrap();
        let (user, alias) = (user_id!("@_x_1:x.example"), room_alias_id!("#_x_1:x.example"));
        assert!(all.may_use("one", user) && !all.may_use("two", user), "one has it alone");
        assert!(all.may_use("two", user_id!("@twobot:x.example")));
        assert!(all.may_use_alias(Some("one"), alias) && !all.may_use_alias(Some("two"), alias));
        assert!(!all.may_use_alias(None, alias) && all.may_use_alias(None, room_alias_id!("#y:x.example")));
        assert!(all.by_token("a").is_some() && all.by_token("c").is_none());
        assert!(all.is_rate_limited("one", user));
        assert!(!all.is_rate_limited("one", user_id!("@onebot:x.example")), "never itself");
    }
}
