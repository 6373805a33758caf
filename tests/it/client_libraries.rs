//! Rust, Python and JavaScript clients that connect by the code of docs/clients.md, from nothing but the keys of the connection
//! document.

#![allow(clippy::print_stderr, reason = "a test says what it leaves out")]

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use harness::eventually;
use harness::loopback::{Ports, free_ports};
use harness::nats_server::{Launch, NatsServer};
use harness::services::{Form, Service, environment_file, fences, javascript, python, variables, with_hosts};
use harness::tools;
use serde_json::Value;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Ca, Machine, document, tls};

const SOON: Duration = Duration::from_mins(1);
/// The variables of [`a_rust_service`] beside the variables of the document.
const SUBJECT: &str = "SERVICE_SUBJECT";
const FORM: &str = "SERVICE_FORM";

/// The bundle of a variable, as docs/clients.md has it.
fn ca_of_the_variable() -> Result<PathBuf, Box<dyn Error>> {
    let ca = std::path::PathBuf::from("ca.pem");
    std::fs::write(&ca, std::env::var("NATS_CA")?)?;
    Ok(ca)
}

/// The bundle of a file, as docs/clients.md has it.
fn ca_of_the_file() -> Result<PathBuf, Box<dyn Error>> {
    let ca = std::path::PathBuf::from(std::env::var("NATS_CA")?);
    Ok(ca)
}

/// The connection, as docs/clients.md has it.
async fn connect(ca: PathBuf) -> Result<async_nats::Client, Box<dyn Error>> {
    let urls = std::env::var("NATS_URL")?;
    let urls: Vec<async_nats::ServerAddr> = urls.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let mut options = async_nats::ConnectOptions::new().require_tls(true).add_root_certificates(ca);
    if let (Ok(cert), Ok(key)) = (std::env::var("NATS_CERT"), std::env::var("NATS_KEY")) {
        options = options.add_client_certificate(cert.into(), key.into());
    }
    let client = options.connect(urls).await?;
    Ok(client)
}

/// The program of a Rust service. A service is a process of its own, with variables of its own, so [`responder`] starts this
/// test program anew.
#[tokio::test]
#[ignore = "the other tests start this program, and end it"]
async fn a_rust_service() {
    let Ok(subject) = std::env::var(SUBJECT) else { return };
    let by_file = std::env::var(FORM).unwrap() == "Files";
    let ca = if by_file { ca_of_the_file() } else { ca_of_the_variable() };
    let client = connect(ca.unwrap()).await.unwrap();
    let mut requests = client.queue_subscribe(subject, "responders".into()).await.unwrap();
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    client.flush().await.unwrap();
    println!("\nready");
    loop {
        let request = tokio::select! {
            request = requests.next() => request.unwrap(),
            _ = terminated.recv() => break,
        };
        let answer = format!("rust {}", std::process::id());
        client.publish(request.reply.unwrap(), answer.into()).await.unwrap();
    }
    client.drain().await.unwrap();
}

/// Starts a responder on a subject, with its files in a new directory, these variables and the names of a hosts file. `None`: this
/// machine lacks Node.js or its packages.
pub(crate) async fn responder(
    language: &str,
    directory: &Path,
    form: Form,
    subject: &str,
    variables: &[(String, String)],
    hosts: Option<&Path>,
) -> Option<Service> {
    let name = format!("{language}-{form:?}-{}", fastrand::u32(..));
    let home = directory.join(&name);
    std::fs::create_dir(&home).unwrap();
    let mut variables = variables.to_vec();
    let mut command = match language {
        "rust" => {
            // The arguments are the arguments of a test program, so the subject is a variable.
            variables.extend([(SUBJECT.to_owned(), subject.to_owned()), (FORM.to_owned(), format!("{form:?}"))]);
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["client_libraries::a_rust_service", "--exact", "--ignored", "--nocapture"])
                .current_dir(&home);
            command
        }
        "python" => python(&home, form, "responder.py").unwrap(),
        _ => javascript(&home, form).unwrap()?,
    };
    if language != "rust" {
        command.arg(subject);
    }
    if let Some(hosts) = hosts {
        command = with_hosts(&command, hosts);
    }
    Some(Service::start(&name, command, &home, &variables).await.unwrap())
}

