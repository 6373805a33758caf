//! `agent client`: against real nats-servers that a service can't connect to, and with documents that can't be used.

#![allow(clippy::print_stdout, reason = "the test's output shows the table")]

mod keeping;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use aws_double::Account;
use aws_double::http::AwsDouble;
use aws_double::pca::CaSettings;
use futures_util::StreamExt as _;
use harness::eventually;
use harness::loopback::free_ports;
use harness::moto::{Moto, REGION};
use harness::nats_server::{Launch, NatsServer};
use harness::{table, tools};
use nats_tls_agent::client::check::Fault;
use nats_tls_agent::clock::Clock;
use nats_tls_agent::x509::leaf::Leaf;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const SOON: Duration = Duration::from_mins(1);

/// A CA of a test.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes a leaf for `name`, valid for the hour that begins `hours` from now, and returns the files of leaf and key.
    pub(crate) fn leaf(&self, directory: &Path, name: &str, hours: i64) -> (PathBuf, PathBuf) {
        self.leaf_for(
            directory,
            name,
            hours,
            &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    fn leaf_for(
        &self,
        directory: &Path,
        name: &str,
        hours: i64,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into().unwrap()),
        }];
        params.extended_key_usages = usages.to_vec();
        let begin = Clock::System.now() + time::Duration::hours(hours) - time::Duration::minutes(1);
        (params.not_before, params.not_after) = (begin, begin + time::Duration::hours(1));
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().pem();
        let stem = format!("{}-{}", name.replace(['.', ':'], "-"), fastrand::u32(..));
        let files = (directory.join(format!("{stem}.pem")), directory.join(format!("{stem}.key")));
        std::fs::write(&files.0, leaf).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

/// Starts a nats-server with `tls`, and more lines of configuration. Returns the server with its client, monitoring and route ports.
async fn server(directory: &Path, tls: &str, more: &str) -> (NatsServer, [SocketAddr; 3]) {
    let ports = free_ports(3).unwrap();
    let [client, monitor, route] = [0, 1, 2].map(|index| SocketAddr::from(([127, 0, 0, 1], ports.numbers()[index])));
    let path = |end: &str| directory.join(format!("{}.{end}", client.port()));
    let route_tls = tls.replace('}', ", verify: true }");
    let cluster = if more.contains("CLUSTER") {
        format!("cluster {{ name: c, listen: \"{route}\", {route_tls} }}\n")
    } else {
        String::new()
    };
    let text = format!(
        "server_name: s{0}\nlisten: \"{client}\"\nhttp: \"{monitor}\"\npid_file: \"{1}\"\n{tls}\n{cluster}{2}\n",
        client.port(),
        path("pid").display(),
        more.replace("CLUSTER", "")
    );
    std::fs::write(path("conf"), text).unwrap();
    let binary = tools::nats_server(tools::NATS_SERVER).unwrap();
    let (config, pid_file, log) = (path("conf"), path("pid"), path("log"));
    let launch = Launch { binary, config, pid_file, client, monitor, log, arguments: Vec::new() };
    (NatsServer::start(launch).await.unwrap(), [client, monitor, route])
}

/// A handshake may take as long as a busy machine takes. nats-server's own limit is two seconds.
pub(crate) fn tls((cert, key): &(PathBuf, PathBuf), ca: &Path) -> String {
    let [cert, key, ca] = [cert, key, ca].map(|path| path.display());
    format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", timeout: 20 }}")
}

pub(crate) fn document(urls: &str, ca: &str, needs_certificate: bool) -> Value {
    let client_cert = if needs_certificate { "required" } else { "none" };
    json!({
        "NATS_URL": urls, "NATS_CA": ca, "NATS_TLS_REQUIRED": "true", "NATS_CLIENT_CERT": client_cert,
        "version": 1, "cluster": "c", "changed_at": "2026-03-01T12:00:00Z", "trusts_from": {},
    })
}

/// Passes connections on to `server`, each after a while, as a server under load takes them up.
async fn slow_way_to(server: SocketAddr, after: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let mut server = TcpStream::connect(server).await.unwrap();
                // Either end may close the connection at any time.
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    address
}

/// Greets as a nats-server with TLS, and closes each connection.
async fn closing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let greeting = b"INFO {\"server_name\":\"s\",\"tls_required\":true,\"client_id\":1}\r\n";
            client.write_all(greeting).await.unwrap();
            client.shutdown().await.unwrap();
        }
    });
    address
}

