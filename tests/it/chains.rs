//! Unusual chains, judged side by side by the agent, rustls, openssl, and Go's verifier in nats-server.

#![allow(clippy::print_stdout, reason = "the test's output shows the verdicts")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use harness::loopback::free_ports;
use harness::nats_server::{Launch, NatsServer};
use harness::{table, tools};
use nats_tls_agent::clock::Clock;
use nats_tls_agent::trust::TrustBundle;
use nats_tls_agent::x509::chain::Chain;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;

/// The machine may be slow.
const SOON: Duration = Duration::from_secs(20);
const NAME: &str = "n1.nats.internal";

/// A CA with its key.
struct Ca {
    params: CertificateParams,
    key: KeyPair,
    certificate: String,
}

impl Ca {
    fn root(name: &str) -> Self {
        Self::root_with(name, |_| ())
    }

    fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = (ca_params(name, change), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { params, key, certificate }
    }

    fn below(&self, name: &str) -> Self {
        self.below_with(name, |_| ())
    }

    fn below_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = (ca_params(name, change), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer()).unwrap().pem();
        Self { params, key, certificate }
    }

    /// Another certificate for the name and the key of `ca`, signed by this CA.
    fn crosses(&self, ca: &Self) -> String {
        let mut params = ca.params.clone();
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&ca.key, &self.issuer()).unwrap().pem()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// `with_identifier`: the leaf names the key of its issuer (RFC 5280, section 4.2.1.1).
    fn leaf(&self, with_identifier: bool) -> Leaf {
        let mut params = CertificateParams::default();
        params.use_authority_key_identifier_extension = with_identifier;
        params.subject_alt_names = vec![SanType::DnsName(NAME.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate: Certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Leaf { pem: certificate.pem(), key: key.serialize_pem() }
    }
}

fn ca_params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    params
}

/// Critical certificatePolicies (RFC 5280, section 4.2.1.4) with anyPolicy.
fn with_critical_policies(params: &mut CertificateParams) {
    let any = vec![0x30, 0x08, 0x30, 0x06, 0x06, 0x04, 0x55, 0x1d, 0x20, 0x00];
    let mut policies = CustomExtension::from_oid_content(&[2, 5, 29, 32], any);
    policies.set_criticality(true);
    params.custom_extensions.push(policies);
}

fn permits(name: &str) -> impl FnOnce(&mut CertificateParams) {
    let permitted_subtrees = vec![GeneralSubtree::DnsName(name.to_owned())];
    move |params| {
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }
}

/// A root of version 1, as openssl makes such a root: a request, signed by its own key without extensions.
fn old_root(directory: &Path) -> Ca {
    let params = ca_params("old root", |_| ());
    let key = KeyPair::generate().unwrap();
    let file = |name: &str| directory.join(name);
    std::fs::write(file("old.key"), key.serialize_pem()).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["req", "-new", "-key", "old.key", "-subj", "/CN=old root", "-out", "old.csr"]);
    run(&["x509", "-req", "-in", "old.csr", "-signkey", "old.key", "-days", "30", "-out", "old.pem"]);
    let certificate = std::fs::read_to_string(file("old.pem")).unwrap();
    Ca { params, key, certificate }
}

struct Leaf {
    pem: String,
    key: String,
}

/// A chain that a node serves, and the bundle of whoever verifies it.
struct Case {
    name: &'static str,
    bundle: String,
    leaf: Leaf,
    above: String,
    /// Whether a verifier should accept the chain.
    is_good: bool,
}

