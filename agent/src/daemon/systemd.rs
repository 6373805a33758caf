//! Notifications to the service manager: sd_notify(3), in a unit with `Type=notify`. Elsewhere nothing is sent.
//!
//! Only the loop that reconciles sends notifications. If the loop hangs, they stop, and systemd restarts the agent.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use time::OffsetDateTime;

use crate::clock::{Clock, rfc3339};
use crate::status::Status;

/// The notifications sent so far.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    watchdog: Option<Duration>,
    is_ready: bool,
    told: String,
}

impl Systemd {
    /// Reads the environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    #[must_use]
    pub(crate) fn of_environment() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled(), ..Self::default() }
    }

    /// Reports that the agent is ready, once nats-server has a configuration to start with. On a first boot the first
    /// commit makes the configuration. After a reboot it exists already, and nats-server starts without AWS.
    pub(crate) fn note_committed(&mut self, config: &Path) {
        if !self.is_ready && config.is_file() {
            self.is_ready = true;
            notify(&[NotifyState::Ready]);
        }
    }

    /// Sets the text that `systemctl status` shows.
    pub(crate) fn show(&mut self, status: &Status, now: OffsetDateTime) {
        let text = summary(status, now);
        if text != self.told {
            notify(&[NotifyState::Status(&text)]);
            self.told = text;
        }
    }

    /// Feeds the watchdog, if the unit has a watchdog.
    pub(crate) fn alive(&self) {
        if self.watchdog.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// Sleeps as [`Clock::sleep_until`] does, and feeds the watchdog three times per watchdog interval.
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

    /// Reports that the agent reads its configuration again. [`Systemd::reloaded`] reports the end.
    pub(crate) fn reloading() {
        // systemd 253 and later require the time.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    /// Reports the end of a reload, whether the agent took the new configuration or kept the old configuration. An
    /// agent that was not ready before stays so: the waiting nats-server still has no configuration to start with.
    pub(crate) fn reloaded(&self) {
        if self.is_ready {
            notify(&[NotifyState::Ready]);
        }
    }

    /// Reports that the agent is stopping on request.
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
    // A second line would be another notification.
    format!("{state}; {leaf}{reason}").replace('\n', " ")
}

/// Sends notifications. The agent works without systemd too, so an error goes to the log alone.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("could not tell the service manager: {error}");
    }
}
