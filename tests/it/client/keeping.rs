//! `agent client` and what goes wrong around it: the clock, the directory, AWS, and a document with too many URLs. The metrics of
//! `agent client run` tell of each fault.

use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::gateway::{Fault, Gateway};
use harness::imds::{ImdsStub, InstanceFacts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::state_directory::{STRANGER, as_user};
use crate::time::libfaketime;

/// The samples that `agent client run` serves, without the comments.
async fn scraped(address: SocketAddr) -> Result<Vec<String>, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let asked = stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: app\r\n\r\n").await;
    asked.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    Ok(answer.lines().filter(|line| line.starts_with("nats_tls_client_")).map(str::to_owned).collect())
}

/// Waits until the metrics have each of these samples.
async fn tells(address: SocketAddr, wanted: &[&str]) -> Vec<String> {
    let what = format!("{wanted:?}");
    let told = eventually(&what, SOON, async || {
        let samples = scraped(address).await?;
        let has = |wanted: &&str| samples.iter().any(|sample| sample == wanted);
        if wanted.iter().all(has) { Ok(samples) } else { Err(samples.join("\n")) }
    });
    told.await.unwrap()
}

fn free_address() -> (harness::loopback::Ports, SocketAddr) {
    let ports = free_ports(1).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], ports.numbers()[0]));
    (ports, address)
}

fn end(run: &Child, signal: Signal) {
    kill(Pid::from_raw(run.id().unwrap().try_into().unwrap()), signal).unwrap();
}

/// Each metric is in the table of the documents, and each metric of the table is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_of_a_service_are_those_of_the_documents_and_tell_of_each_failure() {
    let double = AwsDouble::start(SocketAddr::from(([127, 0, 0, 1], 0)), Account::new(REGION)).await.unwrap();
    let arn = double.account(|aws, now| aws.pca.create_authority(CaSettings::root("clients"), now).unwrap());
    let (_port, address) = free_address();
    let on_change = "on_change = { command = [\"/bin/false\"] }";
    let certificate = format!("[client.certificate]\nca_arn = \"{arn}\"\nname = \"app\"\nvalidity = \"1d\"");
    let machine = Machine::new(&format!("{on_change}\n{certificate}\n[metrics]\nlisten = \"{address}\""));
    let mut run = machine.command(&["run"]);
    run.env("AWS_ENDPOINT_URL", double.endpoint()).env("AWS_EC2_METADATA_DISABLED", "true");
    let mut run = run.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").spawn().unwrap();
    let missing =
        ["nats_tls_client_state{state=\"failing\"} 1", "nats_tls_client_reasons{code=\"connection_invalid\"} 1"];
    let samples = tells(address, &missing).await;
    assert!(!samples.iter().any(|sample| sample.contains("not_after")), "{samples:?}");

    let ca = Ca::new("ca");
    machine.set(&document("tls://127.0.0.1:1", &ca.pem, true).to_string());
    let told = "nats_tls_client_reasons{code=\"client_on_change\"} 1";
    let samples = tells(address, &["nats_tls_client_state{state=\"degraded\"} 1", told]).await;
    let value = |name: &str| {
        let found = samples.iter().find_map(|sample| sample.strip_prefix(name)?.strip_prefix(' ')?.parse::<i64>().ok());
        found.unwrap_or_else(|| panic!("{name} in {samples:?}"))
    };
    assert!(value("nats_tls_client_on_change_failures_total") >= 1);
    assert!(value("nats_tls_client_refusals_total{code=\"connection_invalid\"}") >= 1);
    assert_eq!(value("nats_tls_client_document_version"), 1);
    // The document of the test changed at noon of this day.
    assert_eq!(value("nats_tls_client_document_changed_timestamp_seconds"), 1_772_366_400);
    let leaf = Leaf::from_pem(&machine.current("cert.pem")).unwrap();
    assert_eq!(value("nats_tls_client_leaf_not_after_timestamp_seconds"), leaf.not_after.unix_timestamp());
    assert!(!samples.iter().any(|sample| sample.contains("last_success")), "{samples:?}");

    machine.configure(&format!("{certificate}\n[metrics]\nlisten = \"{address}\""));
    end(&run, Signal::SIGTERM);
    assert!(run.wait().await.unwrap().success());
    let mut run = machine.command(&["run"]);
    run.env("AWS_ENDPOINT_URL", double.endpoint()).env("AWS_EC2_METADATA_DISABLED", "true");
    let mut run = run.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").spawn().unwrap();
    let healthy = tells(address, &["nats_tls_client_state{state=\"healthy\"} 1"]).await;
    let listed: BTreeSet<_> = include_str!("../../../docs/clients.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `nats_tls_client_")?.split('`').next())
        .collect();
    let name = |sample: &String| sample["nats_tls_client_".len()..].split(['{', ' ']).next().unwrap().to_owned();
    let served: BTreeSet<_> = samples.iter().chain(&healthy).map(name).collect();
    assert_eq!(served.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed);
    run.kill().await.unwrap();
}