#[test]
fn the_rust_of_the_page_is_the_code_that_the_tests_run() {
    let source = include_str!("client_libraries.rs");
    let found = fences("## Rust", "rust").unwrap();
    assert_eq!(found.len(), 3);
    for fence in found {
        let indented: Vec<_> = fence.lines().map(|line| format!("    {line}")).collect();
        assert!(source.contains(&indented.join("\n")), "docs/clients.md has other code:\n{fence}");
    }
}

/// A nats-server that keeps its port over a restart.
struct Server {
    launch: Launch,
    running: Option<NatsServer>,
    _ports: Ports,
}

impl Server {
    fn new(directory: &Path) -> Self {
        let ports = free_ports(2).unwrap();
        let at = |index: usize| SocketAddr::from(([127, 0, 0, 1], ports.numbers()[index]));
        let (client, monitor) = (at(0), at(1));
        let path = |name: &str| directory.join(format!("server.{name}"));
        let (config, pid_file, log) = (path("conf"), path("pid"), path("log"));
        let binary = tools::nats_server(tools::NATS_SERVER).unwrap();
        let launch = Launch { binary, config, pid_file, client, monitor, log, arguments: Vec::new() };
        Self { launch, running: None, _ports: ports }
    }

    fn url(&self) -> String {
        format!("tls://localhost:{}", self.launch.client.port())
    }

    /// Starts the server with this block `tls`, in the place of the server that runs.
    async fn restart(&mut self, tls: &str) {
        let Launch { config, pid_file, client, monitor, .. } = &self.launch;
        let text = format!("listen: \"{client}\"\nhttp: \"{monitor}\"\npid_file: \"{}\"\n{tls}\n", pid_file.display());
        std::fs::write(config, text).unwrap();
        if let Some(running) = self.running.take() {
            running.stop().await.unwrap();
        }
        self.running = Some(NatsServer::start(self.launch.clone()).await.unwrap());
    }
}

/// The services of a test, each with its subject.
#[derive(Default)]
struct Services(BTreeMap<String, Service>);

impl Services {
    /// Starts a service in each language, with these variables.
    async fn start(&mut self, directory: &Path, form: Form, variables: &[(String, String)]) {
        for language in ["rust", "python", "javascript"] {
            let subject = format!("{language}-{form:?}");
            match responder(language, directory, form, &subject, variables, None).await {
                Some(service) => drop(self.0.insert(subject, service)),
                None => eprintln!("SKIPPED: {subject}: this machine has no Node.js, or cargo xtask setup found no npm"),
            }
        }
    }

    /// Waits until each service of a form answers, as the process that was started.
    async fn answer(&self, form: Form, client: &async_nats::Client) {
        let of_form = self.0.iter().filter(|(name, _)| name.ends_with(&format!("{form:?}")));
        for (name, service) in of_form {
            let answer = eventually(name, SOON, async || {
                let answer = client.request(name.clone(), "".into()).await.map_err(|error| error.to_string())?;
                Ok(String::from_utf8_lossy(&answer.payload).into_owned())
            });
            let answer = answer.await.unwrap_or_else(|late| panic!("{late}\n{}", service.log_tail(30)));
            let language = name.split('-').next().unwrap();
            assert_eq!(answer, format!("{language} {}", service.pid().unwrap()));
        }
    }
}

/// A CA and the certificates that the two sides have of it.
struct Side {
    ca: Ca,
    server: String,
    client: (PathBuf, PathBuf),
}

impl Side {
    /// `mtls`: the server asks clients for a certificate of this CA alone.
    fn new(directory: &Path, name: &str, mtls: bool) -> Self {
        let ca = Ca::new(name);
        let file = directory.join(format!("{name}.pem"));
        std::fs::write(&file, &ca.pem).unwrap();
        let server = tls(&ca.leaf(directory, "localhost", 0), &file);
        let server = if mtls { server.replace('}', ", verify: true }") } else { server };
        Self { server, client: ca.leaf(directory, "service", 0), ca }
    }

