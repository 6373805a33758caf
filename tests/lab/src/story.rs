//! Events that the group goes through under traffic, and their effect on clients.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harness::acknowledged::Acknowledged;
use harness::progress::Progress;
use harness::traffic::{Endpoint, Traffic};
use harness::{Failure, eventually, table};
use serde_json::Value;
use tokio::time::Instant;

use crate::group::Group;
use crate::timeline::{self, Timeline};

/// The rate of core NATS messages a second, for all publishers together.
const RATE: u32 = 500;
/// The number of acknowledged messages of each client before and after an event, so that the event lies amid traffic.
const AMID: u64 = 50;
const AMID_WITHIN: Duration = Duration::from_mins(1);
const RESTART_WITHIN: Duration = Duration::from_mins(2);
const PACKAGE: &str = "nats-tls-agent";
/// The path of the next package on the upgraded instance.
const UPGRADE: &str = "/root/upgrade.deb";
/// The path at which the user data installs nats-server.
const NATS_SERVER: &str = "/usr/local/bin/nats-server";
const CONFIG: &str = "/var/lib/nats-tls-agent/nats-server.conf";

/// An event, and its effect on clients.
pub(crate) struct Story {
    event: String,
    took: Duration,
    /// Messages that all three JetStream servers had stored before they were counted.
    acknowledged: u64,
    acknowledged_lost: u64,
    sent: u64,
    sent_lost: u64,
    /// Reconnects of clients of the instance that went away.
    moved: u64,
    /// Lost connections of clients of the other instances.
    disturbed: u64,
}

impl Story {
    /// The name of the event.
    pub(crate) fn event(&self) -> &str {
        &self.event
    }

    /// Whether messages were sent and all arrived, and only clients of the instance that went away lost their
    /// connection.
    pub(crate) fn is_good(&self) -> bool {
        self.acknowledged_lost + self.sent_lost + self.disturbed == 0 && self.acknowledged > 0 && self.sent > 0
    }
}

/// Adds an instance, which boots and joins.
pub(crate) async fn scale_out(group: &mut Group, progress: &Progress) -> Result<(Story, String), Failure> {
    let mut joined = String::new();
    let story = under_traffic(group, progress, "scale out by one", None, async |group, done| {
        group.launch().await?;
        let timelines = group.converged(done).await?;
        joined = render_last(group, &timelines);
        Ok(())
    });
    Ok((story.await?, joined))
}

fn render_last(group: &Group, timelines: &[Timeline]) -> String {
    let last = group.instances.last().zip(timelines.last());
    let last = last.map(|(instance, timeline)| (instance.id.clone(), instance.booted, *timeline));
    timeline::render(&last.into_iter().collect::<Vec<_>>())
}

/// Terminates an instance for good.
pub(crate) async fn terminate(group: &mut Group, progress: &Progress, index: usize) -> Result<Story, Failure> {
    under_traffic(group, progress, "terminate one", Some(index), async |group, done| {
        group.terminate(index).await?;
        group.converged(done).await.map(drop)
    })
    .await
}

/// Reboots an instance. The instance comes back with its disk, and so with its certificate.
pub(crate) async fn reboot(group: &mut Group, progress: &Progress, index: usize) -> Result<Story, Failure> {
    let (paid, leaf) = (group.cloud.certificates(), leaf(&group.instances[index].status().await?));
    let story = under_traffic(group, progress, "reboot one", Some(index), async |group, done| {
        group.instances[index].reboot().await?;
        group.converged(done).await.map(drop)
    });
    let story = story.await?;
    same("certificates that were paid for, before and after the reboot", &paid, &group.cloud.certificates())?;
    same("leaf before and after the reboot", &leaf, &self::leaf(&group.instances[index].status().await?))?;
    Ok(story)
}

/// Renews a certificate early. nats-server loads the certificate, and no client is disturbed.
pub(crate) async fn renew(group: &mut Group, progress: &Progress, index: usize) -> Result<Story, Failure> {
    let before = leaf(&group.instances[index].status().await?);
    let story = under_traffic(group, progress, "renew a certificate", None, async |group, done| {
        group.instances[index].run(["agent", "renew"]).await?;
        group.converged(done).await.map(drop)
    });
    let story = story.await?;
    if leaf(&group.instances[index].status().await?) == before {
        return Err(Failure::new(format!("agent renew left the leaf {before} in place")));
    }
    Ok(story)
}