/// A token of instance metadata that never comes holds up the SDK's set-up. An endpoint that never answers holds up a look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_promptly_whatever_it_waits_for() {
    let machine = Machine::new("");
    let files = machine.at("files");
    let token = b"HTTP/1.1 200 OK\r\ncontent-length: 56\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
    for (region, variable) in
        [("", "AWS_EC2_METADATA_SERVICE_ENDPOINT"), ("region = \"eu-west-1\"\n", "AWS_ENDPOINT_URL")]
    {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let text = format!("[connection]\nsecret_id = \"nats/connection\"\n{region}[client]\ndirectory = {files:?}\n");
        std::fs::write(machine.at("client.toml"), text).unwrap();
        let mut run = machine.command(&["run"]);
        run.env(variable, &endpoint).env_remove("AWS_REGION").env_remove("AWS_DEFAULT_REGION");
        if !region.is_empty() {
            run.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        }
        let mut run = run.spawn().unwrap();
        // The agent asks, and the SDK waits for the rest of the answer for ten seconds and more.
        let (mut asked, _) = tokio::time::timeout(SOON, silent.accept()).await.unwrap().unwrap();
        assert!(asked.read(&mut [0; 4096]).await.unwrap() > 0);
        asked.write_all(token).await.unwrap();
        let told = tokio::time::Instant::now();
        end(&run, Signal::SIGTERM);
        let ended = tokio::time::timeout(SOON, run.wait()).await.unwrap().unwrap();
        assert!(ended.success(), "{variable}: {ended}");
        assert!(told.elapsed() < Duration::from_secs(5), "{variable}: {:?}", told.elapsed());
        assert!(!machine.at("files/status.json").exists(), "{variable}: the look had ended before");
    }
}

/// A clock that is off breaks the handshake of a check, and changes no file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_is_named_and_takes_no_file_away() {
    let here = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let ca_file = here.path().join("ca.pem");
    std::fs::write(&ca_file, &ca.pem).unwrap();
    let (server, [client, ..]) = server(here.path(), &tls(&ca.leaf(here.path(), "127.0.0.1", 0), &ca_file), "").await;
    let machine = Machine::new("");
    machine.set(&document(&format!("tls://{client}"), &ca.pem, false).to_string());
    let output = machine.run(&["fetch"]).await;
    assert!(output.status.success(), "{}", said(&output));
    for (offset, code) in [("+2h", "expired"), ("-2h", "not_yet_valid"), ("-20y", "not_yet_valid")] {
        let at = async |arguments: &[&str]| {
            let mut command = machine.command(arguments);
            command.env("LD_PRELOAD", libfaketime()).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            tokio::time::timeout(SOON, command.output()).await.unwrap().unwrap()
        };
        let output = at(&["check"]).await;
        let told = said(&output);
        assert!(output.status.code() == Some(1) && told.contains(code) && told.contains("clock"), "{offset}: {told}");
        let output = at(&["fetch"]).await;
        assert!(output.status.success(), "{offset}: {}", said(&output));
        assert_eq!(machine.current("ca.pem"), ca.pem, "{offset}");
    }
    assert_eq!(std::fs::read_dir(machine.at("files/generations")).unwrap().count(), 1);
    server.kill().await.unwrap();
}

