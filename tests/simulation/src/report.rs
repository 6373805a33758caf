//! The result of a run: its figures as a table, and the broken promises.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::meters::Share;
use crate::scenario::ORDERED;
use crate::world::World;
use crate::{JITTER_WINDOW, MOST_FILES};

/// The figures of a run, the same for the same seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Days of all nodes together.
    pub node_days: u64,
    /// Passes of the reconciler.
    pub passes: u64,
    /// Passes that were killed at an await.
    pub killed: u64,
    /// Starts of an agent after its first start.
    pub agent_restarts: u64,
    /// Restarts of a nats-server.
    pub server_restarts: u64,
    /// Instances replaced.
    pub replacements: u64,
    /// CAs that took over from another CA.
    pub rollovers: u64,
    /// Loads beside a peer whose anchor left the bundle before the node was launched.
    pub came_too_late: u64,
    /// Loads after which a new node shows its first leaf, of a CA that a peer has not read yet.
    pub came_too_soon: u64,
    /// Certificates paid for.
    pub issued: usize,
    /// Second payments for a key that the agent could have avoided.
    pub paid_twice: usize,
    /// Second payments for a key that no agent could have avoided.
    pub paid_unavoidably: usize,
    /// Certificates that replaced another certificate in a running nats-server.
    pub rotated: u64,
    /// Reloads of all nats-servers.
    pub reloads: u64,
    /// Calls that Private CA throttled, or that an outage of any service throttled.
    pub throttled: u64,
    /// The longest episode above a quota.
    pub above_quota: Duration,
    /// The most certificates issued in a minute.
    pub worst_minute: u32,
    /// The most IssueCertificate calls in a second.
    pub worst_second: u32,
    /// The shortest time that a certificate had left when its successor was served.
    pub least_left: Option<Duration>,
    /// The worst share of a cluster that reloaded in ten seconds, by phase.
    pub reloading: BTreeMap<String, Share>,
    /// The most files in a state directory.
    pub most_files: usize,
    /// How many times a promise was broken.
    pub broken: u64,
}

/// The report of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The name of the scenario.
    pub scenario: &'static str,
    /// The seed that repeats the run.
    pub seed: u64,
    /// The real time that the run took.
    pub took: Duration,
    /// The figures.
    pub figures: Figures,
    /// The messages of the first broken promises.
    pub broken: Vec<String>,
}

impl Report {
    pub(crate) fn of(scenario: &'static str, seed: u64, world: &World, took: Duration) -> Self {
        let counts = world.counts();
        let (issued, paid_again, paid_unavoidably) = world.cloud.paid();
        let paid_twice = paid_again - paid_unavoidably;
        let (throttled, (above_quota, worst_minute, worst_second)) =
            world.cloud.calls(|calls| (calls.throttled, calls.figures()));
        let mut broken = world.take_broken();
        let mut promise = |kept: bool, what: String| {
            if !kept {
                broken.push(what);
            }
        };
        let reloading = world.worst_reloads();
        promise(paid_twice == 0, format!("{paid_twice} keys were paid for twice"));
        promise(above_quota <= JITTER_WINDOW, format!("calls arrived above a quota for {} s", above_quota.as_secs()));
        promise(counts.most_files <= MOST_FILES, format!("a state directory held {} files", counts.most_files));
        for (phase, share) in reloading.iter().filter(|(phase, _)| *phase != ORDERED) {
            promise(share.nodes <= share.turn(), format!("{phase}: {share} of a cluster reloaded in ten seconds"));
        }
        let extra = broken.len() as u64;
        let figures = Figures {
            node_days: counts.node_seconds / 86_400,
            passes: counts.passes,
            killed: counts.killed,
            agent_restarts: counts.agent_restarts,
            server_restarts: counts.server_restarts,
            replacements: counts.replacements,
            rollovers: counts.rollovers,
            came_too_late: counts.came_too_late,
            came_too_soon: counts.came_too_soon,
            issued,
            paid_twice,
            paid_unavoidably,
            rotated: counts.renewals_served,
            reloads: counts.reloads,
            throttled,
            above_quota,
            worst_minute,
            worst_second,
            least_left: counts.least_left,
            reloading,
            most_files: counts.most_files,
            broken: counts.broken.max(extra),
        };
        Self { scenario, seed, took, figures, broken }
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.broken.is_empty()
    }

    /// The report in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Figures { node_days, passes, issued, .. } = &self.figures;
        let kept = if self.is_kept() { "every promise kept" } else { "PROMISES BROKEN" };
        format!(
            "{}: {kept}; {node_days} node-days, {passes} passes, {issued} certificates in {:.0} s, seed {}",
            self.scenario,
            self.took.as_secs_f64(),
            self.seed
        )
    }

    /// Every figure with its name.
    #[must_use]
    pub fn rows(&self) -> Vec<(String, String)> {
        let figures = &self.figures;
        let left = figures.least_left.map_or("-".to_owned(), |left| format!("{:.1} h", left.as_secs_f64() / 3600.0));
        let mut rows: Vec<(String, String)> = [
            ("node-days", figures.node_days.to_string()),
            ("passes", figures.passes.to_string()),
            ("passes killed at an await", figures.killed.to_string()),
            ("agent restarts", figures.agent_restarts.to_string()),
            ("nats-server restarts", figures.server_restarts.to_string()),
            ("nodes replaced", figures.replacements.to_string()),
            ("CA rollovers", figures.rollovers.to_string()),
            ("loads beside a peer of a CA removed before", figures.came_too_late.to_string()),
            ("loads beside a peer before it reads a CA", figures.came_too_soon.to_string()),
            ("certificates paid for", figures.issued.to_string()),
            ("keys paid for twice", figures.paid_twice.to_string()),
            ("keys paid for twice, unavoidably", figures.paid_unavoidably.to_string()),
            ("rotations served", figures.rotated.to_string()),
            ("reloads", figures.reloads.to_string()),
            ("throttled calls", figures.throttled.to_string()),
            ("most certificates issued in a minute", figures.worst_minute.to_string()),
            ("most IssueCertificate calls in a second", figures.worst_second.to_string()),
            ("longest time above a quota", format!("{} s", figures.above_quota.as_secs())),
            ("least time left of a served certificate", left),
            ("most files in a state directory", figures.most_files.to_string()),
            ("promises broken", figures.broken.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let reloading = figures.reloading.iter();
        rows.extend(reloading.map(|(phase, share)| (format!("reloading in 10 s: {phase}"), share.to_string())));
        rows.push(("wall time".into(), format!("{:.1} s", self.took.as_secs_f64())));
        rows.push(("seed".into(), self.seed.to_string()));
        rows
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.scenario)?;
        for (name, value) in self.rows() {
            writeln!(formatter, "  {name:44}{value}")?;
        }
        for broken in &self.broken {
            writeln!(formatter, "  BROKEN  {broken}")?;
        }
        Ok(())
    }
}
