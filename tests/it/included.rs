//! Settings in secrets of Secrets Manager: `nats.include = ["secret:NAME"]`.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::agent::Answer;
use harness::cluster::Node;
use harness::gateway::{Fault, Gateway};
use harness::moto::{Moto, REGION};
use harness::nats_server::monitor;
use harness::nodes::{Nodes, at};
use harness::{eventually, tools};
use serde_json::Value;

use crate::AGENT;
use crate::doctor::{assert_check, diagnose, listing};
use crate::protection::{assert_settings_stay, in_force, renew};
use crate::rotation::{status_with, unhealthy};

const SOON: Duration = Duration::from_secs(30);
const SECRET: &str = "nats/accounts";
/// The reasons name the secret so.
const NAMED: &str = "secret:nats/accounts";

const SHOP: &str = "accounts {\n  SHOP { users: [ { user: user-of-the-shop, password: pass-of-the-shop } ] }\n}\n";
const SHOP_AND_BANK: &str = "accounts {\n  SHOP { users: [ { user: user-of-the-shop, password: pass-of-the-shop } ] }\n  \
                             BANK { users: [ { user: user-of-the-bank, password: pass-of-the-bank } ] }\n}\n";
/// What no log and no status may hold.
const CONFIDENTIAL: [&str; 6] = [
    "user-of-the-shop",
    "pass-of-the-shop",
    "user-of-the-bank",
    "pass-of-the-bank",
    "user-of-the-yard",
    "pass-of-the-yard",
];

/// A node that includes the secret, and the way to moto. The node is not booted.
struct World {
    moto: Moto,
    gateway: Gateway,
    nodes: Nodes,
}

impl World {
    async fn new() -> Self {
        let moto = Moto::start().await.unwrap();
        let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
        nodes.configure().unwrap();
        for (key, value) in [
            ("node.region", &*format!("{REGION:?}")),
            ("nats.include", &*format!("[\"{NAMED}\"]")),
            // A secret is polled in every tenth round.
            ("discovery.interval", "\"200ms\""),
            ("renewal.retry_min", "\"200ms\""),
            ("renewal.retry_max", "\"1s\""),
        ] {
            nodes.set(key, value).unwrap();
        }
        let node = &mut nodes.nodes[0];
        let gateway = Gateway::start(node.gateway(), moto.endpoint()).await.unwrap();
        for (name, value) in [
            ("AWS_ENDPOINT_URL", &*gateway.endpoint()),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("RUST_LOG", "trace"),
        ] {
            node.agent.set_env(name, value);
        }
        Self { moto, gateway, nodes }
    }

    /// A booted node with the account of the shop.
    async fn serving() -> Self {
        let mut world = Self::new().await;
        world.put(SHOP).await;
        world.nodes.boot().await.unwrap();
        world.has_accounts(&["SHOP"]).await;
        world
    }

    async fn put(&self, content: &str) {
        self.moto.put_secret(SECRET, content).await.unwrap();
    }

    fn node(&self) -> &Node {
        &self.nodes.nodes[0]
    }

    async fn run(&self, arguments: &[&str]) -> Answer {
        self.node().agent.run(arguments, SOON).await.unwrap()
    }

    /// Waits until nats-server itself has exactly these accounts beside those of its own.
    async fn has_accounts(&self, wanted: &[&str]) {
        let wanted: BTreeSet<&str> = wanted.iter().copied().chain(["$G", "$SYS"]).collect();
        eventually("the accounts", SOON, async || {
            let answer = monitor(self.node().monitor(), "/accountz").await.map_err(|failure| failure.chain())?;
            let found = answer["accounts"].as_array().into_iter().flatten().filter_map(Value::as_str);
            if found.collect::<BTreeSet<_>>() == wanted { Ok(()) } else { Err(answer.to_string()) }
        })
        .await
        .unwrap();
    }

    /// Checks that the settings in force stay, and that certificates are renewed and nothing is told of the content.
    async fn stays(&self, before: &(String, String, String), code: i32) {
        let renewed = renew(self.node(), &[]).await;
        assert_eq!(renewed.code, Some(code), "{renewed:?}");
        assert_settings_stay(self.node(), before).await;
        self.has_accounts(&["SHOP"]).await;
        self.tells_nothing_confidential().await;
    }

