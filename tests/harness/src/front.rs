//! A nats-server with faulty signals. The front, a process with the name nats-server, stands before a real server. The
//! pid file names the front, and a test sets the front's treatment of SIGHUP.
//!
//! A real server always reloads within milliseconds. The front makes the other cases: the server serves, and its signal
//! is lost, late or deadly. Lost signals are documented: nats-server reads them from a Go channel, and "package signal
//! will not block sending to c" (<https://pkg.go.dev/os/signal#Notify>).

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::cluster::Node;
use crate::process::{Process, tail};
use crate::{Failure, eventually};

/// The treatment of a SIGHUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// The server behind gets the signal.
    Passes,
    /// Nobody gets the signal.
    Ignores,
    /// The server behind gets the signal after thirty seconds.
    Dawdles,
    /// The signal kills the server behind and the front.
    Dies,
    /// The server behind is stopped. A new server takes its place under its own pid, as after a unit's restart.
    IsReplaced,
}

impl Mood {
    fn word(self) -> &'static str {
        match self {
            Self::Passes => "passes",
            Self::Ignores => "ignores",
            Self::Dawdles => "dawdles",
            Self::Dies => "dies",
            Self::IsReplaced => "is-replaced",
        }
    }
}

/// The agent recognises nats-server by the name of its executable and by the `-c` of its command line. The front is
/// therefore a copy of the shell under that name. Its arguments after the script are `SERVER -c CONFIG PID_FILE
/// MOOD_FILE`, and then the server's further arguments. The agent reads none of these, because nats-server's own arguments
/// end at the first word without a dash. The processes that the front starts end with the front.
const SCRIPT: &str = r#"
behind() { setpriv --pdeathsig KILL "$server" -c "$config" "$@" & child=$!; }
hang_up() {
    read -r mood < "$mood_file"
    echo "front: SIGHUP $mood"
    case $mood in
        passes) kill -HUP "$child" ;;
        dawdles) (sleep 30; kill -HUP "$child") & ;;
        dies) kill -KILL "$child"; kill -KILL $$ ;;
        is-replaced) kill -TERM "$child"; wait "$child"; behind "$@" ;;
    esac
}
server=$1 config=$3 pid_file=$4 mood_file=$5
shift 5
behind "$@"
until [ "$(cat "$pid_file" 2>/dev/null)" = "$child" ]; do sleep 0.01; done
trap 'hang_up "$@"' HUP
trap '(while kill -TERM "$child"; do sleep 0.5; done) 2>/dev/null & wait "$child"; exit' TERM
echo $$ > "$pid_file"
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
"#;

/// The front and the server behind it. Both end when this value is dropped.
#[derive(Debug)]
pub struct Front {
    process: Process,
    mood: PathBuf,
}

impl Front {
    /// Starts a server behind a front, on the configuration that the node's agent has committed. Waits until the server
    /// serves and the pid file names the front.
    pub async fn start(node: &Node, server: &Path) -> Result<Self, Failure> {
        let cannot = |error| Failure::new("could not set a front before nats-server").because(error);
        let directory = node.nats_config().with_file_name("front");
        std::fs::create_dir_all(&directory).map_err(cannot)?;
        let [binary, script, mood] = ["nats-server", "script", "mood"].map(|name| directory.join(name));
        // A child that this process forks meanwhile would hold the file open for writing, and nobody could run the file.
        let copied = Command::new("cp").arg("/bin/sh").arg(&binary).status().await.map_err(cannot)?;
        if !copied.success() {
            return Err(Failure::new(format!("cp of the front failed: {copied}")));
        }
        std::fs::write(&script, SCRIPT).map_err(cannot)?;
        let mut command = Command::new(&binary);
        command.arg(&script).arg(server).arg("-c").arg(node.nats_config()).arg(node.pid_file()).arg(&mood);
        command.args(&node.server_arguments);
        let front = Self { mood, process: Process::spawn("the front", &mut command, &node.server_log())? };
        front.is(Mood::Passes)?;
        let pid = front.process.pid();
        eventually("the front's start", std::time::Duration::from_secs(15), async || {
            let named = std::fs::read_to_string(node.pid_file()).map_err(|error| error.to_string())?;
            if named.trim().parse().ok() != pid {
                return Err(format!("the pid file holds {named:?}; {}", tail(&node.server_log(), 5)));
            }
            tokio::net::TcpStream::connect(node.client()).await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(front)
    }

    /// Sets the treatment of the next SIGHUP.
    pub fn is(&self, mood: Mood) -> Result<(), Failure> {
        std::fs::write(&self.mood, format!("{}\n", mood.word()))
            .map_err(|error| Failure::new("could not set the front's mood").because(error))
    }

    /// The front's process id, until its end is noticed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Fails if the front has ended.
    pub fn check_running(&mut self) -> Result<(), Failure> {
        self.process.check_running()
    }

    /// Ends the server behind and the front.
    pub async fn end(self) -> Result<(), Failure> {
        self.process.stop(std::time::Duration::from_secs(10)).await.map(drop)
    }

    /// Sends the front a signal. SIGKILL ends the server behind it too.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.process.signal(signal)
    }
}
