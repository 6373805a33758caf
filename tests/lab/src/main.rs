//! An Auto Scaling group on one machine. Its instances boot a Debian root with systemd-nspawn, each in its own network
//! namespace, and read the real user data from instance metadata. Doubles of AWS answer the instances. Everything else
//! is real: cloud-init installs the real packages, and systemd starts the real units.
//!
//! The group boots, and then scales out and in, reboots and upgrades. Every step runs under counted traffic, and under HTTP
//! requests through the machines of a gateway and two responders.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod cgroup;
mod children;
mod cloud;
mod command;
mod downloads;
mod enclosure;
mod group;
mod image;
mod instance;
mod metadata;
mod names;
mod network;
mod obstacle;
mod services;
mod story;
mod timeline;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use harness::process::asked_to_end;
use harness::progress::{Progress, seconds};
use harness::rounds;
use harness::{Failure, tools};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::time::Instant;

use crate::downloads::Download;
use crate::enclosure::Inside;
use crate::group::Group;
use crate::story::Story;

/// The exit code for a machine that can't hold the lab, also used by `cargo xtask lab`.
const SKIPPED: u8 = 3;
/// The initial number of instances.
const SIZE: usize = 5;

#[derive(Parser)]
#[command(about = "The lab itself; cargo xtask lab builds all that it needs and starts it")]
struct Options {
    /// The agent's package, a .deb
    #[arg(long, value_name = "FILE")]
    package: PathBuf,
    /// The package of the upgrade
    #[arg(long, value_name = "FILE")]
    upgrade: PathBuf,
    /// Leave the group up until Ctrl-C, and say how to look inside
    #[arg(long)]
    keep: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let lab = tools::workspace().join("target/lab");
    let done = if options.inside { Box::pin(play(&options, &lab)).await } else { open(&lab).await };
    done.unwrap_or_else(|failure| {
        eprintln!("error: {}", failure.chain());
        ExitCode::FAILURE
    })
}

/// Runs outside: makes the image, and starts the lab in its own namespaces.
async fn open(lab: &Path) -> Result<ExitCode, Failure> {
    let _lock = lock(lab)?;
    if let Some(obstacle) = obstacle::found(lab).await {
        eprintln!("skipped: this machine can't hold the lab: {obstacle}");
        return Ok(ExitCode::from(SKIPPED));
    }
    let progress = Progress::on_standard_output();
    tokio::select! {
        ready = image::ready(lab, &progress) => ready?,
        () = asked_to_end() => return Ok(interrupted()),
    }
    enclosure::run(lab).await
}

/// The lab's lock. Every living part of the lab holds it, even after the first process was killed.
fn lock(lab: &Path) -> Result<File, Failure> {
    let path = lab.join("lock");
    let cannot = || Failure::new(format!("could not lock {}", path.display()));
    std::fs::create_dir_all(lab).map_err(|error| cannot().because(error))?;
    let file = File::create(&path).map_err(|error| cannot().because(error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(cannot().because("another lab is running; wait for it, or end it with Ctrl-C"));
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(cannot().because(error)),
    }
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| cannot().because(error))?;
    Ok(file)
}

