//! Registration files: what an operator says of an application service.
//! <https://spec.matrix.org/v1.19/application-service-api/#registration>

use regex::{Regex, RegexBuilder};
use ruma::{OwnedUserId, RoomAliasId, RoomId, ServerName, UserId};
use serde::Deserialize;
use std::fmt;
use std::sync::Arc;
use url::Url;

/// Bytes of an id: it stands in paths, in the names of leases and in keys of the database.
const LONGEST_ID: usize = 255;
/// Bytes of a compiled expression: namespaces are prefixes and short alternatives, not programs.
const EXPRESSION_BYTES: usize = 1 << 20;
/// Namespaces of one kind: each is tried on ids until one fits.
const MOST_NAMESPACES: usize = 1000;

/// One file. What it says beyond this is for others.
#[derive(Deserialize)]
struct File {
    id: String,
    #[serde(deserialize_with = "Option::deserialize")]
    url: Option<String>,
    as_token: String,
    hs_token: String,
    sender_localpart: String,
    namespaces: Namespaces,
    rate_limited: Option<bool>,
    protocols: Option<Vec<String>>,
    receive_ephemeral: Option<bool>,
    #[serde(rename = "de.sorunome.msc2409.push_ephemeral")]
    unstable_ephemeral: Option<bool>,
    push_ephemeral: Option<bool>,
    #[serde(rename = "org.matrix.msc3202")]
    encryption: Option<bool>,
}

#[derive(Deserialize)]
struct Namespaces {
    users: Option<Vec<Namespace>>,
    aliases: Option<Vec<Namespace>>,
    rooms: Option<Vec<Namespace>>,
}

#[derive(Deserialize)]
struct Namespace {
    exclusive: bool,
    regex: String,
}

/// Ids of one kind that an application service is interested in.
#[derive(Clone)]
struct Claims(Vec<(Regex, bool)>);

impl Claims {
    fn compile(kind: &str, namespaces: Option<Vec<Namespace>>) -> Result<Claims, String> {
        let namespaces = namespaces.unwrap_or_default();
        if namespaces.len() > MOST_NAMESPACES {
            return Err(format!("namespaces.{kind}: more than {MOST_NAMESPACES}"));
        }
        let compile = |namespace: Namespace| {
            // The id must match from its beginning on, as other servers have it.
            RegexBuilder::new(&format!("^(?:{})", namespace.regex))
                .size_limit(EXPRESSION_BYTES)
                .build()
                .map(|regex| (regex, namespace.exclusive))
                .map_err(|error| format!("namespaces.{kind}: regex {:?}: {error}", namespace.regex))
        };
        namespaces.into_iter().map(compile).collect::<Result<_, _>>().map(Claims)
    }

    fn has(&self, id: &str) -> bool {
        self.0.iter().any(|(regex, _)| regex.is_match(id))
    }

    fn has_alone(&self, id: &str) -> bool {
        self.0.iter().any(|(regex, exclusive)| *exclusive && regex.is_match(id))
    }
}

/// One application service.
#[derive(Clone)]
pub struct Appservice {
    /// The id in its file.
    pub id: Arc<str>,
    /// The user that it is itself.
    pub sender: OwnedUserId,
    /// Where it listens, without a slash at the end; none: it is told nothing.
    pub url: Option<String>,
    /// What it shows us.
    pub(crate) as_token: String,
    /// What we show it.
    pub(crate) hs_token: String,
    /// Networks that it bridges to.
    pub protocols: Vec<String>,
    /// It wants typing, receipts and presence.
    pub ephemeral: bool,
    /// It knows them by their older name.
    pub ephemeral_unstable: bool,
    /// It encrypts by what it is told: device lists, counts of keys, messages to devices (MSC3202).
    pub encryption: bool,
    rate_limited: bool,
    users: Claims,
    aliases: Claims,
    rooms: Claims,
}

impl fmt::Debug for Appservice {
    /// Without the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appservice")
            .field("id", &self.id)
            .field("sender", &self.sender)
            .finish_non_exhaustive()
    }
}

