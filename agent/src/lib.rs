//! The nats-tls-agent: a NATS cluster on EC2 gets TLS without anyone touching a certificate, and keeps it.
//!
//! # The way of the data
//!
//! ```text
//! node ─ key + CSR ─ issue ─┐
//!             trust bundle ─┼─ render ─ validate ─ commit ─ reload ─ verify
//!        peers, credential ─┘                                    └ roll back
//! ```
//!
//! One module a stage, in this order. Only [`reconcile`] knows the order.

// The files of the crate `doubles` are compiled into the unit tests too, and name this crate from outside.
#[cfg(test)]
extern crate self as nats_tls_agent;

pub mod aws;
pub mod cli;
pub mod client;
pub mod clock;
pub mod commands;
pub mod conf;
pub mod config;
pub mod connection;
pub mod credential;
pub mod daemon;
pub mod digest;
#[cfg(test)]
#[path = "../../tests/doubles/src/lib.rs"]
pub mod doubles;
pub mod error;
pub mod exposition;
pub mod included;
pub mod issue;
pub mod node;
pub mod output;
pub mod peers;
pub mod progress;
pub mod reason;
pub mod reconcile;
pub mod roundtrip;
pub mod schedule;
pub mod server;
pub mod state;
pub mod status;
pub mod trust;
pub(crate) mod wiring;
pub mod x509;
