//! The nats-tls-agent: a NATS cluster on EC2 gets TLS without anyone touching a certificate, and keeps it.
//!
//! # The way of the data
//!
//! ```text
//! identity ─ key + CSR ─ issue ─┐
//!                 trust bundle ─┼─ render ─ validate ─ commit ─ reload ─ verify
//!                        peers ─┘                                   └ roll back
//! ```
//!
//! One module a stage, in this order. Only [`reconcile`] knows the order.

pub mod apply;
pub mod assemble;
pub mod aws;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control;
pub mod csr;
pub mod digest;
pub mod discover;
pub mod durable;
pub mod generation;
pub mod identity;
pub mod issue;
pub mod lock;
pub mod metrics;
pub mod nats_conf;
pub mod progress;
pub mod reconcile;
pub mod render;
pub mod san;
pub mod schedule;
pub mod service;
pub mod status;
pub mod trust;
