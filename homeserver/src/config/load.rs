//! Reads the tree: defaults, then the file, then the environment, then flags. Later ones win, key by key.

use super::Config;
use super::check;
use super::setting::{Field, Kind, Setting};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use std::path::{Path, PathBuf};

/// The file that is read, when it is there, where no other is named.
const DEFAULT_FILE: &str = "waxwing.toml";
const PREFIX: &str = "WAXWING_";
/// Variables with our prefix that are no settings: the flag `--config`, and what test runs hand to tests.
const NOT_SETTINGS: [&str; 2] = ["WAXWING_CONFIG", "WAXWING_TEST_"];

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file that must exist, or none for `waxwing.toml` where it exists.
    pub file: Option<PathBuf>,
    /// The process's environment.
    pub environment: Vec<(String, String)>,
    /// `key=value` from flags, the key dotted.
    pub sets: Vec<(String, String)>,
}

/// Why a configuration was refused. Each message names the key and where it was written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{0}")]
    Syntax(String),
    #[error("unknown setting {shown}{}", hint(.nearest.as_deref()))]
    UnknownKey { shown: String, nearest: Option<String> },
    #[error("setting {key}: {reason}")]
    Invalid { key: String, reason: String },
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

/// Reads and checks the configuration.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let fields = Config::default().fields();
    let environment = sources.environment.iter().filter_map(|(name, value)| {
        let key = name.strip_prefix(PREFIX)?;
        let ours = !NOT_SETTINGS.iter().any(|other| name.starts_with(other));
        ours.then(|| (key.split("__").map(str::to_lowercase).collect::<Vec<_>>(), value))
    });
    let flags = sources.sets.iter().map(|(key, value)| (key.split('.').map(str::to_owned).collect(), value));
    let mut figment = Figment::new();
    if let Some(text) = file_text(sources.file.as_deref())? {
        let name = sources.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        figment = figment.merge(TomlText { name: name.display().to_string(), text });
    }
    figment = figment.merge(Layer::new(Origin::Environment, environment, &fields)?);
    figment = figment.merge(Layer::new(Origin::Flag, flags, &fields)?);
    check::known_keys(&figment, &fields)?;
    let config: Config = figment.extract().map_err(explain)?;
    check::values(&config)?;
    Ok(config)
}

fn file_text(named: Option<&Path>) -> Result<Option<String>, ConfigError> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::File { path: path.display().to_string(), source }),
    }
}

/// A TOML file that is already read.
struct TomlText {
    name: String,
    text: String,
}

impl Provider for TomlText {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone()).interpolater(|_, keys| keys.join("."))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let dict = Toml::from_str(&self.text).map_err(|error| Error::from(error.to_string()))?;
        Ok(Profile::default().collect(dict))
    }
}

#[derive(Clone, Copy)]
enum Origin {
    Environment,
    Flag,
}

impl Origin {
    fn shown(self, path: &[&str]) -> String {
        match self {
            Origin::Environment => format!("{PREFIX}{}", path.join("__").to_uppercase()),
            Origin::Flag => format!("--set {}", path.join(".")),
        }
    }
}

/// Settings given one by one as text.
struct Layer {
    origin: Origin,
    dict: Dict,
}

impl Layer {
    fn new<'a>(
        origin: Origin,
        entries: impl Iterator<Item = (Vec<String>, &'a String)>,
        fields: &[Field],
    ) -> Result<Layer, ConfigError> {
        let mut dict = Dict::new();
        for (path, text) in entries {
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            let value = value(text, check::kind_at(fields, &names)).map_err(|reason| {
                ConfigError::Invalid { key: origin.shown(&names), reason: reason.to_owned() }
            })?;
            insert(&mut dict, &path, value);
        }
        Ok(Layer { origin, dict })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let origin = self.origin;
        let name = match origin {
            Origin::Environment => "the environment",
            Origin::Flag => "the command line",
        };
        Metadata::named(name).interpolater(move |_, keys| origin.shown(keys))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::default().collect(self.dict.clone()))
    }
}

/// Reads the text of one variable as what the setting wants.
fn value(text: &str, kind: Kind) -> Result<Value, &'static str> {
    let toml = || {
        let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
        Value::serialize(table.get("value")?).ok()
    };
    match kind {
        Kind::Text => Ok(Value::from(text)),
        Kind::Scalar => toml().ok_or("neither a number nor true or false"),
        Kind::List if text.trim().is_empty() => Ok(Value::from(Vec::<String>::new())),
        Kind::List if !text.trim_start().starts_with('[') => Ok(Value::from(vec![text.trim().to_owned()])),
        Kind::List => toml().ok_or("not a TOML array"),
        Kind::Table | Kind::Section => toml().ok_or("not a TOML inline table"),
    }
}

fn insert(dict: &mut Dict, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        dict.insert(first.clone(), value);
        return;
    }
    let below = dict.entry(first.clone()).or_insert_with(|| Value::from(Dict::new()));
    if !matches!(below, Value::Dict(..)) {
        *below = Value::from(Dict::new());
    }
    if let Value::Dict(_, below) = below {
        insert(below, rest, value);
    }
}

/// Says what is wrong in one line that names the key as it was written.
fn explain(error: Error) -> ConfigError {
    let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
    let Some(metadata) = error.metadata.as_ref().filter(|_| !path.is_empty()) else {
        return ConfigError::Syntax(error.to_string());
    };
    let key = metadata.interpolate(&Profile::Default, &path);
    ConfigError::Invalid { key: format!("{key} (in {})", metadata.name), reason: error.kind.to_string() }
}
