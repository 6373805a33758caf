//! Doubles of the agent's seams that need no process and no socket.
//!
//! Two builds compile these files. The crate `doubles` serves other crates, such as the simulation. The agent's own
//! unit tests compile the same files as `nats_tls_agent::doubles`. They can't use the crate, because the agent's types
//! in the crate differ from the types of the agent's test build. A path here therefore begins with `nats_tls_agent` or
//! `super`, never with `crate`.

pub mod fake_server;
pub mod moody_issuer;
