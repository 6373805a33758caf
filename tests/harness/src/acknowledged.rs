//! Publishers that count a message as sent once JetStream has acknowledged it. At the end they read every such message
//! back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, stream};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::traffic::{Connection, Endpoint};
use crate::{Failure, eventually};

const STREAM: &str = "ACKNOWLEDGED";
/// The time in which first the meta group and then the stream's group elect their leaders.
const ELECTED_WITHIN: Duration = Duration::from_mins(1);
/// A publisher without an acknowledgement in this time sends the same message again.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(2);
/// The limit for an election and for reading all messages.
const READ_WITHIN: Duration = Duration::from_mins(2);
/// The pause between two messages of one publisher.
const PAUSE: Duration = Duration::from_millis(2);

/// One publisher on each server. Three servers store each message before it is acknowledged.
#[derive(Debug)]
pub struct Acknowledged {
    publishers: Vec<Publisher>,
    stop: watch::Sender<bool>,
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Acknowledged messages.
    pub acknowledged: u64,
    /// Acknowledged messages that the stream doesn't hold.
    pub lost: u64,
    /// The number of lost connections of each publisher's client, in order.
    pub disconnects: Vec<u64>,
}

#[derive(Debug)]
struct Publisher {
    connection: Connection,
    context: Context,
    acknowledged: Arc<AtomicU64>,
    publishing: JoinHandle<()>,
}

impl Acknowledged {
    /// Makes the stream as soon as the cluster can, and a publisher for each endpoint.
    pub async fn start(endpoints: &[Endpoint]) -> Result<Self, Failure> {
        let (stop, stopped) = watch::channel(false);
        let mut started = Self { publishers: Vec::new(), stop };
        for (index, endpoint) in endpoints.iter().enumerate() {
            let connection = Connection::open(endpoint).await?;
            let context = jetstream::new(connection.client.clone());
            if index == 0 {
                create_stream(&context).await?;
            }
            let acknowledged = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&acknowledged);
            let publishing = tokio::spawn(publish(context.clone(), index, counted, stopped.clone()));
            started.publishers.push(Publisher { connection, context, acknowledged, publishing });
        }
        Ok(started)
    }

    /// The number of messages acknowledged so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// The number of messages acknowledged so far for each publisher, in order.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.publishers.iter().map(|publisher| publisher.acknowledged.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every replica of the stream is complete, so that the next server may die.
    pub async fn replicated(&self, within: Duration) -> Result<(), Failure> {
        eventually("three current replicas of the stream", within, async || {
            let info = self.stream().await.map_err(|failure| failure.chain())?;
            let info = info.get_info().await.map_err(|error| error.to_string())?;
            let cluster = info.cluster.ok_or("no cluster")?;
            let behind: Vec<_> = cluster.replicas.iter().filter(|peer| !peer.current || peer.offline).collect();
            if cluster.leader.is_some() && cluster.replicas.len() == 2 && behind.is_empty() {
                Ok(())
            } else {
                Err(format!("leader {:?}, {:?}", cluster.leader, cluster.replicas))
            }
        })
        .await
    }

    /// Stops the publishers, reads the stream from its beginning, and deletes it, so that the next run begins without a
    /// stream.
    pub async fn stop(mut self) -> Result<Outcome, Failure> {
        self.stop.send_replace(true);
        for publisher in &mut self.publishers {
            (&mut publisher.publishing).await.map_err(|error| Failure::new("a publisher broke").because(error))?;
        }
        let mut missing: BTreeSet<(usize, u64)> = BTreeSet::new();
        for (index, publisher) in self.publishers.iter().enumerate() {
            missing.extend((0..publisher.acknowledged.load(Ordering::Relaxed)).map(|number| (index, number)));
        }
        let acknowledged = missing.len() as u64;
        let read = tokio::time::timeout(READ_WITHIN, self.read(&mut missing)).await;
        read.map_err(|late| Failure::new("could not read the stream to its end").because(late))??;
        let context = self.publishers.first().map(|publisher| &publisher.context);
        if let Some(context) = context {
            let deleted = context.delete_stream(STREAM).await;
            deleted.map_err(|error| Failure::new("could not delete the stream").because(error))?;
        }
        let disconnects = self.publishers.iter().map(|publisher| publisher.connection.disconnects()).collect();
        Ok(Outcome { acknowledged, lost: missing.len() as u64, disconnects })
    }

    async fn read(&self, missing: &mut BTreeSet<(usize, u64)>) -> Result<(), Failure> {
        let cannot = |error: async_nats::Error| Failure::new("could not read the stream").because(error);
        let config = pull::OrderedConfig { deliver_policy: DeliverPolicy::All, ..pull::OrderedConfig::default() };
        // Only the meta leader makes consumers, and the leader may have just been killed.
        let (mut left, consumer) = eventually("a consumer of the stream", ELECTED_WITHIN, async || {
            let stream = self.stream().await.map_err(|failure| failure.chain())?;
            let info = stream.get_info().await.map_err(|error| error.to_string())?;
            let consumer = stream.create_consumer(config.clone()).await.map_err(|error| error.to_string())?;
            Ok((info.state.messages, consumer))
        })
        .await?;
        let mut messages = consumer.messages().await.map_err(|error| cannot(error.into()))?;
        while left > 0
            && let Some(message) = messages.next().await
        {
            let message = message.map_err(|error| cannot(error.into()))?;
            if let Some(found) = parse(&message.subject, &message.payload) {
                missing.remove(&found);
            }
            left -= 1;
        }
        Ok(())
    }

    async fn stream(&self) -> Result<stream::Stream, Failure> {
        let context = self.publishers.first().map(|publisher| &publisher.context);
        let context = context.ok_or_else(|| Failure::new("there is no publisher"))?;
        context.get_stream(STREAM).await.map_err(|error| Failure::new("could not ask for the stream").because(error))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

async fn create_stream(context: &Context) -> Result<(), Failure> {
    let config = stream::Config {
        name: STREAM.into(),
        subjects: vec![format!("{}.>", STREAM.to_lowercase())],
        num_replicas: 3,
        ..stream::Config::default()
    };
    eventually("a stream of three replicas", ELECTED_WITHIN, async || {
        context.get_or_create_stream(config.clone()).await.map(drop).map_err(|error| error.to_string())
    })
    .await
}

/// Publishes one message after the other, and repeats each until it is acknowledged. A repeated message has the same
/// id, so it is stored once
/// (<https://docs.nats.io/using-nats/developer/develop_jetstream/model_deep_dive#message-deduplication>).
async fn publish(context: Context, index: usize, acknowledged: Arc<AtomicU64>, mut stopped: watch::Receiver<bool>) {
    let subject = format!("{}.{index}", STREAM.to_lowercase());
    let mut number: u64 = 0;
    while !*stopped.borrow_and_update() {
        let message =
            PublishMessage::build().payload(number.to_string().into()).message_id(format!("{index}-{number}"));
        let stored = async {
            let sent = context.send_publish(subject.clone(), message).await.ok()?;
            sent.await.ok()
        };
        if let Ok(Some(_)) = tokio::time::timeout(ACKNOWLEDGED_WITHIN, stored).await {
            number += 1;
            acknowledged.store(number, Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn parse(subject: &str, payload: &[u8]) -> Option<(usize, u64)> {
    let (_, index) = subject.rsplit_once('.')?;
    Some((index.parse().ok()?, std::str::from_utf8(payload).ok()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_whose_it_is_and_its_number() {
        assert_eq!(parse("acknowledged.2", b"17"), Some((2, 17)));
        assert_eq!(parse("acknowledged.2", b"x"), None);
    }
}
