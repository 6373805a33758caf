//! Nodes of a cluster for a test, made together in a temporary directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Node};
use crate::{Failure, tools};

/// The routes of a pool take a second if a peer was dialled too early. A node's first healthy pass takes a second too.
const BOOT_WITHIN: Duration = Duration::from_secs(30);

/// A cluster and its nodes. All processes end and all files are removed when this value is dropped.
#[derive(Debug)]
pub struct Nodes {
    /// The nodes, `n1` first.
    pub nodes: Vec<Node>,
    /// The common properties of the nodes.
    pub cluster: Cluster,
    directory: TempDir,
}

impl Nodes {
    /// Makes nodes without processes, on the pinned nats-server of this version. A test passes
    /// `env!("CARGO_BIN_EXE_agent")`.
    pub fn new(agent: impl AsRef<Path>, version: &str, count: u8) -> Result<Self, Failure> {
        let directory =
            tempfile::tempdir().map_err(|error| Failure::new("could not make a directory for nodes").because(error))?;
        let cluster = Cluster::new(directory.path(), agent.as_ref(), &tools::nats_server(version)?)?;
        let nodes = (1..=count).map(|number| cluster.node(number)).collect::<Result<_, _>>()?;
        Ok(Self { nodes, cluster, directory })
    }

    /// The directory of all files of the nodes.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes every node's `agent.toml`, with all nodes as its peers.
    pub fn configure(&self) -> Result<(), Failure> {
        let peers: Vec<&Node> = self.nodes.iter().collect();
        self.nodes.iter().try_for_each(|node| self.cluster.configure(node, &peers))
    }

    /// Sets a key in every node's `agent.toml`, see [`set`].
    pub fn set(&self, key: &str, value: &str) -> Result<(), Failure> {
        self.nodes.iter().try_for_each(|node| set(node.agent.config(), key, value))
    }

    /// Starts every agent, waits for its first commit, and starts every nats-server. Waits until all nodes are healthy
    /// and have routes to each other.
    pub async fn boot(&mut self) -> Result<(), Failure> {
        for node in &mut self.nodes {
            node.agent.start()?;
        }
        for node in &mut self.nodes {
            node.committed().await?;
        }
        for node in &mut self.nodes {
            self.cluster.start_server(node).await?;
        }
        for node in &self.nodes {
            let others = self.nodes.iter().filter(|other| other.name != node.name).map(|other| other.name.clone());
            node.meshed(&others.collect::<BTreeSet<_>>(), BOOT_WITHIN).await?;
            node.healthy(BOOT_WITHIN).await?;
        }
        Ok(())
    }

    /// Makes a healthy cluster with the settings that [`Cluster`] writes.
    pub async fn start(agent: impl AsRef<Path>, version: &str, count: u8) -> Result<Self, Failure> {
        let mut nodes = Self::new(agent, version, count)?;
        nodes.configure()?;
        nodes.boot().await?;
        Ok(nodes)
    }
}

/// Sets the key `table.key` in an `agent.toml` that [`Cluster::configure`] wrote with one key a line. `value` is TOML.
pub fn set(config: &Path, key: &str, value: &str) -> Result<(), Failure> {
    let cannot = |error| Failure::new(format!("could not set {key} in {}", config.display())).because(error);
    let text = std::fs::read_to_string(config).map_err(cannot)?;
    std::fs::write(config, with(&text, key, value)).map_err(cannot)
}

fn with(text: &str, key: &str, value: &str) -> String {
    let (table, name) = key.split_once('.').unwrap_or(("", key));
    let (header, entry) = (format!("[{table}]"), format!("{name} = {value}"));
    let mut lines: Vec<&str> = text.lines().collect();
    let Some(start) = lines.iter().position(|line| *line == header) else {
        return format!("{text}\n{header}\n{entry}\n");
    };
    let end = lines[start + 1..].iter().position(|line| line.starts_with('[')).map_or(lines.len(), |n| start + 1 + n);
    let is_it = |line: &&str| line.split_once('=').is_some_and(|(found, _)| found.trim() == name);
    match lines[start..end].iter().position(is_it) {
        Some(at) => lines[start + at] = &entry,
        None => lines.insert(start + 1, &entry),
    }
    lines.join("\n") + "\n"
}

/// The value under a path of keys such as `served.client.sha256`, as text. A missing value gives an empty text.
#[must_use]
pub fn at<'a>(value: &'a Value, path: &str) -> &'a str {
    path.split('.').fold(value, |value, key| &value[key]).as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_replaced_added_or_gets_a_table_of_its_own() {
        let text = "[nats]\nlisten = \"a\"\n\n[state]\nlisten = \"b\"\n";
        assert_eq!(with(text, "state.listen", "1"), "[nats]\nlisten = \"a\"\n\n[state]\nlisten = 1\n");
        assert_eq!(with(text, "nats.template", "2"), text.replacen("[nats]\n", "[nats]\ntemplate = 2\n", 1));
        assert_eq!(with(text, "renewal.at", "3"), format!("{text}\n[renewal]\nat = 3\n"));
    }
}
