//! Waxwing's federation: everything that speaks to, or listens to, another Matrix homeserver.
pub mod acl;
mod canonical;
pub mod client;
pub mod discovery;
mod health;
pub mod keys;
pub mod net;
pub mod outbound;
pub mod ports;
pub mod signing;
pub mod transport;

pub use health::Health;
