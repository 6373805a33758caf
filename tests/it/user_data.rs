//! Runs `templates/user-data` in a directory that replaces `/`. A local web server serves the downloads, and stubs
//! replace the package managers.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use harness::template::fill;
use harness::tools::{self, workspace};
use nats_tls_agent::config::{Config, TrustConfig};
use nats_tls_agent::digest::sha256_hex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

/// EC2's limit for user data, in bytes before base64
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html>).
const LIMIT: usize = 16 * 1024;

const AGENT_PACKAGE: &[u8] = b"the agent's package";

// === The user data ===

/// The files that the user data writes, by path, and the commands that the user data runs.
struct UserData {
    files: BTreeMap<String, String>,
    commands: serde_json::Value,
}

/// The values of the placeholders.
#[derive(Clone)]
struct Values {
    server: (String, String),
    agent: (String, String),
    /// Additional agent.toml and additional nats-server configuration, each in base64.
    extra: (&'static str, &'static str),
    /// `nats.include`.
    include: &'static str,
}

/// The file alone that the script makes.
const INCLUDE: &str = r#"["/etc/nats/conf.d/extra.conf"]"#;

impl Values {
    fn examples() -> Self {
        let url = |name: &str| (format!("https://example.com/{name}"), sha256_hex(name.as_bytes()));
        let (server, agent) = (url("nats-server-v2.12.8-linux-amd64.tar.gz"), url("nats-tls-agent_0.1.0_amd64.deb"));
        Self { server, agent, extra: ("", ""), include: INCLUDE }
    }
}

fn template() -> String {
    fs::read_to_string(workspace().join("templates/user-data/user-data.yaml")).unwrap()
}

fn filled(values: &Values) -> String {
    let values = [
        ("nats_server_url", values.server.0.as_str()),
        ("nats_server_sha256", &values.server.1),
        ("agent_url", &values.agent.0),
        ("agent_sha256", &values.agent.1),
        ("ca_arn", "arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/11111111-2222-3333-4444-555555555555"),
        ("validity", "7d"),
        ("trust_secret_id", "nats/trust-bundle"),
        ("dns_names", r#"["nats.internal"]"#),
        ("addresses", "dns"),
        ("cluster_secret_id", "nats/cluster-credential"),
        ("nats_include", values.include),
        ("extra_agent_toml", values.extra.0),
        ("extra_nats_config", values.extra.1),
    ];
    fill(&template(), &values).unwrap()
}

/// Reads the user data as cloud-init does, with PyYAML, and decodes base64.
fn read(user_data: &str) -> UserData {
    let script = "\
import base64, json, sys, yaml
data = yaml.safe_load(sys.stdin)
for file in data['write_files']:
    if file.get('encoding') == 'b64':
        file['content'] = base64.b64decode(file['content']).decode()
json.dump(data, sys.stdout)
";
    let mut python = std::process::Command::new(tools::moto_python().unwrap());
    let mut child = python.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), user_data.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let data: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let files = data["write_files"].as_array().unwrap();
    let files = files.iter().map(|file| (text(&file["path"]), text(&file["content"]))).collect();
    UserData { files, commands: data["runcmd"].clone() }
}

/// Parses agent.toml as the agent does. The included file must exist, so the test replaces its path.
fn parse(text: &str, extra: &Path) -> Config {
    let text = text.replace("/etc/nats/conf.d/extra.conf", extra.to_str().unwrap());
    Config::parse(&text, Path::new("agent.toml")).unwrap()
}

// === The root directory ===

/// A directory that replaces `/`, with stubs for the programs that install packages and start services.
struct Root {
    directory: tempfile::TempDir,
    is_bash: bool,
    /// The directories of programs other than the stubs.
    programs: String,
}

