//! The rendered configuration on real nats-servers, old and new.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use harness::loopback::Block;
use harness::soak;
use nats_tls_agent::conf::loss::{Facts, losses};
use nats_tls_agent::conf::render::{Values, render};
use nats_tls_agent::config::{ClientAuth, JetStream, JetStreamLimits, NatsConfig, Size};
use nats_tls_agent::credential::ClusterCredential;
use nats_tls_agent::node::Node;
use nats_tls_agent::state::generation::TlsFiles;
use nats_tls_agent::x509::san::Sans;
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestCaseError, TestRunner};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::time::Instant;
use zeroize::Zeroizing;

const VERSIONS: [&str; 3] = ["2.10.26", "2.12.8", "2.15.1"];
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(20);

/// Hostile names that nats-server still accepts. A cluster's name may not contain spaces.
const NASTY_CLUSTER: &str = "p\"r\\o'd{};#$HOME,é[]\n\tauthorization{}";
const NASTY_PATH: &str = "js \"quoted\" \\ ' $HOME {x} #; é\ninclude no.conf";
const NASTY_WORD: &str = "s3:cr/e@t \"\\'% $HOME{}#;\n&é";

fn nats_server(version: &str) -> PathBuf {
    harness::tools::nats_server(version).unwrap()
}

/// A directory with a node's certificate for 127.0.0.1 and with the nodes' files.
struct Bench {
    directory: tempfile::TempDir,
    tls: TlsFiles,
    ports: Block,
    /// The number of assigned ports.
    taken: AtomicU16,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::IpAddress(LOOPBACK)];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf_pem = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
        let write = |name: &str, text: String| {
            let file = directory.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let tls = TlsFiles {
            cert_file: write("cert.pem", leaf_pem),
            key_file: write("key.pem", key.serialize_pem()),
            ca_file: write("ca.pem", ca_pem),
            client_ca_file: directory.path().join("ca.pem"),
        };
        Self { directory, tls, ports: Block::reserve().unwrap(), taken: AtomicU16::new(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An unused port out of 16. The nodes of one bench never listen on more ports together.
    fn address(&self) -> SocketAddr {
        (LOOPBACK, self.ports.port(self.taken.fetch_add(1, Ordering::Relaxed))).into()
    }

    /// The configuration of one node, on its own ports.
    fn nats(&self, name: &str) -> NatsConfig {
        NatsConfig {
            config: self.path(&format!("{name}.conf")),
            pid_file: self.path(&format!("{name}.pid")),
            listen: self.address(),
            cluster_listen: self.address(),
            monitor_listen: self.address(),
            jetstream: JetStream::On(JetStreamLimits { store_dir: self.path(name), ..JetStreamLimits::default() }),
            ..NatsConfig::default()
        }
    }

    /// Renders and writes a configuration.
    fn write(
        &self,
        nats: &NatsConfig,
        name: &str,
        cluster_name: &str,
        peers: &[SocketAddr],
        credential: Option<ClusterCredential>,
    ) {
        let node = Node {
            name: name.to_owned(),
            instance_id: None,
            region: None,
            address: LOOPBACK,
            sans: Sans::default(),
            further_addresses: [].into(),
            placement: nats_tls_agent::node::Placement::default(),
        };
        let values =
            Values::new(nats, &node, cluster_name, peers.iter().copied(), self.tls.clone(), credential).unwrap();
        let rendered = render(None, &values).unwrap();
        std::fs::write(&nats.config, rendered.text()).unwrap();

        // The agent reads back what it wrote.
        let facts = Facts::of(&rendered.tree(&nats.config).unwrap()).unwrap();
        assert_eq!(losses(None, &facts), []);
        assert_eq!(facts.cluster_name.as_deref(), Some(cluster_name));
        assert_eq!(facts.cluster_listen, Some(nats.cluster_listen.to_string()));
        assert_eq!(facts.jetstream, nats.jetstream != JetStream::Off);
        assert_eq!(facts.client_verify, nats.client_auth == ClientAuth::Mtls);
        assert_eq!(facts.cluster_credential, values.cluster.credential.is_some());
    }
}

fn credential(username: &str, password: &str) -> ClusterCredential {
    ClusterCredential { username: username.to_owned(), password: Zeroizing::new(password.to_owned()) }
}

fn assert_accepted(version: &str, config: &Path) {
    let output = Command::new(nats_server(version)).arg("-t").arg("-c").arg(config).output().unwrap();
    assert!(
        output.status.success(),
        "nats-server {version} refuses it: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        std::fs::read_to_string(config).unwrap()
    );
}

struct Server {
    child: Child,
    monitor: SocketAddr,
    log: PathBuf,
}

impl Server {
    fn start(version: &str, nats: &NatsConfig) -> Self {
        let log = nats.config.with_extension("log");
        let child = Command::new(nats_server(version))
            .arg("-c")
            .arg(&nats.config)
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, monitor: nats.monitor_listen, log }
    }

    /// Repeats the request until the answer is as expected.
    fn wait_for(&self, path: &str, hoped: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < deadline {
            match get(self.monitor, path) {
                Some(answer) if hoped(&answer) => return answer,
                answer => last = answer.or(last),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{path} last answered {last:?}; the server's log:\n{}", std::fs::read_to_string(&self.log).unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn get(address: SocketAddr, path: &str) -> Option<serde_json::Value> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut response = String::new();
    stream.take(1024 * 1024).read_to_string(&mut response).ok()?;
    serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()
}

#[test]
fn every_shape_is_accepted_by_old_and_new_servers() {
    let bench = Bench::new();
    let include = bench.path("max-subscriptions.conf");
    std::fs::write(&include, "max_subscriptions: 10").unwrap();
    let size = |text: &str| Some(Size::try_from(text.to_owned()).unwrap());
    let limits =
        |max_mem, max_file| JetStream::On(JetStreamLimits { store_dir: bench.path(NASTY_PATH), max_mem, max_file });
    let plain = bench.nats("plain");
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let ipv6 = NatsConfig {
        listen: address("[::]:4222"),
        cluster_listen: address("[::1]:6222"),
        monitor_listen: address("[::1]:8222"),
        ..bench.nats("ipv6")
    };
    let shapes = [
        (plain, None),
        (NatsConfig { client_auth: ClientAuth::Mtls, ..bench.nats("mtls") }, None),
        (bench.nats("credential"), Some(credential("route", "secret"))),
        (bench.nats("nasty-credential"), Some(credential(NASTY_WORD, NASTY_WORD))),
        (NatsConfig { jetstream: JetStream::Off, ..bench.nats("no-jetstream") }, None),
        (NatsConfig { jetstream: limits(size("512MiB"), size("100GB")), ..bench.nats("limits") }, None),
        (NatsConfig { jetstream: limits(size("1K"), None), ..bench.nats("memory") }, None),
        (NatsConfig { include: vec![include.clone(), include], ..bench.nats("includes") }, None),
        (ipv6, None),
    ];
    for (nats, credential) in shapes {
        for peers in [&[][..], &[address("10.0.0.1:6222"), address("[2001:db8::1]:6222")]] {
            bench.write(&nats, "i-0123456789abcdef0", NASTY_CLUSTER, peers, credential.clone());
            for version in VERSIONS {
                assert_accepted(version, &nats.config);
            }
        }
    }
}

#[test]
fn an_include_is_read_wherever_the_configuration_is_read_from() {
    let bench = Bench::new();
    let include = bench.path("max-payload.conf");
    std::fs::write(&include, "max_payload: 4321").unwrap();
    let nats = NatsConfig { include: vec![include], ..bench.nats("n0") };
    bench.write(&nats, "n0", "prod", &[], None);
    let elsewhere = bench.path("a/b/c/d.conf");
    std::fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
    std::fs::copy(&nats.config, &elsewhere).unwrap();
    for version in VERSIONS {
        assert_accepted(version, &elsewhere);
        let server = Server::start(version, &nats);
        server.wait_for("/varz", |varz| varz["max_payload"] == 4321);
    }
}

/// Runs `nats-server -t` on a file. Returns the digest of the settings, or an empty text before 2.11. Returns `None` if
/// nats-server refuses the file.
fn checked(version: &str, config: &Path) -> Option<String> {
    let output = Command::new(nats_server(version)).arg("-t").arg("-c").arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let digest = said.split_once("sha256:").map(|(_, digest)| digest.trim_end_matches([')', '\n']).to_owned());
    output.status.success().then(|| digest.unwrap_or_default())
}

/// A string in hexadecimal escapes, which every nats-server reads and in which no character has a meaning.
fn in_hexadecimal(text: &str) -> String {
    text.bytes().fold(String::new(), |escaped, byte| format!("{escaped}\\x{byte:02x}"))
}

/// Hostile and ordinary text for names from outside.
fn nasty() -> impl Strategy<Value = String> {
    let pieces = [
        "a",
        "n1",
        "é",
        "\u{2028}",
        "\"",
        "\\",
        "'",
        "`",
        "$HOME",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "#",
        "//",
        ";",
        ",",
        ":",
        "=",
        "\n",
        "\r",
        "\t",
        "\u{1}",
        "\u{85}",
        "%",
        "%41",
        "@",
        "\\x22",
        "\\n",
        "include ",
        "debug: true",
        "\njetstream",
        "<",
        "&",
        "{{",
        "%}",
    ];
    let joined = prop::collection::vec(prop::sample::select(pieces.to_vec()), 1..12).prop_map(|pieces| pieces.concat());
    prop_oneof![1 => "(?s).{1,30}", 3 => joined]
}

const PLACES: [&str; 6] =
    ["PLACE-OF-NAME", "PLACE-OF-CLUSTER", "PLACE-OF-PID", "PLACE-OF-STORE", "PLACE-OF-USER", "PLACE-OF-WORD"];

/// The reference is the template with placeholders, which hexadecimal escapes then replace. The reference can only have
/// the template's settings. If nats-server computes the same digest for both texts, the rendered text has only these
/// settings too.
#[test]
fn invariant_14_for_any_names_nats_server_reads_just_the_settings_of_the_template() {
    let cases = if soak::is_long() { 5000 } else { 64 };
    let bench = Bench::new();
    let nats = bench.nats("n0");
    let with = |[name, cluster, pid_file, store_dir, username, password]: [&str; 6]| {
        let node = Node {
            name: name.to_owned(),
            instance_id: None,
            region: None,
            address: LOOPBACK,
            sans: Sans::default(),
            further_addresses: [].into(),
            placement: nats_tls_agent::node::Placement::default(),
        };
        let nats = NatsConfig {
            pid_file: PathBuf::from(pid_file),
            jetstream: JetStream::On(JetStreamLimits {
                store_dir: PathBuf::from(store_dir),
                ..JetStreamLimits::default()
            }),
            ..nats.clone()
        };
        let credential = Some(credential(username, password));
        let values = Values::new(&nats, &node, cluster, [], bench.tls.clone(), credential).ok()?;
        let text = render(None, &values).unwrap().text().to_owned();
        Some((text, values.cluster.routes[0].url().to_owned()))
    };
    let (template, template_route) = with(PLACES).unwrap();
    let (rendered_file, reference_file) = (bench.path("rendered.conf"), bench.path("reference.conf"));
    let (accepted, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    let names = prop::array::uniform6(nasty());
    let outcome = runner.run(&names, |names| {
        let Some((rendered, route)) = with(names.each_ref().map(String::as_str)) else { return Ok(()) };
        let mut reference = template.replace(&template_route, &in_hexadecimal(&route));
        for (place, name) in PLACES.iter().zip(&names) {
            reference = reference.replace(place, &in_hexadecimal(name));
        }
        std::fs::write(&rendered_file, rendered).unwrap();
        std::fs::write(&reference_file, reference).unwrap();
        for version in VERSIONS {
            let (ours, meant) = (checked(version, &rendered_file), checked(version, &reference_file));
            if ours != meant {
                return Err(TestCaseError::fail(format!("{version} reads {ours:?} where {meant:?} is meant")));
            }
            let count = if ours.is_some() { &accepted } else { &refused };
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    });
    outcome.unwrap();
    let (accepted, refused) = (accepted.into_inner(), refused.into_inner());
    soak::figure("names: configurations read alike, and refused alike", format!("{accepted} {refused}"));
    assert!(accepted > cases, "too few names were accepted: {accepted} read, {refused} refused");
}

/// The two servers form a cluster only if each presents what the other reads. They also report the names they have
/// read.
#[test]
fn invariant_14_old_and_new_servers_read_nasty_names_as_they_are() {
    for version in VERSIONS {
        let bench = Bench::new();
        let nats = ["n0", "n1"].map(|name| NatsConfig {
            jetstream: JetStream::On(JetStreamLimits {
                store_dir: bench.path(&format!("{name} {NASTY_PATH}")),
                ..JetStreamLimits::default()
            }),
            ..bench.nats(name)
        });
        let routes = nats.each_ref().map(|nats| nats.cluster_listen);
        let servers: Vec<Server> = nats
            .iter()
            .zip(["n0", "n1"])
            .map(|(nats, name)| {
                bench.write(nats, name, NASTY_CLUSTER, &routes, Some(credential(NASTY_WORD, NASTY_WORD)));
                Server::start(version, nats)
            })
            .collect();
        for (server, nats) in servers.iter().zip(&nats) {
            server.wait_for("/routez", |answer| answer["num_routes"].as_u64() > Some(0));
            let varz = server.wait_for("/varz", |varz| varz["jetstream"]["config"].is_object());
            assert_eq!(varz["cluster"]["name"], NASTY_CLUSTER, "{version}");
            let JetStream::On(limits) = &nats.jetstream else { panic!("JetStream is on") };
            let store_dir = varz["jetstream"]["config"]["store_dir"].as_str().map(Path::new);
            assert_eq!(store_dir.and_then(Path::parent), Some(limits.store_dir.as_path()), "{version}");
        }
    }
}

#[test]
fn invariant_13_a_server_without_the_credential_is_no_route() {
    for version in VERSIONS {
        let bench = Bench::new();
        let nats = ["n0", "n1", "rogue"].map(|name| bench.nats(name));
        let routes = nats.each_ref().map(|nats| nats.cluster_listen);
        bench.write(&nats[0], "n0", "prod", &routes[..2], Some(credential("route", "secret")));
        bench.write(&nats[1], "n1", "prod", &routes[..2], Some(credential("route", "secret")));
        // The rogue has the same CA and cluster, and another password.
        bench.write(&nats[2], "rogue", "prod", &routes, Some(credential("route", "guess")));
        let servers = nats.each_ref().map(|nats| Server::start(version, nats));
        servers[0].wait_for("/routez", |answer| answer["num_routes"].as_u64() > Some(0));
        let deadline = Instant::now() + PATIENCE;
        while !std::fs::read_to_string(&servers[0].log).unwrap().contains("uthentication") {
            assert!(Instant::now() < deadline, "{version}: the rogue server was never refused");
            std::thread::sleep(Duration::from_millis(20));
        }
        for server in &servers[..2] {
            let answer = server.wait_for("/routez", |answer| answer["routes"].is_array());
            let joined = answer["routes"].as_array().unwrap().iter().any(|route| route["remote_name"] == "rogue");
            assert!(!joined, "{version}: {answer}");
        }
    }
}
