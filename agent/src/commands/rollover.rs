//! `agent rollover`: how far a change of the CA is, as this node sees it.

use std::fmt::Write as _;
use std::process::ExitCode;

use time::OffsetDateTime;

use super::CommandError;
use super::status::{current, relative};
use crate::clock::{Clock, rfc3339};
use crate::config::Config;
use crate::output::{abbreviated, print, print_json};
use crate::status::{PeerPhase, Status};

/// Prints the phase of this node and of each peer, and what the next phase waits for.
pub async fn rollover(config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let status = current(config).await?;
    if json {
        print_json(&status.rollover)?;
    } else {
        print(&abbreviated(&describe(&status, Clock::System.now())))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(status: &Status, now: OffsetDateTime) -> String {
    let rollover = &status.rollover;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<9} {value}");
    };
    let at = |time: OffsetDateTime| format!("{} ({})", rfc3339(time), relative(time - now));
    line("phase", &rollover.phase.to_string());
    if let Some(leaf) = &status.leaf {
        line("leaf", &format!("{}, issued by {}", leaf.serial, leaf.issuer));
    }
    if let Some(issuer) = &rollover.issuer {
        let since = rollover.since.map(|since| format!(", since {}", at(since))).unwrap_or_default();
        line("next", &format!("a certificate of {issuer} waits{since}"));
    }
    if let Some(until) = rollover.clients_notice_until {
        line("clients", &format!("must trust the new CA by {}", at(until)));
    }
    for wait in &rollover.waits_for {
        line("waits for", wait);
    }
    for anchor in status.trust.iter().flat_map(|trust| &trust.anchors) {
        line("anchor", &format!("{}, ends {}", anchor.subject, at(anchor.not_after)));
    }
    let id = rollover.peers.iter().map(|peer| peer.id.len()).max().unwrap_or_default();
    for PeerPhase { id: name, address, phase, seen_at } in &rollover.peers {
        let phase = phase.map_or("unknown".to_owned(), |phase| phase.to_string());
        let seen = seen_at.map_or("not seen yet".to_owned(), |seen| format!("seen {}", at(seen)));
        line("peer", &format!("{name:<id$}  {address}  {phase:<9}  {seen}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::status::{RolloverStatus, State};
    use crate::trust::rollover::RolloverPhase;

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

    #[test]
    fn the_view_has_the_phase_what_is_waited_for_since_when_and_each_peer() {
        let peer =
            |id: &str, phase, seen_at| PeerPhase { id: id.into(), address: "10.0.1.2:6222".into(), phase, seen_at };
        let rollover = RolloverStatus {
            phase: RolloverPhase::Trusting,
            waits_for: vec!["i-2, which is not looked at yet".into()],
            since: Some(NOW - time::Duration::HOUR),
            issuer: Some("CN=new".into()),
            clients_notice_until: Some(NOW + time::Duration::DAY),
            peers: vec![
                peer("i-2", None, None),
                peer("i-30", Some(RolloverPhase::Settling), Some(NOW - time::Duration::MINUTE)),
            ],
        };
        let text = describe(&Status { rollover, ..Status::bare(State::Healthy) }, NOW);
        let expected = "\
phase     trusting
next      a certificate of CN=new waits, since 2026-03-01T11:00:00Z (1h 0m ago)
clients   must trust the new CA by 2026-03-02T12:00:00Z (in 1d 0h)
waits for i-2, which is not looked at yet
peer      i-2   10.0.1.2:6222  unknown    not seen yet
peer      i-30  10.0.1.2:6222  settling   seen 2026-03-01T11:59:00Z (1m 0s ago)
";
        assert_eq!(text, expected);
    }
}
