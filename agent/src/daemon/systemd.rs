//! What the service manager is told: sd_notify(3), in a unit with `Type=notify`. Elsewhere nothing happens.
//!
//! Only the loop that reconciles speaks, so that a loop that hangs is silent, and systemd starts the agent anew.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use time::OffsetDateTime;

use crate::clock::{Clock, rfc3339};
use crate::status::Status;

/// What was told so far.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    watchdog: Option<Duration>,
    is_ready: bool,
    told: String,
}

impl Systemd {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    #[must_use]
    pub(crate) fn of_environment() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled(), ..Self::default() }
    }

    /// Ready as soon as there is a configuration for nats-server to start with: on a first boot that is the first commit,
    /// after a reboot it is there, and nats-server serves whether or not AWS does.
    pub(crate) fn note_committed(&mut self, config: &Path) {
        if !self.is_ready && config.is_file() {
            self.is_ready = true;
            notify(&[NotifyState::Ready]);
        }
    }

    /// What `systemctl status` shows.
    pub(crate) fn show(&mut self, status: &Status, now: OffsetDateTime) {
        let text = summary(status, now);
        if text != self.told {
            notify(&[NotifyState::Status(&text)]);
            self.told = text;
        }
    }

    /// The loop goes round.
    pub(crate) fn alive(&self) {
        if self.watchdog.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// Sleeps as [`Clock::sleep_until`] does, and goes on saying that the loop is alive, three times as often as it must.
    pub(crate) async fn sleep_until(&self, clock: &Clock, deadline: OffsetDateTime) {
        let sleep = clock.sleep_until(deadline);
        let Some(watchdog) = self.watchdog else { return sleep.await };
        tokio::pin!(sleep);
        loop {
            self.alive();
            tokio::select! {
                () = &mut sleep => return,
                () = tokio::time::sleep(watchdog / 3) => {}
            }
        }
    }

    /// The configuration is read again. [`Systemd::reloaded`] ends it.
    pub(crate) fn reloading() {
        // systemd 253 and later want to know when.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    /// The configuration was read again, or the one in force stays. What isn't ready yet isn't by that either: nats-server, which
    /// waits for it, has no configuration to start with.
    pub(crate) fn reloaded(&self) {
        if self.is_ready {
            notify(&[NotifyState::Ready]);
        }
    }

    /// The end was asked for.
    pub(crate) fn stopping() {
        notify(&[NotifyState::Stopping]);
    }
}

fn summary(status: &Status, now: OffsetDateTime) -> String {
    let state = status.state;
    let leaf = status.leaf.as_ref().map_or_else(
        || "no certificate yet".to_owned(),
        |leaf| {
            let verb = if leaf.not_after <= now { "expired" } else { "until" };
            format!("certificate {verb} {}, generation {}", rfc3339(leaf.not_after), leaf.generation)
        },
    );
    let reason = status.reasons.first().map(|reason| format!("; {reason}")).unwrap_or_default();
    // One line: the next one would be another notification.
    format!("{state}; {leaf}{reason}").replace('\n', " ")
}

/// systemd being away is no reason to stop serving.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("could not tell the service manager: {error}");
    }
}
