//! The domain: what a homeserver does, one file or folder for each noun. Knows storage and federation; knows nothing
//! of HTTP, status codes or axum: `waxwing-api` maps what these services answer.
//!
//! There is no bag of all services: each takes what it needs in its `new`.

pub mod account_data;
pub mod accounts;
pub mod appservices;
pub mod audit;
pub mod backups;
mod before;
mod core;
pub mod delayed;
pub mod directory;
pub mod doctor;
pub mod erasure;
pub mod federation;
pub mod filters;
mod flights;
pub mod folds;
pub mod housekeeping;
pub mod invite_permission;
pub mod keys;
pub mod mail;
pub mod media;
pub mod notices;
pub mod notifications;
pub mod notifier;
pub mod outgoing;
pub mod people;
pub mod presence;
pub mod previews;
pub mod profiles;
pub mod purge;
pub mod push;
pub mod push_rules;
pub mod pushers;
pub mod receipts;
pub mod relationships;
pub mod render;
pub mod rendezvous;
pub mod reports;
pub mod rooms_read;
pub mod search;
pub mod signing_keys;
pub mod sync;
pub mod third_party;
pub mod thread_subscriptions;
pub mod timeline;
pub mod to_device;
pub mod turn;
pub mod typing;
pub mod visibility;

pub use crate::core::{
    AccountSettings, Badge, Core, EmailSettings, NoticeSettings, PasswordCost, PlaintextPolicy, PushSettings,
    RegistrationMode, Settings, TermsSettings, TurnAccess, TurnSettings,
};
pub use waxwing_storage::StoreError;

/// The room versions that this server speaks, oldest first.
pub fn room_versions() -> &'static [ruma::RoomVersionId] {
    &waxwing_rooms::version::SUPPORTED
}

/// Experimental room versions that this server speaks, too.
pub fn experimental_room_versions() -> &'static [&'static str] {
    &waxwing_rooms::version::EXPERIMENTAL
}