impl Appservice {
    /// Reads a registration file.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub(super) fn parse(yaml: &str, server: &ServerName) -> Result<Appservice, String> {
        let file: File = serde_yaml_ng::from_str(yaml).map_err(|error| error.to_string())?;
        if file.id.is_empty() || file.id.len() > LONGEST_ID {
            return Err(format!("id must have 1 to {LONGEST_ID} bytes"));
        }
        for (name, token) in [("as_token", &file.as_token), ("hs_token", &file.hs_token)] {
            if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("{name} must be one or more printable ASCII characters without blanks"));
            }
        }
        let protocols = file.protocols.unwrap_or_default();
        if protocols.iter().any(String::is_empty) {
            return Err("protocols must not be empty texts".to_owned());
        }
        let unstable = file.unstable_ephemeral.or(file.push_ephemeral);
        Ok(Appservice {
            id: file.id.as_str().into(),
            sender: sender(&file.sender_localpart, server)?,
            url: file.url.filter(|url| !url.is_empty()).map(|url| address(&url)).transpose()?,
            as_token: file.as_token,
            hs_token: file.hs_token,
            protocols,
            ephemeral: file.receive_ephemeral.or(unstable).unwrap_or(false),
            ephemeral_unstable: unstable.unwrap_or(false),
            encryption: file.encryption.unwrap_or(false),
            rate_limited: file.rate_limited.unwrap_or(true),
            users: Claims::compile("users", file.namespaces.users)?,
            aliases: Claims::compile("aliases", file.namespaces.aliases)?,
            rooms: Claims::compile("rooms", file.namespaces.rooms)?,
        })
    }

    /// Whether the user is in its namespaces, or is itself. It may only claim users of this server.
    pub fn has_user(&self, user: &UserId) -> bool {
        user == self.sender
            || user.server_name() == self.sender.server_name() && self.users.has(user.as_str())
    }

    /// Whether no one else may make the user.
    pub fn has_user_alone(&self, user: &UserId) -> bool {
        user == self.sender
            || user.server_name() == self.sender.server_name() && self.users.has_alone(user.as_str())
    }

    /// Whether the alias is in its namespaces.
    pub fn has_alias(&self, alias: &RoomAliasId) -> bool {
        self.aliases.has(alias.as_str())
    }

    /// Whether no one else may make the alias.
    pub fn has_alias_alone(&self, alias: &RoomAliasId) -> bool {
        self.aliases.has_alone(alias.as_str())
    }

    /// Whether it claims any aliases.
    pub fn has_aliases(&self) -> bool {
        !self.aliases.0.is_empty()
    }

    /// Whether the room is in its namespaces.
    pub fn has_room(&self, room: &RoomId) -> bool {
        self.rooms.has(room.as_str())
    }

    /// Whether the rate limits count for the users that it speaks for.
    pub fn is_rate_limited_for_users(&self) -> bool {
        self.rate_limited
    }

    /// Whether the rate limits count for a user that it speaks for. They do not count for itself.
    pub fn is_rate_limited(&self, user: &UserId) -> bool {
        self.rate_limited && user != self.sender
    }
}

/// The user that it is itself, by the grammar of new user names.
fn sender(localpart: &str, server: &ServerName) -> Result<OwnedUserId, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._=-/+".contains(c);
    if localpart.is_empty() || !localpart.chars().all(allowed) {
        return Err("sender_localpart must have only the characters a-z, 0-9 and ._=-/+".to_owned());
    }
    UserId::parse(format!("@{localpart}:{server}")).map_err(|error| format!("sender_localpart: {error}"))
}

fn address(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("url: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("url must begin with http:// or https:// and a host".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("url must have no user, no query and no fragment".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{room_alias_id, server_name, user_id};

    const BRIDGE: &str = r##"
id: bridge
url: http://127.0.0.1:29300/
as_token: as
hs_token: hs
sender_localpart: bot
rate_limited: false
de.sorunome.msc2409.push_ephemeral: true
org.matrix.msc3202: true
something.else: 5
namespaces:
  users:
    - {exclusive: true, regex: "@_bridge_.*"}
    - {exclusive: false, regex: "@alice:.*"}
  aliases:
    - {exclusive: true, regex: "#_bridge_.*"}
  rooms:
"##;

    #[test]
    fn a_file_is_read_and_asked() {
        let bridge = Appservice::parse(BRIDGE, server_name!("x.example")).unwrap();
        assert_eq!(bridge.url.as_deref(), Some("http://127.0.0.1:29300"));
        assert!(bridge.ephemeral && bridge.ephemeral_unstable && bridge.encryption);
        assert!(bridge.has_user_alone(user_id!("@_bridge_a:x.example")));
        assert!(bridge.has_user_alone(user_id!("@bot:x.example")));
        assert!(bridge.has_user(user_id!("@alice:x.example")));
        assert!(!bridge.has_user_alone(user_id!("@alice:x.example")));
        assert!(!bridge.has_user(user_id!("@_bridge_a:other.example")), "another server's user");
        assert!(!bridge.has_user(user_id!("@not_bridge_a:x.example")), "only from the beginning");
        assert!(bridge.has_alias_alone(room_alias_id!("#_bridge_r:x.example")));
        assert!(!bridge.is_rate_limited(user_id!("@_bridge_a:x.example")));
        assert!(!format!("{bridge:?}").contains("\"as\""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |from: &str, to: &str| {
            assert!(BRIDGE.contains(from));
            Appservice::parse(&BRIDGE.replace(from, to), server_name!("x.example")).unwrap_err()
        };
        assert!(wrong("url: http://127.0.0.1:29300/", "url: ftp://a").contains("url"));
        assert!(wrong("hs_token: hs", "").contains("hs_token"));
        assert!(wrong("hs_token: hs", "hs_token: \"a b\"").contains("hs_token"));
        assert!(wrong("@_bridge_.*", "@_bridge_(").contains("namespaces.users"));
        assert!(wrong("sender_localpart: bot", "sender_localpart: Bot").contains("sender_localpart"));
        assert!(wrong("id: bridge", "id: \"\"").contains("id"));
        assert!(wrong("exclusive: true, regex: \"#", "regex: \"#").contains("exclusive"));
    }
}
