//! The library and the built binary against real parts, and doubles of those that can't be had here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on has failed")]

mod aws;
mod fleet;
mod harness_works;
mod readme;
mod render;
