//! Tests of the harness, on which the other tests rely.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use harness::loopback::free_ports;
use harness::nats_server::{Launch, NatsServer};
use harness::traffic::{ClientTls, Endpoint, Traffic};
use harness::{eventually, tools};
use nix::sys::signal::Signal;

async fn plain_server(directory: &Path, version: &str, ports: &[u16]) -> NatsServer {
    server(directory, version, ports, "").await
}

async fn server(directory: &Path, version: &str, ports: &[u16], settings: &str) -> NatsServer {
    let [client, monitor] = [ports[0], ports[1]].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let (config, pid_file) = (directory.join("nats-server.conf"), directory.join("nats-server.pid"));
    let text = format!("listen: \"{client}\"\nhttp: \"{monitor}\"\npid_file: \"{}\"\n{settings}", pid_file.display());
    std::fs::write(&config, text).unwrap();
    let binary = tools::nats_server(version).unwrap();
    NatsServer::start(Launch {
        binary,
        config,
        pid_file,
        client,
        monitor,
        log: directory.join("log"),
        arguments: Vec::new(),
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn counted_traffic_through_one_server_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(2).unwrap();
    let server = plain_server(directory.path(), tools::NATS_SERVER, ports.numbers()).await;
    assert_eq!(server.varz().await.unwrap()["version"], tools::NATS_SERVER);

    let here = Endpoint { address: server.launch().client, others: Vec::new(), tls: None };
    let traffic = Traffic::start(&[(here.clone(), here.clone()), (here.clone(), here)], 2000).await.unwrap();
    eventually("1,000 messages", Duration::from_secs(20), async || match traffic.progress() {
        progress if progress.received >= 1000 => Ok(()),
        progress => Err(format!("{progress:?}")),
    })
    .await
    .unwrap();
    let tally = traffic.stop().await.unwrap();
    assert!(tally.sent >= 1000, "{tally:?}");
    assert_eq!((tally.lost(), tally.duplicates, tally.disconnects, tally.reconnects), (0, 0, 0, 0), "{tally:?}");
    assert!(tally.latency.p50 > Duration::ZERO && tally.latency.p50 <= tally.latency.max, "{tally:?}");
    assert!(server.stop().await.unwrap().success());
}

/// Without this test "0 lost" would have no meaning.
#[tokio::test]
async fn counted_traffic_sees_a_server_that_dies_under_it() {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(2).unwrap();
    let server = plain_server(directory.path(), tools::NATS_SERVER, ports.numbers()).await;
    let here = Endpoint { address: server.launch().client, others: Vec::new(), tls: None };
    let traffic = Traffic::start(&[(here.clone(), here)], 2000).await.unwrap();
    // The socket of a stopped server still accepts messages. These messages are lost when the server ends.
    server.signal(Signal::SIGSTOP).unwrap();
    let before = traffic.progress().sent;
    eventually("messages in the socket", Duration::from_secs(20), async || match traffic.progress().sent {
        sent if sent >= before + 200 => Ok(()),
        sent => Err(format!("{sent} sent")),
    })
    .await
    .unwrap();
    server.kill().await.unwrap();
    let server = plain_server(directory.path(), tools::NATS_SERVER, ports.numbers()).await;
    let tally = traffic.stop().await.unwrap();
    assert!(tally.lost() > 0 && tally.disconnects >= 2, "{tally:?}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn every_pinned_server_starts_says_its_version_and_stops() {
    for version in tools::NATS_SERVER_VERSIONS {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(2).unwrap();
        let server = plain_server(directory.path(), version, ports.numbers()).await;
        assert_eq!(server.varz().await.unwrap()["version"], version);
        assert!(server.routes().await.unwrap().is_empty());
        server.stop().await.unwrap();
    }
}

/// A CA and a leaf for 127.0.0.1 in PEM files.
fn certificates(directory: &Path) -> ClientTls {
    let mut authority = rcgen::CertificateParams::new([]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    leaf.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let [ca, chain, key_file] = ["ca.pem", "cert.pem", "key.pem"].map(|name| directory.join(name));
    std::fs::write(&ca, issuer.pem()).unwrap();
    std::fs::write(&chain, leaf.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    ClientTls { ca, certificate: Some((chain, key_file)) }
}

#[tokio::test]
async fn counted_traffic_over_mutual_tls_trusts_only_the_anchors_it_was_given() {
    let directory = tempfile::tempdir().unwrap();
    let tls = certificates(directory.path());
    let Some((chain, key)) = &tls.certificate else { panic!("no certificate") };
    let settings = format!("tls {{ cert_file: {chain:?}, key_file: {key:?}, ca_file: {:?}, verify: true }}\n", tls.ca);
    let ports = free_ports(2).unwrap();
    let server = server(directory.path(), tools::NATS_SERVER, ports.numbers(), &settings).await;
    let address = server.launch().client;

    let strangers = tempfile::tempdir().unwrap();
    let stranger = Endpoint { address, others: Vec::new(), tls: Some(certificates(strangers.path())) };
    assert!(Traffic::start(&[(stranger.clone(), stranger)], 100).await.is_err());
    let nameless = Endpoint { address, others: Vec::new(), tls: Some(ClientTls { certificate: None, ..tls.clone() }) };
    assert!(Traffic::start(&[(nameless.clone(), nameless)], 100).await.is_err());

    let here = Endpoint { address, others: Vec::new(), tls: Some(tls) };
    let traffic = Traffic::start(&[(here.clone(), here)], 2000).await.unwrap();
    eventually("200 messages", Duration::from_secs(20), async || match traffic.progress() {
        progress if progress.received >= 200 => Ok(()),
        progress => Err(format!("{progress:?}")),
    })
    .await
    .unwrap();
    let tally = traffic.stop().await.unwrap();
    assert_eq!((tally.lost(), tally.reconnects), (0, 0), "{tally:?}");
    server.stop().await.unwrap();
}
