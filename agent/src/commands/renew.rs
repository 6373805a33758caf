//! `agent renew`: through the daemon if a daemon runs, else by itself under the lock.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::CommandError;
use crate::clock::rfc3339;
use crate::config::Config;
use crate::daemon::control::{ControlError, ask};
use crate::daemon::protocol::{Answer, RenewalResult, Renewed, RenewedLeaf, Request};
use crate::daemon::renewal;
use crate::output::{Paint, abbreviated, print, print_json};
use crate::progress::{Progress, Step};
use crate::reconcile::{PassRequest, Reconciler};
use crate::state::lock::Lock;
use crate::wiring::wire;

/// Renews, and shows each step on a terminal. Prints the old and the new certificate, or the reason of a failure.
pub async fn renew(config: &Config, wanted: PassRequest, json: bool) -> Result<ExitCode, CommandError> {
    let renewed = renewed(config, wanted, json).await?;
    if json {
        print_json(&renewed)?;
    } else {
        print(&abbreviated(&describe(&renewed)))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn renewed(config: &Config, wanted: PassRequest, json: bool) -> Result<Renewed, CommandError> {
    let mut steps = StepPrinter::new(json);
    let PassRequest { allow_loss, distrust, now, .. } = wanted.clone();
    let request = Request::Renew { allow_loss, distrust, now };
    match ask(&config.control_socket, &request, |step| steps.show(&step)).await {
        Ok(Answer::Renewed(renewed)) => Ok(*renewed),
        Ok(Answer::Refused(refusal)) => Err(CommandError::Refused(refusal)),
        Ok(_) => Err(CommandError::OtherAnswer),
        Err(ControlError::NoDaemon { .. }) => Box::pin(renew_alone(config, wanted, &mut steps)).await,
        Err(error) => Err(error.into()),
    }
}

async fn renew_alone(config: &Config, wanted: PassRequest, steps: &mut StepPrinter) -> Result<Renewed, CommandError> {
    let _lock = Lock::take(&config.state_directory)?;
    let mut reconciler = Reconciler::new(wire(config, Vec::new()).await?);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let renewing = renewal::renew_alone(&mut reconciler, wanted, Progress::to(sender));
    tokio::pin!(renewing);
    loop {
        tokio::select! {
            biased;
            Some(step) = receiver.recv() => steps.show(&step),
            renewed = &mut renewing => {
                while let Ok(step) = receiver.try_recv() {
                    steps.show(&step);
                }
                return renewed.map_err(CommandError::Refused);
            }
        }
    }
}

fn describe(renewed: &Renewed) -> String {
    let paint = Paint::stdout();
    let leaf = |leaf: &RenewedLeaf| format!("{}, expires {}", leaf.serial, rfc3339(leaf.not_after));
    let old = renewed.old.as_ref().map_or("none".to_owned(), leaf);
    let result = renewed.result.to_string();
    let result = match renewed.result {
        RenewalResult::Confirmed => paint.green(&result),
        RenewalResult::Committed => paint.yellow(&result),
    };
    format!(
        "{result} in {}, generation {}\n  old  {old}\n  new  {}\n  by   {}\n",
        duration(Duration::try_from_secs_f64(renewed.seconds).unwrap_or_default()),
        renewed.new.generation,
        leaf(&renewed.new),
        renewed.confirmed_by
    )
}

/// A duration in milliseconds below a second, else in seconds.
fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Shows each finished step where standard error is a terminal: `renew` takes seconds, and a person waits.
struct StepPrinter {
    shown: bool,
    started: Instant,
}

impl StepPrinter {
    fn new(json: bool) -> Self {
        Self { shown: !json && std::io::stderr().is_terminal(), started: Instant::now() }
    }

    fn show(&mut self, step: &Step) {
        if self.shown {
            let mark = Paint::stderr().green("✓");
            let (taken, step) = (duration(self.started.elapsed()), abbreviated(&step.to_string()));
            let _closed = writeln!(std::io::stderr(), "{mark} {taken:>7}  {step}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_less_than_a_second_is_told_in_milliseconds() {
        let told = |millis| duration(Duration::from_millis(millis));
        assert_eq!([told(0), told(999), told(1_000), told(61_250)], ["0 ms", "999 ms", "1.0 s", "61.2 s"]);
    }
}
