//! The state directory: what lies in it, and how it is written.

pub(crate) mod durable;
pub mod generation;
pub(crate) mod lock;
pub(crate) mod system_key;