    async fn tells_nothing_confidential(&self) {
        let log = self.node().agent.log_tail(usize::MAX);
        assert!(log.contains("TRACE"), "the log has no traces: {log}");
        assert_tells_nothing("the log", &log, &CONFIDENTIAL);
        for arguments in [&["status"][..], &["status", "--json"], &["renew"], &["doctor"]] {
            let Answer { stdout, stderr, .. } = self.run(arguments).await;
            assert_tells_nothing(&arguments.join(" "), &(stdout + &stderr), &CONFIDENTIAL);
        }
        for arguments in [&["render"][..], &["render", "--diff"]] {
            // The rendered settings name the users.
            let Answer { stdout, stderr, .. } = self.run(arguments).await;
            let passwords: Vec<_> = CONFIDENTIAL.into_iter().filter(|text| text.starts_with("pass")).collect();
            assert_tells_nothing(&arguments.join(" "), &(stdout + &stderr), &passwords);
        }
    }
}

fn assert_tells_nothing(place: &str, text: &str, confidential: &[&str]) {
    for word in confidential {
        let line = text.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "{place} holds {word:?}");
    }
}

/// Whether a status has a reason of this code that names the secret.
fn has_reason(status: &Value, code: &str) -> bool {
    let mut reasons = status["reasons"].as_array().into_iter().flatten();
    reasons.any(|reason| reason["code"] == code && at(reason, "text").contains(SECRET))
}

#[tokio::test]
async fn a_first_boot_commits_the_settings_of_a_secret_and_a_new_account_comes_into_force_by_itself() {
    let mut world = World::new().await;
    // Without the secret there is nothing to start with, and the reason says why.
    world.nodes.nodes[0].agent.start().unwrap();
    let status = status_with(world.node(), |status| has_reason(status, "included_refused")).await;
    assert_eq!(status["state"], "failing", "{status}");
    assert!(!world.node().nats_config().exists());
    world.nodes.nodes[0].agent.stop().await.unwrap();
    world.put(SHOP).await;
    world.nodes.boot().await.unwrap();
    world.has_accounts(&["SHOP"]).await;
    let committed = std::fs::read_to_string(world.node().nats_config()).unwrap();
    assert!(committed.contains(&format!("# {NAMED}\n")), "{committed}");

    world.put(SHOP_AND_BANK).await;
    world.has_accounts(&["BANK", "SHOP"]).await;
    world.node().healthy(SOON).await.unwrap();
    let login = async |user: &str, password: &str| {
        let ca = world.node().newest_generation().unwrap().join("ca.pem");
        let options = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
        options.add_root_certificates(ca).connect(format!("tls://{}", world.node().client())).await
    };
    login("user-of-the-bank", "pass-of-the-bank").await.unwrap();
    login("user-of-the-bank", "pass-of-the-shop").await.unwrap_err();
    world.tells_nothing_confidential().await;
}

