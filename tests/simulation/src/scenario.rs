//! The events of a run: the plan that a seed makes, and the operator who follows the plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use doubles::moody_issuer::Mood;
use time::OffsetDateTime;

use crate::cloud::{Caller, Outage, Service, root};
use crate::node::{Disturbances, Node, Order};
use crate::world::{World, next};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// The longest outage of AWS in which no certificate expires. A weekly certificate is renewed at 0.67 of its life, with
/// 55 h left.
pub const AUTONOMY: Duration = Duration::from_hours(55);
/// The product's own `discovery.interval`.
pub(crate) const RUSH_INTERVAL: Duration = Duration::from_secs(30);
const MOODS: [Mood; 4] = [Mood::Away, Mood::Denied, Mood::Throttled, Mood::Lossy];
const ALL: [Service; 3] = [Service::Pca, Service::Secrets, Service::AutoScaling];

/// The nodes and their operator.
pub(crate) struct Fleet {
    world: Arc<World>,
    rng: fastrand::Rng,
    seed: u64,
    disturbances: Disturbances,
    numbers: u64,
    nodes: BTreeMap<u64, Node>,
    /// The CA that signs.
    signing: usize,
}

impl Fleet {
    pub(crate) fn new(world: Arc<World>, seed: u64, disturbances: Disturbances) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { world, rng, seed, disturbances, numbers: 0, nodes: BTreeMap::new(), signing: 0 }
    }

    fn launch(&mut self, cluster: usize, boot: Duration) {
        self.numbers += 1;
        let caller = Caller { number: self.numbers, cluster };
        match Node::launch(&self.world, caller, self.seed, self.disturbances, boot) {
            Ok(node) => _ = self.nodes.insert(self.numbers, node),
            Err(error) => self.world.broken(&format!("no directory for a node: {error}")),
        }
    }

    /// Launches all clusters within `spread`.
    pub(crate) fn boot(&mut self, clusters: &[usize], spread: Duration) {
        for (cluster, size) in clusters.iter().enumerate() {
            for _ in 0..*size {
                let boot = spread.mul_f64(self.rng.f64());
                self.launch(cluster, boot);
            }
        }
    }

    /// Replaces a node. The new node comes before or after the end of the old node, as in Auto Scaling groups.
    async fn replace(&mut self, number: u64) {
        let Some(old) = self.nodes.remove(&number) else { return };
        let (cluster, boot) = (old.cluster, Duration::from_secs(self.rng.u64(10..90)));
        let leaving = Duration::from_secs(self.rng.u64(0..60));
        if self.rng.bool() {
            self.launch(cluster, boot);
            tokio::time::sleep(3 * MINUTE).await;
            old.terminate(&self.world, leaving).await;
        } else {
            old.terminate(&self.world, leaving).await;
            self.launch(cluster, boot);
        }
        self.world.count(|counts| counts.replacements += 1);
    }

    fn random_node(&mut self) -> Option<u64> {
        let index = self.rng.usize(0..self.nodes.len().max(1));
        self.nodes.keys().nth(index).copied()
    }

    fn order_all(&self, order: Order) {
        for node in self.nodes.values() {
            // A node that has just ended takes no orders.
            let _gone = node.orders.send(order);
        }
    }

    pub(crate) fn stop(&self) {
        for node in self.nodes.values() {
            node.stop(&self.world);
        }
    }

    /// Adds a new root to the bundle. This is the first of a rollover's three steps.
    ///
    /// The new root signs at once, or once every agent holds the new root. The old root leaves the bundle once no server
    /// shows a leaf of the old root. An operator in a hurry removes the old root after a day at the latest.
    fn add_root(&mut self) -> usize {
        let now = self.world.clock.now();
        let new = self.world.cloud.create_authority(now);
        self.world.cloud.trust(&[self.signing, new], now);
        new
    }

    fn switch(&mut self, new: usize) -> usize {
        self.world.cloud.sign_with(new);
        self.world.count(|counts| counts.rollovers += 1);
        std::mem::replace(&mut self.signing, new)
    }

    /// Runs replacements and rollovers over weeks and months, as the seed plans them.
    pub(crate) async fn live(&mut self, plan: &Year) {
        let world = Arc::clone(&self.world);
        let (clock, end) = (world.clock, world.clock.now() + plan.length);
        let mut replacement = next(&mut self.rng, clock.now(), plan.mean_replacement(self.nodes.len()));
        let mut rollover = Rollover::Due(clock.now() + plan.length.mul_f64(0.1 + self.rng.f64() * 0.1));
        let pause = plan.length.mul_f64(0.4);
        let (begun, mut told) = (clock.now(), 0);
        while clock.now() < end {
            // The operator checks the rollover every three hours.
            let look = clock.now() + 3 * HOUR;
            clock.sleep_until(replacement.min(look).min(end)).await;
            if clock.now() >= replacement {
                if let Some(number) = self.random_node() {
                    self.replace(number).await;
                }
                replacement = next(&mut self.rng, clock.now(), plan.mean_replacement(self.nodes.len()));
            }
            rollover = self.roll_over(rollover, pause);
            let day = (clock.now() - begun).whole_days();
            if day >= told + 10 {
                told = day;
                let counts = world.counts();
                (world.tell)(&format!("day {day}: {} passes, {} rotations", counts.passes, counts.renewals_served));
            }
        }
    }

    fn roll_over(&mut self, state: Rollover, pause: Duration) -> Rollover {
        let now = self.world.clock.now();
        match state {
            Rollover::Due(at) if now >= at => {
                let new = self.add_root();
                // Half of the operators look at no node. The agents then keep the order by themselves.
                if self.rng.bool() { self.let_sign(new) } else { Rollover::Added(new) }
            }
            Rollover::Added(new) if self.world.is_held_by_all(&root(new)) => self.let_sign(new),
            Rollover::Switched(old, hurry) => {
                let is_over = self.world.is_served_by_none(&root(old));
                if is_over || hurry.is_some_and(|at| now >= at) {
                    self.world.cloud.trust(&[self.signing], now);
                    return Rollover::Due(now + pause);
                }
                Rollover::Switched(old, hurry)
            }
            state => state,
        }
    }

    /// Lets the new root sign from now on.
    fn let_sign(&mut self, new: usize) -> Rollover {
        let now = self.world.clock.now();
        let old = self.switch(new);
        // Half of the operators are in a hurry. The agents then keep the old anchor by themselves.
        Rollover::Switched(old, self.rng.bool().then_some(now + DAY))
    }

    /// Replaces instances one after the other, at the product's own interval.
    pub(crate) async fn turn_over(&mut self, times: u32, length: Duration) {
        for _ in 0..times {
            tokio::time::sleep(length / times).await;
            if let Some(number) = self.random_node() {
                self.replace(number).await;
            }
        }
        tokio::time::sleep(10 * MINUTE).await;
    }

    /// Runs the events at which all nodes act at once, at the product's own interval.
    pub(crate) async fn rush(&mut self, plan: &Rush) {
        let world = Arc::clone(&self.world);
        let pause = |phase: &'static str, time: Duration| {
            world.begin_phase(phase);
            tokio::time::sleep(time)
        };
        let calm = 6 * HOUR;
        pause("boot", 10 * MINUTE).await;

        // Calm days pass at a long interval, up to the outage in which every certificate falls due.
        world.set_interval(calm);
        self.order_all(Order::Restart);
        let away = world.clock.now() + (4 * DAY + 2 * HOUR);
        let ends = away + (DAY + 12 * HOUR);
        world.cloud.plan(vec![Outage { begin: away, end: ends, mood: Mood::Away, services: ALL.to_vec() }]);
        world.begin_phase("calm");
        world.clock.sleep_until(ends - 20 * MINUTE).await;
        world.set_interval(RUSH_INTERVAL);
        for node in self.nodes.values() {
            let _gone = node.orders.send(Order::Restart);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        world.clock.sleep_until(ends).await;
        pause("end of an outage", 25 * MINUTE).await;

        let new = self.add_root();
        pause("a root is added", 15 * MINUTE).await;
        if !world.is_held_by_all(&root(new)) {
            world.broken("an agent still lacked the new root after 15 minutes");
        }
        let old = self.switch(new);
        self.order_all(Order::Renew);
        pause(ORDERED, 15 * MINUTE).await;
        world.cloud.trust(&[self.signing], world.clock.now());
        pause("a root is taken away", 15 * MINUTE).await;
        if !world.is_held_by_none(&root(old)) {
            world.broken("an agent still held the old root after 15 minutes, although no node needs the old root");
        }

        let clusters: Vec<usize> = plan.clusters.clone();
        for (cluster, size) in clusters.iter().enumerate() {
            for _ in 0..size.div_ceil(5) {
                let boot = Duration::from_secs(self.rng.u64(10..40));
                self.launch(cluster, boot);
            }
        }
        pause("scale-out", 10 * MINUTE).await;
        for (cluster, size) in clusters.iter().enumerate() {
            for _ in 0..size.div_ceil(5) {
                let Some(number) =
                    self.nodes.iter().find(|(_, node)| node.cluster == cluster).map(|(number, _)| *number)
                else {
                    continue;
                };
                if let Some(node) = self.nodes.remove(&number) {
                    node.terminate(&world, Duration::ZERO).await;
                }
            }
        }
        pause("scale-in", 10 * MINUTE).await;
    }
}

