//! Where trust bundles come from.

pub mod file;
pub mod issuer;
pub mod secrets_manager;
