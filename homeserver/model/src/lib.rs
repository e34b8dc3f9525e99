//! The words that every other package speaks: ids, events, log positions, time and chance.
//!
//! This package does no IO, knows no runtime and no database. It takes nothing apart that the room version
//! decides (hashes, signatures, redaction): that is `waxwing-rooms`.

mod clock;
mod event;
mod mxc;
mod position;
mod random;

pub use clock::Clock;
pub use event::{Event, EventParseError};
pub use mxc::{MediaKey, media_named};
pub use position::LogPosition;
pub use random::{chance, device_id, opaque_id, repeat_ids, secret_token};

use ruma::events::StateEventType;

/// The key of one entry of a room's state: the event type and the state key.
/// <https://spec.matrix.org/v1.19/client-server-api/#types-of-room-events>
pub type StateKey = (StateEventType, String);

/// Makes a [`StateKey`].
pub fn state_key(kind: StateEventType, key: impl Into<String>) -> StateKey {
    (kind, key.into())
}
