//! `agent status`: how this node is doing.

use std::fmt::Write;
use std::process::ExitCode;

use time::OffsetDateTime;

use super::{CommandError, Paint, print, print_json};
use crate::apply::chain_of;
use crate::assemble::{assemble, assemble_to_look};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{Answer, ControlError, Request, ask};
use crate::reconcile::Reconciler;
use crate::status::{Route, State, Status, rfc3339};

/// Asks the daemon; where none runs, looks at what is on the disk and served, and says that none runs.
pub async fn status(config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let status = match ask(&config.control_socket, &Request::Status, |_| {}).await {
        Ok(Answer::Status(status)) => *status,
        Ok(Answer::Refused(reason)) => return Err(CommandError::Refused(reason)),
        Ok(_) => return Err(CommandError::Refused("the daemon answered something else than was asked".into())),
        Err(ControlError::NoDaemon { .. }) => {
            let why =
                format!("the agent isn't running: nothing listens on {}; start it", config.control_socket.display());
            match assemble(config, Vec::new()).await {
                Err(error) if error.may_pass() => {
                    let why = format!("{why}; {}", chain_of(&error));
                    Reconciler::new(assemble_to_look(config).await).inspect(why).await
                }
                parts => Reconciler::new(parts?).inspect(why).await,
            }
        }
        Err(error) => return Err(error.into()),
    };
    if json {
        print_json(&status)?;
    } else {
        print(&describe(&status, Clock::System.now(), Paint::stdout()))?;
    }
    Ok(if status.state == State::Healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(status: &Status, now: OffsetDateTime, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<9} {value}");
    };
    let at = |time: OffsetDateTime| format!("{} ({})", rfc3339(time), relative(time - now));
    let state = status.state.to_string();
    line(
        "state",
        &match status.state {
            State::Healthy => paint.green(&state),
            State::Degraded => paint.yellow(&state),
            State::Failing => paint.red(&state),
        },
    );
    for reason in &status.reasons {
        line("  reason", reason);
    }
    for warning in &status.warnings {
        line("  warning", warning);
    }
    let addresses: Vec<_> = status.node.addresses.iter().map(ToString::to_string).collect();
    line("node", &format!("{} at {}", status.node.name, addresses.join(", ")));
    if let Some(leaf) = &status.leaf {
        line("leaf", &format!("{}, generation {}", leaf.serial, leaf.generation));
        line("  issuer", &leaf.issuer);
        line("  names", &leaf.sans.join(", "));
        line("  expires", &at(leaf.not_after));
    }
    if let Some(next) = status.renewal.next {
        line("renewal", &at(next));
    }
    match status.served.as_ref().map(|served| served.confirmed_at) {
        Some(Some(confirmed)) => line("served", &format!("confirmed {}", at(confirmed))),
        Some(None) => line("served", "not confirmed"),
        None => line("served", "no: nats-server isn't running"),
    }
    if let Some(trust) = &status.trust {
        line("trust", &format!("{}, version {}", trust.source, trust.version));
        for anchor in &trust.anchors {
            line("  anchor", &format!("{}, ends {}", anchor.subject, at(anchor.not_after)));
        }
    }
    let nats = &status.nats;
    let version = nats.version.as_deref().unwrap_or("unknown version");
    line("nats", &nats.pid.map_or("not running".to_owned(), |pid| format!("pid {pid}, {version}")));
    let widths = |column: fn(&crate::status::PeerStatus) -> &str| {
        status.peers.iter().map(|peer| column(peer).len()).max().unwrap_or_default()
    };
    let (id, address) = (widths(|peer| &peer.id), widths(|peer| &peer.address));
    for peer in &status.peers {
        let route = match peer.route {
            Route::Up => paint.green("up"),
            Route::Down => paint.red("down"),
            Route::Unknown => "unknown".to_owned(),
        };
        line("peer", &format!("{:<id$}  {:<address$}  {}  {route}", peer.id, peer.address, peer.state));
    }
    text
}

/// A distance in time, in its two largest units.
fn relative(distance: time::Duration) -> String {
    let seconds = distance.whole_seconds().unsigned_abs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(units.len() - 1);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units.iter().skip(first).take(2) {
        parts.push(format!("{}{unit}", rest / size));
        rest %= size;
    }
    let text = parts.join(" ");
    if distance.is_negative() { format!("{text} ago") } else { format!("in {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_told_in_their_two_largest_units() {
        let told = |seconds| relative(time::Duration::seconds(seconds));
        assert_eq!(told(0), "in 0s");
        assert_eq!(told(61), "in 1m 1s");
        assert_eq!(told(-3_700), "1h 1m ago");
        assert_eq!(told(7 * 86_400 + 3_600), "in 7d 1h");
    }
}
