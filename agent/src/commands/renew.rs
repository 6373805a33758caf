//! `agent renew`: through the running daemon if there is one, else by itself under the lock.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{CommandError, Paint, print, print_json};
use crate::apply::{Verdict, chain_of};
use crate::assemble::assemble;
use crate::config::Config;
use crate::control::{Answer, ControlError, Renewed, RenewedLeaf, Request, ask};
use crate::lock::StateLock;
use crate::progress::{Progress, Step};
use crate::reconcile::{Pass, Reconciler, Wanted};
use crate::status::{LeafStatus, Status, rfc3339};

/// Renews, shows each step on a terminal, and ends with the old and the new certificate.
pub async fn renew(config: &Config, allow_loss: Vec<String>, json: bool) -> Result<ExitCode, CommandError> {
    let mut steps = StepPrinter::new(json);
    let request = Request::Renew { allow_loss: allow_loss.clone() };
    let renewed = match ask(&config.control_socket, &request, |step| steps.show(&step)).await {
        Ok(Answer::Renewed(renewed)) => *renewed,
        Ok(Answer::Refused(reason)) => return Err(CommandError::Refused(reason)),
        Ok(_) => return Err(CommandError::Refused("the daemon answered something else than was asked".into())),
        Err(ControlError::NoDaemon { .. }) => renew_alone(config, allow_loss, &mut steps).await?,
        Err(error) => return Err(error.into()),
    };
    if json {
        print_json(&renewed)?;
    } else {
        print(&describe(&renewed))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn renew_alone(
    config: &Config,
    allow_loss: Vec<String>,
    steps: &mut StepPrinter,
) -> Result<Renewed, CommandError> {
    let _lock = StateLock::take(&config.state_directory)?;
    let mut reconciler = Reconciler::new(assemble(config, Vec::new()).await?);
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
        (Err(error), _) => Err(chain_of(error)),
        (Ok(Verdict::Other(reason)), _) => Err(format!("the certificate is committed, but not served: {reason}")),
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
        "{result} in {:.1} s, generation {}\n  old  {old}\n  new  {}\n  by   {}\n",
        renewed.seconds,
        renewed.new.generation,
        leaf(&renewed.new),
        renewed.confirmed_by
    )
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
            let _closed = writeln!(std::io::stderr(), "{mark} {:5.1} s  {step}", self.started.elapsed().as_secs_f64());
        }
    }
}
