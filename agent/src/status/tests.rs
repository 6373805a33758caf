//! The status that follows from the findings of a pass.

use std::collections::BTreeMap;
use std::path::PathBuf;

use time::macros::datetime;
use tokio::time::Instant;

use super::*;
use crate::server::monitor::{RouteConnection, Varz};
use crate::server::standing::{Evidence, Mismatch};
use crate::state::generation::TlsFiles;
use crate::trust::bundle::Anchor;
use crate::x509::chain::{Chain, StoredChain};
use crate::x509::leaf::Leaf;
use crate::x509::san::Sans;
use crate::x509::test_ca::{self, Ca};

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const DAY: time::Duration = time::Duration::DAY;
const OURS: &str = "0a0a";
const THEIRS: &str = "0b0b";

fn failed(code: Code, text: &str) -> Reason {
    Reason::Failed { code, subject: None, text: text.into() }
}

fn texts(told: &[Told]) -> Vec<&str> {
    told.iter().map(|told| told.text.as_str()).collect()
}

/// The chain of a port: one certificate with this DER, under this digest.
fn served(sha256: &str, der: &[u8]) -> Served {
    Served { sha256: sha256.into(), not_after: None, chain: Chain::new(vec![der.to_vec().into()]).unwrap() }
}

/// A served leaf that is valid for seven days, and a bundle with its CA.
fn other_leaf() -> (Served, TrustBundle) {
    let ca = Ca::root("ca");
    let bundle = TrustBundle::parse(ca.pem.as_bytes(), "a secret", "1").unwrap();
    (served(THEIRS, ca.leaf(&test_ca::key().0).der()), bundle)
}

fn generation(not_after: OffsetDateTime) -> Generation {
    let leaf = Leaf {
        der: Vec::new(),
        serial: "01".into(),
        issuer: "CN=ca".into(),
        not_before: NOW - 6 * DAY,
        not_after,
        sans: Sans::default(),
        sha256: OURS.into(),
    };
    let file = || PathBuf::from("/generation");
    Generation {
        number: 7,
        chain: StoredChain::made_up(leaf),
        bundle: bundle(&[NOW + 3650 * DAY]),
        files: TlsFiles { cert_file: file(), key_file: file(), ca_file: file(), client_ca_file: file() },
    }
}

fn bundle(ends: &[OffsetDateTime]) -> TrustBundle {
    let anchors = ends.iter().enumerate().map(|(index, not_after)| Anchor {
        der: Vec::new(),
        subject: format!("CN=ca {index}"),
        sha256: format!("{index:02x}"),
        not_after: *not_after,
    });
    TrustBundle {
        anchors: anchors.collect(),
        source: "a secret".into(),
        version: "1".into(),
        distrusted: crate::trust::Distrusted::new(),
        clients: None,
    }
}

fn peer(id: &str, address: &str) -> Peer {
    Peer { id: id.into(), address: address.parse().unwrap(), state: "InService".into() }
}

fn peers<const N: usize>(peers: [(&str, &str); N]) -> PeerSet {
    let peers = peers.into_iter().map(|(id, address)| peer(id, address));
    PeerSet(peers.map(|peer| (peer.address, peer)).collect::<BTreeMap<_, _>>())
}

/// Connections by the remote's name and address. Each server has its own id.
fn routez<const N: usize>(connections: [(&str, &str); N]) -> Routez {
    let connection = |(name, ip): (&str, &str)| RouteConnection {
        remote_id: format!("id of {name}"),
        remote_name: name.into(),
        ip: Some(ip.parse().unwrap()),
        start: None,
    };
    Routez { routes: connections.into_iter().map(connection).collect() }
}