/// Installs the agent's next package on an instance. The agent restarts, and nats-server is not affected.
pub(crate) async fn upgrade(
    group: &mut Group,
    progress: &Progress,
    index: usize,
    package: &Path,
) -> Result<Story, Failure> {
    let instance = &group.instances[index];
    let before = (pid_of(instance, "nats-tls-agent").await?, pid_of(instance, "nats-server").await?);
    let version = version_of(instance).await?;
    std::fs::copy(package, instance.root().join(UPGRADE.trim_start_matches('/'))).map_err(|error| {
        Failure::new(format!("could not bring {} to an instance", package.display())).because(error)
    })?;
    let story = under_traffic(group, progress, "upgrade the package on one", None, async |group, done| {
        let instance = &group.instances[index];
        instance.run(["dpkg", "--install", UPGRADE]).await?;
        // The package's script doesn't wait for the agent.
        eventually("another process of the agent", RESTART_WITHIN, async || {
            let pid = pid_of(instance, "nats-tls-agent").await.map_err(|failure| failure.chain())?;
            if pid != "0" && pid != before.0 { Ok(()) } else { Err(pid) }
        })
        .await?;
        group.converged(done).await.map(drop)
    });
    let story = story.await?;
    let instance = &group.instances[index];
    same("nats-server's process before and after the upgrade", &before.1, &pid_of(instance, "nats-server").await?)?;
    if version_of(instance).await? == version {
        return Err(Failure::new(format!("{} holds the installed version {version}", package.display())));
    }
    Ok(story)
}

/// Removes the agent's package from an instance and installs it again. nats-server serves throughout, and the agent
/// finds its files unchanged.
pub(crate) async fn remove(group: &mut Group, progress: &Progress, index: usize) -> Result<Story, Failure> {
    let instance = &group.instances[index];
    let (server, leaf) = (pid_of(instance, "nats-server").await?, leaf(&instance.status().await?));
    let story = under_traffic(group, progress, "remove the package from one", None, async |group, done| {
        let instance = &group.instances[index];
        instance.run(["dpkg", "--remove", PACKAGE]).await?;
        same("the agent's process after the removal", &"0".to_owned(), &pid_of(instance, "nats-tls-agent").await?)?;
        instance.run(["runuser", "-u", "nats", "--", NATS_SERVER, "-t", "-c", CONFIG]).await?;
        instance.run(["dpkg", "--install", UPGRADE]).await?;
        instance.run(["systemctl", "enable", "--now", "nats-tls-agent"]).await?;
        group.converged(done).await.map(drop)
    });
    let story = story.await?;
    let instance = &group.instances[index];
    same("nats-server's process before and after the removal", &server, &pid_of(instance, "nats-server").await?)?;
    same("leaf before and after the removal", &leaf, &self::leaf(&instance.status().await?))?;
    Ok(story)
}

