//! What the daemon has beside the reconciler: its control socket, its metrics, its word with systemd.

pub mod control;
pub mod metrics;
pub mod systemd;