/// The phase in which an operator tells all nodes to renew. The report shows its reloads, and no promise limits them.
pub const ORDERED: &str = "everyone's `agent renew`";

enum Rollover {
    Due(OffsetDateTime),
    Added(usize),
    Switched(usize, Option<OffsetDateTime>),
}

/// The plan of a long life at a slow pace.
#[derive(Clone, Debug)]
pub struct Year {
    /// The length of the life.
    pub length: Duration,
    /// The mean lifetime of a node.
    pub node_life: Duration,
}

impl Year {
    fn mean_replacement(&self, nodes: usize) -> Duration {
        self.node_life / u32::try_from(nodes.max(1)).unwrap_or(u32::MAX)
    }

    /// The time in which clusters boot. The certificates of a fleet that boots on one day would always fall due on one
    /// day.
    pub(crate) fn boot(&self) -> Duration {
        self.length / 50
    }

    /// Outages of every mood and of every length up to [`AUTONOMY`], with time to recover between them.
    pub(crate) fn outages(&self, begin: OffsetDateTime, seed: u64) -> Vec<Outage> {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x006f_7574);
        let (mut outages, end) = (Vec::new(), begin + self.length);
        let mut at = begin + self.boot() + DAY + DAY.mul_f64(rng.f64() * 3.0);
        while at < end {
            // The first outage is the longest that the promise allows. Most other outages are short.
            let (mood, length) = if outages.is_empty() {
                (Mood::Away, AUTONOMY)
            } else {
                (
                    MOODS[rng.usize(0..MOODS.len())].clone(),
                    MINUTE.mul_f64((AUTONOMY.as_secs_f64() / 60.0).powf(rng.f64())),
                )
            };
            let mut services = ALL.to_vec();
            if !outages.is_empty() && rng.bool() {
                services.retain(|_| rng.bool());
            }
            let until = at + length;
            outages.push(Outage { begin: at, end: until, mood, services });
            at = until + 6 * HOUR + DAY.mul_f64(rng.f64() * 20.0);
        }
        outages
    }
}

/// The plan of the hours when all nodes act at once.
#[derive(Clone, Debug)]
pub struct Rush {
    /// The sizes of the clusters.
    pub clusters: Vec<usize>,
}