/// Runs an event amid traffic. Every instance has a publisher whose messages JetStream acknowledges. Core NATS runs
/// between all instances that stay, because core NATS promises nothing to the clients of a machine that goes away.
async fn under_traffic(
    group: &mut Group,
    progress: &Progress,
    event: &str,
    going: Option<usize>,
    work: impl AsyncFnOnce(&mut Group, &AtomicUsize) -> Result<(), Failure>,
) -> Result<Story, Failure> {
    let staying: Vec<_> =
        (0..group.instances.len()).filter(|index| Some(*index) != going).map(|index| group.endpoint(index)).collect();
    // The leaving client is the last, because the first client requests the stream. The leaving client reconnects to
    // another server, as through a load balancer.
    let others: Vec<_> = staying.iter().map(|endpoint| endpoint.address).collect();
    let leaving = going.map(|index| Endpoint { others, ..group.endpoint(index) });
    let all: Vec<_> = staying.iter().cloned().chain(leaving).collect();
    let next = staying.iter().cycle().skip(1);
    let ring: Vec<_> = staying.iter().cloned().zip(next.cloned()).collect();
    let clients = Acknowledged::start(&all).await?;
    clients.replicated(AMID_WITHIN).await?;
    let core = Traffic::start(&ring, RATE).await?;
    amid(&clients).await?;

    let begun = Instant::now();
    let done = AtomicUsize::new(0);
    let now = || format!("· {} healthy, {} messages acknowledged", done.load(Ordering::Relaxed), clients.count());
    progress.step(event, now, work(group, &done)).await?;
    let took = begun.elapsed();

    amid(&clients).await?;
    let (outcome, tally) = (clients.stop().await?, core.stop().await?);
    let (of_staying, of_going) = outcome.disconnects.split_at(staying.len());
    Ok(Story {
        event: event.into(),
        took,
        acknowledged: outcome.acknowledged,
        acknowledged_lost: outcome.lost,
        sent: tally.sent,
        sent_lost: tally.lost(),
        moved: of_going.iter().sum(),
        disturbed: of_staying.iter().sum::<u64>() + tally.disconnects,
    })
}

/// Waits for more acknowledged messages of every client, including the client that moved.
async fn amid(clients: &Acknowledged) -> Result<(), Failure> {
    let before = clients.counts();
    eventually("acknowledged messages of every client", AMID_WITHIN, async || {
        let now = clients.counts();
        let all = now.iter().zip(&before).all(|(now, before)| *now >= before + AMID);
        if all { Ok(()) } else { Err(format!("{now:?}, after {before:?}")) }
    })
    .await
}

async fn pid_of(instance: &crate::instance::Instance, unit: &str) -> Result<String, Failure> {
    let pid = instance.run(["systemctl", "show", "--property=MainPID", "--value", unit]).await?;
    Ok(pid.trim().to_owned())
}

async fn version_of(instance: &crate::instance::Instance) -> Result<String, Failure> {
    instance.run(["dpkg-query", "--show", "--showformat=${Version}", PACKAGE]).await
}

fn leaf(status: &Value) -> String {
    status["leaf"]["sha256"].to_string()
}

fn same<T: PartialEq + std::fmt::Display>(what: &str, before: &T, after: &T) -> Result<(), Failure> {
    if before == after { Ok(()) } else { Err(Failure::new(format!("{what}: {before}, {after}"))) }
}

/// A table of all events.
pub(crate) fn render(stories: &[Story]) -> String {
    let head =
        ["event", "seconds", "acknowledged", "lost", "core NATS", "lost", "reconnects of its clients", "of others"];
    let rows: Vec<_> = stories
        .iter()
        .map(|story| {
            let numbers = [
                story.acknowledged,
                story.acknowledged_lost,
                story.sent,
                story.sent_lost,
                story.moved,
                story.disturbed,
            ];
            let [acknowledged, acknowledged_lost, sent, sent_lost, moved, disturbed] =
                numbers.map(|number| number.to_string());
            let seconds = format!("{:.1}", story.took.as_secs_f64());
            [story.event.clone(), seconds, acknowledged, acknowledged_lost, sent, sent_lost, moved, disturbed]
        })
        .collect();
    table::render(&head.map(String::from), &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(sent_lost: u64, disturbed: u64) -> Story {
        Story {
            event: "reboot one".into(),
            took: Duration::from_millis(12_340),
            acknowledged: 900,
            acknowledged_lost: 0,
            sent: 6000,
            sent_lost,
            moved: 1,
            disturbed,
        }
    }

    #[test]
    fn only_clients_of_the_machine_that_went_may_lose_their_connection_and_nobody_a_message() {
        assert!(story(0, 0).is_good());
        assert!(!story(1, 0).is_good());
        assert!(!story(0, 1).is_good());
        assert!(!Story { acknowledged: 0, ..story(0, 0) }.is_good(), "there was no traffic");
        let table = render(&[story(0, 0)]);
        assert!(
            table.ends_with("reboot one  12.3     900           0     6000       0     1                          0"),
            "{table}"
        );
    }
}
