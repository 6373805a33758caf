//! The library and the built binary against real parts. Doubles replace the parts that are unavailable here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on has failed")]

mod alerts;
mod arguments;
mod aws;
mod aws_double;
mod bad_input;
mod chains;
mod chaos;
mod client;
mod client_libraries;
mod client_trust;
mod conf_reader;
mod connection;
mod crash;
mod crowd;
mod distrust;
mod doctor;
mod documents;
mod fault_matrix;
mod fleet;
mod harness_works;
mod house;
mod iam;
mod idle;
mod included;
mod install;
mod issuer;
mod jetstream;
mod listeners;
mod operator;
mod outcomes;
mod probe;
mod protection;
mod reloads;
mod render;
mod rollover;
mod rotation;
mod secrecy;
mod service;
mod settings;
mod slow_reload;
mod state_directory;
mod steady;
mod system;
mod terraform;
mod through_a_gateway;
mod time;
mod trial;
mod units;
mod user_data;
mod versions;

use std::net::SocketAddr;

/// The built agent.
const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// The value of one of the agent's metrics, or `None` if the metric has no value.
async fn metric(address: SocketAddr, name: &str) -> Option<u64> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
