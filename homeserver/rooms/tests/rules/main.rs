//! The rules of each room version, rule by rule (<https://spec.matrix.org/v1.19/rooms/>), and what states cost.

mod case;
mod create;
mod fixtures;
mod format;
mod growth;
mod levels;
mod members;
mod others;
