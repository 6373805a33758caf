//! The files that a service reads: generation directories, and the symlink `current` that names one of them.
//!
//! The symlink is renamed into place, so a reader finds files that belong together, whenever the machine stops.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::ClientStatus;
use super::metrics::InForce;
use crate::config::client::{CURRENT, Login};
use crate::connection::{Document, MAX_DOCUMENT, usable};
use crate::state::durable::{self, FileError, Secrecy};
use crate::x509::chain::{Chain, StoredChain};
use crate::x509::csr::PrivateKeyPem;

/// The largest file of a generation, in bytes.
const MAX_FILE: u64 = 4 * MAX_DOCUMENT as u64;
/// How many generations stay. A service may be about to read the files of the generation before.
const KEPT: usize = 3;
/// The document of a generation.
const DOCUMENT: &str = "connection.json";
/// The variables of a generation.
const VARIABLES: &str = "nats.env";
/// The context of a generation.
const CONTEXT: &str = "context.json";
/// The number of the generation that the service was told of.
const TOLD: &str = "told";

/// The names of the certificate and of its key.
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

/// The files of a generation, by name. A file may hold the key.
pub(super) struct Rendered(BTreeMap<&'static str, Zeroizing<String>>);

/// The directory of a service.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
}

/// The settings of a connection, by the names of the nats CLI's own variables
/// (<https://docs.nats.io/using-nats/nats-tools/nats_cli>). `NATS_CA` is a path here, and the bundle itself in the document.
fn environment(document: &Document, login: &Login, current: &Path) -> Vec<(&'static str, String)> {
    let path = |path: &Path| path.display().to_string();
    let mut variables = vec![
        ("NATS_URL", document.url.clone()),
        ("NATS_CA", path(&current.join("ca.pem"))),
        ("NATS_TLS_REQUIRED", document.tls_required.clone()),
        ("NATS_CLIENT_CERT", document.client_cert.clone()),
    ];
    let files = [("NATS_CREDS", &login.creds_file), ("NATS_CERT", &login.cert_file), ("NATS_KEY", &login.key_file)];
    variables.extend(files.into_iter().filter_map(|(name, file)| Some((name, path(file.as_ref()?)))));
    variables.extend(login.user.clone().map(|user| ("NATS_USER", user)));
    variables
}

/// Lines for a POSIX shell, of the lines of `nats.env`.
fn shell(variables: &str) -> String {
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    variables.fold(String::new(), |mut text, (name, value)| {
        let _infallible = writeln!(text, "export {name}='{}'", value.replace('\'', "'\\''"));
        text
    })
}

