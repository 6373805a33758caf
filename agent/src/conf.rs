//! nats-server.conf: its language, its text, and what it takes away.

pub mod language;
pub mod listeners;
pub mod loss;
pub(crate) mod rebase;
pub mod render;
pub mod tree;
pub mod write;