/// The findings of a healthy node.
fn healthy() -> Findings {
    let varz = Varz {
        version: "2.15.1".into(),
        server_id: "A".into(),
        config_load_time: NOW - DAY,
        config_digest: Some("sha256:00".into()),
        connections: 0,
        ends: Box::default(),
    };
    Findings {
        rollover: RolloverStatus::default(),
        connection: None,
        now: NOW,
        node: NodeStatus { name: "n1".into(), addresses: vec!["10.0.1.1".parse().unwrap()], dns_names: Vec::new() },
        instance_id: None,
        generation: Some(generation(NOW + DAY)),
        bundle: Some(bundle(&[NOW + 3650 * DAY])),
        peers: peers([("10.0.1.1:6222", "10.0.1.1:6222"), ("10.0.1.2:6222", "10.0.1.2:6222")]),
        observed: Observed {
            presence: Presence::Running(4711),
            started: None,
            start: None,
            varz: Some(varz),
            routez: Some(routez([("n2", "10.0.1.2")])),
            client: Ok(served(OURS, b"")),
            route: Ok(served(OURS, b"")),
            others: std::collections::BTreeMap::new(),
            asked: Instant::now(),
            system: crate::server::system::Link::Unwanted,
        },
        listeners: Listeners::of(None, &crate::config::NatsConfig::default()),
        standing: Standing::Served(Evidence::LeafAlone),
        confirmed_at: Some(NOW),
        renewal: RenewalStatus::default(),
        settings: crate::status::SettingsStatus::default(),
        phase: None,
        last_reload: None,
        distrust: None,
        is_crash_loop: false,
        alone_since: None,
        faults: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Each case: a finding, the state that follows, and the beginning of each reason.
#[test]
fn each_finding_makes_its_state_and_says_why() {
    type Change = fn(&mut Findings);
    let cases: [(&str, Change, State, &[&str]); 11] = [
        ("nothing amiss", |_| {}, State::Healthy, &[]),
        (
            "an expired certificate",
            |findings| findings.generation = Some(generation(NOW)),
            State::Failing,
            &["the certificate expired at 2026-03-01T12:00:00Z"],
        ),
        (
            "no certificate",
            |findings| {
                findings.generation = None;
                findings.observed = Observed::absent("there is no pid file".into());
                findings.standing = Standing::NoServer { why: "there is no pid file".into() };
            },
            State::Failing,
            &["there is no certificate yet", "nats-server isn't running: there is no pid file"],
        ),
        (
            "a certificate that nats-server will find when it starts",
            |findings| {
                findings.observed = Observed::absent("there is no pid file".into());
                findings.standing = Standing::NoServer { why: "there is no pid file".into() };
            },
            State::Degraded,
            &["nats-server isn't running: there is no pid file"],
        ),
        (
            "another leaf served",
            |findings| {
                let (leaf, bundle) = other_leaf();
                findings.observed.client = Ok(leaf);
                findings.bundle = Some(bundle);
                findings.standing = Standing::NotServed(Mismatch::OtherLeaf { port: Port::Client });
            },
            State::Degraded,
            &["nats-server doesn't serve what is committed: the client port serves another leaf"],
        ),
        (
            "another leaf served, which has ended",
            |findings| {
                let (leaf, bundle) = other_leaf();
                findings.now = NOW + 7 * DAY;
                findings.generation = Some(generation(NOW + 14 * DAY));
                findings.observed.client = Ok(leaf);
                findings.bundle = Some(bundle);
            },
            State::Failing,
            &["the client port serves a certificate that clients and peers refuse: it expired at 2026-03-08T12:00:00Z"],
        ),
        (
            "a leaf of nobody's served",
            |findings| findings.observed.route = Ok(other_leaf().0),
            State::Failing,
            &["the route port serves a certificate that clients and peers refuse: CN=ca signed it"],
        ),
        (
            "a port without TLS",
            |findings| {
                findings.observed.route = Err(Silence::Failed("no TLS".into()));
                findings.standing = Standing::NotServed(Mismatch::PortSilent {
                    port: Port::Route,
                    why: Silence::Failed("no TLS".into()),
                });
            },
            State::Failing,
            &["nats-server doesn't serve what is committed: route port: no TLS"],
        ),
        (
            "a renewal that fails",
            |findings| {
                let because = Box::new(failed(Code::IssuerUnavailable, "PCA is away"));
                findings.faults = vec![Reason::NoNewCertificate { attempts: 3, because }];
            },
            State::Degraded,
            &["no new certificate after 3 attempts: PCA is away"],
        ),
        (
            "a source that fails",
            |findings| findings.faults = vec![failed(Code::TrustDenied, "the secret is denied")],
            State::Degraded,
            &["the secret is denied"],
        ),
        ("a warning", |findings| findings.warnings = vec![Reason::CredentialMissing], State::Healthy, &[]),
    ];
    for (case, change, state, reasons) in cases {
        let mut findings = healthy();
        change(&mut findings);
        let status = Status::of(findings);
        assert_eq!(status.state, state, "{case}: {:?}", status.reasons);
        assert_eq!(status.reasons.len(), reasons.len(), "{case}: {:?}", status.reasons);
        for (told, expected) in status.reasons.iter().zip(reasons) {
            assert!(told.text.starts_with(expected), "{case}: {told}");
        }
    }
}

#[test]
fn a_server_that_nobody_looked_at_is_not_said_to_be_down() {
    let mut findings = healthy();
    findings.observed = Observed::unseen();
    findings.standing = Standing::Unseen;
    let status = Status::of(findings);
    assert_eq!((status.state, status.served, status.nats.pid), (State::Degraded, None, None));
    assert_eq!(texts(&status.reasons), ["nats-server was not looked at yet"]);
}

#[test]
fn a_reason_that_another_reason_has_for_its_cause_is_told_once() {
    let mut findings = healthy();
    let denied = failed(Code::TrustDenied, "the secret is denied");
    let away = || failed(Code::DiscoveryUnavailable, "peers are away");
    let waits = Reason::CertificateWaitsForBundle { because: Some(Box::new(denied.clone())) };
    let renewal = Reason::NoNewCertificate { attempts: 2, because: Box::new(waits) };
    findings.faults = vec![denied, away(), away(), renewal];
    let status = Status::of(findings);
    let waits = "no new certificate after 2 attempts: the certificate waits for a trust bundle: the secret is denied";
    assert_eq!(texts(&status.reasons), ["peers are away", waits]);
    let codes: Vec<_> = status.reasons.iter().map(|told| told.code.as_str()).collect();
    assert_eq!(codes, ["discovery_unavailable", "no_new_certificate"]);
}

#[test]
fn an_anchor_that_ends_within_a_year_is_a_warning_and_leaves_the_node_healthy() {
    let mut findings = healthy();
    findings.warnings = vec![Reason::CredentialUnknown];
    findings.bundle = Some(bundle(&[NOW, NOW + 365 * DAY, NOW + 366 * DAY]));
    let status = Status::of(findings);
    assert_eq!(status.state, State::Healthy);
    let ended = "the anchor CN=ca 0 ended at 2026-03-01T12:00:00Z";
    let note = Reason::CredentialUnknown.to_string();
    let ends = "the anchor CN=ca 1 ends at 2027-03-01T12:00:00Z";
    assert_eq!(texts(&status.warnings), [note.as_str(), ended, ends]);
}

#[test]
fn a_node_without_a_route_to_anybody_warns_and_one_with_a_route_to_somebody_does_not() {
    let warns = |change: fn(&mut Findings)| {
        let mut findings = healthy();
        change(&mut findings);
        let status = Status::of(findings);
        (status.state, status.warnings.iter().any(|warning| warning.code == Code::NoRoute.as_str()))
    };
    assert_eq!(warns(|_| {}), (State::Healthy, false));
    assert_eq!(warns(|findings| findings.observed.routez = Some(routez([]))), (State::Healthy, true));
    // The warning needs an answer of `/routez`, and a node without peers needs no route.
    assert_eq!(warns(|findings| findings.observed.routez = None), (State::Healthy, false));
    let alone = |findings: &mut Findings| {
        findings.observed.routez = Some(routez([]));
        findings.peers = peers([("10.0.1.1:6222", "10.0.1.1:6222")]);
    };
    assert_eq!(warns(alone), (State::Healthy, false));
}

#[test]
fn what_is_served_is_told_unless_no_server_runs() {
    let mut findings = healthy();
    findings.observed.route = Err(Silence::Failed("no TLS".into()));
    let served = Status::of(findings).served.unwrap();
    assert_eq!(
        served.client,
        Some(ServedLeaf { address: "127.0.0.1:4222".into(), not_after: None, sha256: OURS.into() })
    );
    assert_eq!(served.route, None);

    let mut findings = healthy();
    findings.observed = Observed::absent("there is no pid file".into());
    let status = Status::of(findings);
    assert_eq!((status.served, status.nats.pid), (None, None));
}

/// A websocket listener with a certificate that holds until seven days after now.
fn with_websocket(certificate: Certificate, served: Result<Served, Silence>) -> Findings {
    let mut findings = healthy();
    let address = "ws.internal:443".to_owned();
    findings.observed.others.insert(Port::Websocket, Other { address, certificate, served });
    findings
}

#[test]
fn a_listener_is_told_by_whose_certificate_it_has_and_what_is_amiss_there() {
    let closed = || Err(Silence::Closed("nobody listens".into()));
    let foreign = |now| {
        let leaf = Served { not_after: Some(NOW + 7 * DAY), ..other_leaf().0 };
        Findings { now, ..with_websocket(Certificate::Foreign, Ok(leaf)) }
    };
    let cases = [
        (with_websocket(Certificate::Own, closed()), State::Degraded, Some("listener_silent")),
        (with_websocket(Certificate::Foreign, closed()), State::Degraded, Some("listener_silent")),
        (with_websocket(Certificate::Own, Err(Silence::Full("no more".into()))), State::Healthy, None),
        (with_websocket(Certificate::Own, Ok(served(OURS, b""))), State::Healthy, None),
        // The bundle doesn't have the CA of either leaf, and another keeper may have another CA.
        (with_websocket(Certificate::Own, Ok(other_leaf().0)), State::Failing, Some("served_certificate_refused")),
        (foreign(NOW - DAY), State::Healthy, None),
        (foreign(NOW + 6 * DAY), State::Healthy, Some("listener_certificate_ends")),
        (foreign(NOW + 7 * DAY), State::Degraded, Some("listener_certificate_expired")),
    ];
    for (mut findings, state, code) in cases {
        findings.generation = Some(generation(NOW + 14 * DAY));
        let status = Status::of(findings);
        let told: Vec<_> = status.reasons.iter().chain(&status.warnings).map(|told| told.code.as_str()).collect();
        assert_eq!((status.state, told), (state, code.into_iter().collect()), "{:?}", status.reasons);
        let text = status.reasons.first().map_or("websocket", |told| told.text.as_str());
        assert!(text.contains("websocket"), "{text}");
    }
}

#[test]
fn a_client_port_that_is_slow_to_greet_is_no_failure_of_a_server_that_says_what_it_loaded() {
    let mut findings = healthy();
    findings.observed.client = Err(Silence::Hangs("no TLS handshake within 3 s".into()));
    let status = Status::of(findings.clone());
    assert_eq!(status.state, State::Degraded);
    assert!(texts(&status.reasons)[0].starts_with("the client port, "), "{:?}", status.reasons);
    findings.observed.client = Err(Silence::Full("no more".into()));
    let status = Status::of(findings);
    assert_eq!((status.state, status.warnings[0].code.as_str()), (State::Healthy, "server_full"));
}

/// Each case: the routes that nats-server reports, and the result for each peer except this node.
#[test]
fn each_peer_has_the_route_that_nats_server_shows() {
    use RouteState::{Down, Unknown, Up};
    let of_addresses = [("10.0.1.2:6222", "10.0.1.2:6222"), ("10.0.1.3:6222", "10.0.1.3:6222")];
    let of_instances = [("i-2", "10.0.1.2:6222"), ("i-3", "10.0.1.3:6222")];
    let cases = [
        ("nothing is known", of_addresses, None, [Unknown, Unknown]),
        ("no route at all", of_addresses, Some(routez([])), [Down, Down]),
        ("dialled, so known by address", of_addresses, Some(routez([("n2", "10.0.1.2")])), [Up, Down]),
        ("known by name", of_instances, Some(routez([("i-3", "127.0.0.1")])), [Down, Up]),
        ("one dialled us: it is either", of_addresses, Some(routez([("x", "127.0.0.1")])), [Unknown, Unknown]),
        (
            "both dialled us: as many as there are peers",
            of_addresses,
            Some(routez([("x", "127.0.0.1"), ("y", "127.0.0.1")])),
            [Up, Up],
        ),
        (
            "one is known, the other is who is left",
            of_addresses,
            Some(routez([("n2", "10.0.1.2"), ("x", "127.0.0.1")])),
            [Up, Up],
        ),
        (
            "a pool of connections is one server",
            of_addresses,
            Some(routez([("x", "127.0.0.1"), ("x", "127.0.0.1"), ("x", "127.0.0.1")])),
            [Unknown, Unknown],
        ),
        (
            "a pool of connections, of which we dialled one",
            of_addresses,
            Some(routez([("n2", "127.0.0.1"), ("n2", "10.0.1.2")])),
            [Up, Down],
        ),
        (
            "an instance that left the group stands for none in it",
            of_instances,
            Some(routez([("i-2", "127.0.0.1"), ("i-9", "127.0.0.1")])),
            [Up, Down],
        ),
        (
            "instances with names of their own",
            of_instances,
            Some(routez([("n2", "127.0.0.1"), ("n3", "127.0.0.1")])),
            [Up, Up],
        ),
    ];
    for (case, others, routez, expected) in cases {
        let mut findings = healthy();
        findings.peers = peers([("i-1", "10.0.1.1:6222"), others[0], others[1]]);
        findings.observed.routez = routez;
        let status = Status::of(findings);
        let routes: Vec<_> = status.peers.iter().map(|peer| peer.route).collect();
        assert_eq!(routes, [&[Up], &expected[..]].concat(), "{case}");
    }
}

#[test]
fn our_own_row_is_up_while_our_server_runs() {
    for (presence, route) in [
        (Presence::Running(1), RouteState::Up),
        (Presence::Absent("it is gone".into()), RouteState::Down),
        (Presence::Foreign("it runs sleep".into()), RouteState::Down),
    ] {
        let mut findings = healthy();
        findings.observed.presence = presence;
        let status = Status::of(findings);
        assert_eq!(status.peers[0].route, route);
        assert!(status.node.is_own(&status.peers[0]) && !status.node.is_own(&status.peers[1]));
    }
}
