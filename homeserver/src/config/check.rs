//! What a type cannot say: no unknown key anywhere, and values that make sense together.

use super::setting::{Field, Kind};
use super::{Config, ConfigError, Rate};
use figment::value::{Dict, Value};
use figment::{Figment, Profile};
use ruma::RoomVersionId;

/// Room versions that this server can build and check.
const ROOM_VERSIONS: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];
/// How alike two keys must be for one to be offered in place of the other.
const ALIKE: f64 = 0.75;
/// More threads than this are a typing error.
const MOST_WORKERS: usize = 1024;

/// The kind of the setting at a path; an unknown one reads as text, since it is refused afterwards.
pub fn kind_at(fields: &[Field], path: &[&str]) -> Kind {
    let Some((first, rest)) = path.split_first() else { return Kind::Text };
    match fields.iter().find(|field| field.name == *first) {
        Some(field) if rest.is_empty() => field.kind,
        Some(field) => kind_at(&field.fields, rest),
        None => Kind::Text,
    }
}

/// Refuses the first key that the tree does not have.
pub fn known_keys(figment: &Figment, fields: &[Field]) -> Result<(), ConfigError> {
    let all = paths("", fields);
    let dict: Dict = figment.extract().map_err(|error| ConfigError::Syntax(error.to_string()))?;
    known(figment, &mut Vec::new(), &dict, fields, &all)
}

fn known(
    figment: &Figment,
    path: &mut Vec<String>,
    dict: &Dict,
    fields: &[Field],
    all: &[String],
) -> Result<(), ConfigError> {
    for (key, value) in dict {
        path.push(key.clone());
        match fields.iter().find(|field| field.name == key) {
            None => return Err(unknown(figment, path, value, all)),
            Some(field) if field.kind == Kind::Section => {
                if let Value::Dict(_, below) = value {
                    known(figment, path, below, &field.fields, all)?;
                }
            }
            // The keys of other tables are the operator's.
            Some(_) => {}
        }
        path.pop();
    }
    Ok(())
}

fn unknown<'a>(figment: &Figment, path: &'a [String], value: &'a Value, all: &[String]) -> ConfigError {
    let mut names: Vec<&str> = path.iter().map(String::as_str).collect();
    let metadata = figment.get_metadata(first_leaf(value, &mut names).tag());
    let key = names.join(".");
    let shown = match metadata {
        Some(metadata) => {
            format!("`{}` in {}", metadata.interpolate(&Profile::Default, &names), metadata.name)
        }
        None => format!("`{key}`"),
    };
    let nearest = nearest(&key, all).map(|nearest| match metadata {
        Some(metadata) => metadata.interpolate(&Profile::Default, &nearest.split('.').collect::<Vec<_>>()),
        None => nearest.to_owned(),
    });
    ConfigError::UnknownKey { shown, nearest }
}

/// The first value of an unknown table stands for it: it was written as a key, and its source is one.
fn first_leaf<'a>(value: &'a Value, path: &mut Vec<&'a str>) -> &'a Value {
    let Value::Dict(_, below) = value else { return value };
    match below.iter().next() {
        Some((key, first)) => {
            path.push(key);
            first_leaf(first, path)
        }
        None => value,
    }
}

/// The known key most like `key`: by the whole path, or by its last name in another table.
fn nearest<'a>(key: &str, all: &'a [String]) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |candidate: &str| {
        let whole = strsim::jaro_winkler(key, candidate);
        let name = strsim::jaro_winkler(&last(key), &last(candidate));
        // A name that fits exactly is worth more than a path that looks alike.
        whole.max(name * 0.97)
    };
    all.iter()
        .map(|candidate| (score(candidate), candidate.as_str()))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn paths(prefix: &str, fields: &[Field]) -> Vec<String> {
    fields
        .iter()
        .flat_map(|field| {
            let path =
                if prefix.is_empty() { field.name.to_owned() } else { format!("{prefix}.{}", field.name) };
            let mut below = paths(&path, &field.fields);
            below.insert(0, path);
            below
        })
        .collect()
}

/// Refuses values that no server could start with.
pub fn values(config: &Config) -> Result<(), ConfigError> {
    let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: key.to_owned(), reason });
    let database = config.database_url();
    if !["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| database.expose().starts_with(scheme))
    {
        return invalid("database", "must start with `sqlite:` or `postgres://`".to_owned());
    }
    if !supported(&config.default_room_version) {
        let known = ROOM_VERSIONS.join(", ");
        return invalid("default_room_version", format!("must be one of {known}"));
    }
    if config.tls.certificate.is_some() != config.tls.key.is_some() {
        return invalid("tls", "`certificate` and `key` go together".to_owned());
    }
    if config.workers > MOST_WORKERS {
        return invalid("workers", format!("must be at most {MOST_WORKERS}"));
    }
    if config.media.max_upload_bytes == 0 {
        return invalid("media.max_upload_bytes", "must be greater than 0".to_owned());
    }
    media(config)?;
    cluster(config)?;
    // The least that Argon2 takes for one lane.
    if config.password.memory_kib < 8 || config.password.iterations < 1 {
        return invalid("password", "needs `memory_kib` >= 8 and `iterations` >= 1".to_owned());
    }
    people(config)?;
    addresses(config)?;
    rates(config)
}