/// Lines for systemd's `EnvironmentFile=`, systemd.exec(5), and for Docker's `--env-file`. A URL or a path needs no quotes.
fn environment_file(variables: &[(&'static str, String)]) -> String {
    variables.iter().fold(String::new(), |mut text, (name, value)| {
        let _infallible = writeln!(text, "{name}={}", value.replace(['\n', '\r'], " "));
        text
    })
}

/// A context of the nats CLI
/// (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-21.md>).
fn context(document: &Document, login: &Login, current: &Path) -> String {
    let path = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    let context = serde_json::json!({
        "description": format!("{}, from its connection document", document.cluster),
        "url": document.url,
        "ca": current.join("ca.pem").display().to_string(),
        "creds": path(&login.creds_file),
        "user": login.user.clone().unwrap_or_default(),
        "cert": path(&login.cert_file),
        "key": path(&login.key_file),
    });
    format!("{context:#}\n")
}

impl Rendered {
    pub(super) fn of(document: &Document, login: &Login, chain: Option<&StoredChain>, current: &Path) -> Self {
        let own = Document { others: BTreeMap::new(), ..document.clone() };
        let mut login = login.clone();
        // The first certificate may still be under way. A variable names only files that exist.
        if chain.is_none() && login.cert_file == Some(current.join(CERTIFICATE)) {
            (login.cert_file, login.key_file) = (None, None);
        }
        let mut files = BTreeMap::from([
            ("ca.pem", document.ca.clone().into()),
            (VARIABLES, environment_file(&environment(document, &login, current)).into()),
            (CONTEXT, context(document, &login, current).into()),
            (DOCUMENT, own.to_json().into()),
        ]);
        if let Some(chain) = chain {
            files.insert(CERTIFICATE, chain.chain().to_pem().into());
            files.insert(KEY, chain.key().expose().to_owned().into());
        }
        Self(files)
    }
}

impl Files {
    /// The files in a directory.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The path that a service names, `DIRECTORY/current`.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.directory.join(CURRENT)
    }

    /// The certificate and the key in force, where they belong together. A file that can't be read is an error: the service has
    /// a certificate that is paid for, and needs no other certificate.
    pub(super) fn chain(&self) -> Result<Option<StoredChain>, FileError> {
        let read = |name: &str| durable::read_if_there(&self.current().join(name), MAX_FILE);
        let (Some(certificate), Some(key)) = (read(CERTIFICATE)?, read(KEY)?) else { return Ok(None) };
        let stored = || {
            let chain = Chain::from_pem(&certificate).ok()?;
            let key = Zeroizing::new(String::from_utf8(key).ok()?);
            StoredChain::new(PrivateKeyPem::new(key), chain).ok()
        };
        Ok(stored())
    }

    /// The document of the files in force.
    pub(super) fn document(&self) -> Option<Document> {
        let bytes = durable::read_if_there(&self.current().join(DOCUMENT), MAX_FILE).ok()??;
        usable(&bytes).ok()
    }

    /// The variables of the files in force, as lines for a POSIX shell. `None`: there are no files.
    pub fn shell(&self) -> Result<Option<String>, FileError> {
        Ok(self.text(VARIABLES)?.map(|variables| shell(&variables)))
    }

    /// The context of the files in force. `None`: there are no files.
    pub fn context(&self) -> Result<Option<String>, FileError> {
        self.text(CONTEXT)
    }

    fn text(&self, name: &str) -> Result<Option<String>, FileError> {
        let path = self.current().join(name);
        let bytes = durable::read_if_there(&path, MAX_FILE)?;
        let invalid = |_| FileError::on("read", &path)(io::ErrorKind::InvalidData.into());
        bytes.map(|bytes| String::from_utf8(bytes).map_err(invalid)).transpose()
    }

    /// Whether the files in force are these, and no others.
    pub(super) fn are(&self, rendered: &Rendered) -> bool {
        let is_known = |entry: io::Result<fs::DirEntry>| {
            let name = entry.ok().and_then(|entry| entry.file_name().into_string().ok());
            name.is_some_and(|name| rendered.0.contains_key(name.as_str()))
        };
        let has_no_other = fs::read_dir(self.current()).is_ok_and(|mut entries| entries.all(is_known));
        has_no_other
            && rendered.0.iter().all(|(name, text)| {
                let file = durable::read_if_there(&self.current().join(name), MAX_FILE);
                file.is_ok_and(|bytes| bytes.as_deref() == Some(text.as_bytes()))
            })
    }

    /// Removes the keys of all generations. Call this in a look after the change to files without a key, because a service may
    /// still read the earlier files right after the change.
    pub(super) fn forget_keys(&self) -> Result<(), FileError> {
        let generations = self.directory.join("generations");
        let keys = numbers(&generations)?.into_iter().map(|number| generations.join(format!("{number:06}")).join(KEY));
        // On a file system that is read-only, the removal of a missing file fails too.
        keys.filter(|key| key.exists()).try_for_each(|key| durable::remove_if_there(&key))
    }

    /// Writes a generation, and puts it into force by one rename. Returns its number.
    pub(super) fn write(&self, rendered: &Rendered) -> Result<u64, FileError> {
        let generations = self.directory.join("generations");
        let mut numbers = numbers(&generations)?;
        let number = numbers.last().map_or(1, |last| last + 1);
        // A generation that never came into force is of no use. Where each swap fails, such generations would fill the disk.
        let in_force = self.number();
        let is_leftover = |number: &u64| in_force.is_none_or(|in_force| *number > in_force);
        for leftover in numbers.iter().filter(|number| is_leftover(number)) {
            durable::remove_all(&generations.join(format!("{leftover:06}")))?;
        }
        numbers.retain(|number| !is_leftover(number));
        let finished = generations.join(format!("{number:06}"));
        let partial = finished.with_extension("partial");
        durable::remove_all(&partial)?;
        durable::create_directory(&partial, 0o755)?;
        for (name, text) in &rendered.0 {
            let mode = if *name == KEY { Secrecy::of(&self.directory).file_mode() } else { 0o644 };
            durable::create(&partial.join(name), text.as_bytes(), mode)?;
        }
        durable::sync_parent(&partial.join(DOCUMENT))?;
        durable::rename(&partial, &finished)?;
        let staged = self.directory.join("current.new");
        durable::remove_if_there(&staged)?;
        symlink(Path::new("generations").join(format!("{number:06}")), &staged)
            .map_err(FileError::on("make the symlink", &staged))?;
        durable::rename(&staged, &self.current())?;
        for old in numbers.iter().rev().skip(KEPT - 1) {
            durable::remove_all(&generations.join(format!("{old:06}")))?;
        }
        Ok(number)
    }

    /// The files in force, for whoever tells of them.
    pub(super) fn in_force(&self) -> Option<InForce> {
        let (document, generation) = (self.document()?, self.number().unwrap_or_default());
        let leaf_ends = self.chain().ok().flatten().map(|chain| chain.leaf().not_after);
        Some(InForce { generation, document, leaf_ends })
    }

    /// The number of the generation in force.
    fn number(&self) -> Option<u64> {
        let path = fs::read_link(self.current()).ok()?;
        path.file_name()?.to_str()?.parse().ok()
    }

    /// The generation in force, where the service doesn't know the generation yet.
    pub(super) fn untold(&self) -> Result<Option<u64>, FileError> {
        let number = self.number();
        let told = durable::read_if_there(&self.directory.join(TOLD), 64)?;
        let told = told.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse::<u64>().ok());
        Ok(number.filter(|number| Some(*number) != told))
    }

    /// Notes that the service was told of a generation.
    pub(super) fn note_told(&self, number: u64) -> Result<(), FileError> {
        durable::replace(&self.directory.join(TOLD), number.to_string().as_bytes(), 0o644)
    }

    /// Writes `status.json`.
    pub(super) fn write_status(&self, status: &ClientStatus) -> Result<(), FileError> {
        let text = serde_json::to_string_pretty(status).unwrap_or_default();
        durable::replace(&self.directory.join("status.json"), text.as_bytes(), 0o644)
    }
}