    async fn client(&self, url: &str, directory: &Path) -> async_nats::Client {
        let file = directory.join("tests-own.pem");
        std::fs::write(&file, &self.ca.pem).unwrap();
        let options = async_nats::ConnectOptions::new().require_tls(true).add_root_certificates(file);
        let (cert, key) = self.client.clone();
        options.add_client_certificate(cert, key).connect(url).await.unwrap()
    }
}

/// Replaces a file at once.
fn replace(path: &Path, with: &Path) {
    let new = path.with_extension("new");
    std::fs::copy(with, &new).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The bundle, and with `mtls` the certificate of the services, are replaced while the services run. Then the server restarts with
/// a leaf of the new CA, and with `mtls` takes no other client.
async fn the_files_alone_bring_each_service_back(mtls: bool) {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let [old, new] = ["old", "new"].map(|name| Side::new(here, name, mtls));
    let mut server = Server::new(here);
    server.restart(&old.server).await;
    let (cert, key) = (here.join("service.pem"), here.join("service.key"));
    replace(&cert, &old.client.0);
    replace(&key, &old.client.1);
    let login = format!("[login]\ncert_file = \"{}\"\nkey_file = \"{}\"", cert.display(), key.display());
    let machine = Machine::new(if mtls { &login } else { "" });
    let set = |ca: &str| machine.set(&document(&server.url(), ca, mtls).to_string());
    set(&old.ca.pem);
    let mut keeping = machine.command(&["run"]).spawn().unwrap();
    machine.has("healthy", &[]).await;

    let client = old.client(&server.url(), here).await;
    let mut services = Services::default();
    let document: Value = serde_json::from_slice(&std::fs::read(machine.at("connection.json")).unwrap()).unwrap();
    let mut of_document = variables(&document);
    if mtls {
        let paths = [("NATS_CERT", &old.client.0), ("NATS_KEY", &old.client.1)];
        of_document.extend(paths.map(|(name, path)| (name.to_owned(), path.display().to_string())));
    }
    services.start(here, Form::Variables, &of_document).await;
    let of_files = environment_file(&machine.at("files/current/nats.env")).unwrap();
    assert_eq!(of_files.iter().any(|(name, _)| name == "NATS_CERT"), mtls, "{of_files:?}");
    services.start(here, Form::Files, &of_files).await;
    services.answer(Form::Variables, &client).await;
    services.answer(Form::Files, &client).await;

    set(&format!("{}{}", old.ca.pem, new.ca.pem));
    eventually("both CAs in the bundle", SOON, async || {
        let bundle = std::fs::read_to_string(machine.at("files/current/ca.pem")).unwrap();
        if bundle.contains(new.ca.pem.trim()) { Ok(()) } else { Err(bundle) }
    })
    .await
    .unwrap();
    replace(&cert, &new.client.0);
    replace(&key, &new.client.1);
    server.restart(&new.server).await;
    let client = new.client(&server.url(), here).await;
    services.answer(Form::Files, &client).await;
    // A variable keeps the old CA, so the other services stay away. The page says to start them anew.
    for name in services.0.keys().filter(|name| name.ends_with("Variables")) {
        let error = client.request(name.clone(), "".into()).await.unwrap_err();
        assert_eq!(error.kind(), async_nats::client::RequestErrorKind::NoResponders, "{name}");
    }
    // A service without a connection can't drain.
    for (_, service) in services.0.into_iter().filter(|(name, _)| name.ends_with("Files")) {
        service.stop().await.unwrap();
    }
    keeping.kill().await.unwrap();
    server.running.take().unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_library_connects_by_the_page_and_takes_a_new_bundle_without_a_restart() {
    the_files_alone_bring_each_service_back(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_library_presents_its_certificate_and_takes_a_new_certificate_without_a_restart() {
    the_files_alone_bring_each_service_back(true).await;
}
