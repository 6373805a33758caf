//! `agent status`: the state of this node.

use std::fmt::Write;
use std::iter;
use std::process::ExitCode;

use time::OffsetDateTime;

use super::CommandError;
use crate::clock::{Clock, rfc3339};
use crate::config::Config;
use crate::daemon::control::{ControlError, ask};
use crate::daemon::protocol::{Answer, Request};
use crate::output::{DIGITS, Paint, abbreviated, print, print_json};
use crate::reason::Reason;
use crate::reconcile::Reconciler;
use crate::server::Phase;
use crate::server::probe::Port;
use crate::status::{
    AnchorStatus, DistrustStatus, LastReload, PeerStatus, RouteState, ServedLeaf, ServedStatus, State, Status,
    TrustStatus,
};
use crate::trust::rollover::RolloverPhase;
use crate::wiring::{wire_to_inspect, wire_to_look};

/// Prints the daemon's status. Where no daemon runs, or its first pass is under way, the command inspects the disk and
/// nats-server itself, and the reasons say so.
pub async fn status(config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let status = current(config).await?;
    if json {
        print_json(&status)?;
    } else {
        print(&abbreviated(&describe(&status, Clock::System.now(), Paint::stdout())))?;
    }
    Ok(if status.state == State::Healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The daemon's status, or what an inspection finds where no daemon has a status.
pub(super) async fn current(config: &Config) -> Result<Status, CommandError> {
    match ask(&config.control_socket, &Request::Status, |_| {}).await {
        Ok(Answer::Status(status)) => Ok(*status),
        Ok(Answer::NoPassYet { pass }) => {
            let status = Box::pin(inspect(config, Reason::FirstPassUnderWay)).await?;
            Ok(Status { pass, ..status })
        }
        Ok(Answer::Refused(refusal)) => Err(CommandError::Refused(refusal)),
        Ok(_) => Err(CommandError::OtherAnswer),
        Err(ControlError::NoDaemon { .. }) => {
            let reason = Reason::AgentNotRunning { socket: config.control_socket.clone() };
            Box::pin(inspect(config, reason)).await
        }
        Err(error) => Err(error.into()),
    }
}

/// The status without a daemon. `because` is the reason why the daemon has no status.
async fn inspect(config: &Config, because: Reason) -> Result<Status, CommandError> {
    match wire_to_look(config).await {
        Err(error) if error.may_pass() => {
            let mut reconciler = Reconciler::new(wire_to_inspect(config).await);
            Ok(reconciler.inspect(vec![because, Reason::from(&error)]).await)
        }
        parts => Ok(Reconciler::new(parts?).inspect(vec![because]).await),
    }
}

/// The bundle of nodes and the bundle of clients, each with its anchors.
fn trust_rows(trust: &TrustStatus, at: &impl Fn(OffsetDateTime) -> String) -> Vec<(&'static str, String)> {
    let bundles = iter::once(("trust", trust)).chain(trust.clients.iter().map(|clients| ("  clients", &**clients)));
    let mut rows = Vec::new();
    for (name, bundle) in bundles {
        rows.push((name, format!("{}, version {}", bundle.source, bundle.version)));
        let row = |anchor: &AnchorStatus| ("  anchor", format!("{}, ends {}", anchor.subject, at(anchor.not_after)));
        rows.extend(bundle.anchors.iter().map(row));
    }
    rows
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
        line("  reason", &reason.text);
    }
    for warning in &status.warnings {
        line("  warning", &warning.text);
    }
    if let Some(pass) = &status.pass {
        let step = pass.step.as_ref().map(|step| format!("; last step: {step}")).unwrap_or_default();
        line("pass", &format!("under way since {}{step}", at(pass.since)));
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
    let confirmed = status.served.as_ref().map(|served| served.confirmed_at);
    line(
        "served",
        &match confirmed {
            None => "nothing, nats-server isn't running".to_owned(),
            Some(None) => "not confirmed yet".to_owned(),
            Some(Some(confirmed)) => format!("last confirmed {}", at(confirmed)),
        },
    );
    let ports = status.served.as_ref().map(|served| ports(status, served)).unwrap_or_default();
    let name = ports.iter().map(|row| row.port.len()).max().unwrap_or_default();
    let address = ports.iter().map(|row| row.address.len()).max().unwrap_or_default();
    for row in &ports {
        let expires = row.not_after.map(|end| format!(", expires {}", at(end))).unwrap_or_default();
        line("  port", &format!("{:<name$}  {:<address$}  {}{expires}", row.port, row.address, row.leaf));
    }
    for (name, text) in status.trust.iter().flat_map(|trust| trust_rows(trust, &at)) {
        line(name, &text);
    }
    if status.rollover.phase != RolloverPhase::None {
        line("rollover", &format!("{}; `agent rollover` shows each peer", status.rollover.phase));
        for wait in &status.rollover.waits_for {
            line("  waits", wait);
        }
    }
    let nats = &status.nats;
    let version = nats.version.as_deref().unwrap_or("unknown version");
    let phase = match nats.state {
        None | Some(Phase::Running) => "",
        Some(Phase::Starting) => ", starting",
        Some(Phase::Draining) => ", draining",
        Some(Phase::Reloading) => ", reloading",
        Some(Phase::Full) => ", full",
    };
    line("nats", &nats.pid.map_or("not running".to_owned(), |pid| format!("pid {pid}, {version}{phase}")));
    if let Some(LastReload { since, disconnected }) = nats.last_reload {
        let cost = match disconnected {
            None => String::new(),
            Some(0) => ", no client disconnected".into(),
            Some(clients) => format!(", clients disconnected: {clients}"),
        };
        line("  reload", &format!("{}{cost}", at(since)));
    }
    if let Some(DistrustStatus { since, closed }) = nats.distrust {
        line("  distrust", &format!("{}, clients closed: {closed}", at(since)));
    }
    // The id of a static peer that is given by its address is the address.
    let named = || status.peers.iter().filter(|peer| peer.id != peer.address);
    let id = named().map(|peer| peer.id.len()).max().unwrap_or_default();
    let name = |peer: &PeerStatus| {
        if peer.id == peer.address { peer.id.clone() } else { format!("{:<id$}  {}", peer.id, peer.address) }
    };
    let width = status.peers.iter().map(|peer| name(peer).len()).max().unwrap_or_default();
    for peer in &status.peers {
        let route = if status.node.is_own(peer) { "self".to_owned() } else { peer.route.to_string() };
        let route = match peer.route {
            RouteState::Up => paint.green(&route),
            RouteState::Down => paint.red(&route),
            RouteState::Unknown => route,
        };
        line("peer", &format!("{:<width$}  {}  {route}", name(peer), peer.state));
    }
    text
}

/// What one port serves.
struct PortRow {
    port: String,
    address: String,
    leaf: String,
    not_after: Option<OffsetDateTime>,
}

/// A row for each port. Its leaf is compared with the newest leaf.
fn ports(status: &Status, served: &ServedStatus) -> Vec<PortRow> {
    let newest = status.leaf.as_ref().map(|newest| newest.sha256.as_str());
    let row = |(port, shown): (Port, Option<&ServedLeaf>)| PortRow {
        port: port.to_string(),
        address: shown.map(|shown| shown.address.clone()).unwrap_or_default(),
        leaf: match shown {
            None => "nothing".to_owned(),
            Some(shown) if newest == Some(&shown.sha256) => "the leaf above".into(),
            Some(shown) => format!("another leaf, sha256:{}…", shown.sha256.get(..DIGITS).unwrap_or(&shown.sha256)),
        },
        not_after: shown.and_then(|shown| shown.not_after),
    };
    let others = served.others.iter().map(|(port, shown)| (*port, Some(shown)));
    let own = [(Port::Client, served.client.as_ref()), (Port::Route, served.route.as_ref())];
    own.into_iter().chain(others).map(row).collect()
}

/// A span of time, in its two largest units.
pub(super) fn relative(distance: time::Duration) -> String {
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
    use time::macros::datetime;

    use super::*;
    use crate::progress::Step;
    use crate::status::{LeafStatus, NatsStatus, NodeStatus, PassStatus};

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

    fn sample() -> Status {
        let leaf = LeafStatus {
            serial: "01".into(),
            not_before: NOW,
            not_after: NOW + time::Duration::DAY,
            issuer: "CN=ca".into(),
            issuer_not_after: None,
            sans: vec!["10.0.1.1".into()],
            sha256: "0a".repeat(32),
            generation: 7,
        };
        let shown = || {
            Some(ServedLeaf { sha256: leaf.sha256.clone(), not_after: Some(leaf.not_after), ..ServedLeaf::default() })
        };
        let peer = |id: &str, address: &str, route| PeerStatus {
            id: id.into(),
            address: address.into(),
            state: "static".into(),
            route,
        };
        Status {
            node: NodeStatus { name: "n1".into(), addresses: vec!["10.0.1.1".parse().unwrap()], dns_names: Vec::new() },
            served: Some(ServedStatus {
                client: shown(),
                route: shown(),
                confirmed_at: Some(NOW),
                ..ServedStatus::default()
            }),
            leaf: Some(leaf),
            peers: vec![
                peer("10.0.1.1:6222", "10.0.1.1:6222", RouteState::Up),
                peer("n2:6222", "10.0.1.2:6222", RouteState::Down),
                peer("other:6222", "10.0.1.3:6222", RouteState::Unknown),
            ],
            nats: NatsStatus { pid: Some(4711), version: Some("2.15.1".into()), ..NatsStatus::default() },
            ..Status::bare(State::Healthy)
        }
    }

    fn lines(status: &Status, name: &str) -> Vec<String> {
        let text = describe(status, NOW, Paint(false));
        text.lines().filter_map(|line| line.strip_prefix(name)).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn each_port_has_a_row_beside_the_newest_leaf() {
        let shown = |address: &str, digits: &str| ServedLeaf {
            address: address.into(),
            sha256: digits.repeat(32),
            not_after: Some(NOW + time::Duration::DAY),
        };
        let served = ServedStatus {
            client: Some(shown("10.0.1.1:4222", "0a")),
            route: None,
            others: [(Port::Websocket, shown("ws.internal:443", "0b"))].into(),
            confirmed_at: Some(NOW),
        };
        let told = |served| {
            let status = Status { served, ..sample() };
            [lines(&status, "served"), lines(&status, "  port")].concat()
        };
        let expected = [
            "last confirmed 2026-03-01T12:00:00Z (in 0s)",
            "client     10.0.1.1:4222    the leaf above, expires 2026-03-02T12:00:00Z (in 1d 0h)",
            "route                       nothing",
            "websocket  ws.internal:443  another leaf, sha256:0b0b0b0b0b0b…, expires 2026-03-02T12:00:00Z (in 1d 0h)",
        ];
        assert_eq!(told(Some(served)), expected);
        // An agent before this version told neither address nor end.
        let old = r#"{"client": {"sha256": "0c"}, "route": null, "confirmed_at": null}"#;
        let expected = ["not confirmed yet", "client    another leaf, sha256:0c…", "route     nothing"];
        assert_eq!(told(Some(serde_json::from_str(old).unwrap())), expected);
        assert_eq!(told(None), ["nothing, nats-server isn't running"]);
    }

    #[test]
    fn the_last_reload_is_told_with_the_clients_that_it_disconnected() {
        let after = |disconnected| {
            let last_reload = Some(LastReload { since: NOW, disconnected });
            let status = Status { nats: NatsStatus { last_reload, ..sample().nats }, ..sample() };
            lines(&status, "  reload")
        };
        assert_eq!(lines(&sample(), "  reload"), Vec::<String>::new());
        assert_eq!(after(None), ["2026-03-01T12:00:00Z (in 0s)"]);
        assert_eq!(after(Some(0)), ["2026-03-01T12:00:00Z (in 0s), no client disconnected"]);
        assert_eq!(after(Some(7)), ["2026-03-01T12:00:00Z (in 0s), clients disconnected: 7"]);
    }

    #[test]
    fn a_pass_under_way_is_told_with_its_last_step() {
        let during = |step| Status { pass: Some(PassStatus { since: NOW, step }), ..sample() };
        assert_eq!(lines(&sample(), "pass"), Vec::<String>::new());
        assert_eq!(lines(&during(None), "pass"), ["under way since 2026-03-01T12:00:00Z (in 0s)"]);
        let committed = lines(&during(Some(Step::Committed { generation: 8 })), "pass");
        assert_eq!(committed, ["under way since 2026-03-01T12:00:00Z (in 0s); last step: committed generation 8"]);
    }

    #[test]
    fn a_peer_is_told_once_and_this_node_is_itself() {
        let expected = [
            "10.0.1.1:6222              static  self",
            "n2:6222     10.0.1.2:6222  static  down",
            "other:6222  10.0.1.3:6222  static  unknown",
        ];
        assert_eq!(lines(&sample(), "peer"), expected);
    }

    #[test]
    fn distances_are_told_in_their_two_largest_units() {
        let told = |seconds| relative(time::Duration::seconds(seconds));
        assert_eq!(told(0), "in 0s");
        assert_eq!(told(61), "in 1m 1s");
        assert_eq!(told(-3_700), "1h 1m ago");
        assert_eq!(told(7 * 86_400 + 3_600), "in 7d 1h");
    }
}
