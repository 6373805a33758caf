//! Mistakes that `nats-server -t` accepts. A server with such settings doesn't start.

use harness::tools;
use nix::sys::signal::Signal;

use super::{SOON, nodes, port, with_ports};
use crate::protection::{assert_settings_stay, in_force, renew};
use crate::rotation::unhealthy;

const WONT_START: &str = "settings_wont_start";

/// What is wrong, lines of `[nats.settings]`, the code of the reason, and words of the reason.
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    (
        "leafnodes and gateway without a system account",
        "no_system_account = true\nleafnodes = { listen = \"ADDRESS:PORT1\" }\n\
         gateway = { name = \"loopback\", listen = \"ADDRESS:PORT2\" }",
        WONT_START,
        "require a system account to also be configured",
    ),
    (
        "gateway of another name than the cluster",
        "gateway = { name = \"other\", listen = \"ADDRESS:PORT2\" }",
        WONT_START,
        "cluster name conflicts between cluster and gateway definitions",
    ),
    // The trial isn't needed for this mistake.
    (
        "https beside http",
        "http = \"ADDRESS:PORT1\"\nhttps = \"ADDRESS:PORT2\"",
        "settings_refused",
        "remove one of them",
    ),
    (
        "undefined system account",
        "system_account = \"NONE\"",
        WONT_START,
        "error resolving system account: account missing",
    ),
    (
        "max_payload above max_pending",
        "max_payload = \"60MB\"\nmax_pending = \"50MB\"",
        WONT_START,
        "max_payload (62914560) cannot be higher than max_pending (52428800)",
    ),
    (
        "lame duck grace above its duration",
        "lame_duck_duration = \"30s\"\nlame_duck_grace_period = \"31s\"",
        WONT_START,
        "lame duck grace period (31s) should be strictly lower",
    ),
    (
        "websocket without TLS",
        "websocket = { listen = \"ADDRESS:PORT1\" }",
        WONT_START,
        "websocket requires TLS configuration",
    ),
    (
        "port in use",
        "leafnodes = { listen = \"ADDRESS:PORT9\" }",
        WONT_START,
        "leafnodes.listen: another process uses ADDRESS:PORT9",
    ),
];

#[tokio::test]
async fn invariant_15_and_18_a_mistake_that_only_a_start_shows_is_never_committed_and_holds_back_no_certificate() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut cluster = nodes(version, 1);
        cluster.boot().await.unwrap();
        let node = &mut cluster.nodes[0];
        let _taken = std::net::TcpListener::bind(port(node, 9)).unwrap();
        let plain = std::fs::read_to_string(node.agent.config()).unwrap();
        let change = |settings: &str| {
            std::fs::write(node.agent.config(), format!("{plain}\n[nats.settings]\n{settings}\n")).unwrap();
            node.agent.signal(Signal::SIGHUP).unwrap();
        };
        for (name, settings, code, words) in MISTAKES {
            let before = in_force(node).await;
            change(&with_ports(node, settings));
            let status = unhealthy(node, &with_ports(node, words)).await;
            assert_eq!(status["state"], "degraded", "{version} {name}: {status}");
            assert_eq!(status["settings"]["refused"]["code"], *code, "{version} {name}: {status}");
            assert_eq!(in_force(node).await, before, "{version} {name}");
            renew(node, &[]).await;
            assert_settings_stay(node, &before).await;
        }
        change("max_payload = \"2MB\"");
        node.healthy(SOON).await.unwrap();
        let committed = std::fs::read_to_string(node.nats_config()).unwrap();
        assert!(committed.contains("max_payload: 2097152\n"), "{version}: {committed}");
        node.server.as_mut().unwrap().check_running().unwrap();
    });
    harness::join_all(runs).await;
}
