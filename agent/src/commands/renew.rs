//! `agent renew`: through the running daemon if there is one, else by itself under the lock.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{CommandError, Paint, abbreviated, print, print_json};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::daemon::control::{Answer, ControlError, Renewed, RenewedLeaf, Request, ask};
use crate::error::with_causes;
use crate::progress::{Progress, Step};
use crate::reconcile::deployment::Verdict;
use crate::reconcile::{Pass, Reconciler, Wanted};
use crate::state::lock::Lock;
use crate::status::{LeafStatus, Status};
use crate::wiring::wire;

/// What `--json` prints of a renewal that failed.
#[derive(Serialize)]
struct Failed {
    result: &'static str,
    error: String,
}

/// Renews, shows each step on a terminal, and ends with the old and the new certificate, or with why there is none.
pub async fn renew(config: &Config, allow_loss: Vec<String>, json: bool) -> Result<ExitCode, CommandError> {
    match (renewed(config, allow_loss, json).await, json) {
        (Ok(renewed), true) => print_json(&renewed)?,
        (Ok(renewed), false) => print(&abbreviated(&describe(&renewed)))?,
        (Err(error), true) => {
            print_json(&Failed { result: "failed", error: with_causes(&error) })?;
            return Err(error);
        }
        (Err(error), false) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

async fn renewed(config: &Config, allow_loss: Vec<String>, json: bool) -> Result<Renewed, CommandError> {
    let mut steps = StepPrinter::new(json);
    let request = Request::Renew { allow_loss: allow_loss.clone() };
    match ask(&config.control_socket, &request, |step| steps.show(&step)).await {
        Ok(Answer::Renewed(renewed)) => Ok(*renewed),
        Ok(Answer::Refused(reason)) => Err(CommandError::Refused(reason)),
        Ok(_) => Err(CommandError::Refused("the daemon answered something else than was asked".into())),
        Err(ControlError::NoDaemon { .. }) => renew_alone(config, allow_loss, &mut steps).await,
        Err(error) => Err(error.into()),
    }
}

async fn renew_alone(
    config: &Config,
    allow_loss: Vec<String>,
    steps: &mut StepPrinter,
) -> Result<Renewed, CommandError> {
    let _lock = Lock::take(&config.state_directory)?;
    let mut reconciler = Reconciler::new(wire(config, Vec::new()).await?);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let wanted = Wanted { renew: true, allow_loss };
    let renewing = renew_once(&mut reconciler, None, wanted, Progress::to(sender));
    tokio::pin!(renewing);
    loop {
        tokio::select! {
            biased;
            Some(step) = receiver.recv() => steps.show(&step),
            (_, renewed) = &mut renewing => {
                while let Ok(step) = receiver.try_recv() {
                    steps.show(&step);
                }
                return renewed.map_err(CommandError::Refused);
            }
        }
    }
}

/// One pass with a new certificate, and what it came to.
pub async fn renew_once(
    reconciler: &mut Reconciler,
    before: Option<&Status>,
    wanted: Wanted,
    progress: Progress,
) -> (Pass, Result<Renewed, String>) {
    let started = Instant::now();
    let old = match before {
        Some(status) => status.leaf.as_ref().map(RenewedLeaf::of),
        None => reconciler.leaf().as_ref().map(RenewedLeaf::of),
    };
    let pass = reconciler.pass(&wanted, &progress).await;
    let seconds = started.elapsed().as_secs_f64();
    let new = pass.status.leaf.as_ref().map(RenewedLeaf::of);
    let renewed = match (&pass.outcome, new) {
        (Err(error), new) => Err(with_causes(error) + &kept(old.as_ref(), new.as_ref())),
        (Ok(Verdict::Other(reason)), new) => {
            Err(format!("the certificate is committed, but not served: {reason}{}", kept(old.as_ref(), new.as_ref())))
        }
        (Ok(_), None) => Err("the pass ended without a certificate".into()),
        (Ok(Verdict::Live { by }), Some(new)) => {
            Ok(Renewed { result: "confirmed".into(), old, new, confirmed_by: by.clone(), seconds })
        }
        (Ok(Verdict::NoServer(why)), Some(new)) => {
            let confirmed_by = format!("nothing yet, nats-server isn't running: {why}");
            Ok(Renewed { result: "committed".into(), old, new, confirmed_by, seconds })
        }
    };
    (pass, renewed)
}

/// Says of a certificate that was issued and isn't in force that it need not be paid for again.
fn kept(old: Option<&RenewedLeaf>, new: Option<&RenewedLeaf>) -> String {
    match new {
        Some(new) if old.is_none_or(|old| old.serial != new.serial) => format!(
            ". The new certificate {} is kept as generation {}; the daemon deploys it without another issuance",
            new.serial, new.generation
        ),
        _ => String::new(),
    }
}

impl RenewedLeaf {
    fn of(leaf: &LeafStatus) -> Self {
        Self { serial: leaf.serial.clone(), not_after: leaf.not_after, generation: leaf.generation }
    }
}

fn describe(renewed: &Renewed) -> String {
    let paint = Paint::stdout();
    let leaf = |leaf: &RenewedLeaf| format!("{}, expires {}", leaf.serial, rfc3339(leaf.not_after));
    let old = renewed.old.as_ref().map_or("none".to_owned(), leaf);
    let result =
        if renewed.result == "confirmed" { paint.green(&renewed.result) } else { paint.yellow(&renewed.result) };
    format!(
        "{result} in {}, generation {}\n  old  {old}\n  new  {}\n  by   {}\n",
        duration(Duration::try_from_secs_f64(renewed.seconds).unwrap_or_default()),
        renewed.new.generation,
        leaf(&renewed.new),
        renewed.confirmed_by
    )
}

/// In milliseconds below a second, else in seconds.
fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Shows steps as they are done, on a terminal: `renew` takes seconds, and a person is looking.
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
    use time::macros::datetime;

    use super::*;

    #[test]
    fn what_takes_less_than_a_second_is_told_in_milliseconds() {
        let told = |millis| duration(Duration::from_millis(millis));
        assert_eq!([told(0), told(999), told(1_000), told(61_250)], ["0 ms", "999 ms", "1.0 s", "61.2 s"]);
    }

    #[test]
    fn a_renewal_that_only_failed_to_deploy_says_that_it_is_paid_for() {
        let leaf = |serial: &str, generation| RenewedLeaf {
            serial: serial.into(),
            not_after: datetime!(2026-03-01 12:00 UTC),
            generation,
        };
        let said = kept(Some(&leaf("0a", 6)), Some(&leaf("0b", 7)));
        assert!(said.contains("0b is kept as generation 7") && said.contains("without another issuance"), "{said}");
        assert_eq!(kept(None, Some(&leaf("0b", 1))), said.replace("generation 7", "generation 1"));
        // Only the bundle is new.
        assert_eq!(kept(Some(&leaf("0a", 6)), Some(&leaf("0a", 7))), "");
        assert_eq!(kept(Some(&leaf("0a", 6)), None), "");
    }
}
