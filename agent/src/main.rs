//! The entry point: parses the command line, calls the command, prints its error chain once and sets the exit code.

use std::alloc::System;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use nats_tls_agent::cli::{Cli, Command, JsonArg};
use nats_tls_agent::commands::{self, CommandError};
use nats_tls_agent::config::Config;
use nats_tls_agent::config::client::ClientConfig;
use nats_tls_agent::output::{OutputError, Paint, print};
use nats_tls_agent::reconcile::PassRequest;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zeroizing_alloc::ZeroAlloc;

/// Wipes all memory when it is freed. A key passes through growing buffers that belong to libraries: of PEM, of base64,
/// of JSON, of file reads. The agent can't wipe those buffers itself.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// How long the end waits for threads that block, for instance in the C library's resolver, which no signal interrupts.
const PARTING: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Every file gets its mode at creation. The umask takes all rights from other users, as a second guard.
    nix::sys::stat::umask(nix::sys::stat::Mode::S_IRWXO);
    keep_memory_private();
    let cli = Cli::parse();
    let is_daemon = cli.command.is_daemon();
    start_log(is_daemon);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(execute(cli));
            runtime.shutdown_timeout(PARTING);
            result
        }
        Err(source) => Err(CommandError::Runtime(source)),
    };
    result.unwrap_or_else(|error| {
        let _closed = writeln!(std::io::stderr(), "{}: {}", Paint::stderr().red("error"), error.render());
        error.exit_code()
    })
}

/// The memory of this process holds keys. So the process leaves no core dump, and no other process of the same user may
/// read its memory.
fn keep_memory_private() {
    use nix::sys::prctl::set_dumpable;
    use nix::sys::resource::{Resource, setrlimit};
    // Neither call can fail, because each only gives up a right. The agent runs on in any case.
    let _kept = set_dumpable(false);
    let _kept = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

async fn execute(cli: Cli) -> Result<ExitCode, CommandError> {
    let (file, command) = (cli.config(), cli.command);
    let asked = command.clone();
    let result = Box::pin(carry_out(command, file)).await;
    if let (Err(error), true) = (&result, asked.is_json()) {
        error.print_json(&asked)?;
    }
    result
}

async fn carry_out(command: Command, file: PathBuf) -> Result<ExitCode, CommandError> {
    let load = || Config::load(&file);
    match command {
        Command::Run { losses } => {
            let config = load()?;
            commands::run::run(file.clone(), config, losses.allow_loss).await
        }
        Command::Renew { now, distrust, losses, json: JsonArg { json } } => {
            let wanted = PassRequest { renew: true, allow_loss: losses.allow_loss, distrust, now };
            commands::renew::renew(&load()?, wanted, json).await
        }
        Command::Rollover { json: JsonArg { json } } => commands::rollover::rollover(&load()?, json).await,
        Command::Status { json: JsonArg { json } } => commands::status::status(&load()?, json).await,
        Command::Doctor { json: JsonArg { json } } => commands::doctor::doctor(&load()?, json).await,
        Command::Render { diff } => commands::render::render(&load()?, diff).await,
        Command::Probe { probe, json: JsonArg { json } } => {
            Box::pin(commands::probe::probe(&load()?, *probe, json)).await
        }
        Command::Client { command } => commands::client::client(&ClientConfig::load(&file)?, command).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "agent", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { command } => print_manual(command.as_deref()),
    }
}

/// Prints `agent-COMMAND(1)`. Without a command it prints `agent(1)`, which refers to the pages of the commands.
fn print_manual(command: Option<&str>) -> Result<ExitCode, CommandError> {
    let mut whole = Cli::command().disable_help_subcommand(true);
    // A subcommand has its complete name only after this call.
    whole.build();
    let page = match command {
        None => whole,
        Some(name) => match subcommand(&whole, name) {
            Some(found) => found.clone(),
            None => whole.error(ErrorKind::InvalidValue, format!("agent has no command {name:?}")).exit(),
        },
    };
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(page).source(concat!("agent ", env!("CARGO_PKG_VERSION")));
    let rendered = page.render(&mut text);
    rendered.map_err(OutputError)?;
    print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// The command of a page: `renew`, or `client-fetch` for a command below a command.
fn subcommand<'a>(whole: &'a clap::Command, name: &str) -> Option<&'a clap::Command> {
    whole.find_subcommand(name).or_else(|| {
        let (above, below) = name.split_once('-')?;
        whole.find_subcommand(above)?.find_subcommand(below)
    })
}

/// The level of the daemon's log. The NATS client writes a line for each attempt to connect, and the status says the same.
const DAEMON_LEVEL: &str = "info,async_nats=off";

/// Sends the log to standard error: from level `info` for the daemon, and from level `error` for the other commands.
/// `RUST_LOG` overrules the level. Where standard error is the journal, entries go to the journal with their fields.
/// Elsewhere an entry is its message alone, which repeats what the fields say.
fn start_log(is_daemon: bool) {
    let default = if is_daemon { DAEMON_LEVEL } else { "error,async_nats=off" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let journal = is_journal().then(tracing_journald::layer).and_then(Result::ok);
    let text = journal.is_none().then(|| {
        let message_alone = debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        });
        // Where the log can't be written, as on a full disk, the layer would report the failure with `eprintln!`. That
        // macro writes to the same standard error, and panics where the write fails.
        let layer = tracing_subscriber::fmt::layer().log_internal_errors(false);
        let layer = layer.with_writer(std::io::stderr).with_target(false);
        layer.fmt_fields(message_alone).with_ansi(Paint::stderr().is_on())
    });
    let journal = journal.map(|journal| {
        journal.with_field_prefix(Some("NATS_TLS_AGENT".into())).with_syslog_identifier("nats-tls-agent".into())
    });
    tracing_subscriber::registry().with(filter).with(journal).with(text).init();
}

/// Whether standard error is the stream to the journal that systemd names in `JOURNAL_STREAM`, systemd.exec(5).
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let own = nix::sys::stat::fstat(std::io::stderr()).ok().map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    named.is_some() && named == own
}