/// A service's machine: a directory with client.toml and the document.
pub(crate) struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new(more: &str) -> Self {
        let machine = Self { directory: tempfile::tempdir().unwrap() };
        machine.configure(more);
        machine
    }

    fn configure(&self, more: &str) {
        let text = format!(
            "[connection]\nfile = \"{}\"\n[client]\ndirectory = \"{}\"\ninterval = \"1s\"\n{more}\n",
            self.at("connection.json").display(),
            self.at("files").display()
        );
        std::fs::write(self.at("client.toml"), text).unwrap();
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn set(&self, document: &str) {
        std::fs::write(self.at("new"), document).unwrap();
        std::fs::rename(self.at("new"), self.at("connection.json")).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(crate::AGENT);
        command.arg("client").args(arguments).arg("--config").arg(self.at("client.toml")).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        tokio::time::timeout(SOON, self.command(arguments).output()).await.unwrap().unwrap()
    }

    fn current(&self, name: &str) -> String {
        std::fs::read_to_string(self.at("files/current").join(name)).unwrap()
    }

    /// Waits until `status.json` has this state and these codes.
    pub(crate) async fn has(&self, state: &str, codes: &[&str]) {
        let what = format!("{state} {codes:?}");
        let has = eventually(&what, SOON, async || {
            let text = std::fs::read_to_string(self.at("files/status.json")).map_err(|error| error.to_string())?;
            let status: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let found: Vec<_> =
                status["reasons"].as_array().into_iter().flatten().map(|reason| reason["code"].clone()).collect();
            if status["state"] == state && found == codes { Ok(()) } else { Err(text) }
        });
        has.await.unwrap();
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a row of the table is made of.
struct Setup {
    name: &'static str,
    url: String,
    ca: String,
    needs_certificate: bool,
    login: String,
    code: Option<&'static str>,
}

async fn checked(setup: &Setup) -> (Value, Option<i32>) {
    let machine = Machine::new(&setup.login);
    machine.set(&document(&setup.url, &setup.ca, setup.needs_certificate).to_string());
    let output = machine.run(&["check", "--json"]).await;
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    (report["checks"][0].clone(), output.status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_says_of_each_broken_setup_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let (ours, other) = (Ca::new("ours"), Ca::new("other"));
    let ca_file = here.join("ca.pem");
    std::fs::write(&ca_file, &ours.pem).unwrap();
    let local = |hours| tls(&ours.leaf(here, "127.0.0.1", hours), &ca_file);
    let users = "authorization { users: [ { user: app, password: right } ] }";
    let verifying = local(0).replace('}', ", verify: true }");
    let (good, [good_at, monitor, route]) = server(here, &local(0), "CLUSTER").await;
    let (plain, [plain_at, ..]) = server(here, "", "").await;
    let (named, [named_at, ..]) = server(here, &tls(&ours.leaf(here, "other.internal", 0), &ca_file), "").await;
    let (ended, [ended_at, ..]) = server(here, &local(-2), "").await;
    let (early, [early_at, ..]) = server(here, &local(2), "").await;
    let (mutual, [mutual_at, ..]) = server(here, &verifying, "").await;
    let first = local(0).replace('}', ", handshake_first: true }");
    let (first, [first_at, ..]) = server(here, &first, "").await;
    let useless = ours.leaf_for(here, "127.0.0.1", 0, &[ExtendedKeyUsagePurpose::ClientAuth]);
    let (useless, [useless_at, ..]) = server(here, &tls(&useless, &ca_file), "").await;
    let secure = free_ports(1).unwrap();
    let secure_at = SocketAddr::from(([127, 0, 0, 1], secure.numbers()[0]));
    let websocket = format!("websocket {{ listen: \"{secure_at}\", {} }}", local(0));
    let (secured, _) = server(here, &local(0), &websocket).await;
    let slow_at = slow_way_to(good_at, Duration::from_millis(2500)).await;
    let (closed, [closed_at, ..]) = server(here, &local(0), users).await;
    let (full, [full_at, ..]) = server(here, &local(0), "max_connections: 1").await;
    let options = async_nats::ConnectOptions::new().add_root_certificates(ca_file.clone());
    // nats-server may not have noticed the end of the connection that waited for its start.
    let _only = eventually("the only client", SOON, async || {
        let options = options.clone().connection_timeout(SOON);
        options.connect(format!("tls://{full_at}")).await.map_err(|error| error.to_string())
    })
    .await
    .unwrap();
    let nobody = free_ports(1).unwrap();
    // The system accepts connections, and nobody reads them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (wrong, right) = (here.join("wrong"), here.join("right"));
    std::fs::write(&wrong, "wrong").unwrap();
    std::fs::write(&right, "right\n").unwrap();
    let user = |password: &Path| format!("[login]\nuser = \"app\"\npassword_file = {password:?}");
    let certificate = |(cert, key): (PathBuf, PathBuf)| format!("[login]\ncert_file = {cert:?}\nkey_file = {key:?}");
    let setup = |name, url: String, code| Setup {
        name,
        url,
        ca: ours.pem.clone(),
        needs_certificate: false,
        login: String::new(),
        code,
    };
    let at = |address: SocketAddr| format!("tls://{address}");
    let mutually = |name, login, code| Setup { needs_certificate: true, login, ..setup(name, at(mutual_at), code) };
    let setups = [
        setup("a good server", at(good_at), None),
        setup("a name without an address", "tls://nats.invalid:4222".into(), Some("no_resolve")),
        setup("a closed port", format!("tls://127.0.0.1:{}", nobody.numbers()[0]), Some("connection_refused")),
        setup("a port that never speaks", at(silent.local_addr().unwrap()), Some("no_answer")),
        setup("a server that greets late", at(slow_at), None),
        setup("a server that begins with TLS", at(first_at), None),
        setup("a server that closes", at(closing().await), Some("closed")),
        setup("a certificate that is none of a server", at(useless_at), Some("tls_failed")),
        setup("the WebSocket port", at(secure_at), Some("not_nats")),
        setup("a server without TLS", at(plain_at), Some("not_tls")),
        setup("the monitoring port", at(monitor), Some("not_nats")),
        setup("the route port", at(route), Some("route_port")),
        Setup { ca: other.pem.clone(), ..setup("another cluster's CA", at(good_at), Some("unknown_ca")) },
        setup("a certificate of another name", at(named_at), Some("wrong_name")),
        setup("a certificate that has ended", at(ended_at), Some("expired")),
        setup("a clock that is behind", at(early_at), Some("not_yet_valid")),
        mutually("no client certificate", String::new(), Some("certificate_required")),
        mutually(
            "another CA's client certificate",
            certificate(other.leaf(here, "app", 0)),
            Some("certificate_refused"),
        ),
        mutually(
            "a client certificate that has ended",
            certificate(ours.leaf(here, "app", -2)),
            Some("certificate_refused"),
        ),
        mutually("a good client certificate", certificate(ours.leaf(here, "app", 0)), None),
        mutually(
            "a key that isn't there",
            certificate((ca_file.clone(), here.join("no"))),
            Some("certificate_unusable"),
        ),
        setup("no login", at(closed_at), Some("authorization")),
        Setup { login: user(&wrong), ..setup("a wrong password", at(closed_at), Some("authorization")) },
        Setup { login: user(&right), ..setup("the right password", at(closed_at), None) },
        Setup {
            login: user(&here.join("no")),
            ..setup("no password file", at(closed_at), Some("credentials_unusable"))
        },
        setup("a full server", at(full_at), Some("server_full")),
        setup("no URL", "nats.internal".into(), Some("no_url")),
    ];
    let found: Vec<_> = futures_util::stream::iter(&setups).map(checked).buffered(4).collect().await;
    for server in [good, plain, named, ended, early, mutual, first, useless, secured, closed, full] {
        server.kill().await.unwrap();
    }
    assert_told(&setups, &found);
}

/// Prints a row for each set-up, and compares each code and each exit code.
fn assert_told(setups: &[Setup], found: &[(Value, Option<i32>)]) {
    let mut failed = Vec::new();
    for (setup, (finding, exit)) in setups.iter().zip(found) {
        if finding["code"].as_str() != setup.code || *exit != Some(i32::from(setup.code.is_some())) {
            failed.push(format!("{}: {finding}, exit {exit:?}", setup.name));
        }
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = setups.iter().zip(found).map(|(setup, (finding, _))| {
        [
            setup.name.to_owned(),
            setup.code.unwrap_or("ok").to_owned(),
            text(&finding["found"]),
            text(&finding["remedy"]),
        ]
    });
    let rows: Vec<_> = rows.collect();
    println!("{}", table::render(&["set-up", "code", "found", "remedy"].map(str::to_owned), &rows));
    let broken: Vec<_> = setups.iter().filter_map(|setup| setup.code).collect();
    println!("{} broken set-ups, {} that work", broken.len(), setups.len() - broken.len());
    assert!(broken.len() >= 15);
    assert_eq!(BTreeSet::from_iter(broken), Fault::ALL.iter().map(|fault| fault.code()).collect());
    let late = &found[setups.iter().position(|setup| setup.name == "a server that greets late").unwrap()].0;
    assert!(text(&late["found"]).contains("takes the login, and is slow: it greets after "), "{late}");
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_document_says_the_last_good_files_stay_and_the_run_goes_on() {
    let here = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let ca_file = here.path().join("ca.pem");
    std::fs::write(&ca_file, &old.pem).unwrap();
    let (server, [client, ..]) = server(here.path(), &tls(&old.leaf(here.path(), "127.0.0.1", 0), &ca_file), "").await;
    let urls = format!("tls://{client}");
    let told = here.path().join("told");
    let command = format!(
        "on_change = {{ command = [\"/bin/sh\", \"-c\", \"test -e $0/ok && echo >> $0/told\", {:?}] }}",
        here.path()
    );
    std::fs::write(here.path().join("ok"), "").unwrap();
    let machine = Machine::new(&command);

    // Before the first document there is nothing, and the run waits.
    let mut run: Child = machine.command(&["run"]).spawn().unwrap();
    machine.has("failing", &["connection_invalid"]).await;
    let good = document(&urls, &old.pem, false).to_string();
    machine.set(&good);
    machine.has("healthy", &[]).await;
    assert_eq!(machine.current("ca.pem"), old.pem);
    assert!(machine.current("nats.env").contains(&format!("NATS_URL={urls}\n")));
    let context: Value = serde_json::from_str(&machine.current("context.json")).unwrap();
    assert_eq!(context["url"], urls.as_str());
    assert_eq!(std::fs::read_to_string(&told).unwrap().len(), 1);

    let mut newer = document(&urls, &old.pem, false);
    newer["version"] = json!(2);
    let refused = document(&urls, &new.pem, false).to_string();
    let other = tls(&new.leaf(here.path(), "other.internal", 0), &ca_file);
    let (misnamed, [misnamed_at, ..]) = self::server(here.path(), &other, "").await;
    let without_name = document(&format!("tls://{misnamed_at}"), &new.pem, false).to_string();
    for (bad, code) in [
        (&good[..good.len() / 2], "connection_invalid"),
        ("", "connection_invalid"),
        (&newer.to_string(), "connection_invalid"),
        (&refused, "client_ca_refused"),
        (&without_name, "client_ca_refused"),
    ] {
        machine.set(bad);
        machine.has("degraded", &[code]).await;
        assert_eq!(machine.current("ca.pem"), old.pem);
        machine.set(&good);
        machine.has("healthy", &[]).await;
    }
    // Shells and people get the last good settings too.
    machine.set("half a docu");
    let output = machine.run(&["env"]).await;
    assert!(said(&output).contains(&format!("export NATS_URL='{urls}'")), "{}", said(&output));
    let output = machine.run(&["check"]).await;
    assert!(output.status.code() == Some(1) && said(&output).contains("takes the login"), "{}", said(&output));

    // The document of a rollover has both CAs. An on_change that fails is tried until the service is told.
    std::fs::remove_file(here.path().join("ok")).unwrap();
    let both = format!("{}{}", old.pem, new.pem);
    machine.set(&document(&urls, &both, false).to_string());
    machine.has("degraded", &["client_on_change"]).await;
    assert_eq!(machine.current("ca.pem"), both);
    std::fs::write(here.path().join("ok"), "").unwrap();
    machine.has("healthy", &[]).await;
    assert_eq!(std::fs::read_to_string(&told).unwrap().len(), 2);
    assert!(run.try_wait().unwrap().is_none(), "the run has ended");
    // The directory has one writer.
    let output = machine.run(&["fetch"]).await;
    assert!(output.status.code() == Some(1) && said(&output).contains("another agent is at work"), "{}", said(&output));
    run.kill().await.unwrap();
    server.kill().await.unwrap();
    misnamed.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_reads_the_secret_and_says_why_it_can_not() {
    let (moto, machine, ca) = (Moto::start().await.unwrap(), Machine::new(""), Ca::new("ca"));
    let files = machine.at("files");
    let text = format!(
        "connection = {{ secret_id = \"nats/connection\", region = \"{REGION}\" }}\nclient.directory = {files:?}\n"
    );
    std::fs::write(machine.at("client.toml"), text).unwrap();
    let fetch = async || {
        let mut command = machine.command(&["fetch", "--json"]);
        command
            .env("AWS_ENDPOINT_URL", moto.endpoint())
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        let output = command.output().await.unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        (output.status.code(), status)
    };
    let (code, status) = fetch().await;
    assert_eq!((code, &status["reasons"][0]["code"]), (Some(1), &"connection_refused".into()), "{status}");
    // Nobody listens at the URL, so nothing speaks against the CA.
    let document = document("tls://127.0.0.1:1", &ca.pem, false);
    moto.put_secret("nats/connection", &document.to_string()).await.unwrap();
    let (code, status) = fetch().await;
    assert_eq!((code, &status["state"]), (Some(0), &"healthy".into()), "{status}");
    assert_eq!(machine.current("ca.pem"), ca.pem);
    std::fs::write(machine.at("client.toml"), "[client]\nintervall = \"1s\"").unwrap();
    let output = machine.run(&["fetch"]).await;
    assert!(output.status.code() == Some(2) && said(&output).contains("client.toml:2: client"), "{}", said(&output));
}

/// Clients and servers have different CAs, as in some deployments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_a_certificate_of_its_own_that_is_paid_for_once_and_lets_it_in() {
    let here = tempfile::tempdir().unwrap();
    let double = AwsDouble::start(SocketAddr::from(([127, 0, 0, 1], 0)), Account::new(REGION)).await.unwrap();
    let (arn, pem) = double.account(|aws, now| {
        let arn = aws.pca.create_authority(CaSettings::root("clients"), now).unwrap();
        (arn.clone(), aws.pca.authority(&arn).unwrap().pem().to_owned())
    });
    let paid = || double.account(|aws, _now| aws.pca.paid().len());
    let (ours, ca_file) = (Ca::new("ours"), here.path().join("clients.pem"));
    std::fs::write(&ca_file, pem).unwrap();
    let verifying = tls(&ours.leaf(here.path(), "127.0.0.1", 0), &ca_file).replace('}', ", verify: true }");
    let (server, [client, ..]) = server(here.path(), &verifying, "").await;
    let uris = "uris = [\"spiffe://prod/app\"]\nvalidity = \"1d\"";
    let machine = Machine::new(&format!("[client.certificate]\nca_arn = \"{arn}\"\nname = \"app\"\n{uris}"));
    let run = async |arguments: &[&str], endpoint: &str| {
        let mut command = machine.command(arguments);
        command.env("AWS_ENDPOINT_URL", endpoint).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").output().await.unwrap()
    };
    let nobody = "http://127.0.0.1:1";

    // Without PCA there is a document and no certificate yet.
    machine.set(&document(&format!("tls://{client}"), &ours.pem, true).to_string());
    let output = run(&["fetch", "--json"], nobody).await;
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["state"], &status["reasons"][0]["code"]), (&"degraded".into(), &"issuer_unavailable".into()));
    let output = run(&["fetch"], &double.endpoint()).await;
    assert!(output.status.success() && paid() == 1, "{}", said(&output));
    let leaf = Leaf::from_pem(&machine.current("cert.pem")).unwrap();
    assert_eq!(leaf.sans.uris, ["spiffe://prod/app".to_owned()].into());
    let mode = std::fs::metadata(machine.at("files/current/key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o137, 0, "{mode:o}");
    let output = run(&["check"], nobody).await;
    assert!(output.status.success(), "{}", said(&output));

    // Nothing is due, so nothing is paid for, whatever the document says.
    let before = machine.current("cert.pem");
    machine.set(&document(&format!("tls://{client},tls://127.0.0.1:1"), &ours.pem, true).to_string());
    let output = run(&["fetch"], &double.endpoint()).await;
    assert!(output.status.success() && paid() == 1, "{}", said(&output));
    assert_eq!(machine.current("cert.pem"), before);
    assert!(machine.current("nats.env").contains("/current/cert.pem\n"));

    // A service that needs no certificate any more has none, and its files name none.
    machine.configure("");
    let output = run(&["fetch"], nobody).await;
    assert!(output.status.success() && paid() == 1, "{}", said(&output));
    for name in ["cert.pem", "key.pem"] {
        assert!(!machine.at("files/current").join(name).exists(), "{name} stays");
    }
    assert!(!machine.current("nats.env").contains("cert.pem"));
    // Earlier generations keep their key until the next look.
    let keys = || {
        let generations = std::fs::read_dir(machine.at("files/generations")).unwrap();
        generations.filter(|generation| generation.as_ref().unwrap().path().join("key.pem").exists()).count()
    };
    assert_ne!(keys(), 0);
    let output = run(&["fetch"], nobody).await;
    assert!(output.status.success() && keys() == 0, "{}", said(&output));
    server.kill().await.unwrap();
}
