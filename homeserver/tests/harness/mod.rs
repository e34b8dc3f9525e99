//! What tests of whole servers under duress share: processes that are killed and stopped, and people who try again.

pub mod dice;
pub mod http;
pub mod server;
