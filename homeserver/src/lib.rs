//! The homeserver: configuration, command line, start and stop.
//!
//! This package builds what the others define and runs it. It holds no rule of the protocol, no SQL and no
//! endpoint beside the metrics.

pub mod audit;
pub mod cli;
mod cluster;
pub mod config;
pub mod data_dir;
mod doctor;
pub mod health;
mod listen;
pub mod logs;
pub mod media;
pub mod metrics;
pub mod node;
mod people;
pub mod purge;
pub mod signing_key;
pub mod taken;
mod tls;
pub mod user;
pub mod wiring;