/// What concerns people's accounts.
fn people(config: &Config) -> Result<(), ConfigError> {
    let invalid = |key: &str, reason: &str| {
        Err(ConfigError::Invalid { key: key.to_owned(), reason: reason.to_owned() })
    };
    let email = &config.email;
    if email.username.is_some() != email.password.is_some() {
        return invalid("email", "`username` and `password` go together");
    }
    if email.required && email.server.is_none() {
        return invalid("email.required", "needs `email.server`");
    }
    let turn = &config.turn;
    let static_password = turn.username.is_some() && turn.password.is_some();
    if turn.uris.is_empty() {
        return Ok(());
    }
    if turn.shared_secret.is_none() && !static_password {
        return invalid("turn", "needs `shared_secret`, or `username` and `password`");
    }
    if turn.lifetime_seconds == 0 {
        return invalid("turn.lifetime_seconds", "must be greater than 0");
    }
    if turn.uris.iter().any(|uri| !["turn:", "turns:", "stun:"].iter().any(|scheme| uri.starts_with(scheme)))
    {
        return invalid("turn.uris", "must begin with `turn:`, `turns:` or `stun:`");
    }
    Ok(())
}

fn cluster(config: &Config) -> Result<(), ConfigError> {
    let invalid = |key: &str, reason: &str| {
        Err(ConfigError::Invalid { key: key.to_owned(), reason: reason.to_owned() })
    };
    let cluster = &config.cluster;
    if cluster.nats_user.is_some() != cluster.nats_password.is_some() {
        return invalid("cluster", "`nats_user` and `nats_password` go together");
    }
    if cluster.nats_certificate.is_some() != cluster.nats_key.is_some() {
        return invalid("cluster", "`nats_certificate` and `nats_key` go together");
    }
    // What would end a subject, or stand for others.
    let wild = |c: char| c.is_whitespace() || c == '*' || c == '>';
    if cluster.nats_subject.as_ref().is_some_and(|subject| subject.is_empty() || subject.contains(wild)) {
        return invalid("cluster.nats_subject", "must not be empty, nor contain spaces, `*` or `>`");
    }
    Ok(())
}

fn media(config: &Config) -> Result<(), ConfigError> {
    let invalid = |key: &str, reason: &str| {
        Err(ConfigError::Invalid { key: key.to_owned(), reason: reason.to_owned() })
    };
    let s3 = &config.media.s3;
    if config.media.store.is_some() && config.bucket().is_none() {
        return invalid("media.store", "must be `s3://BUCKET` or `s3://BUCKET/PREFIX`");
    }
    if s3.access_key_id.is_some() != s3.secret_access_key.is_some() {
        return invalid("media.s3", "`access_key_id` and `secret_access_key` go together");
    }
    if s3.endpoint.as_ref().is_some_and(|url| !matches!(url.scheme(), "http" | "https")) {
        return invalid("media.s3.endpoint", "must be `https://…` or `http://…`");
    }
    Ok(())
}

fn supported(version: &RoomVersionId) -> bool {
    ROOM_VERSIONS.contains(&version.as_str())
}

fn addresses(config: &Config) -> Result<(), ConfigError> {
    let listen = &config.listen;
    let lists = [
        ("listen.client", &listen.client),
        ("listen.federation", &listen.federation),
        ("listen.metrics", &listen.metrics),
    ];
    for (key, list) in lists {
        for address in list.iter() {
            address_has_port(key, address)?;
        }
    }
    config
        .federation
        .hosts
        .iter()
        .try_for_each(|(name, address)| address_has_port(&format!("federation.hosts.{name}"), address))
}

fn address_has_port(key: &str, address: &str) -> Result<(), ConfigError> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(ConfigError::Invalid {
            key: key.to_owned(),
            reason: format!("`{address}` is not an address with a port, like 127.0.0.1:8008"),
        }),
    }
}

fn rates(config: &Config) -> Result<(), ConfigError> {
    let limits = &config.rate_limits;
    let all: [(&str, Rate); 8] = [
        ("message", limits.message),
        ("login", limits.login),
        ("registration", limits.registration),
        ("join", limits.join),
        ("invite", limits.invite),
        ("create_room", limits.create_room),
        ("upload", limits.upload),
        ("federation", limits.federation),
    ];
    match all
        .iter()
        .find(|(_, rate)| !(rate.per_second.is_finite() && rate.per_second > 0.0) || rate.burst == 0)
    {
        Some((name, _)) => Err(ConfigError::Invalid {
            key: format!("rate_limits.{name}"),
            reason: "needs `per_second` and `burst` greater than 0; `enabled = false` switches limits off"
                .to_owned(),
        }),
        None => Ok(()),
    }
}
