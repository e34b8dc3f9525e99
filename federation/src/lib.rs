//! Waxwing's federation: everything that speaks to, or listens to, another Matrix homeserver.
//! <https://spec.matrix.org/v1.19/server-server-api/>
//!
//! What it does: finds servers ([`discovery`]), sends them signed requests ([`transport`], [`signing`], [`client`]),
//! knows whose keys count ([`keys`]), takes in what they push ([`inbound`]), pushes what our rooms produce
//! ([`outbound`]), and makes our users' memberships in rooms that live elsewhere ([`remote`]).
//!
//! What it does NOT do: keep anything. It has no database and no state that a restart may not lose; what it needs it
//! declares in [`ports`], and `services` implements those traits. It decides nothing that the event graph decides
//! (`waxwing-rooms` does), it answers no HTTP request (the API package does, and calls [`signing::verify_request`],
//! [`acl::ServerAcl`], [`keys::answer_notary_query`] and [`inbound::Inbound`] here), and it does not yet ask policy
//! servers.
//!
//! Everything that comes from elsewhere is hostile: it is bounded in size, time and number before it is looked at, and
//! it cannot make this package panic. Secrets and tokens never reach a log.

pub mod acl;
mod canonical;
pub mod client;
pub mod discovery;
mod health;
pub mod inbound;
pub mod keys;
pub mod net;
pub mod outbound;
pub mod ports;
pub mod remote;
pub mod signing;
pub mod transport;

pub use health::Health;
