//! What a setting is to the loader and to the example: its kind, its default as TOML, its documentation.

use ruma::{OwnedRoomId, OwnedServerName, RoomVersionId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use url::Url;

/// How the text of an environment variable or a `--set` flag is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Taken as it stands, without quotes.
    Text,
    /// A TOML number or boolean.
    Scalar,
    /// A TOML array, or one bare string.
    List,
    /// A TOML inline table with keys of the operator's choosing or of the type's.
    Table,
    /// A table of the configuration tree, with fields of its own.
    Section,
}

/// A value that may stand in the configuration tree.
pub trait Setting {
    const KIND: Kind;

    /// The value as TOML; `None` when it is unset.
    fn toml(&self) -> Option<String>;

    /// The fields of a section.
    fn fields(&self) -> Vec<Field> {
        Vec::new()
    }
}

/// A documented field of a section, with its default.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: &'static str,
    /// The lines of its doc comment.
    pub doc: &'static [&'static str],
    pub kind: Kind,
    /// The default as TOML, or an example where there is none.
    pub shown: String,
    pub fields: Vec<Field>,
}

impl Field {
    pub fn new(
        name: &'static str,
        doc: &'static [&'static str],
        example: Option<&str>,
        value: &impl Setting,
    ) -> Field {
        let shown = value.toml().or(example.map(str::to_owned)).unwrap_or_default();
        Field { name, doc, kind: kind_of(value), shown, fields: value.fields() }
    }
}

fn kind_of<T: Setting>(_: &T) -> Kind {
    T::KIND
}

/// Defines sections of the configuration from one text: the type, its documentation, its defaults, and through
/// [`Setting`] the commented example and the list of known keys.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])*
        $name:ident {
            $( $(#[doc = $doc:literal])* $field:ident: $kind:ty = $default:expr $(, example $example:literal)?; )*
        }
    )*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Debug, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $doc])* pub $field: $kind, )* }

        impl Default for $name {
            fn default() -> $name {
                $name { $( $field: $default, )* }
            }
        }

        impl $crate::config::setting::Setting for $name {
            const KIND: $crate::config::setting::Kind = $crate::config::setting::Kind::Section;

            fn toml(&self) -> Option<String> {
                None
            }

            fn fields(&self) -> Vec<$crate::config::setting::Field> {
                vec![$( $crate::config::setting::Field::new(
                    stringify!($field),
                    &[$($doc),*],
                    None $( .or(Some($example)) )?,
                    &self.$field,
                ), )*]
            }
        }
    )*};
}
pub(crate) use settings;

/// Defines a setting that takes one of a few words.
macro_rules! choices {
    ($( $(#[doc = $about:literal])* $name:ident { $( $(#[doc = $doc:literal])* $variant:ident = $word:literal, )* } )*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
        pub enum $name { $( $(#[doc = $doc])* #[serde(rename = $word)] $variant, )* }

        impl $name {
            /// The word that the configuration uses.
            pub fn word(self) -> &'static str {
                match self { $( $name::$variant => $word, )* }
            }
        }

        impl $crate::config::setting::Setting for $name {
            const KIND: $crate::config::setting::Kind = $crate::config::setting::Kind::Text;

            fn toml(&self) -> Option<String> {
                Some(format!("\"{}\"", self.word()))
            }
        }
    )*};
}
pub(crate) use choices;

/// A TOML basic string.
pub fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

macro_rules! text_settings {
    ($($kind:ty: $text:expr;)*) => {$(
        impl Setting for $kind {
            const KIND: Kind = Kind::Text;

            fn toml(&self) -> Option<String> {
                let text: fn(&$kind) -> String = $text;
                Some(quoted(&text(self)))
            }
        }
    )*};
}

text_settings! {
    String: Clone::clone;
    PathBuf: |path| path.display().to_string();
    OwnedServerName: ToString::to_string;
    OwnedRoomId: ToString::to_string;
    RoomVersionId: ToString::to_string;
    Url: ToString::to_string;
}

macro_rules! scalar_settings {
    ($($kind:ty)*) => {$(
        impl Setting for $kind {
            const KIND: Kind = Kind::Scalar;

            fn toml(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )*};
}

scalar_settings!(bool u16 u32 u64 usize);

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;

    fn toml(&self) -> Option<String> {
        self.as_ref().and_then(Setting::toml)
    }
}

impl<T: Setting> Setting for Vec<T> {
    const KIND: Kind = Kind::List;

    fn toml(&self) -> Option<String> {
        let items: Vec<String> = self.iter().filter_map(Setting::toml).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

impl<T: Setting> Setting for BTreeMap<String, T> {
    const KIND: Kind = Kind::Table;

    fn toml(&self) -> Option<String> {
        let entries: Vec<String> = self
            .iter()
            .filter_map(|(key, value)| Some(format!("{} = {}", quoted(key), value.toml()?)))
            .collect();
        Some(if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) })
    }
}
