//! What every service needs.

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId, UserId};
use std::sync::Arc;
use std::time::Duration;
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

/// Mail to people. Who sends it is [`crate::mail::Mailer`]'s business.
#[derive(Clone, Debug, Default)]
pub struct EmailSettings {
    /// Whoever registers must show an address.
    pub required: bool,
    /// Domains of addresses that may be added; empty: all.
    pub allowed_domains: Vec<String>,
    /// Hosts to which a browser may be sent after a link in a mail was followed; empty: all.
    pub next_link_domains: Vec<String>,
}

/// What whoever registers must agree to: <https://spec.matrix.org/v1.19/client-server-api/#terms-of-service-at-registration>.
#[derive(Clone, Debug, Default)]
pub struct TermsSettings {
    /// The version of the documents.
    pub version: String,
    /// Their language, as BCP 47 writes it.
    pub language: String,
    /// The title of each document and where it is. Empty: nothing is asked.
    pub policies: Vec<(String, String)>,
}

/// A TURN server for calls: <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3voipturnserver>.
#[derive(Clone, Debug)]
pub struct TurnSettings {
    /// Where it is.
    pub uris: Vec<String>,
    /// How people get in.
    pub access: TurnAccess,
    /// How long what is given out is good.
    pub lifetime: Duration,
    /// Guests get it too.
    pub guests: bool,
}

/// How people get into a TURN server.
#[derive(Clone)]
pub enum TurnAccess {
    /// By names that hold a time, and passwords that are made from them with this secret.
    SharedSecret(String),
    /// By one name and password for all.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
}

impl std::fmt::Debug for TurnAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What the server writes to its users: <https://spec.matrix.org/v1.19/client-server-api/#server-notices>.
#[derive(Clone, Debug)]
pub struct NoticeSettings {
    /// Who writes.
    pub user: OwnedUserId,
    /// The writer's name.
    pub display_name: String,
    /// The writer's and the room's avatar.
    pub avatar_url: Option<String>,
    /// The name of the room.
    pub room_name: String,
}

/// What concerns accounts and those who use them, beyond registration.
#[derive(Clone, Debug, Default)]
pub struct AccountSettings {
    /// The address at which browsers find this server, without a slash at its end; none: `https://` and its name.
    pub base_url: Option<String>,
    /// The organisation, as pages and mails name it; none: the server's name.
    pub organisation: Option<String>,
    /// Mail; none: the server sends none.
    pub email: Option<EmailSettings>,
    /// Terms of service.
    pub terms: TermsSettings,
    /// TURN; none: calls go without.
    pub turn: Option<TurnSettings>,
    /// Server notices; none: the server writes none.
    pub notices: Option<NoticeSettings>,
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
    /// Accounts.
    pub accounts: AccountSettings,
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

    /// Whether this is the user as whom the server writes notices.
    pub fn is_notices_user(&self, user: &UserId) -> bool {
        self.settings.accounts.notices.as_ref().is_some_and(|notices| notices.user == user)
    }

    /// Where browsers find this server, without a slash at its end.
    pub fn base_url(&self) -> String {
        self.settings.accounts.base_url.clone().unwrap_or_else(|| format!("https://{}", self.server_name))
    }

    /// What pages and mails call whoever runs the server.
    pub fn organisation(&self) -> &str {
        self.settings.accounts.organisation.as_deref().unwrap_or(self.server_name.as_str())
    }

    /// Milliseconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        self.clock.millis()
    }
}