#[tokio::test]
async fn a_content_that_nats_server_would_refuse_is_named_by_secret_and_line_and_the_settings_in_force_stay() {
    let mut world = World::serving().await;
    let before = in_force(world.node()).await;
    let unclosed =
        "accounts {\n  SHOP { users: [ { user: user-of-the-yard, password: pass-of-the-yard } ] }\n  YARD {\n";
    let unknown = SHOP.replace(
        "\n}\n",
        "\n  YARD { users: [ { user: user-of-the-yard, password: pass-of-the-yard } ]\n    gate: 1\n  }\n}\n",
    );
    let ends = format!("{SHOP}system_account: YARD\n");
    for (content, code, place) in [
        (unclosed, "configuration_unreadable", "secret:nats/accounts:3"),
        (&unknown, "configuration_refused", "secret:nats/accounts:4"),
        (&ends, "settings_wont_start", "secret:nats/accounts:4 system_account"),
    ] {
        world.put(content).await;
        let status = unhealthy(world.node(), place).await;
        let codes: Vec<_> = status["reasons"].as_array().unwrap().iter().map(|reason| at(reason, "code")).collect();
        assert!(status["state"] == "degraded" && codes.contains(&code), "{status}");
        world.stays(&before, 1).await;
        // The last good content stays on the disk, so a restart and another change go on with it.
        let kept = std::fs::read_dir(world.node().state_directory().join("included")).unwrap();
        let mut kept = kept.map(|entry| entry.unwrap().path());
        let kept = kept.find(|file| file.extension().is_some_and(|extension| extension == "conf")).unwrap();
        assert_eq!(std::fs::read_to_string(kept).unwrap(), SHOP);
    }
    world.nodes.nodes[0].agent.stop().await.unwrap();
    let deadline = "\n[nats.settings]\nwrite_deadline = \"9s\"\n";
    let text = std::fs::read_to_string(world.node().agent.config()).unwrap() + deadline;
    std::fs::write(world.node().agent.config(), text).unwrap();
    world.nodes.nodes[0].agent.start().unwrap();
    eventually("the change", SOON, async || {
        let committed = std::fs::read_to_string(world.node().nats_config()).unwrap_or_default();
        if committed.contains("write_deadline: \"9s\"") { Ok(()) } else { Err(committed) }
    })
    .await
    .unwrap();
    unhealthy(world.node(), "resolving system account").await;
    world.has_accounts(&["SHOP"]).await;
    world.put(SHOP_AND_BANK).await;
    world.has_accounts(&["BANK", "SHOP"]).await;
    world.node().healthy(SOON).await.unwrap();
}

#[tokio::test]
async fn the_last_good_content_stays_while_the_secret_is_denied_gone_or_away_also_after_a_restart() {
    let mut world = World::serving().await;
    let before = in_force(world.node()).await;
    let told = async |world: &World, code: &'static str| {
        let status = status_with(world.node(), |status| has_reason(status, code)).await;
        assert_eq!(status["state"], "degraded", "{status}");
        world.stays(&before, 0).await;
    };
    world.gateway.set_fault(Some(Fault::Denied));
    told(&world, "included_denied").await;
    world.gateway.set_fault(None);
    world.node().healthy(SOON).await.unwrap();

    world.moto.delete_secret(SECRET).await.unwrap();
    told(&world, "included_refused").await;

    world.nodes.nodes[0].agent.stop().await.unwrap();
    world.gateway.cut().await;
    world.nodes.nodes[0].agent.start().unwrap();
    told(&world, "included_unavailable").await;

    world.gateway.restore().await.unwrap();
    world.put(SHOP_AND_BANK).await;
    world.has_accounts(&["BANK", "SHOP"]).await;
    world.node().healthy(SOON).await.unwrap();

    // A content that somebody removes is read again.
    let kept = world.node().state_directory().join("included");
    std::fs::remove_dir_all(&kept).unwrap();
    eventually("the kept content", SOON, async || match std::fs::read_dir(&kept).map(Iterator::count) {
        Ok(1) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    world.node().healthy(SOON).await.unwrap();
}

#[tokio::test]
async fn render_and_doctor_read_the_secret_where_no_daemon_ever_ran_and_write_nothing() {
    let world = World::new().await;
    let before = listing(world.nodes.directory());
    let unread = world.run(&["render"]).await;
    assert!(unread.code == Some(1) && unread.stderr.contains(SECRET), "{unread:?}");
    let (code, checks) = diagnose(world.node()).await;
    assert_eq!(code, Some(1), "{checks:?}");
    assert_check(
        &checks,
        "included secret",
        "failed",
        &[SECRET, "secretsmanager:GetSecretValue", "check the secret's name"],
    );

    world.put(SHOP).await;
    let shown = world.run(&["render"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("SHOP") && shown.stdout.contains(&format!("# {NAMED}\n")), "{}", shown.stdout);
    assert_tells_nothing("render", &shown.stdout, &["pass-of-the-shop"]);
    let (code, checks) = diagnose(world.node()).await;
    assert_eq!(code, Some(0), "{checks:?}");
    assert_check(&checks, "included secret", "ok", &[NAMED, &format!("{} bytes", SHOP.len())]);
    assert_check(&checks, "configuration", "warning", &["none is committed yet"]);
    assert_eq!(listing(world.nodes.directory()), before);

    world.put("accounts {\n").await;
    let refused = world.run(&["render"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains(&format!("{NAMED}:1")), "{refused:?}");
}
