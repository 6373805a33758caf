//! Settings inside blocks that the agent renders, and what nats-server then does.

use std::net::SocketAddr;

use harness::cluster::Node;
use harness::imds::{ImdsStub, InstanceFacts};
use harness::nats_server::monitor;
use harness::nodes::Nodes;
use harness::{eventually, tools};
use rustls::AlertDescription;
use rustls::version::TLS12;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;

use super::{SOON, append, begin_tls, nodes};

const SETTINGS: &str = r#"
[nats.settings]
server_tags = ["az:{{ node.zone }}", "name:{{ node.name }}"]
tls = { min_version = "1.3" }
jetstream = { unique_tag = "az:" }

[nats.settings.cluster]
pool_size = 5
no_advertise = true
tls = { min_version = "1.3" }
"#;
/// The routes of a pool of five, and the route of the system account.
const ROUTES: usize = 6;

/// The first line that a client port sends.
async fn info(address: SocketAddr) -> (Value, TcpStream) {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    (serde_json::from_str(line.strip_prefix("INFO ").unwrap()).unwrap(), stream.into_inner())
}

/// What rustls says of a handshake that offers TLS 1.2 alone.
async fn refusal_of_tls_1_2(node: &Node, stream: TcpStream) -> rustls::Error {
    let refused = begin_tls(node, stream, &[&TLS12]).await.unwrap_err();
    *refused.into_inner().unwrap().downcast().unwrap()
}

/// Checks each setting by its effect.
async fn assert_in_effect(cluster: &Nodes, zone: &str) {
    let protocol = rustls::Error::AlertReceived(AlertDescription::ProtocolVersion);
    for node in &cluster.nodes {
        let varz = node.server.as_ref().unwrap().varz().await.unwrap();
        assert_eq!(varz["tags"], serde_json::json!([format!("az:{zone}"), format!("name:{}", node.name)]), "{varz}");
        assert_eq!(varz["jetstream"]["config"]["unique_tag"], "az:", "{varz}");
        eventually("the pool of routes", SOON, async || {
            let routez = monitor(node.monitor(), "/routez").await.map_err(|failure| failure.chain())?;
            if routez["num_routes"] == ROUTES { Ok(()) } else { Err(routez.to_string()) }
        })
        .await
        .unwrap();
        let (info, stream) = info(node.client()).await;
        // A client learns no address of the other node.
        assert_eq!(info["connect_urls"], Value::Null, "{info}");
        assert_eq!(refusal_of_tls_1_2(node, stream).await, protocol);
        assert_eq!(refusal_of_tls_1_2(node, TcpStream::connect(node.route()).await.unwrap()).await, protocol);
    }
}

#[tokio::test]
async fn tags_of_the_zone_and_settings_inside_rendered_blocks_take_effect_and_rotate_on_every_version() {
    let facts = InstanceFacts::new("i-0123456789abcdef0", "eu-west-1", [10, 0, 1, 5].into());
    let imds = ImdsStub::start(facts).await.unwrap();
    let imds = &imds;
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut cluster = nodes(version, 2);
        append(&cluster, SETTINGS);
        for node in &mut cluster.nodes {
            node.agent.set_metadata(&imds.endpoint());
        }
        cluster.boot().await.unwrap();
        assert_in_effect(&cluster, "eu-west-1a").await;
        for _ in 0..2 {
            for node in &cluster.nodes {
                let renewed = node.agent.renew().await.unwrap();
                assert_eq!(renewed["result"], "confirmed", "{version}: {renewed}");
            }
        }
        assert_in_effect(&cluster, "eu-west-1a").await;
    });
    harness::join_all(runs).await;
}
