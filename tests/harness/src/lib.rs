//! The base of the tests and the demo. It has real nats-servers of pinned versions, the built agent as a process,
//! clusters of both on loopback, and counted NATS traffic.
//!
//! Everything here is bounded in time and cleans up when dropped.

pub mod acknowledged;
pub mod agent;
pub mod cluster;
pub mod crowd;
pub mod fleet;
pub mod front;
pub mod gateway;
pub mod imds;
pub mod loopback;
pub mod markdown;
pub mod moto;
pub mod nats_server;
pub mod nodes;
pub mod process;
pub mod progress;
pub mod rounds;
pub mod services;
pub mod small_disk;
pub mod soak;
pub mod strace;
pub mod table;
pub mod template;
pub mod terraform;
pub mod tools;
pub mod traffic;

use std::error::Error;
use std::time::Duration;

/// The trait by which async-nats' subscriptions are read.
pub use futures_util::StreamExt;
pub use futures_util::future::join_all;
use tokio::time::Instant;

/// The message says what was attempted and what came back. The cause is the `source`.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure without a deeper cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// This failure with its cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The message and all its causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// The pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Repeats the probe until it succeeds. The failure contains the probe's last reason.
///
/// # Errors
/// `within` has passed. The limit also cuts off a running probe.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + within;
    let mut last = "no answer".to_owned();
    while let Ok(answer) = tokio::time::timeout_at(deadline, probe()).await {
        match answer {
            Ok(found) => return Ok(found),
            Err(not_yet) => last = not_yet,
        }
        if Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Failure::new(format!("{what}: not within {within:?}; last seen: {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_condition_that_never_holds_fails_in_time_and_says_what_was_last_seen() {
        let failure = eventually::<()>("the moon", Duration::from_secs(5), async || Err("still blue".to_owned())).await;
        assert!(failure.unwrap_err().to_string().ends_with("still blue"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_is_cut_off() {
        let failure = eventually::<()>("a hang", Duration::from_secs(5), async || std::future::pending().await).await;
        assert!(failure.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_condition_that_comes_true_later_is_seen() {
        let mut looks = 0;
        let found = eventually("third look", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("look {looks}")) }
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[test]
    fn the_chain_names_every_cause_once() {
        let failure = Failure::new("could not read x").because(std::io::Error::other("disk on fire"));
        assert_eq!(failure.chain(), "could not read x: disk on fire");
    }
}