/// The agent runs as a user who loses the right to write and gets it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_not_writable_is_named_the_files_stay_and_the_run_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        println!("not run: only root can run the agent as another user");
        return;
    }
    let (_port, address) = free_address();
    let (machine, ca) = (Machine::new(&format!("[metrics]\nlisten = \"{address}\"")), Ca::new("ca"));
    let agent = machine.at("agent");
    std::fs::copy(crate::AGENT, &agent).unwrap();
    std::fs::set_permissions(machine.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(machine.at("files")).unwrap();
    let of = |user: u32| {
        for path in [machine.at("files"), machine.at("files/generations")].iter().filter(|path| path.exists()) {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
            chown(path, Some(user), Some(user)).unwrap();
        }
    };
    let command = |arguments: &[&str]| {
        let [setpriv, rest @ ..] = &as_user(STRANGER)[..] else { panic!("no launcher") };
        let mut command = Command::new(setpriv);
        command.args(rest).arg(&agent).arg("client").args(arguments).arg("--config").arg(machine.at("client.toml"));
        command.kill_on_drop(true);
        command
    };
    machine.set(&document("tls://127.0.0.1:1", &ca.pem, false).to_string());
    // Nothing can begin in a directory of another user, and the words name the user to run the agent as.
    let output = command(&["fetch"]).output().await.unwrap();
    assert!(output.status.code() == Some(1) && said(&output).contains("belongs to uid 0"), "{}", said(&output));
    of(STRANGER);
    let mut run = command(&["run"]).spawn().unwrap();
    tells(address, &["nats_tls_client_state{state=\"healthy\"} 1", "nats_tls_client_generation 1"]).await;

    of(0);
    let urls = "tls://127.0.0.1:1,tls://127.0.0.1:2";
    machine.set(&document(urls, &ca.pem, false).to_string());
    let refused = ["nats_tls_client_state{state=\"degraded\"} 1", "nats_tls_client_reasons{code=\"file_failed\"} 1"];
    tells(address, &[&refused[..], &["nats_tls_client_generation 1"]].concat()).await;
    assert!(machine.current("nats.env").contains("NATS_URL=tls://127.0.0.1:1\n"));
    of(STRANGER);
    tells(address, &["nats_tls_client_state{state=\"healthy\"} 1", "nats_tls_client_generation 2"]).await;
    assert!(machine.current("nats.env").contains(&format!("NATS_URL={urls}\n")));
    assert!(run.try_wait().unwrap().is_none(), "the run has ended");
    run.kill().await.unwrap();
}

