//! Waxwing's federation: everything that speaks to, or listens to, another Matrix homeserver.
pub mod ports;
