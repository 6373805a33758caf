//! The control socket: how `agent renew` and `agent status` reach the running daemon.
//!
//! A request is one line of JSON. The answer is lines of JSON, and the last line has the result. Only root, the
//! daemon's own user and its primary group may ask: the socket has mode 0660, and the daemon checks the client's
//! credentials. A request has [`MAX_REQUEST`] bytes at most, and must arrive within [`PATIENCE`].

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::WriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use super::protocol::{ASKERS, Answer, Refusal, Request};
use super::published::Published;
use crate::progress::Step;
use crate::reconcile::PassRequest;
use crate::state::durable::{self, FileError};

/// The largest request.
const MAX_REQUEST: u64 = 16 * 1024;
/// The largest line of an answer: a status with hundreds of peers.
const MAX_ANSWER: u64 = 8 * 1024 * 1024;
/// The limit for a client to send its request, and to read each line of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest number of clients served at the same time.
const MAX_CLIENTS: usize = 16;
/// How long a client waits for each line of a renewal. An issuance may take a minute between two steps, and other
/// passes may run first.
const SILENCE: Duration = Duration::from_mins(5);
/// How long a client waits for the status. The status is ready, but other clients may hold every place for
/// [`PATIENCE`].
const STATUS_WITHIN: Duration = Duration::from_secs(10);
/// A `renew`, as the daemon's loop receives it.
pub struct Job {
    /// The request to the reconciler.
    pub wanted: PassRequest,
    /// The lines to the client. The channel closes when the client hangs up.
    pub answers: mpsc::UnboundedSender<Answer>,
}

impl Job {
    /// Whether the client still waits. Nobody pays for a certificate that nobody waits for.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        !self.answers.is_closed()
    }
}

/// Why the control socket can't be served or reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory can't be made, or a stale socket can't be removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The socket can't be bound.
    #[error("could not listen on the control socket {}; check control.socket and who may write to its directory", .path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another kind of file has the socket's name.
    #[error("{} is there and is not a socket; remove it, or change control.socket", .0.display())]
    Occupied(PathBuf),
    /// No daemon listens on the socket.
    #[error("no daemon listens on {}", .path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The user may not connect.
    #[error("could not connect to {}; run this as {ASKERS}", .path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The daemon gave no answer in time, or no valid answer.
    #[error("the daemon did not answer on {}: {reason}; see its log", .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
}

/// The file of the listening socket. The file is removed when this value is dropped, while the caller holds the lock.
pub struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    /// Listens. The caller holds the lock, so an existing socket belongs to an earlier daemon.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), ControlError> {
        if let Some(parent) = path.parent() {
            durable::create_directory(parent, 0o750)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => durable::remove_if_there(path)?,
            Ok(_) => return Err(ControlError::Occupied(path.to_owned())),
            Err(_) => {}
        }
        let bind = |source| ControlError::Bind { path: path.to_owned(), source };
        let listener = UnixListener::bind(path).map_err(bind)?;
        // The umask of the process grants no more than this mode, so the socket is never open to all.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).map_err(bind)?;
        Ok((Self { path: path.to_owned() }, listener))
    }
}

