//! The machines of the services: an HTTP gateway and two responders. Each machine has the package, client.toml, a program and
//! nats.py, and nothing else knows the group.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::try_join_all;
use harness::imds::InstanceFacts;
use harness::rounds::{AT_ONCE, Event, Rounds};
use harness::services::{Form, python};
use harness::{Failure, eventually, tools};

use crate::cloud::{DOCUMENT, REGION};
use crate::command::run;
use crate::instance::Instance;
use crate::metadata::MetadataService;

/// The first number of these machines, above the numbers of the group.
const FIRST: u8 = 101;
const SUBJECT: &str = "orders";
const PORT: u16 = 8080;
const READY_WITHIN: Duration = Duration::from_mins(1);
/// The pause between two rounds of requests leaves the machine to the group.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest mean of 20 requests at once.
const MEAN_WITHIN: Duration = Duration::from_millis(200);
/// Where programs and packages are on a machine.
const HOME: &str = "opt/service";

/// The unit of the program. The package's unit keeps its variables, from the connection document.
const UNIT: &str = "[Unit]
Requires=nats-tls-client.service
After=nats-tls-client.service
[Service]
User=nats-client
EnvironmentFile=/var/lib/nats-tls-client/current/nats.env
Environment=PYTHONPATH=/opt/service/packages PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 /opt/service/PROGRAM
";

/// The machines, the gateway's first.
pub(crate) struct Services {
    pub(crate) machines: Vec<Instance>,
}

impl Services {
    /// Makes machines that are switched off, with their files.
    pub(crate) async fn prepare(lab: &Path, package: &Path) -> Result<Self, Failure> {
        let mut machines = Vec::new();
        let programs = ["gateway.py 0.0.0.0 8080", "responder.py orders", "responder.py orders"];
        for (number, program) in (FIRST..).zip(programs) {
            let machine = Instance::prepare(number, lab).await?;
            lay_out(&machine.root(), program, package).await?;
            machines.push(machine);
        }
        Ok(Self { machines })
    }

    /// Boots the machines, installs the package, and starts the units. Returns once the gateway answers.
    pub(crate) async fn start(&mut self, metadata: &MetadataService) -> Result<(), Failure> {
        for machine in &self.machines {
            let address = machine.address.into();
            metadata.launch(address, InstanceFacts::new(&machine.id, REGION, address));
        }
        try_join_all(self.machines.iter_mut().map(Instance::boot)).await?;
        let started = self.machines.iter().map(async |machine| {
            eventually("systemd", READY_WITHIN, async || {
                machine.run(["systemctl", "show-environment"]).await.map_err(|failure| failure.chain())
            })
            .await?;
            machine.run(["dpkg", "--install", "/opt/service/agent.deb"]).await?;
            // The unit is ready once the files of the document are there, however long that takes.
            machine.run(["systemctl", "enable", "--now", "nats-tls-client"]).await?;
            machine.run(["systemctl", "start", "service"]).await
        });
        let started = tokio::time::timeout(READY_WITHIN, try_join_all(started)).await;
        started.map_err(|late| Failure::new("the services did not start").because(late))??;
        let gateway = self.gateway();
        eventually("the gateway's port", READY_WITHIN, async || {
            tokio::net::TcpStream::connect(gateway).await.map_err(|error| error.to_string())
        })
        .await?;
        let checked = self.machines.iter().map(|machine| machine.run(["bash", "--login", "-c", "agent client check"]));
        try_join_all(checked).await.map(drop)
    }

    /// Asks `/health`, and returns the rounds of requests that follow.
    pub(crate) async fn ask(&self) -> Result<(Event, Rounds), Failure> {
        let health = Rounds::start(self.gateway(), "/health", PAUSE).event("/health").await?;
        Ok((health, Rounds::start(self.gateway(), &format!("/{SUBJECT}"), PAUSE)))
    }

    fn gateway(&self) -> SocketAddr {
        (self.machines[0].address, PORT).into()
    }
}

/// Whether each request had its answer, and 20 requests at once had their answers soon.
pub(crate) fn is_good(event: &Event) -> bool {
    event.is_good() && event.figures.iter().zip(AT_ONCE).all(|(of, at_once)| at_once > 20 || of.mean() < MEAN_WITHIN)
}

async fn lay_out(root: &Path, program: &str, package: &Path) -> Result<(), Failure> {
    let cannot = |error| Failure::new("could not lay out the machine of a service").because(error);
    let home = root.join(HOME);
    std::fs::create_dir_all(home.join("packages")).map_err(cannot)?;
    std::fs::copy(package, home.join("agent.deb")).map_err(cannot)?;
    // The command names the interpreter of the tests. The machine has its own.
    let name = program.split(' ').next().unwrap_or(program);
    drop(python(&home, Form::Files, name)?);
    let packages = site_packages().map_err(cannot)?.join("nats");
    run("cp", ["-r".as_ref(), packages.as_os_str(), home.join("packages").as_os_str()]).await?;
    for (path, text) in [
        ("etc/nats-tls-agent/client.toml", format!("[connection]\nsecret_id = \"{DOCUMENT}\"\n")),
        ("etc/systemd/system/service.service", UNIT.replace("PROGRAM", program)),
        // The machine has no user data.
        ("etc/cloud/cloud-init.disabled", String::new()),
    ] {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(root))
            .and_then(|()| std::fs::write(path, text))
            .map_err(cannot)?;
    }
    Ok(())
}

/// The packages of nats.py's environment. The directory's name has Python's version.
fn site_packages() -> Result<PathBuf, std::io::Error> {
    let library = tools::directory().join("nats-py/lib");
    let mut found = std::fs::read_dir(&library)?.filter_map(|entry| Some(entry.ok()?.path().join("site-packages")));
    found
        .find(|path| path.join("nats").is_dir())
        .ok_or_else(|| std::io::Error::other("no nats.py; run cargo xtask setup"))
}
