//! Trials of settings, against what the real nats-server does.

#![allow(clippy::print_stdout, reason = "a comparison and a measurement show their figures")]

mod kinds;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use harness::loopback::Block;
use harness::{eventually, tools};
use nats_tls_agent::conf::render::Rendered;
use nats_tls_agent::conf::tree::Map;
use nats_tls_agent::server::trial::{Prediction, TrialTrouble, predict, sweep};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use self::kinds::{Expected, KINDS};

const SOON: Duration = Duration::from_secs(10);

/// A directory, ports and certificates for settings.
struct Bench {
    directory: tempfile::TempDir,
    block: Block,
    server: PathBuf,
}

impl Bench {
    fn new(version: &str) -> Self {
        let bench = Self {
            directory: tempfile::tempdir().unwrap(),
            block: Block::reserve().unwrap(),
            server: tools::nats_server(version).unwrap(),
        };
        for name in ["a", "b"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            std::fs::write(bench.path(&format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(bench.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        std::fs::create_dir(bench.state()).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where trials put their files.
    fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The text of settings: `@0` to `@9` are ports, `%` is the directory, `TLS:a` a TLS block with certificate a.
    fn text(&self, settings: &str) -> String {
        let mut text = settings.replace('%', self.directory.path().to_str().unwrap());
        for index in 0..10 {
            text = text.replace(&format!("@{index}"), &self.block.port(index).to_string());
        }
        for name in ["a", "b"] {
            let (certificate, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
            let (certificate, key) = (certificate.display(), key.display());
            let tls = format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}");
            text = text.replace(&format!("TLS:{name}"), &tls);
        }
        text
    }

    fn tree(&self, settings: &str) -> Map {
        Rendered::from_text(self.text(settings)).tree(&self.path("nats.conf")).unwrap()
    }

    async fn predicted(&self, running: Option<&str>, new: &str) -> Prediction {
        let running = running.map(|running| self.tree(running));
        predict(&self.server, running.as_ref(), &self.tree(new), &self.state(), Some(self.directory.path()), None).await
    }

    /// No trial has left a process or a file.
    fn assert_nothing_left(&self) {
        assert_eq!(processes_in(&self.state()), Vec::<i32>::new());
        assert_eq!(std::fs::read_dir(self.state()).unwrap().count(), 0);
    }
}

/// The processes whose arguments name a file below a directory. A process that has ended and was not waited for has no
/// arguments, and counts as a child of this process.
fn processes_in(directory: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(directory.to_str().unwrap()) {
            found.push(pid);
        }
    }
    found
}

/// What the real server does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Real {
    Goes(&'static str),
    Refuses(String),
    Ends,
}

/// A nats-server as it is, which logs to a pipe unless its settings say otherwise.
struct RealServer {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
}

impl RealServer {
    fn spawn(bench: &Bench, config: &Path) -> Self {
        let mut child = Command::new(&bench.server)
            .arg("-c")
            .arg(config)
            .current_dir(bench.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for a line that `told` knows. A server that ends tells nothing more.
    async fn waits_for(&mut self, told: impl Fn(&str) -> Option<Real>) -> Real {
        let said = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(real) = told(&line) {
                    // The server may end after the line.
                    let watched = async { while self.lines.next_line().await.unwrap().is_some() {} };
                    return tokio::time::timeout(Duration::from_millis(80), watched)
                        .await
                        .map_or(real, |()| Real::Ends);
                }
            }
            Real::Ends
        };
        tokio::time::timeout(SOON, said).await.unwrap()
    }

    async fn started(&mut self) -> Real {
        self.waits_for(|line| line.contains("Server is ready").then_some(Real::Goes("started"))).await
    }

    async fn reloaded(&mut self) -> Real {
        kill(Pid::from_raw(self.child.id().unwrap().try_into().unwrap()), Signal::SIGHUP).unwrap();
        let refused = "Failed to reload server configuration: ";
        self.waits_for(|line| match line.split_once(refused) {
            Some((_, said)) => Some(Real::Refuses(said.to_owned())),
            None => line.contains("Reloaded server configuration").then_some(Real::Goes("reloaded")),
        })
        .await
    }
}

/// What the real server does at a reload and at a start, and what the trial foretold.
async fn compared(bench: &Bench, old: &str, new: &str) -> (Real, Real, Prediction) {
    let config = bench.path("nats.conf");
    std::fs::write(&config, bench.text(old)).unwrap();
    let mut server = RealServer::spawn(bench, &config);
    assert_eq!(server.started().await, Real::Goes("started"), "{old}");
    let (running, wanted) = (bench.tree(old), bench.tree(new));
    let pid = server.child.id().and_then(|pid| i32::try_from(pid).ok());
    let cwd = Some(bench.directory.path());
    let predicted = predict(&bench.server, Some(&running), &wanted, &bench.state(), cwd, pid).await;
    std::fs::write(&config, bench.text(new)).unwrap();
    let reload = server.reloaded().await;
    server.child.kill().await.unwrap();
    let mut server = RealServer::spawn(bench, &config);
    let start = server.started().await;
    // The next server has the same ports.
    server.child.kill().await.unwrap();
    (reload, start, predicted)
}

/// The verdict of the real server in the terms of a prediction.
fn of_real(reload: &Real, start: &Real) -> Expected {
    match (reload, start) {
        (Real::Ends, _) => Expected::Kills,
        (_, Real::Ends) => Expected::WontStart,
        (Real::Refuses(_), _) => Expected::NeedsRestart,
        (Real::Goes(_), _) => Expected::Reloadable,
    }
}

fn of_prediction(prediction: &Prediction) -> Option<Expected> {
    match prediction {
        Prediction::Reloadable => Some(Expected::Reloadable),
        Prediction::NeedsRestart { .. } => Some(Expected::NeedsRestart),
        Prediction::Kills { .. } => Some(Expected::Kills),
        Prediction::WontStart { .. } => Some(Expected::WontStart),
        Prediction::Starts | Prediction::Unknown(_) => None,
    }
}

/// Every third kind from `first` on. Other tasks compare the other kinds at the same time.
async fn kinds_from(version: &str, first: usize) -> Vec<String> {
    let bench = Bench::new(version);
    let mut wrong = Vec::new();
    for (name, old, new, expected) in KINDS.iter().skip(first).step_by(3) {
        let with_base = |settings: &str| kinds::with_one_listen(&format!("{}\n{settings}", kinds::BASE));
        let (reload, start, predicted) = compared(&bench, &with_base(old), &with_base(new)).await;
        let real = of_real(&reload, &start);
        let same_words = matches!((&reload, &predicted), (Real::Refuses(said), Prediction::NeedsRestart { said: told }) if said == told);
        println!("{version} {name}: {real:?}{}", if same_words { ", in the same words" } else { "" });
        if of_prediction(&predicted) != Some(real) || expected.is_some_and(|expected| expected != real) {
            wrong.push(format!(
                "{name}: foretold {predicted:?}, expected {expected:?}; reload {reload:?}, start {start:?}"
            ));
        }
    }
    bench.assert_nothing_left();
    wrong
}

async fn every_kind_of_change_is_foretold(version: &str) {
    let from = |first| Box::pin(kinds_from(version, first));
    let (one, two, three) = tokio::join!(from(0), from(1), from(2));
    let wrong = [one, two, three].concat();
    println!("{version}: {} of {} kinds foretold", KINDS.len() - wrong.len(), KINDS.len());
    assert!(wrong.is_empty(), "{version}:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_kind_of_change_is_foretold_on_2_10() {
    every_kind_of_change_is_foretold("2.10.26").await;
}

#[tokio::test]
async fn every_kind_of_change_is_foretold_on_2_12() {
    every_kind_of_change_is_foretold("2.12.8").await;
}

#[tokio::test]
async fn every_kind_of_change_is_foretold_on_2_15() {
    every_kind_of_change_is_foretold("2.15.1").await;
}

/// `nats-server -t` accepts each of these.
#[tokio::test]
async fn the_mistakes_that_only_a_start_shows_are_told_in_the_servers_words() {
    for version in tools::NATS_SERVER_VERSIONS {
        let bench = Bench::new(version);
        let taken = std::net::TcpListener::bind(("127.0.0.1", bench.block.port(1))).unwrap();
        for (name, settings, words) in kinds::START_MISTAKES {
            let settings = kinds::with_one_listen(&format!("{}\n{settings}", kinds::BASE));
            let Prediction::WontStart { said } = bench.predicted(None, &settings).await else {
                panic!("{version} {name} is not foretold");
            };
            assert!(said.contains(words), "{version} {name}: {said}");
            assert!(!said.contains("state/trial-") && said.len() <= 1024, "{said}");
        }
        drop(taken);
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn settings_of_every_block_start() {
    for version in tools::NATS_SERVER_VERSIONS {
        let bench = Bench::new(version);
        let logging = format!("{}\nlog_file: \"%/log\"\ndebug: true\ntrace: true", kinds::EVERYTHING);
        for settings in [kinds::EVERYTHING, &logging, "listen: \"127.0.0.1:@0\"", ""] {
            let predicted = bench.predicted(None, settings).await;
            // Only the default port may be taken on the machine of the test.
            let is_taken = matches!(&predicted, Prediction::WontStart { said } if said.contains("0.0.0.0:4222"));
            assert!(matches!(predicted, Prediction::Starts) || settings.is_empty() && is_taken, "{predicted:?}");
        }
        let (reload, _, predicted) =
            compared(&bench, kinds::EVERYTHING, &format!("{}\nmax_payload: 1000", kinds::EVERYTHING)).await;
        assert_eq!(reload, Real::Goes("reloaded"));
        assert!(matches!(predicted, Prediction::Reloadable), "{predicted:?}");
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn invariant_01_a_secret_of_the_settings_is_not_in_a_message() {
    let bench = Bench::new(tools::NATS_SERVER);
    let gateway = |password: &str| {
        format!(
            "{}\nlisten: \"127.0.0.1:@0\"\ngateway {{ name: A, port: @2, authorization {{ user: u, password: {password} }} }}",
            kinds::BASE
        )
    };
    let predicted = bench.predicted(Some(&gateway("s3cret-of-old")), &gateway("s3cret-of-new")).await;
    let Prediction::NeedsRestart { said } = &predicted else { panic!("{predicted:?}") };
    assert!(!said.contains("s3cret"), "{said}");
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3V";
    let leaf = format!(
        "{}\nlisten: \"127.0.0.1:@0\"\nleaf {{ remotes: [ {{ url: \"nats://h:1\", nkey: {seed} }} ] }}",
        kinds::BASE
    );
    let predicted = bench.predicted(None, &leaf.replace("CU3V", "CU3X")).await;
    assert!(!format!("{predicted:?}").contains("SUACSSL3"), "{predicted:?}");
}

#[tokio::test]
async fn nothing_is_left_when_a_trial_is_cancelled() {
    let bench = Bench::new(tools::NATS_SERVER);
    let (old, new) = (bench.tree(kinds::EVERYTHING), bench.tree(&format!("{}\nmax_payload: 1000", kinds::EVERYTHING)));
    let state = bench.state();
    let (mut seen_running, mut delay, mut has_ended) = (0, Duration::ZERO, false);
    // The delays reach to the end of a trial, however slow the machine is.
    while !has_ended {
        let predicted = predict(&bench.server, Some(&old), &new, &state, None, None);
        // A task of a runtime with more threads can wait for a prediction.
        let mut predicted: Pin<Box<dyn Future<Output = Prediction> + Send>> = Box::pin(predicted);
        has_ended = tokio::time::timeout(delay, &mut predicted).await.is_ok();
        seen_running += processes_in(&state).len();
        drop(predicted);
        eventually("the end of the trial", SOON, async || {
            let left = processes_in(&state);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await
        .unwrap();
        bench.assert_nothing_left();
        delay += (delay / 8).max(Duration::from_millis(8));
    }
    assert!(seen_running > 0, "no trial was under way when it was cancelled");
}

/// The variable that names the directory of [`is_killed`].
const KILLED_IN: &str = "NATS_TLS_AGENT_KILLED_IN";

/// The process that the next test kills. On its own it does nothing.
#[tokio::test]
async fn is_killed() {
    if let Some(directory) = std::env::var_os(KILLED_IN).map(PathBuf::from) {
        let settings = Rendered::from_text("listen: \"127.0.0.1:-1\"".to_owned()).tree(Path::new("nats.conf")).unwrap();
        predict(&directory.join("fake-server"), None, &settings, &directory.join("state"), None, None).await;
    }
}

#[tokio::test]
async fn no_server_under_trial_outlives_an_agent_that_is_killed() {
    let mut bench = Bench::new(tools::NATS_SERVER);
    fake(&mut bench, "sleep 1000");
    let mut killed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "trial::is_killed"])
        .env(KILLED_IN, bench.directory.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let running = async || processes_in(&bench.state());
    let guarded = async || {
        let server = *running().await.first().ok_or("no server")?;
        let group =
            |pid: &i32| nix::unistd::getpgid(Some(Pid::from_raw(*pid))).is_ok_and(|group| group.as_raw() == server);
        let guards = processes_in(Path::new("kill -s KILL 0"));
        guards.iter().any(group).then_some(()).ok_or("no guard")
    };
    eventually("the trial", SOON, async || guarded().await.map_err(str::to_owned)).await.unwrap();
    killed.kill().await.unwrap();
    eventually("the end of the server", SOON, async || match running().await {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await
    .unwrap();
    assert_eq!(
        std::fs::read_dir(bench.state()).unwrap().count(),
        1,
        "the files of a killed agent wait for the next start"
    );
    sweep(&bench.state()).unwrap();
    bench.assert_nothing_left();
}

#[tokio::test]
async fn what_a_killed_agent_left_is_swept() {
    let bench = Bench::new(tools::NATS_SERVER);
    let left = bench.state().join("trial-1/new");
    std::fs::create_dir_all(&left).unwrap();
    let config = left.join("nats-server.conf");
    std::fs::write(&config, "listen: \"127.0.0.1:-1\"").unwrap();
    let mut server = RealServer::spawn(&bench, &config);
    assert_eq!(server.started().await, Real::Goes("started"));
    let other = bench.path("other.conf");
    std::fs::write(&other, "listen: \"127.0.0.1:-1\"").unwrap();
    let mut other = RealServer::spawn(&bench, &other);
    assert_eq!(other.started().await, Real::Goes("started"));
    std::fs::write(bench.state().join("kept"), "").unwrap();
    sweep(&bench.state()).unwrap();
    let status = tokio::time::timeout(SOON, server.child.wait()).await.unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(other.child.try_wait().unwrap().is_none(), "another server was killed");
    assert!(bench.state().join("kept").is_file() && !bench.state().join("trial-1").exists());
    sweep(&bench.path("none")).unwrap();
}

/// A program in the place of nats-server.
fn fake(bench: &mut Bench, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    bench.server = bench.path("fake-server");
    std::fs::write(&bench.server, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&bench.server, std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Runs a script in the place of nats-server. `LONG` is a time to sleep that no other process sleeps.
async fn trouble(script: &str) -> TrialTrouble {
    let mut bench = Bench::new(tools::NATS_SERVER);
    let long = format!("100{}.{}", std::process::id(), bench.block.port(0));
    fake(&mut bench, &script.replace("LONG", &long));
    let started = Instant::now();
    let predicted = bench.predicted(None, "listen: \"127.0.0.1:-1\"").await;
    println!("{script}: {predicted:?} in {:?}", started.elapsed());
    // A process that was killed is there for a moment longer.
    eventually("the end of every process of the trial", SOON, async || {
        let left = [processes_in(bench.directory.path()), processes_in(Path::new(&long))];
        if left.iter().all(Vec::is_empty) { Ok(()) } else { Err(format!("{script}: {left:?}")) }
    })
    .await
    .unwrap();
    bench.assert_nothing_left();
    let Prediction::Unknown(trouble) = predicted else { panic!("{predicted:?}") };
    trouble
}

/// The time of this test is made up: it passes when nothing else happens.
#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_or_forks_is_ended_in_time() {
    for script in [
        "sleep LONG",
        "sleep LONG & sleep LONG & (trap '' HUP TERM INT; sleep LONG) & wait",
        "exec 2>&-; sleep LONG",
        "echo '[1] [INF] Server is not ready' >&2; while :; do sleep 0.01; done",
    ] {
        let trouble = trouble(script).await;
        assert!(matches!(trouble, TrialTrouble::Slow | TrialTrouble::Ended { .. }), "{script}: {trouble:?}");
    }
}

#[tokio::test]
async fn a_server_that_leaves_others_behind_or_says_nothing_is_no_verdict() {
    for script in ["sleep LONG & exit 1", "exit 1", "exit 0", "echo bye >&2; exit 3", "kill -SEGV $$"] {
        let trouble = trouble(script).await;
        assert!(matches!(trouble, TrialTrouble::Ended { .. }), "{script}: {trouble:?}");
    }
}

#[tokio::test]
async fn a_server_that_floods_its_log_or_the_disk_is_ended() {
    let flood = trouble("exec yes >&2").await;
    assert!(matches!(flood, TrialTrouble::Output), "{flood:?}");
    let flood = trouble("exec tr -d '\\n' < /dev/zero >&2").await;
    assert!(matches!(flood, TrialTrouble::Output), "{flood:?}");
    let fill = trouble("i=0; while :; do i=$((i+1)); head -c 32000000 /dev/zero > $TMPDIR/$i; done").await;
    assert!(matches!(fill, TrialTrouble::Disk), "{fill:?}");
    let large = trouble("exec head -c 300000000 /dev/zero > $TMPDIR/large").await;
    assert!(matches!(large, TrialTrouble::Ended { .. } | TrialTrouble::Disk), "{large:?}");
}

#[tokio::test]
async fn a_trial_that_lacks_a_server_or_room_is_no_verdict() {
    let mut bench = Bench::new(tools::NATS_SERVER);
    let full = trouble("echo '[1] [FTL] mkdir x: no space left on device' >&2; exit 1").await;
    assert!(matches!(full, TrialTrouble::Exhausted { .. }), "{full:?}");
    bench.server = bench.path("none");
    let predicted = bench.predicted(None, "").await;
    assert!(matches!(predicted, Prediction::Unknown(TrialTrouble::Spawn { .. })), "{predicted:?}");
    bench.server = tools::nats_server(tools::NATS_SERVER).unwrap();
    std::fs::remove_dir(bench.state()).unwrap();
    std::fs::write(bench.state(), "").unwrap();
    let predicted = bench.predicted(None, "").await;
    assert!(matches!(predicted, Prediction::Unknown(TrialTrouble::File { .. })), "{predicted:?}");
}

#[tokio::test]
async fn running_settings_that_no_longer_start_are_no_verdict() {
    let bench = Bench::new(tools::NATS_SERVER);
    let broken = "listen: \"127.0.0.1:-1\"\nsystem_account: NONE";
    let predicted = bench.predicted(Some(broken), "listen: \"127.0.0.1:-1\"").await;
    assert!(matches!(predicted, Prediction::Unknown(TrialTrouble::RunningWontStart { .. })), "{predicted:?}");
}

#[tokio::test]
async fn the_files_of_a_trial_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bench = Bench::new(tools::NATS_SERVER);
    // The script ends only when the test has looked.
    fake(&mut bench, "echo x > $TMPDIR/started; while [ ! -e $TMPDIR/look ]; do sleep 0.01; done; exit 1");
    let state = bench.state();
    let looks = async {
        let trial = state.join(format!("trial-{}/new", std::process::id()));
        eventually("the script", SOON, async || {
            trial.join("started").is_file().then_some(()).ok_or_else(|| "not started".to_owned())
        })
        .await
        .unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let modes = [mode(trial.parent().unwrap()), mode(&trial), mode(&trial.join("nats-server.conf"))];
        std::fs::write(trial.join("look"), "").unwrap();
        modes
    };
    let (_, modes) =
        tokio::join!(bench.predicted(None, "accounts { A { users: [ { user: u, password: p } ] } }"), looks);
    assert_eq!(modes, [0o700, 0o700, 0o600]);
    bench.assert_nothing_left();
}

/// A guard against slowness. The limit is far above the measured times, because tests share the machine.
#[tokio::test]
async fn a_prediction_is_quick() {
    for version in tools::NATS_SERVER_VERSIONS {
        let bench = Bench::new(version);
        let mut times = Vec::new();
        let new = format!("{}\nmax_payload: 1000", kinds::EVERYTHING);
        for _ in 0..20 {
            let started = Instant::now();
            let predicted = bench.predicted(Some(kinds::EVERYTHING), &new).await;
            times.push(started.elapsed());
            assert!(matches!(predicted, Prediction::Reloadable), "{predicted:?}");
        }
        times.sort_unstable();
        println!("{version}: p50 {:?}, max {:?}", times[10], times[19]);
        assert!(times[10] < Duration::from_secs(2), "{times:?}");
    }
}

#[tokio::test]
async fn ten_thousand_users_are_tried() {
    let users: Vec<_> = (0..10_000)
        .map(|n| format!("{{ user: u{n}, password: p{n}, permissions: {{ publish: \"a.{n}\" }} }}"))
        .collect();
    let settings = |more: &str| {
        format!(
            "{}\nlisten: \"127.0.0.1:@0\"\nauthorization {{ users: [ {} ] }}\n{more}",
            kinds::BASE,
            users.join("\n")
        )
    };
    for version in tools::NATS_SERVER_VERSIONS {
        let bench = Bench::new(version);
        let started = Instant::now();
        let predicted = bench.predicted(Some(&settings("")), &settings("max_payload: 1000")).await;
        println!("{version}: 10,000 users in {:?}", started.elapsed());
        assert!(matches!(predicted, Prediction::Reloadable), "{predicted:?}");
        bench.assert_nothing_left();
    }
}