fn cases(directory: &Path) -> Vec<Case> {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let (one, two) = (old.below("one"), old.below("two"));
    let v1 = old_root(directory);
    let rolled = [1, 2].map(|_| Ca::root("rolled over"));
    let policies = old.below_with("with policies", with_critical_policies);
    let short = Ca::root_with("short", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let (permitted, denied) =
        (old.below_with("permits", permits("nats.internal")), old.below_with("denies", permits("other.internal")));
    let ended = old.below_with("ended", |params| {
        params.not_before = Clock::System.now() - Duration::from_hours(48);
        params.not_after = Clock::System.now() - Duration::from_hours(24);
    });
    let deep = short.below("too deep");
    let case = |name, bundle: &[&str], ca: &Ca, above: &[&str], is_good| Case {
        name,
        bundle: bundle.concat(),
        leaf: ca.leaf(true),
        above: above.concat(),
        is_good,
    };
    let without_identifier = |case: Case, name, ca: &Ca| Case { name, leaf: ca.leaf(false), ..case };
    let crossed = old.crosses(&new);
    let new_with_old = rolled[0].crosses(&rolled[1]);
    let rolled_over = || {
        case(
            "a self-issued certificate of a CA's new key",
            &[&rolled[0].certificate],
            &rolled[1],
            &[&new_with_old],
            true,
        )
    };
    let same_name =
        || case("two CAs of one name", &[&rolled[0].certificate, &rolled[1].certificate], &rolled[1], &[], true);
    let [old_pem, new_pem, one_pem, two_pem] = [&old, &new, &one, &two].map(|ca| ca.certificate.as_str());
    vec![
        case("a root", &[old_pem], &old, &[], true),
        case("below a subordinate CA", &[old_pem], &one, &[one_pem], true),
        case("a subordinate CA alone in the bundle", &[one_pem], &one, &[], true),
        case("two subordinate CAs in the bundle, and the root", &[two_pem, one_pem, old_pem], &one, &[one_pem], true),
        case("another subordinate CA in the bundle", &[two_pem], &one, &[one_pem], false),
        case("cross-signed, the old root in the bundle", &[old_pem], &new, &[&crossed], true),
        case("cross-signed, the new root in the bundle", &[new_pem], &new, &[&crossed], true),
        case("cross-signed, both roots in the bundle", &[new_pem, old_pem], &new, &[&crossed], true),
        case("a root of version 1", &[&v1.certificate], &v1, &[], true),
        rolled_over(),
        without_identifier(rolled_over(), "the same, and the leaf names no key", &rolled[1]),
        same_name(),
        without_identifier(same_name(), "two CAs of one name, and the leaf names no key", &rolled[1]),
        case("critical policies in the anchor", &[&policies.certificate], &policies, &[], true),
        case("critical policies on the way", &[old_pem], &policies, &[&policies.certificate], true),
        case(
            "critical policies on the way, and in the bundle too",
            &[old_pem, &policies.certificate],
            &policies,
            &[&policies.certificate],
            true,
        ),
        case("a name within the constraints", &[old_pem], &permitted, &[&permitted.certificate], true),
        case("a name outside the constraints", &[old_pem], &denied, &[&denied.certificate], false),
        case("a subordinate CA that has ended", &[old_pem], &ended, &[&ended.certificate], false),
        case("a path that is too long", &[&short.certificate], &deep, &[&deep.certificate], false),
        case("a stranger's root", &[new_pem], &one, &[one_pem], false),
    ]
}

impl Case {
    fn served(&self) -> String {
        format!("{}{}", self.leaf.pem, self.above)
    }

    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.served().as_bytes()).map(Result::unwrap).collect()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for anchor in CertificateDer::pem_slice_iter(self.bundle.as_bytes()) {
            roots.add(anchor.unwrap()).unwrap();
        }
        Arc::new(roots)
    }

    fn agent(&self) -> bool {
        let bundle = TrustBundle::parse(self.bundle.as_bytes(), "test", "1").unwrap();
        bundle.chains(&Chain::from_pem(self.served().as_bytes()).unwrap(), Clock::System.now())
    }

    /// A client of rustls, such as async-nats.
    fn rustls(&self) -> bool {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots(), provider).build().unwrap();
        let certificates = self.certificates();
        let name = ServerName::try_from(NAME).unwrap();
        verifier.verify_server_cert(&certificates[0], &certificates[1..], &name, &[], UnixTime::now()).is_ok()
    }

    /// A client of openssl, such as nats.py. Python's `ssl` module takes a subordinate CA as an anchor since 3.13
    /// (`VERIFY_X509_PARTIAL_CHAIN`), so openssl is asked with this flag.
    fn openssl(&self, directory: &Path) -> bool {
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        write("bundle.pem", &self.bundle);
        write("leaf.pem", &self.leaf.pem);
        write("above.pem", &self.above);
        let mut command = Command::new("openssl");
        command.args(["verify", "-no-CApath", "-no-CAstore", "-partial_chain", "-purpose", "sslserver"]);
        command.args(["-verify_hostname", NAME, "-CAfile", "bundle.pem"]);
        if !self.above.is_empty() {
            command.args(["-untrusted", "above.pem"]);
        }
        command.arg("leaf.pem").current_dir(directory).output().unwrap().status.success()
    }

    /// nats-server with the bundle as `ca_file` and `verify`, to which a client presents the chain.
    async fn go(&self, version: &str, directory: PathBuf) -> bool {
        std::fs::create_dir_all(&directory).unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let own = Ca::root("of the server");
        let server = own.leaf(true);
        let (cert, key) = (write("server.pem", &server.pem), write("server.key", &server.key));
        let ca = write("bundle.pem", &self.bundle);
        let ports = free_ports(2).unwrap();
        let [client, monitor] = [0, 1].map(|index| SocketAddr::from(([127, 0, 0, 1], ports.numbers()[index])));
        let [cert, key, ca] = [cert, key, ca].map(|path| path.display().to_string());
        let (pid_file, log) = (directory.join("pid"), directory.join("log"));
        let config = write(
            "server.conf",
            &format!(
                "listen: \"{client}\"\nhttp: \"{monitor}\"\npid_file: {:?}\n\
                 tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true, timeout: 20 }}\n",
                pid_file.display().to_string()
            ),
        );
        let binary = tools::nats_server(version).unwrap();
        let launch = Launch { binary, config, pid_file, client, monitor, log, arguments: Vec::new() };
        let running = NatsServer::start(launch).await.unwrap();
        let is_taken = tokio::time::timeout(SOON, self.presents(client, &own)).await.unwrap();
        running.kill().await.unwrap();
        is_taken.is_ok()
    }

    /// Connects as a client that presents the chain. nats-server answers a PING of an accepted client alone.
    async fn presents(&self, server: SocketAddr, ca: &Ca) -> std::io::Result<()> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.leaf.key.as_bytes()).unwrap();
        let config = config.with_root_certificates(roots).with_client_auth_cert(self.certificates(), key).unwrap();
        let mut stream = BufReader::new(TcpStream::connect(server).await?);
        stream.read_line(&mut String::new()).await?;
        let name = ServerName::try_from(NAME).unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"CONNECT {\"verbose\":false}\r\nPING\r\n").await?;
        stream.read_u8().await.map(drop)
    }
}

