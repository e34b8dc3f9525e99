//! What every service needs.

use ruma::{OwnedRoomId, OwnedServerName, RoomVersionId, UserId};
use std::sync::Arc;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_storage::Store;

/// Who may make an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationMode {
    /// Whoever has a registration token.
    Token,
    /// Everyone.
    Open,
    /// No one, but through the shared secret and the command line.
    Closed,
}

/// What happens to message events that are not encrypted.
#[derive(Clone, Debug, Default)]
pub struct PlaintextPolicy {
    /// Plaintext is accepted everywhere.
    pub accept: bool,
    /// Rooms in which it is accepted all the same.
    pub rooms: Vec<OwnedRoomId>,
    /// Application services (ids) that may send it all the same.
    pub appservices: Vec<String>,
}

/// What one Argon2id password hash costs.
#[derive(Clone, Copy, Debug)]
pub struct PasswordCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes.
    pub iterations: u32,
}

/// What an app's badge counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Badge {
    /// Unread messages.
    #[default]
    Messages,
    /// Rooms with unread messages.
    Rooms,
}

/// Push notifications.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushSettings {
    /// Gateways at private addresses may be called, and over plain HTTP.
    pub allow_private: bool,
    /// What badges count.
    pub badge: Badge,
    /// Whether users have the rule that pushes every encrypted event (MSC4028).
    pub encrypted_events: bool,
    /// Whether users have the rules that follow their thread subscriptions (MSC4306).
    pub thread_subscriptions: bool,
}

/// The part of the configuration that services act upon.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may make an account.
    pub registration: RegistrationMode,
    /// The secret of the shared-secret registration API; none: it is off.
    pub registration_shared_secret: Option<String>,
    /// Sealing.
    pub plaintext: PlaintextPolicy,
    /// The version of rooms created without one.
    pub default_room_version: RoomVersionId,
    /// Whether people see who is online.
    pub presence: bool,
    /// Largest upload in bytes.
    pub max_upload_bytes: u64,
    /// Cost of password hashes.
    pub password: PasswordCost,
    /// Whether everyone may publish rooms in the directory (else administrators only).
    pub everyone_publishes_rooms: bool,
    /// Whether there is federation at all.
    pub federation: bool,
    /// Push notifications.
    pub push: PushSettings,
}

/// What every service needs: who we are, the time, the database, our key, the settings.
#[derive(Clone)]
pub struct Core {
    /// The name of this server.
    pub server_name: OwnedServerName,
    /// The time.
    pub clock: Clock,
    /// The database.
    pub store: Store,
    /// The key that signs our events and requests.
    pub key: Arc<KeyPair>,
    /// The settings.
    pub settings: Arc<Settings>,
}

impl Core {
    /// Whether the user belongs to this server.
    pub fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.server_name
    }

    /// Milliseconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        self.clock.millis()
    }
}
