//! Doubles of the agent's seams that need no process and no socket.
//!
//! Two builds have these files. The crate `doubles` is for other crates: the simulation. The agent's own unit tests compile
//! the same files as `nats_tls_agent::doubles`: a crate that depends on the agent has other types than the agent's test
//! build. So a path here begins with `nats_tls_agent` or `super`, never with `crate`.

pub mod fake_server;
pub mod moody_issuer;
