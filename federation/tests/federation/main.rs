//! The package's tests from the outside, in one binary: linking is what takes longest.

mod hostile;
mod https;
mod inbound;
mod keys;
mod media;
mod remote;
mod sender;
mod sim;
mod timeline;
mod tls_server;
