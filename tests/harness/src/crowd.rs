//! Many clients that only stay connected.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::Failure;
use crate::traffic::{Connection, Endpoint};

/// The number of concurrent TLS handshakes. More handshakes would exceed the time limit of the first client.
const AT_ONCE: usize = 32;

/// Connected clients of one nats-server.
#[derive(Debug)]
pub struct Crowd(Vec<Connection>);

impl Crowd {
    /// Connects `count` clients.
    pub async fn connect(endpoint: &Endpoint, count: usize) -> Result<Self, Failure> {
        let connections = stream::iter(0..count).map(|_| Connection::open(endpoint)).buffer_unordered(AT_ONCE);
        connections.try_collect().await.map(Self)
    }

    /// The number of times that any of the clients lost its connection.
    #[must_use]
    pub fn disconnects(&self) -> u64 {
        self.0.iter().map(Connection::disconnects).sum()
    }
}