/// Chains that others accept and webpki refuses. The library webpki knows no certificate policies, and refuses each unknown critical
/// extension (RFC 5280, section 4.2).
const REFUSED_BY_WEBPKI: [&str; 1] = ["critical policies on the way"];

/// Chains that others accept and openssl 3.0 refuses. openssl takes the first CA of the right name, and tries no other CA after a
/// wrong signature.
const REFUSED_BY_OPENSSL: [&str; 2] =
    ["the same, and the leaf names no key", "two CAs of one name, and the leaf names no key"];

/// Chains that rustls accepts and others refuse. A trust anchor of webpki has no path length.
const TAKEN_BY_RUSTLS: [&str; 1] = ["a path that is too long"];

#[tokio::test]
async fn each_verifier_gives_the_known_verdict_on_each_unusual_chain() {
    let directory = tempfile::tempdir().unwrap();
    let cases = cases(directory.path());
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for (number, case) in cases.iter().enumerate() {
        let place = directory.path().join(number.to_string());
        std::fs::create_dir(&place).unwrap();
        let servers = tools::NATS_SERVER_VERSIONS.map(|version| case.go(version, place.join(version)));
        let servers = harness::join_all(servers).await;
        let verdicts = [&[case.agent(), case.rustls(), case.openssl(&place)], &servers[..]].concat();
        let webpki = case.is_good && !REFUSED_BY_WEBPKI.contains(&case.name);
        let rustls = webpki || TAKEN_BY_RUSTLS.contains(&case.name);
        let openssl = case.is_good && !REFUSED_BY_OPENSSL.contains(&case.name);
        if verdicts != [webpki, rustls, openssl, case.is_good, case.is_good, case.is_good] {
            wrong.push(case.name);
        }
        let mut cells = verdicts.iter().map(|is_taken| if *is_taken { "accepts" } else { "refuses" });
        rows.push(std::array::from_fn(|column| {
            if column == 0 { case.name } else { cells.next().unwrap_or_default() }.to_owned()
        }));
    }
    let [first, second, third] = tools::NATS_SERVER_VERSIONS;
    let head = ["chain", "agent", "rustls", "openssl", first, second, third].map(str::to_owned);
    let table = table::render(&head, &rows);
    println!("{table}");
    assert!(wrong.is_empty(), "other verdicts than expected: {wrong:?}\n{table}");
}
