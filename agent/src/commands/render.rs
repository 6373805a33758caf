//! `agent render`: shows the configuration that the agent would apply, and applies nothing.

use std::io::Write;
use std::process::ExitCode;

use similar::TextDiff;

use super::CommandError;
use crate::conf::render::Rendered;
use crate::config::Config;
use crate::output::{Paint, print};
use crate::reconcile::Reconciler;
use crate::wiring::wire_to_look;

/// Prints the configuration, or its difference from the committed configuration. No password is shown.
pub async fn render(config: &Config, diff: bool) -> Result<ExitCode, CommandError> {
    let mut reconciler = Reconciler::new(wire_to_look(config).await?);
    let (committed, desired) = reconciler.desired().await?;
    let hide = |rendered: &Rendered| rendered.shown(&config.nats.config, reconciler.credential());
    let same = committed.as_ref() == Some(&desired);
    let desired = hide(&desired);
    if !diff {
        print(&desired)?;
        return Ok(ExitCode::SUCCESS);
    }
    let committed = committed.as_ref().map(hide).unwrap_or_default();
    if committed == desired {
        let what = if same { "no change" } else { "no change but in a password, which isn't shown" };
        let _closed = writeln!(std::io::stderr(), "{what}");
        return Ok(ExitCode::SUCCESS);
    }
    let changes = TextDiff::from_lines(&committed, &desired);
    let file = config.nats.config.display().to_string();
    let paint = Paint::stdout();
    for line in changes.unified_diff().header(&file, "what would be applied").to_string().lines() {
        let line = match line.as_bytes().first() {
            Some(b'+') => paint.green(line),
            Some(b'-') => paint.red(line),
            _ => line.to_owned(),
        };
        print(&format!("{line}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