/// The numbers of all complete generations, in order.
fn numbers(generations: &Path) -> Result<Vec<u64>, FileError> {
    let entries = match fs::read_dir(generations) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(FileError::on("list", generations))?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(FileError::on("list", generations))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(ca: &str) -> Document {
        Document {
            url: "tls://a:4222,tls://b:4222".into(),
            ca: ca.into(),
            tls_required: "true".into(),
            client_cert: "none".into(),
            version: 1,
            cluster: "prod".into(),
            changed_at: "2026-03-01T12:00:00Z".into(),
            ..Document::default()
        }
    }

    #[test]
    fn a_generation_comes_into_force_as_a_whole_and_three_stay() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        assert!(files.document().is_none() && files.untold().unwrap().is_none());
        for number in 1..=5_u64 {
            let rendered = Rendered::of(&document(&format!("CA {number}")), &Login::default(), None, &files.current());
            assert!(!files.are(&rendered));
            assert_eq!(files.write(&rendered).unwrap(), number);
            assert!(files.are(&rendered));
            assert_eq!(files.untold().unwrap(), Some(number));
            files.note_told(number).unwrap();
            assert_eq!(files.untold().unwrap(), None);
        }
        assert_eq!(numbers(&directory.path().join("generations")).unwrap(), [3, 4, 5]);
        assert_eq!(fs::read_to_string(files.current().join("ca.pem")).unwrap(), "CA 5");
    }

    #[test]
    fn a_generation_that_was_cut_off_is_no_generation() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        fs::create_dir_all(directory.path().join("generations/000001.partial")).unwrap();
        symlink("nowhere", directory.path().join("current.new")).unwrap();
        let rendered = Rendered::of(&document("CA"), &Login::default(), None, &files.current());
        assert_eq!(files.write(&rendered).unwrap(), 1);
        assert!(files.are(&rendered));
        // A complete generation that never came into force goes with the next change.
        fs::create_dir(directory.path().join("generations/000009")).unwrap();
        assert_eq!(files.write(&rendered).unwrap(), 10);
        assert_eq!(numbers(&directory.path().join("generations")).unwrap(), [1, 10]);
    }

    #[test]
    fn a_certificate_that_can_not_be_read_is_an_error_and_no_missing_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        assert!(files.chain().unwrap().is_none());
        // A directory stands for every file that can't be read.
        fs::create_dir_all(files.current().join(CERTIFICATE)).unwrap();
        assert!(files.chain().is_err());
    }

    #[test]
    fn a_context_has_the_fields_of_the_nats_cli_and_an_environment_its_variables() {
        let login = Login { creds_file: Some("/etc/app.creds".into()), ..Login::default() };
        let current = Path::new("/var/lib/nats-tls-client/current");
        let context: serde_json::Value = serde_json::from_str(&context(&document("CA"), &login, current)).unwrap();
        assert_eq!(context["url"], "tls://a:4222,tls://b:4222");
        assert_eq!(context["ca"], "/var/lib/nats-tls-client/current/ca.pem");
        assert_eq!((&context["creds"], &context["cert"]), (&"/etc/app.creds".into(), &"".into()));
        let variables = environment(&document("CA"), &login, current);
        assert_eq!(
            environment_file(&variables),
            "NATS_URL=tls://a:4222,tls://b:4222\nNATS_CA=/var/lib/nats-tls-client/current/ca.pem\nNATS_TLS_REQUIRED=true\n\
             NATS_CLIENT_CERT=none\nNATS_CREDS=/etc/app.creds\n"
        );
        assert_eq!(shell("A=it's=\nB=\n"), "export A='it'\\''s='\nexport B=''\n");
    }

    /// A generation of an earlier configuration had a certificate and a key.
    #[test]
    fn a_file_that_is_no_longer_wanted_is_left_out_of_the_next_generation() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        let rendered = Rendered::of(&document("CA"), &Login::default(), None, &files.current());
        files.write(&rendered).unwrap();
        for name in [CERTIFICATE, KEY] {
            fs::write(files.current().join(name), "PEM").unwrap();
            assert!(!files.are(&rendered), "{name} stays in force");
            files.write(&rendered).unwrap();
            assert!(files.are(&rendered) && !files.current().join(name).exists());
        }
    }

    #[test]
    fn the_keys_of_earlier_generations_stay_at_a_change_and_can_be_removed_later() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        let without = || Rendered::of(&document("CA"), &Login::default(), None, &files.current());
        let mut with = without();
        with.0.insert(KEY, "PEM".to_owned().into());
        let has_key = |number: u64| directory.path().join(format!("generations/{number:06}/{KEY}")).exists();
        let [first, second] = [(), ()].map(|()| files.write(&with).unwrap());
        files.write(&without()).unwrap();
        assert!(has_key(first) && has_key(second), "a service may be about to read the key");
        files.forget_keys().unwrap();
        assert!(!has_key(first) && !has_key(second));
        assert!(files.are(&without()));
    }

    #[test]
    fn shells_and_people_are_told_of_the_files_in_force_and_only_of_files_that_exist() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        assert!(files.shell().unwrap().is_none() && files.context().unwrap().is_none());
        let own = |name| Some(files.current().join(name));
        let login = Login { cert_file: own(CERTIFICATE), key_file: own(KEY), ..Login::default() };
        files.write(&Rendered::of(&document("CA"), &login, None, &files.current())).unwrap();
        let told = files.shell().unwrap().unwrap();
        assert!(
            told.contains("export NATS_URL='tls://a:4222,tls://b:4222'\n") && !told.contains("NATS_CERT"),
            "{told}"
        );
        let context: serde_json::Value = serde_json::from_str(&files.context().unwrap().unwrap()).unwrap();
        assert_eq!((&context["cert"], &context["url"]), (&"".into(), &"tls://a:4222,tls://b:4222".into()));
    }
}
