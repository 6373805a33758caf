//! `agent client`: what a service needs to connect, on a machine without nats-server.

use std::convert::Infallible;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CommandError;
use crate::cli::{ClientCommand, JsonArg};
use crate::client::check::{Finding, Presented, Scope, Unpresentable, check};
use crate::client::{Client, ClientStatus, Files};
use crate::config::client::ClientConfig;
use crate::connection::Document;
use crate::error::with_causes;
use crate::exposition;
use crate::output::{Paint, print, print_json};
use crate::reason::{Reason, Told};
use crate::state::durable::FileError;
use crate::state::lock::Lock;
use crate::status::State;

/// How many URLs are checked at the same time. Each check has two connections at most.
const MOST_AT_ONCE: usize = 16;

/// How long the end waits for a look to break off.
const PARTING: Duration = Duration::from_secs(1);

/// Carries a command out.
pub async fn client(config: &ClientConfig, command: ClientCommand) -> Result<ExitCode, CommandError> {
    match command {
        ClientCommand::Fetch { json: JsonArg { json } } => fetch(config, json).await,
        ClientCommand::Run => run(config).await,
        ClientCommand::Check { json: JsonArg { json } } => check_all(config, json).await,
        ClientCommand::Env => print_current(config, Files::shell),
        ClientCommand::Context => print_current(config, Files::context),
    }
}

/// Prints what the files in force say. A newer document that is in no file yet may have other CAs.
fn print_current(
    config: &ClientConfig,
    text: impl Fn(&Files) -> Result<Option<String>, FileError>,
) -> Result<ExitCode, CommandError> {
    let text = text(&Files::of(&config.directory)).map_err(|error| CommandError::NoDocument(Reason::from(&error)))?;
    print(&text.ok_or(CommandError::NoDocument(Reason::ClientWithoutDocument))?)?;
    Ok(ExitCode::SUCCESS)
}

/// Brings the files up to date once.
async fn fetch(config: &ClientConfig, json: bool) -> Result<ExitCode, CommandError> {
    let _lock = Lock::take(&config.directory)?;
    let status = Client::new(config).look().await;
    if json {
        print_json(&status)?;
    } else {
        print(&described(&status))?;
    }
    Ok(if status.state == State::Healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn described(status: &ClientStatus) -> String {
    let mut text = format!("{}\n", status.state);
    for reason in &status.reasons {
        let _infallible = writeln!(text, "  reason  {reason}");
    }
    if let (Some(files), Some(changed_at)) = (&status.files, &status.changed_at) {
        let _infallible = writeln!(text, "  files   {}, of the document of {changed_at}", files.display());
    }
    text
}

/// Keeps the files current until SIGTERM or SIGINT. SIGHUP looks at once.
///
/// The looks are a task of their own. So whatever a look waits for, for instance AWS or a disk, a signal ends the run.
async fn run(config: &ClientConfig) -> Result<ExitCode, CommandError> {
    // A thread may still write after the end of this function, so the process holds the lock to its own end.
    std::mem::forget(Lock::take(&config.directory)?);
    let metrics_port = match config.metrics_listen {
        Some(address) => Some(exposition::bind(address).await?),
        None => None,
    };
    let listen = |kind| signal(kind).map_err(CommandError::Runtime);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut keeping = tokio::spawn(keep(config.clone(), metrics_port, listen(SignalKind::hangup())?));
    tokio::select! {
        ended = &mut keeping => match ended {
            Ok(never) => match never {},
            Err(broken) => return Err(CommandError::Runtime(broken.into())),
        },
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let _nobody = sd_notify::notify(&[NotifyState::Stopping]);
    keeping.abort();
    // A look that waits for a hanging disk ends with the process.
    let _given_up = tokio::time::timeout(PARTING, keeping).await;
    Ok(ExitCode::SUCCESS)
}

/// Makes look after look, for ever.
async fn keep(config: ClientConfig, metrics_port: Option<TcpListener>, mut hang_up: Signal) -> Infallible {
    let mut client = Client::new(&config);
    if let Some(listener) = metrics_port {
        tokio::spawn(exposition::serve(listener, client.scraped()));
    }
    loop {
        let status = client.look().await;
        // Whoever waits for this unit needs the files. A look that fails later leaves them.
        if status.files.is_some() {
            let _nobody = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status.state.to_string())]);
        }
        let (clock, next) = (client.clock(), client.next());
        tokio::select! {
            () = clock.sleep_until(next) => {}
            _ = hang_up.recv() => {}
        }
    }
}

/// The document of its source, else of the files in force. The reason says why the source gives none.
async fn document_or_last_good(config: &ClientConfig) -> (Option<Document>, Option<Reason>) {
    let mut client = Client::new(config);
    match client.document().await {
        Ok(document) => (Some(document), None),
        Err(error) => (client.last_good().await, Some(Reason::from(&error))),
    }
}

/// Checks each URL of the document, [`MOST_AT_ONCE`] at the same time.
async fn check_all(config: &ClientConfig, json: bool) -> Result<ExitCode, CommandError> {
    let (document, reason) = document_or_last_good(config).await;
    let document = match (document, &reason) {
        (Some(document), _) => document,
        (None, reason) => {
            return Err(CommandError::NoDocument(reason.clone().unwrap_or(Reason::ClientWithoutDocument)));
        }
    };
    let findings: Vec<_> = match Presented::of(&document, &config.login) {
        Ok(presented) => {
            let checks = document.urls().map(|url| check(url, &presented, Scope::Login));
            stream::iter(checks).buffered(MOST_AT_ONCE).collect().await
        }
        Err(error) => document.urls().map(|url| unpresentable(url, &error)).collect(),
    };
    let healthy = reason.is_none() && findings.iter().all(|finding| finding.fault.is_none());
    if json {
        let reasons: Vec<_> = reason.iter().map(Told::from).collect();
        print_json(&serde_json::json!({ "healthy": healthy, "reasons": reasons, "checks": findings }))?;
    } else {
        print(&table(reason.as_ref(), &findings))?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn unpresentable(url: &str, error: &Unpresentable) -> Finding {
    Finding { url: url.to_owned(), address: None, fault: Some(error.fault()), found: with_causes(error) }
}

fn table(reason: Option<&Reason>, findings: &[Finding]) -> String {
    let paint = Paint::stdout();
    let mut text = String::new();
    if let Some(reason) = reason {
        let _infallible = writeln!(text, "{}  document  {reason}", paint.yellow("warning"));
    }
    let width = findings.iter().map(|finding| finding.url.len()).max().unwrap_or_default();
    for finding in findings {
        let Finding { url, address, fault, found } = finding;
        let at = address.map(|address| format!("{address}: ")).unwrap_or_default();
        let _infallible = match fault {
            None => writeln!(text, "{}  {url:<width$}  {at}{found}", paint.green("ok     ")),
            Some(fault) => {
                let (mark, code, remedy) = (paint.red("failed "), fault.code(), fault.remedy());
                writeln!(text, "{mark}  {url:<width$}  {at}{code}: {found}; {remedy}")
            }
        };
    }
    text
}
