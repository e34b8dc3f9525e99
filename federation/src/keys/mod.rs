//! Signing keys: our own document, the keys of other servers, and what we say of those as a notary.
//! <https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys>

mod document;
mod notary;
mod own;
mod ring;

pub use document::{DocumentError, KeyDocument, ServerKeys};
pub use notary::{NotaryQuery, answer_notary_query};
pub use own::{OldKey, OwnKeys};
pub use ring::{KeyBook, KeyMap, KeyNeeds, KeyRing, KeyRingConfig};