/// The document has as many URLs as a document may have, and all lead to a server that takes its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_many_urls_tries_sixteen_at_the_same_time_and_too_many_urls_are_refused() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tls://{}", listener.local_addr().unwrap());
    let counted = (Arc::clone(&open), Arc::clone(&most));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (open, most) = counted.clone();
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                // The client closes the connection once it has read this. Until then the connection counts.
                drop(client.write_all(b"220 mail\r\n").await);
                drop(client.read_to_end(&mut Vec::new()).await);
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let (machine, ca) = (Machine::new(""), Ca::new("ca"));
    machine.set(&document(&vec![url.as_str(); 100].join(","), &ca.pem, false).to_string());
    let output = machine.run(&["check", "--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() == 100 && checks.iter().all(|check| check["code"] == "not_nats"), "{report}");
    let most = most.load(Ordering::SeqCst);
    // The listener may hear of a close after the next connection.
    assert!((2..=32).contains(&most), "{most} connections at the same time");
    machine.set(&document(&vec![url.as_str(); 101].join(","), &ca.pem, false).to_string());
    let output = machine.run(&["check"]).await;
    assert!(said(&output).contains("has 101 URLs under NATS_URL"), "{}", said(&output));
}

/// AWS denies a secret that was read before, and then the secret is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_is_denied_or_gone_leaves_the_files_and_shells_are_told_of_these_files() {
    let double = AwsDouble::start(SocketAddr::from(([127, 0, 0, 1], 0)), Account::new(REGION)).await.unwrap();
    let (_port, address) = free_address();
    let gateway = Gateway::start(address, &double.endpoint()).await.unwrap();
    let (machine, ca) = (Machine::new(""), Ca::new("ca"));
    let put = |urls: &str| {
        let content = aws_double::secrets::Content::Text(document(urls, &ca.pem, false).to_string());
        double.account(|aws, now| aws.secrets.put("nats/connection", content, now).unwrap())
    };
    let connection = format!("connection = {{ secret_id = \"nats/connection\", region = \"{REGION}\" }}");
    let text = format!("{connection}\nclient.directory = {:?}\n", machine.at("files"));
    std::fs::write(machine.at("client.toml"), text).unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = machine.command(arguments);
        command.env("AWS_ENDPOINT_URL", gateway.endpoint());
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").output().await.unwrap()
    };
    let fetch = async || {
        let output = run(&["fetch", "--json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
    };
    let output = run(&["env"]).await;
    assert!(output.status.code() == Some(1) && said(&output).contains("run `agent client fetch`"), "{}", said(&output));
    let url = "tls://127.0.0.1:1";
    put(url);
    assert_eq!(fetch().await["state"], "healthy");
    let before = machine.current("connection.json");

    gateway.set_fault(Some(Fault::Denied));
    let status = fetch().await;
    let reason = &status["reasons"][0];
    assert_eq!((&status["state"], &reason["code"]), (&"degraded".into(), &"connection_denied".into()));
    assert!(reason["text"].as_str().unwrap().contains("secretsmanager:GetSecretValue"), "{reason}");
    gateway.set_fault(None);
    double.account(|aws, _now| aws.secrets.set_deleted("nats/connection", true));
    let status = fetch().await;
    assert_eq!((&status["state"], &status["reasons"][0]["code"]), (&"degraded".into(), &"connection_refused".into()));
    assert_eq!(machine.current("connection.json"), before);

    // The secret has another URL, and no file has it yet.
    double.account(|aws, _now| aws.secrets.set_deleted("nats/connection", false));
    put("tls://127.0.0.1:2");
    let output = run(&["env"]).await;
    assert!(said(&output).contains(&format!("export NATS_URL='{url}'\n")), "{}", said(&output));
    let output = run(&["context"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), machine.current("context.json"));
    assert_eq!(fetch().await["state"], "healthy");
    let output = run(&["env"]).await;
    assert!(said(&output).contains("export NATS_URL='tls://127.0.0.1:2'\n"), "{}", said(&output));
}

/// Closes each connection until the flag is set, and passes later connections on.
async fn opened_later(server: String) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, is_open) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
    let open = Arc::clone(&is_open);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            if open.load(Ordering::Relaxed) {
                let server = server.trim_start_matches("http://").to_owned();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    // Either end may close the connection at any time.
                    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                });
            }
        }
    });
    (address, is_open)
}

/// The SDK asks for the Region once. Nothing else names the Region of a secret that has no ARN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instance_metadata_that_answers_after_the_start_gives_the_region() {
    let double = AwsDouble::start(SocketAddr::from(([127, 0, 0, 1], 0)), Account::new(REGION)).await.unwrap();
    let (machine, ca) = (Machine::new(""), Ca::new("ca"));
    let content = document("tls://127.0.0.1:1", &ca.pem, false).to_string();
    double.account(|aws, now| {
        aws.secrets.put("nats/connection", aws_double::secrets::Content::Text(content), now).unwrap();
    });
    let instance = InstanceFacts::new("i-0123456789abcdef0", REGION, [127, 0, 0, 1].into());
    let imds = ImdsStub::start(instance).await.unwrap();
    let (address, is_open) = opened_later(imds.endpoint()).await;
    let text = format!(
        "connection.secret_id = \"nats/connection\"\n[client]\ndirectory = \"{}\"\ninterval = \"1s\"\n",
        machine.at("files").display()
    );
    std::fs::write(machine.at("client.toml"), text).unwrap();
    let mut run = machine.command(&["run"]);
    run.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{address}"))
        .env("AWS_ENDPOINT_URL", double.endpoint());
    run.env_remove("AWS_REGION").env_remove("AWS_DEFAULT_REGION");
    let mut run = run.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").spawn().unwrap();
    machine.has("failing", &["connection_unavailable"]).await;
    is_open.store(true, Ordering::Relaxed);
    machine.has("healthy", &[]).await;
    assert_eq!(machine.current("ca.pem"), ca.pem);
    run.kill().await.unwrap();
}