/// A stub records its arguments. A stub of an installer copies an existing file `own-file` to agent.toml, as a package
/// does. The stub fails while the file `broken` exists.
const STUB: &str = r#"#!/bin/sh
echo "${0##*/} $*" >>"$ROOT/calls"
case ${0##*/} in
apt-get | dnf)
    [ ! -e "$ROOT/broken" ] || { echo 'no space left' >&2; exit 100; }
    for file; do :; done
    mkdir -p "$ROOT/usr/bin"
    cat "$file" >"$ROOT/usr/bin/$(basename "$file")"
    [ ! -e "$ROOT/own-file" ] || cp "$ROOT/own-file" "$ROOT/etc/nats-tls-agent/agent.toml"
    ;;
esac
"#;

impl Root {
    fn new(values: &Values) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Self { directory, is_bash: false, programs: "/usr/bin:/bin".into() };
        for directory in ["dev", "stubs"] {
            fs::create_dir(root.path(directory)).unwrap();
        }
        fs::write(root.path("dev/console"), "").unwrap();
        for name in ["apt-get", "chgrp", "dnf", "systemctl"] {
            let stub = root.path("stubs").join(name);
            fs::write(&stub, STUB).unwrap();
            fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
        }
        root.write_files(values);
        root
    }

    /// Writes the files as cloud-init's write_files does, but removes the pauses between tries.
    fn write_files(&self, values: &Values) {
        for (path, content) in read(&filled(values)).files {
            let path = self.path(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.replace("pause=2\n", "pause=0\n")).unwrap();
        }
    }

    fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(below)
    }

    fn text(&self, below: &str) -> String {
        fs::read_to_string(self.path(below)).unwrap_or_default()
    }

    async fn run(&self) -> Output {
        let path = format!("{}:{}", self.path("stubs").display(), self.programs);
        // `bash --posix` is /bin/sh on Amazon Linux. On Debian /bin/sh is dash.
        let shell: &[&str] = if self.is_bash { &["/bin/bash", "--posix"] } else { &["/bin/sh"] };
        Command::new(shell[0])
            .args(&shell[1..])
            .arg(self.path("var/lib/nats-node/setup"))
            .arg(self.directory.path())
            .env_clear()
            .envs([("PATH", path.as_str()), ("ROOT", self.directory.path().to_str().unwrap())])
            .kill_on_drop(true)
            .output()
            .await
            .unwrap()
    }

    async fn succeeds(&self) -> String {
        let output = self.run().await;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
        assert_eq!(self.text("dev/console"), "", "a successful run wrote to the console");
        said
    }

    /// Runs the script, which must fail. Returns the single line on the console.
    async fn fails(&self) -> String {
        let output = self.run().await;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "{said}");
        let console = self.text("dev/console");
        assert!(console.starts_with("nats-node: FAILED: ") && console.lines().count() == 1, "{console}\n{said}");
        fs::write(self.path("dev/console"), "").unwrap();
        console
    }

    /// Returns the stubs' calls since the previous call of this function.
    fn calls(&self) -> Vec<String> {
        let calls = self.text("calls").replace(self.directory.path().to_str().unwrap(), "");
        drop(fs::remove_file(self.path("calls")));
        calls.lines().map(ToOwned::to_owned).collect()
    }

    /// All files, with mode, time and content.
    fn everything(&self) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
        let (mut found, mut directories) = (BTreeMap::new(), vec![self.directory.path().to_owned()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let (path, metadata) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
                if metadata.is_dir() {
                    directories.push(path);
                } else if !path.ends_with("calls") {
                    let content = fs::read(&path).unwrap();
                    found.insert(path, (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), content));
                }
            }
        }
        found
    }
}

// === The downloads ===

/// The server's reaction to one request.
#[derive(Clone, Copy)]
enum Turn {
    Serve,
    Status503,
    CutOff,
}