/// Serves clients for ever. A slow, hostile or vanished client costs one of [`MAX_CLIENTS`] places for [`PATIENCE`]
/// at most.
pub async fn serve(listener: UnixListener, published: watch::Receiver<Published>, jobs: mpsc::Sender<Job>) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (published, jobs) = (published.clone(), jobs.clone());
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &published, &jobs).await {
                        tracing::debug!("a client of the control socket: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("could not accept on the control socket: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Whether a client may ask a daemon. Each is given by its user and its primary group.
fn may_ask(client: (u32, u32), daemon: (u32, u32)) -> bool {
    client.0 == 0 || client.0 == daemon.0 || client.1 == daemon.1
}

async fn converse(
    mut stream: UnixStream,
    published: &watch::Receiver<Published>,
    jobs: &mpsc::Sender<Job>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let daemon = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let (from_client, mut to_client) = stream.split();
    if !may_ask((peer.uid(), peer.gid()), daemon) {
        let refusal = Refusal::MayNotAsk { uid: peer.uid(), gid: peer.gid() };
        return answer(&mut to_client, &Answer::Refused(refusal)).await;
    }
    let mut line = Vec::new();
    let mut reader = BufReader::new(from_client.take(MAX_REQUEST));
    tokio::time::timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    match serde_json::from_slice(&line) {
        Ok(Request::Status) => {
            let (status, pass) = {
                let published = published.borrow();
                (published.status_now(), published.pass.clone())
            };
            let answered = status.map_or(Answer::NoPassYet { pass }, |status| Answer::Status(Box::new(status)));
            answer(&mut to_client, &answered).await
        }
        Ok(Request::Renew { allow_loss, distrust, now }) => {
            let mut from_client = reader.into_inner().into_inner();
            let mut more = [0];
            // The end of this task closes the channel of the answers, and the loop makes no pass for a closed channel.
            tokio::select! {
                renewed = renew(&mut to_client, jobs, PassRequest { renew: true, allow_loss, distrust, now }) => renewed,
                _gone = from_client.read(&mut more) => Ok(()),
            }
        }
        Err(error) => answer(&mut to_client, &Answer::Refused(Refusal::NoRequest { why: error.to_string() })).await,
    }
}

/// Passes a renewal to the daemon's loop, and the loop's answers to the client.
async fn renew(to_client: &mut WriteHalf<'_>, jobs: &mpsc::Sender<Job>, wanted: PassRequest) -> io::Result<()> {
    let (answers, mut answered) = mpsc::unbounded_channel();
    if jobs.send(Job { wanted, answers }).await.is_err() {
        return answer(to_client, &Answer::Refused(Refusal::Stopping)).await;
    }
    while let Some(line) = answered.recv().await {
        answer(to_client, &line).await?;
    }
    Ok(())
}

async fn answer(to_client: &mut WriteHalf<'_>, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, to_client.write_all(&line)).await?
}

/// Asks the daemon, reports each step to `on_step`, and returns the last line of the answer.
pub async fn ask(path: &Path, request: &Request, mut on_step: impl FnMut(Step)) -> Result<Answer, ControlError> {
    let broken = |reason: String| ControlError::Broken { path: path.to_owned(), reason };
    let connected = tokio::time::timeout(PATIENCE, UnixStream::connect(path)).await;
    let mut stream = match connected.map_err(|_| broken("it doesn't accept connections".into()))? {
        Ok(stream) => stream,
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            return Err(ControlError::Denied { path: path.to_owned(), source });
        }
        Err(source) => return Err(ControlError::NoDaemon { path: path.to_owned(), source }),
    };
    let mut line = serde_json::to_vec(request).map_err(|error| broken(error.to_string()))?;
    line.push(b'\n');
    // A daemon that refuses a client answers before it reads. So its answer may arrive although the write failed.
    let asked = stream.write_all(&line).await;
    let mut reader = BufReader::new(stream);
    let silence = if matches!(request, Request::Status) { STATUS_WITHIN } else { SILENCE };
    loop {
        let mut line = Vec::new();
        let read = tokio::time::timeout(silence, (&mut reader).take(MAX_ANSWER).read_until(b'\n', &mut line)).await;
        read.map_err(|_| broken("it fell silent".into()))?.map_err(|error| broken(error.to_string()))?;
        if line.is_empty() {
            asked.map_err(|error| broken(error.to_string()))?;
            return Err(broken("it closed the connection before it had answered".into()));
        }
        match serde_json::from_slice(&line).map_err(|error| broken(error.to_string()))? {
            Answer::Step(step) => on_step(step),
            last => return Ok(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::loss::Loss;
    use crate::status::{PassStatus, Status};

    /// A control socket whose loop answers each renewal with one step and a refusal. The refusal repeats the allowed
    /// losses.
    struct Daemon {
        _directory: tempfile::TempDir,
        socket: ControlSocket,
        published: watch::Sender<Published>,
    }

    impl Daemon {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (published, watched) = watch::channel(Published::default());
            let (jobs, mut job) = mpsc::channel::<Job>(1);
            let (socket, listener) = ControlSocket::bind(&directory.path().join("run/control.sock")).unwrap();
            let daemon = Self { _directory: directory, socket, published };
            tokio::spawn(serve(listener, watched, jobs));
            tokio::spawn(async move {
                while let Some(Job { wanted, answers }) = job.recv().await {
                    assert!(wanted.renew);
                    let _gone = answers.send(Answer::Step(Step::Committed { generation: 7 }));
                    let _gone =
                        answers.send(Answer::Refused(Refusal::NoRequest { why: format!("{:?}", wanted.allow_loss) }));
                }
            });
            daemon
        }

        fn path(&self) -> PathBuf {
            self.socket.path.clone()
        }

        fn publish(&self, status: Status) {
            self.published.send_modify(|published| published.status = Some(status));
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.path()).await.unwrap()
        }

        /// The answer to these bytes.
        async fn answers_to(&self, request: &[u8]) -> Answer {
            let mut stream = self.connect().await;
            stream.write_all(request).await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            serde_json::from_str(&line).unwrap()
        }

        async fn ask(&self, request: &Request) -> (Vec<Step>, Answer) {
            let mut steps = Vec::new();
            let answer = ask(&self.path(), request, |step| steps.push(step)).await.unwrap();
            (steps, answer)
        }
    }

    fn failing() -> Status {
        let reasons = vec![serde_json::from_str(r#"{"code": "no_route", "text": "no route is up"}"#).unwrap()];
        Status { reasons, ..Status::bare(crate::status::State::Failing) }
    }

    fn is_no_request(answer: &Answer) -> bool {
        matches!(answer, Answer::Refused(Refusal::NoRequest { .. }))
    }

    #[tokio::test]
    async fn a_renewals_steps_come_before_its_result() {
        let (steps, answer) = Daemon::start()
            .ask(&Request::Renew {
                allow_loss: vec![Loss::ClientTls, Loss::JetStream],
                distrust: Vec::new(),
                now: false,
            })
            .await;
        assert_eq!(steps, [Step::Committed { generation: 7 }]);
        assert_eq!(answer, Answer::Refused(Refusal::NoRequest { why: "[ClientTls, JetStream]".into() }));
    }

    #[tokio::test]
    async fn the_status_is_the_last_one_that_was_published() {
        let daemon = Daemon::start();
        let (_, answer) = daemon.ask(&Request::Status).await;
        assert_eq!(answer, Answer::NoPassYet { pass: None });
        daemon.publish(failing());
        assert_eq!(daemon.ask(&Request::Status).await.1, Answer::Status(Box::new(failing())));
    }

    #[tokio::test]
    async fn the_status_tells_the_pass_under_way_and_its_last_step() {
        let daemon = Daemon::start();
        let since = time::macros::datetime!(2026-03-01 12:00 UTC);
        let pass = |step| Some(PassStatus { since, step });
        daemon.published.send_modify(|published| published.begin(since));
        assert_eq!(daemon.ask(&Request::Status).await.1, Answer::NoPassYet { pass: pass(None) });
        daemon.published.send_modify(|published| published.end(failing(), since));
        assert_eq!(daemon.ask(&Request::Status).await.1, Answer::Status(Box::new(failing())));
        daemon.published.send_modify(|published| {
            published.begin(since);
            published.step(Step::Committed { generation: 7 });
        });
        let during = Status { pass: pass(Some(Step::Committed { generation: 7 })), ..failing() };
        assert_eq!(daemon.ask(&Request::Status).await.1, Answer::Status(Box::new(during.clone())));
        let told = serde_json::to_value(&during).unwrap();
        let expected = serde_json::json!({"since": "2026-03-01T12:00:00Z", "step": "committed", "generation": 7});
        assert_eq!(told["pass"], expected);
    }

    /// The daemon may make another pass for minutes before it looks at the request.
    #[tokio::test]
    async fn a_renewal_whose_client_has_gone_is_not_awaited() {
        let directory = tempfile::tempdir().unwrap();
        let (_socket, listener) = ControlSocket::bind(&directory.path().join("control.sock")).unwrap();
        let (_published, watched) = watch::channel(Published::default());
        let (jobs, mut job) = mpsc::channel(1);
        tokio::spawn(serve(listener, watched, jobs));
        let asks = async || {
            let mut client = UnixStream::connect(directory.path().join("control.sock")).await.unwrap();
            let request = Request::Renew { allow_loss: Vec::new(), distrust: Vec::new(), now: false };
            let request = serde_json::to_vec(&request).unwrap();
            client.write_all(&[request, b"\n".to_vec()].concat()).await.unwrap();
            client
        };
        let first = asks().await;
        let queued = job.recv().await.unwrap();
        assert!(queued.is_awaited());
        drop(first);
        queued.answers.closed().await;
        assert!(!queued.is_awaited());
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let daemon = Daemon::start();
        for request in
            ["{}\n", "renew\n", "\u{0}\u{1}\n", "{\"command\":\"stop\"}\n", "{\"command\":\"renew\",\"force\":1}\n"]
        {
            let answer = daemon.answers_to(request.as_bytes()).await;
            assert!(is_no_request(&answer), "{request:?}: {answer:?}");
        }
    }

    /// The request is valid, and only its size is at fault.
    #[tokio::test]
    async fn invariant_08_a_request_is_read_up_to_its_limit_and_no_further() {
        let daemon = Daemon::start();
        let request = |size: usize| {
            let bytes = serde_json::to_vec(&Request::Status).unwrap();
            [vec![b' '; size - bytes.len() - 1], bytes, b"\n".to_vec()].concat()
        };
        let limit = usize::try_from(MAX_REQUEST).unwrap();
        daemon.publish(failing());
        assert_eq!(daemon.answers_to(&request(limit)).await, Answer::Status(Box::new(failing())));
        let answer = daemon.answers_to(&request(limit + 2)).await;
        assert!(is_no_request(&answer), "{answer:?}");
    }

    #[tokio::test]
    async fn a_silent_client_is_in_nobodys_way() {
        let daemon = Daemon::start();
        let _silent = daemon.connect().await;
        let renew = Request::Renew { allow_loss: Vec::new(), distrust: Vec::new(), now: false };
        tokio::time::timeout(PATIENCE / 2, daemon.ask(&renew)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_08_silent_clients_that_take_every_place_are_given_up() {
        let daemon = Daemon::start();
        let started = tokio::time::Instant::now();
        let mut silent = Vec::new();
        for _ in 0..MAX_CLIENTS {
            silent.push(daemon.connect().await);
        }
        daemon.ask(&Request::Renew { allow_loss: Vec::new(), distrust: Vec::new(), now: false }).await;
        assert!(started.elapsed() >= PATIENCE, "{:?}: they took no place", started.elapsed());
        assert!(started.elapsed() < 2 * PATIENCE, "{:?}", started.elapsed());
    }

    /// The system accepts connections for a daemon that is stopped or swapped out.
    #[tokio::test(start_paused = true)]
    async fn invariant_08_a_daemon_that_is_frozen_is_waited_for_for_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let _frozen = UnixListener::bind(&path).unwrap();
        let started = tokio::time::Instant::now();
        let asked = ask(&path, &Request::Status, |_| {}).await;
        assert!(matches!(&asked, Err(ControlError::Broken { reason, .. }) if reason.contains("silent")), "{asked:?}");
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn only_owner_and_group_may_connect_whatever_was_there_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        // A killed daemon leaves its socket behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let (socket, _listener) = ControlSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        UnixStream::connect(&path).await.unwrap();
        drop(socket);
        assert!(!path.exists());
        let asked = ask(&path, &Request::Status, |_| {}).await;
        assert!(matches!(asked, Err(ControlError::NoDaemon { .. })), "{asked:?}");
    }

    /// The runtime drops the task that serves the socket at some time after the lock is free. By then another daemon may
    /// have bound its own socket under the same name.
    #[tokio::test]
    async fn the_end_of_the_serving_task_leaves_the_next_daemons_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let (socket, listener) = ControlSocket::bind(&path).unwrap();
        let (_published, watched) = watch::channel(Published::default());
        let (jobs, _job) = mpsc::channel(1);
        let serving = tokio::spawn(serve(listener, watched, jobs));
        drop(socket);
        let _next = ControlSocket::bind(&path).unwrap();
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(ControlError::Occupied(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    proptest::proptest! {
        #[test]
        fn any_request_is_read_back_or_refused(text in "(?s).{0,80}", losses in proptest::collection::vec("(?s).{0,20}", 0..4)) {
            let line = |command: &str| format!("{{\"command\":{command:?},\"allow_loss\":{losses:?}}}{text}");
            for line in [text.clone(), line("renew"), line("status"), line(&text)] {
                if let Ok(request) = serde_json::from_str::<Request>(&line) {
                    let again = serde_json::to_string(&request).unwrap();
                    // The end of the line is the end of the request, so the line holds no other line break.
                    proptest::prop_assert!(!again.contains('\n'));
                    proptest::prop_assert_eq!(serde_json::from_str::<Request>(&again).unwrap(), request);
                }
            }
        }
    }

    #[test]
    fn root_the_daemons_user_and_its_primary_group_may_ask() {
        let daemon = (990, 991);
        for (client, may) in
            [((0, 0), true), ((990, 1), true), ((1, 991), true), ((1, 1), false), ((991, 990), false), ((1, 0), false)]
        {
            assert_eq!(may_ask(client, daemon), may, "{client:?}");
        }
    }
}
