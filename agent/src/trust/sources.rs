//! The sources of trust bundles.

pub(crate) mod file;
pub(crate) mod issuer;
pub mod secrets_manager;