/// A web server for files. The server ends when dropped.
struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// The reactions before normal service, in order.
    turns: Vec<Turn>,
    asked: Vec<String>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut request = String::new();
                while stream.read_line(&mut request).await.is_ok_and(|length| length > 2) {}
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = shared.lock().unwrap().answer(path);
                // The client may close the connection at any time.
                drop(stream.get_mut().write_all(&answer).await);
            }
        });
        Self { address, state, task }
    }

    /// Puts a file on the server, and returns its URL and digest.
    fn put(&self, name: &str, content: &[u8]) -> (String, String) {
        self.state.lock().unwrap().files.insert(format!("/{name}"), content.to_owned());
        (format!("http://{}/{name}", self.address), sha256_hex(content))
    }

    fn first(&self, turns: &[Turn]) {
        turns.clone_into(&mut self.state.lock().unwrap().turns);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// The values for both files. `kind` is the package's file name extension.
    fn values(&self, kind: &str) -> Values {
        let server = self.put("nats-server-v2.12.8-linux-amd64.tar.gz", &archive());
        let agent = self.put(&format!("nats-tls-agent.{kind}"), AGENT_PACKAGE);
        Values { server, agent, extra: ("", ""), include: INCLUDE }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn answer(&mut self, path: String) -> Vec<u8> {
        let turn = if self.turns.is_empty() { Turn::Serve } else { self.turns.remove(0) };
        let file = self.files.get(path.split('?').next().unwrap_or_default());
        self.asked.push(path);
        let head = |status: &str, length: usize| {
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").into_bytes()
        };
        match (turn, file) {
            (Turn::Serve, Some(file)) => [head("200 OK", file.len()), file.clone()].concat(),
            (Turn::CutOff, Some(file)) => [head("200 OK", file.len()), file[..5].to_owned()].concat(),
            (Turn::Status503, _) => head("503 Service Unavailable", 0),
            (_, None) => head("404 Not Found", 0),
        }
    }
}

/// An archive like nats-server's releases: one directory that holds the binary.
fn archive() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let release = directory.path().join("nats-server-v2.12.8-linux-amd64");
    fs::create_dir(&release).unwrap();
    fs::write(release.join("nats-server"), "the server").unwrap();
    fs::write(release.join("LICENSE"), "").unwrap();
    let mut tar = std::process::Command::new("tar");
    let output = tar.args(["-czf", "-", "-C"]).arg(directory.path()).arg("nats-server-v2.12.8-linux-amd64").output();
    output.unwrap().stdout
}

// === The tests ===

#[test]
fn the_user_data_fits_and_its_configuration_is_one() {
    let text = filled(&Values::examples());
    assert!(text.starts_with("#cloud-config\n") && text.len() < LIMIT, "{} bytes", text.len());
    assert!(!text.contains("%{") && !text.contains("${"), "Terraform's templatefile would interpret the text");
    let UserData { files, commands } = read(&text);
    assert_eq!(commands, serde_json::json!([["/bin/sh", "/var/lib/nats-node/setup"]]));
    let config = parse(&files["/var/lib/nats-node/agent.toml"], tempfile::NamedTempFile::new().unwrap().path());
    assert_eq!(config.node.dns_names[0].as_str(), "nats.internal");
    assert_eq!(config.nats.cluster_secret_id.as_deref(), Some("nats/cluster-credential"));
    let TrustConfig::SecretsManager { secret_id, .. } = config.trust else { panic!("{:?}", config.trust) };
    assert_eq!(secret_id, "nats/trust-bundle");
}

#[test]
fn included_secrets_stand_in_agent_toml_after_the_extra_file() {
    const ARN: &str = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:nats/accounts-AbCdEf";
    let include = r#"["/etc/nats/conf.d/extra.conf","secret:arn:aws:secretsmanager:eu-west-1:111122223333:secret:nats/accounts-AbCdEf"]"#;
    let text = filled(&Values { include, ..Values::examples() });
    let extra = tempfile::NamedTempFile::new().unwrap();
    let config = parse(&read(&text).files["/var/lib/nats-node/agent.toml"], extra.path());
    let [first, second] = &config.nats.include[..] else { panic!("{:?}", config.nats.include) };
    assert_eq!(first, extra.path());
    assert_eq!(config.nats.included_secrets, BTreeMap::from([(second.clone(), ARN.to_owned())]));
    assert!(second.starts_with(&config.state_directory), "{}", second.display());
}