/// Runs inside: the whole lab, until it is over or is told to end.
async fn play(options: &Options, lab: &Path) -> Result<ExitCode, Failure> {
    let mut inside = Inside::enter().await?;
    let mut group = None;
    let outcome = tokio::select! {
        outcome = perform(options, lab, &mut group) => Some(outcome),
        () = inside.asked_to_end() => None,
    };
    let code = match outcome {
        Some(Ok(all_good)) => {
            if options.keep
                && let Some(group) = &group
            {
                println!("\n{}", how_to_look(group, &inside)?);
                inside.asked_to_end().await;
            }
            if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Some(Err(failure)) => {
            if let Some(group) = &group {
                eprintln!("\n{}", group.last_words().await);
            }
            eprintln!("error: {}", failure.chain());
            ExitCode::FAILURE
        }
        None => interrupted(),
    };
    if let Some(group) = group {
        group.end().await?;
    }
    Ok(code)
}

/// The exit code of a shell after SIGINT.
fn interrupted() -> ExitCode {
    eprintln!("\ninterrupted");
    ExitCode::from(130)
}

async fn perform(options: &Options, lab: &Path, stage: &mut Option<Group>) -> Result<bool, Failure> {
    let (begun, progress) = (Instant::now(), Progress::on_standard_output());
    let template = tools::workspace().join("templates/user-data/user-data.yaml");
    let template = std::fs::read_to_string(&template)
        .map_err(|error| Failure::new(format!("could not read {}", template.display())).because(error))?;
    let server = Download::of(&nats_server_archive(lab).await?)?;
    let group = Group::start(lab, &template, server, Download::of(&options.package)?, &options.package).await?;
    let group = stage.insert(group);

    let done = AtomicUsize::new(0);
    let now = || format!("· {} of {SIZE} healthy", done.load(Ordering::Relaxed));
    let boot = async {
        for _ in 0..SIZE {
            group.launch().await?;
        }
        group.converged(&done).await
    };
    let timelines = progress.step("boot: all healthy, full mesh", now, boot).await?;
    let rows: Vec<_> = group
        .instances
        .iter()
        .zip(timelines)
        .map(|(instance, timeline)| (instance.id.clone(), instance.booted, timeline))
        .collect();
    println!("\n{}\n", timeline::render(&rows));

    progress.step("agent doctor finds no fault, no unit has failed", String::new, group.sound()).await?;

    progress.step("services: a gateway and two responders connect", String::new, group.start_services()).await?;
    let (health, mut rounds) = group.services.ask().await?;
    let mut events = vec![health, rounds.event("nothing happens").await?];

    let (scale_out, joined) = story::scale_out(group, &progress).await?;
    println!("\n{joined}\n");
    let mut stories = vec![scale_out];
    for number in 1..=5 {
        events.push(rounds.event(stories.last().map_or("", Story::event)).await?);
        stories.push(match number {
            1 => story::terminate(group, &progress, 1).await?,
            2 => story::reboot(group, &progress, 2).await?,
            3 => story::upgrade(group, &progress, 3, &options.upgrade).await?,
            4 => story::remove(group, &progress, 3).await?,
            _ => story::renew(group, &progress, 4).await?,
        });
    }
    events.push(rounds.event(stories.last().map_or("", Story::event)).await?);
    let (of_group, of_services) = (stories.iter().all(Story::is_good), events.iter().all(services::is_good));
    let verdict = if of_group { "No message was lost." } else { "MESSAGES OR CONNECTIONS WERE LOST." };
    let answered = if of_services { "Each request had its answer." } else { "REQUESTS FAILED OR WERE SLOW." };
    for failure in events.iter().flat_map(|event| &event.figures).flat_map(|figures| figures.failures.iter().take(3)) {
        println!("{failure}");
    }
    println!("\n{}\n\n{}\n", story::render(&stories), rounds::render(&events));
    println!("{verdict} {answered} The whole took {}.", seconds(begun.elapsed()));
    Ok(of_group && of_services)
}

/// Packs nats-server as its releases are packed: an archive with a directory that holds the single binary.
async fn nats_server_archive(lab: &Path) -> Result<PathBuf, Failure> {
    let (binary, version) = (tools::nats_server(tools::NATS_SERVER)?, tools::NATS_SERVER);
    let archive = lab.join(format!("nats-server-v{version}.tar.gz"));
    let directory = binary.parent().unwrap_or(&binary);
    let inside = format!("--transform=s,^,nats-server-v{version}/,");
    let pack = [inside.as_ref(), "--create".as_ref(), "--gzip".as_ref(), "--file".as_ref(), archive.as_os_str()];
    let pack = pack.into_iter().chain(["--directory".as_ref(), directory.as_os_str(), "nats-server".as_ref()]);
    command::run("tar", pack).await?;
    Ok(archive)
}

fn how_to_look(group: &Group, inside: &Inside) -> Result<String, Failure> {
    let of = |instance: &instance::Instance| {
        let enter = instance.enter()?.join(" ");
        Ok(format!("  {}  nsenter --target={} --mount --pid nsenter {enter} bash --login", instance.id, inside.pid))
    };
    let lines = group.instances.iter().map(of).collect::<Result<Vec<_>, Failure>>()?;
    Ok(format!("Still up. To look inside, as root:\n{}\nCtrl-C ends the lab and removes everything.", lines.join("\n")))
}
