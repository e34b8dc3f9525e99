//! Waxwing's federation: everything that speaks to, or listens to, another Matrix homeserver.
pub mod discovery;
pub mod net;
pub mod ports;
pub mod transport;