#[test]
fn user_data_has_room_for_the_most_included_secrets() {
    let arn = format!("\"secret:arn:aws:secretsmanager:ap-southeast-1:111122223333:secret:{}-AbCdEf\"", "n".repeat(64));
    let include = format!("[{}]", vec![arn; 20].join(","));
    let text = filled(&Values { include: include.leak(), ..Values::examples() });
    assert!(text.len() < LIMIT * 7 / 8, "{} bytes", text.len());
}

#[test]
fn shellcheck_has_nothing_to_say() {
    let root = Root::new(&Values::examples());
    let scripts = root.path("var/lib/nats-node");
    // The excluded checks don't fit the script. Functions in conditions run without `set -e` on purpose. templatefile
    // would interpret braces around variables.
    let mut shellcheck = std::process::Command::new(tools::shellcheck().unwrap());
    shellcheck.args(["--shell=sh", "--enable=all", "--exclude=SC2250,SC2310,SC2312", "--external-sources"]);
    let output = shellcheck.arg("--source-path").arg(&scripts).arg(scripts.join("setup")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The test needs cloud-init. `cargo xtask setup` reports a missing cloud-init.
#[test]
fn cloud_init_finds_the_user_data_in_its_schema() {
    let Some(mut cloud_init) = tools::cloud_init() else {
        eprintln!("SKIPPED: cloud-init isn't installed");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut check = |text: &str| {
        let file = directory.path().join("user-data.yaml");
        fs::write(&file, text).unwrap();
        let output = cloud_init.args(["schema", "--config-file"]).arg(&file).output().unwrap();
        (output.status.success(), [output.stdout, output.stderr].concat())
    };
    let text = filled(&Values::examples());
    let (valid, said) = check(&text);
    assert!(valid, "{}", String::from_utf8_lossy(&said));
    assert!(!check(&text.replace("\"0700\"", "0700")).0, "cloud-init accepts a mode that isn't text");
}

#[tokio::test]
async fn a_node_is_set_up_and_a_second_run_changes_nothing() {
    for (kind, installer) in [
        (
            "deb",
            "apt-get install --yes --quiet --no-install-recommends --option DPkg::Lock::Timeout=300 --option Dpkg::Options::=--force-confold",
        ),
        ("rpm", "dnf install --assumeyes --quiet --disablerepo=*"),
    ] {
        let server = Server::start().await;
        let root = Root { is_bash: kind == "rpm", ..Root::new(&server.values(kind)) };
        root.succeeds().await;
        assert_eq!(root.text("usr/local/bin/nats-server"), "the server");
        assert_eq!(root.path("usr/local/bin/nats-server").metadata().unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read(root.path(format!("usr/bin/nats-tls-agent.{kind}"))).unwrap(), AGENT_PACKAGE);
        assert_eq!(root.text("etc/nats-tls-agent/agent.toml"), root.text("var/lib/nats-node/agent.toml"));
        let calls = root.calls();
        let (install, rest) = calls.split_first().unwrap();
        assert!(install.starts_with(installer) && install.ends_with(&format!("/nats-tls-agent.{kind}")), "{install}");
        assert_eq!(
            rest,
            [
                "chgrp nats /etc/nats/conf.d/extra.conf.new",
                "systemctl daemon-reload",
                "systemctl enable nats-tls-agent.service nats-server.service",
                "systemctl --no-block restart nats-tls-agent.service",
                "systemctl --no-block start nats-server.service",
            ]
        );
        assert_eq!(server.asked().len(), 2);

        let before = root.everything();
        root.succeeds().await;
        assert_eq!(root.everything(), before);
        assert!(root.calls().is_empty());
        assert!(server.asked().is_empty());
    }
}

#[tokio::test]
async fn another_configuration_restarts_the_agent_and_downloads_nothing() {
    let server = Server::start().await;
    let root = Root::new(&server.values("deb"));
    root.succeeds().await;
    let _before = (root.calls(), server.asked());
    let staged = root.path("var/lib/nats-node/agent.toml");
    fs::write(&staged, root.text("var/lib/nats-node/agent.toml").replace("nats.internal", "nats.example")).unwrap();
    root.succeeds().await;
    assert!(root.text("etc/nats-tls-agent/agent.toml").contains("nats.example"));
    let calls = root.calls();
    assert!(calls.contains(&"systemctl --no-block restart nats-tls-agent.service".into()), "{calls:?}");
    assert!(calls.iter().all(|call| call.starts_with("systemctl ")), "{calls:?}");
    assert!(server.asked().is_empty());
}

/// The extra texts hold accounts, limits, and keys of agent.toml without a variable of their own.
#[tokio::test]
async fn what_is_extra_stands_in_both_configurations_and_a_change_of_it_restarts_the_agent() {
    let server = Server::start().await;
    // The extra texts are `client_auth = "mtls"`, `[metrics]` with `listen = "127.0.0.1:9999"`, and `max_payload: 2MB`.
    let toml = "Y2xpZW50X2F1dGggPSAibXRscyIKW21ldHJpY3NdCmxpc3RlbiA9ICIxMjcuMC4wLjE6OTk5OSIK";
    let root = Root::new(&Values { extra: (toml, "bWF4X3BheWxvYWQ6IDJNQgo="), ..server.values("deb") });
    root.succeeds().await;
    let (written, extra) = (root.text("etc/nats-tls-agent/agent.toml"), root.path("etc/nats/conf.d/extra.conf"));
    let config = parse(&written, &extra);
    assert_eq!(config.nats.include, [extra.as_path()]);
    assert!(written.ends_with("\nclient_auth = \"mtls\"\n[metrics]\nlisten = \"127.0.0.1:9999\"\n"), "{written}");
    assert_eq!(fs::read_to_string(&extra).unwrap(), "max_payload: 2MB\n");
    assert_eq!(extra.metadata().unwrap().mode() & 0o777, 0o640);

    let _before = root.calls();
    fs::write(root.path("var/lib/nats-node/extra.conf"), "max_payload: 4MB\n").unwrap();
    root.succeeds().await;
    assert_eq!(fs::read_to_string(&extra).unwrap(), "max_payload: 4MB\n");
    assert!(root.calls().contains(&"systemctl --no-block restart nats-tls-agent.service".into()));
}

#[tokio::test]
async fn a_file_that_a_package_puts_over_the_configuration_is_put_right() {
    let server = Server::start().await;
    let root = Root::new(&server.values("rpm"));
    fs::write(root.path("own-file"), "the package's own").unwrap();
    root.succeeds().await;
    assert_eq!(root.text("etc/nats-tls-agent/agent.toml"), root.text("var/lib/nats-node/agent.toml"));
}

#[tokio::test]
async fn a_wrong_checksum_is_on_the_console_and_installs_nothing() {
    let server = Server::start().await;
    let mut values = server.values("deb");
    // Only the second file's digest is wrong. The script must not install the first file either.
    values.agent.1 = sha256_hex(b"another");
    let root = Root::new(&values);
    let before = root.everything();
    let line = root.fails().await;
    for part in [&values.agent.0, &values.agent.1, &sha256_hex(AGENT_PACKAGE), "nothing was installed"] {
        assert!(line.contains(part), "{line}");
    }
    nothing_was_done(&root, &before);
}

#[tokio::test]
async fn a_server_that_fails_twice_is_asked_again() {
    let server = Server::start().await;
    let root = Root::new(&server.values("deb"));
    server.first(&[Turn::Status503, Turn::CutOff]);
    let said = root.succeeds().await;
    assert!(said.contains("nats-server: try 2 of 12 failed; the next in 0 s"), "{said}");
    assert_eq!(server.asked().len(), 4);
    assert_eq!(root.text("usr/local/bin/nats-server"), "the server");
}

/// Some images have wget and no curl.
#[tokio::test]
async fn without_curl_wget_downloads() {
    let server = Server::start().await;
    let mut root = Root::new(&server.values("deb"));
    let programs = root.path("programs");
    fs::create_dir(&programs).unwrap();
    for directory in ["/bin", "/usr/bin"] {
        for entry in fs::read_dir(directory).unwrap() {
            let program = entry.unwrap();
            if program.file_name() != "curl" {
                drop(std::os::unix::fs::symlink(program.path(), programs.join(program.file_name())));
            }
        }
    }
    let has_wget = programs.join("wget").exists();
    root.programs = programs.to_str().unwrap().into();
    if has_wget {
        server.first(&[Turn::Status503, Turn::CutOff]);
        root.succeeds().await;
        assert_eq!(root.text("usr/local/bin/nats-server"), "the server");
    } else {
        let line = root.fails().await;
        assert!(line.contains("neither curl nor wget is here"), "{line}");
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_given_up_on_the_console_and_installs_nothing() {
    let server = Server::start().await;
    let mut values = server.values("deb");
    drop(server);
    values.server.0.push_str("?X-Amz-Signature=s3cret");
    let root = Root::new(&values);
    let before = root.everything();
    let line = root.fails().await;
    assert!(line.contains("nats-server: no download from http://127.0.0.1:") && line.contains("in 12 tries"), "{line}");
    assert!(!line.contains("s3cret"), "the console shows a signed URL, which any reader could use: {line}");
    nothing_was_done(&root, &before);
}

/// The tries outlast an outage of minutes, and no pause is longer than a minute.
#[tokio::test]
async fn the_pauses_between_tries_grow_to_a_minute() {
    let server = Server::start().await;
    let values = server.values("deb");
    drop(server);
    let root = Root::new(&values);
    let staged = root.path("var/lib/nats-node/values");
    fs::write(&staged, root.text("var/lib/nats-node/values").replace("pause=0\n", "pause=2\n")).unwrap();
    // The stub for sleep records the lengths of the pauses.
    fs::copy(root.path("stubs/systemctl"), root.path("stubs/sleep")).unwrap();
    root.fails().await;
    let pauses = root.calls().iter().map(|call| call.replace("sleep ", "").parse().unwrap()).collect::<Vec<u64>>();
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]);
}

#[tokio::test]
async fn an_installation_that_fails_is_told_and_a_later_run_does_the_rest() {
    let server = Server::start().await;
    let root = Root::new(&server.values("deb"));
    fs::write(root.path("broken"), "").unwrap();
    let line = root.fails().await;
    assert!(line.contains("apt-get could not install") && line.contains("cloud-init-output.log"), "{line}");
    let _before = (root.calls(), server.asked());
    fs::remove_file(root.path("broken")).unwrap();
    root.succeeds().await;
    assert_eq!(server.asked(), ["/nats-tls-agent.deb"]);
    assert_eq!(root.calls().len(), 6, "one call for the package, one for extra.conf's group, four for the services");
}

#[tokio::test]
async fn what_can_not_be_installed_here_is_refused_before_anything_is_downloaded() {
    let server = Server::start().await;
    let values = server.values("deb");
    for (agent, expected) in [
        ("http://127.0.0.1:1/nats-tls-agent.exe", "neither a .tar.gz nor a .deb nor a .rpm"),
        ("http://127.0.0.1:1/nats-tls-agent.tar.gz", "is not a package"),
    ] {
        let root = Root::new(&Values { agent: (agent.into(), String::new()), ..values.clone() });
        let line = root.fails().await;
        assert!(line.contains(expected), "{line}");
    }
    assert!(server.asked().is_empty());
}

/// Checks that the script called no stub, and that only the console has changed.
fn nothing_was_done(root: &Root, before: &BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>) {
    let mut after = root.everything();
    let console = root.path("dev/console");
    after.insert(console.clone(), before[&console].clone());
    assert_eq!(&after, before);
    assert!(root.calls().is_empty());
}
