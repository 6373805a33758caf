//! The current step: a line that changes on a terminal, or a plain line for each finished step elsewhere.

use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use crate::Failure;

const REDRAW: Duration = Duration::from_millis(100);

/// Seconds, to a tenth.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// The output for steps.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    moving: bool,
}

impl Progress {
    /// Shows steps on standard output. The line changes in place on a terminal that can erase a line.
    #[must_use]
    pub fn on_standard_output() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { moving: std::io::stdout().is_terminal() && !dumb }
    }

    /// Shows a step until it is done. `now` is called repeatedly for the state of the step.
    #[expect(clippy::print_stdout, reason = "people see the steps on standard output")]
    pub async fn step<T>(
        &self,
        what: &str,
        now: impl Fn() -> String,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        tokio::pin!(work);
        let mut redraw = tokio::time::interval(REDRAW);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = redraw.tick(), if self.moving => {
                    // Wrapping is off, because wrapped text could not be erased.
                    print!("\r\x1b[2K\x1b[?7l  {what} … {} {}\x1b[?7h", seconds(begun.elapsed()), now());
                    // A terminal that accepts no more text must not stop the work.
                    _ = std::io::stdout().flush();
                }
            }
        };
        let erase = if self.moving { "\r\x1b[2K" } else { "" };
        let (took, failed) = (seconds(begun.elapsed()), if done.is_err() { "FAILED after " } else { "" });
        println!("{}", format!("{erase}  {what}: {failed}{took} {}", now()).trim_end());
        done
    }
}
