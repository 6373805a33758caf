//! Whether this instance waits in the warm pool of its Auto Scaling group.
//!
//! An instance of a warm pool may stop or hibernate for weeks, and a certificate would age meanwhile
//! (<https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-warm-pools.html>).

use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::imds;
use aws_sdk_autoscaling::Client;

use crate::aws::AwsSettings;
use crate::aws::calls::counted;

const FIND: &str = "autoscaling:DescribeAutoScalingInstances";

/// The state that the instance is in, or goes to. The state changes before the lifecycle hooks of the way run, so an instance on
/// its way out of the pool has `InService`
/// (<https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html>).
const TARGET: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";

/// The longest look. An instance in service must not wait longer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Every state of a warm pool: `Warmed:Pending` with its hooks, `Warmed:Stopped`, `Warmed:Running`, `Warmed:Hibernated`,
/// `Warmed:Terminating` with its hooks, `Warmed:Terminated`
/// (<https://docs.aws.amazon.com/autoscaling/ec2/userguide/warm-pool-instance-lifecycle.html>).
const WARMED: &str = "Warmed:";

/// Tells the lifecycle state of this instance.
#[async_trait]
pub trait Lifecycle: Send + Sync {
    /// The state of the warm pool that this instance is in, such as `Warmed:Stopped`. `None`: the instance is in no warm pool,
    /// or its state is unknown. A node of unknown state must not wait.
    async fn warm_pool(&self) -> Option<String>;
}

/// The lifecycle by instance metadata. Where metadata has no state, Auto Scaling is asked.
pub(crate) struct InGroup {
    metadata: imds::Client,
    group: Client,
    id: Option<String>,
}

impl InGroup {
    pub(crate) fn new(settings: &AwsSettings, aws: &SdkConfig, id: Option<String>) -> Self {
        Self { metadata: settings.imds(), group: Client::new(aws), id }
    }

    async fn state(&self) -> Option<String> {
        match self.metadata.get(TARGET).await {
            Ok(state) => Some(state.into()),
            Err(error) => {
                tracing::debug!("instance metadata has no lifecycle state: {error}");
                self.described().await
            }
        }
    }

    async fn described(&self) -> Option<String> {
        let id = self.id.as_deref()?;
        let request = self.group.describe_auto_scaling_instances().instance_ids(id);
        let answer = counted(FIND, request.send().await).ok()?;
        let own = answer.auto_scaling_instances().iter().find(|instance| instance.instance_id() == Some(id))?;
        own.lifecycle_state().map(ToOwned::to_owned)
    }
}

#[async_trait]
impl Lifecycle for InGroup {
    async fn warm_pool(&self) -> Option<String> {
        let state = tokio::time::timeout(LOOK_TIMEOUT, self.state()).await.ok().flatten()?;
        in_warm_pool(&state).map(ToOwned::to_owned)
    }
}

/// The state, where the text is a state of a warm pool. Nonsense is no such state.
fn in_warm_pool(state: &str) -> Option<&str> {
    let state = state.trim();
    let is_name = |name: &str| name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b':');
    state.strip_prefix(WARMED).filter(|name| is_name(name)).map(|_| state)
}

#[cfg(test)]
mod tests {
    use aws_sdk_autoscaling::types::LifecycleState;

    use super::*;

    #[test]
    fn an_instance_waits_in_every_state_of_a_warm_pool_and_in_no_other() {
        let (warm, others): (Vec<_>, Vec<_>) =
            LifecycleState::values().iter().partition(|state| in_warm_pool(state).is_some());
        for state in ["Warmed:Pending", "Warmed:Pending:Wait", "Warmed:Stopped", "Warmed:Running", "Warmed:Hibernated"]
        {
            assert!(warm.contains(&state), "{state}: {warm:?}");
        }
        assert!(others.contains(&"InService") && others.contains(&"Pending:Wait"), "{others:?}");
        assert_eq!(in_warm_pool("Warmed:Stopped\n"), Some("Warmed:Stopped"));
        for nonsense in ["", "<html>", "warmed:stopped", "Warmed:<html>", &format!("Warmed:{}", "x".repeat(99))] {
            assert_eq!(in_warm_pool(nonsense), None, "{nonsense:?}");
        }
    }
}
