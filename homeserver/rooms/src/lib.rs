//! The event graph: what a room's events are, which are allowed, what state they add up to, and who may see them.
//!
//! Pure. This package does no IO, knows no runtime, no database and no clock: callers load, it decides. Where it
//! lacks something it answers with what to load ([`resolve::Need`], [`state_tree::NeedNodes`]) and is called again.
//! It keeps no state of its own, and nothing that comes from another server makes it panic.
//!
//! What it does not do: fetch keys or events, order events in a timeline, or know whom to tell about them.

pub mod auth;
mod auth_chain;
pub mod build;
mod canonical;
pub mod client_json;
pub mod format;
mod hash;
pub mod invariants;
pub mod key_pair;
pub mod owned;
pub mod parse;
pub mod power;
pub mod redact;
pub mod resolve;
mod resolve_v1;
pub mod sealed;
pub mod sign;
pub mod state_tree;
pub mod stripped;
pub mod version;
pub mod visibility;

#[cfg(test)]
mod tests;

pub use auth::{AuthError, AuthMap, Judged};
pub use build::{BuildError, EventDraft, PrevEvent, RoomContext};
pub use canonical::{
    CanonicalError, canonical_object, canonical_text, collapsed_text, is_canonical, lenient_object,
};
pub use key_pair::KeyPair;
pub use parse::{DropReason, Pdu, parse_pdu};
pub use power::PowerLevels;
pub use sign::Verified;
