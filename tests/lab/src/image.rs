//! The image of the instances: a Debian root with systemd and cloud-init, made once by debootstrap.
//!
//! Debian's real image for EC2 includes most of this, and also a kernel, sshd and more.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use harness::Failure;
use harness::process::{Process, tail};
use harness::progress::Progress;
use tokio::process::Command;

use crate::cloud::{ENDPOINT_PORT, REGION};
use crate::command::run;
use crate::network::{HUB, METADATA, RESOLVER};

/// The packages that the user data needs. debootstrap doesn't know virtual packages, so the backend of cffi is listed
/// by name.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,cloud-init,python3-cffi-backend,iproute2,ca-certificates,curl,procps";

/// The mark by which an instance recognises EC2: "If you see a UUID that starts with ec2, you're running on an EC2
/// instance" (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html>). DMI shows this
/// machine's data instead. Without the UUID, cloud-init wouldn't know that instance metadata requires a session.
const HYPERVISOR_UUID: &str = "ec2e1916-9099-7caf-fd21-012345abcdef\n";
/// No directory can be made in sysfs. The services of cloud-init that read the UUID therefore see a substitute.
const HYPERVISOR: &str = "[Service]
TemporaryFileSystem=/sys:ro
BindReadOnlyPaths=/sys/class /sys/devices /sys/fs /etc/lab/hypervisor:/sys/hypervisor
";

const BOOTSTRAP_WITHIN: Duration = Duration::from_mins(30);

/// Makes the image's root if it is missing. The stamp marks a finished root.
pub(crate) async fn ready(directory: &Path, progress: &Progress) -> Result<(), Failure> {
    let (root, stamp, log) = (directory.join("root"), directory.join("root.stamp"), directory.join("debootstrap.log"));
    let suite = suite()?;
    let wanted = format!("{suite} {PACKAGES}\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        println!("  image: {} is ready", root.display());
    } else {
        let mirror = mirror().await?;
        let last = || tail(&log, 1);
        progress
            .step("image: debootstrap, which takes minutes", last, bootstrap(&root, &stamp, &suite, &mirror, &log))
            .await?;
        write(&stamp, &wanted)?;
    }
    configure(&root).await
}

async fn bootstrap(root: &Path, stamp: &Path, suite: &str, mirror: &str, log: &Path) -> Result<(), Failure> {
    for old in [stamp, log] {
        drop(std::fs::remove_file(old));
    }
    remove(root)?;
    // The mounts in the root end with the namespace, even if debootstrap is killed.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "debootstrap"]);
    command.args(["--variant=minbase", &format!("--include={PACKAGES}"), suite]).arg(root).arg(mirror);
    let ended = Process::spawn("debootstrap", &mut command, log)?.ended(BOOTSTRAP_WITHIN).await?;
    if ended.success() {
        Ok(())
    } else {
        let said = tail(log, 10);
        Err(Failure::new(format!(
            "debootstrap ended with {ended}; is {mirror} reachable? See {}:\n{said}",
            log.display()
        )))
    }
}

/// The release of this machine, so that its tools fit the image.
fn suite() -> Result<String, Failure> {
    let file = "/etc/os-release";
    let text =
        std::fs::read_to_string(file).map_err(|error| Failure::new(format!("could not read {file}")).because(error))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(ToOwned::to_owned).ok_or_else(|| Failure::new(format!("{file} has no VERSION_CODENAME")))
}

/// The mirror of this machine's own packages.
async fn mirror() -> Result<String, Failure> {
    let uris = run("apt-get", ["--print-uris", "download", "base-files"]).await?;
    mirror_in(&uris)
        .ok_or_else(|| Failure::new(format!("apt-get names no mirror of base-files: {uris:?}; try apt-get update")))
}

/// The part before the pool, of `'http://mirror/debian/pool/main/b/base-files/… `.
fn mirror_in(uris: &str) -> Option<String> {
    let uri = uris.lines().find_map(|line| line.strip_prefix('\''))?;
    uri.split_once("/pool/").map(|(mirror, _)| mirror.to_owned())
}

/// Turns a Debian root into an image for this group: cloud-init detects EC2, and the services find the lab's AWS.
async fn configure(root: &Path) -> Result<(), Failure> {
    // cloud-init is enabled without its own detection. The hypervisor's UUID identifies the platform as EC2.
    write(&root.join("etc/cloud/ds-identify.cfg"), "policy: enabled\n")?;
    write(&root.join("etc/lab/hypervisor/uuid"), HYPERVISOR_UUID)?;
    for service in ["cloud-init-local.service", "cloud-init.service"] {
        write(&root.join(format!("etc/systemd/system/{service}.d/lab.conf")), HYPERVISOR)?;
    }
    let cloud = format!(
        "datasource_list: [Ec2]\ndatasource:\n  Ec2:\n    metadata_urls: [\"http://{METADATA}\"]\n\
         # `ip` sets the address before the instance boots.\nnetwork: {{config: disabled}}\n\
         # Nobody logs in, and the only locale is the C library's own.\nssh_genkeytypes: []\nlocale: C.UTF-8\n"
    );
    write(&root.join("etc/cloud/cloud.cfg.d/90-lab.cfg"), &cloud)?;
    // Only the endpoint of AWS's services differs from a real instance. Instance metadata has its usual address.
    let endpoint = format!("http://{HUB}:{ENDPOINT_PORT}");
    let drop_in = format!("[Service]\nEnvironment=AWS_ENDPOINT_URL={endpoint}\n");
    for service in ["nats-tls-agent.service", "nats-tls-client.service"] {
        write(&root.join(format!("etc/systemd/system/{service}.d/lab.conf")), &drop_in)?;
    }
    // The same endpoint for shells and for `agent doctor`.
    write(&root.join("etc/profile.d/lab.sh"), &format!("export AWS_ENDPOINT_URL={endpoint}\n"))?;
    replace(&root.join("etc/resolv.conf"), &format!("nameserver {RESOLVER}\nsearch {REGION}.compute.internal\n"))?;
    // The journal is on the disk, so it outlives a reboot and can be read from outside.
    write(&root.join("etc/systemd/journald.conf.d/lab.conf"), "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n")?;
    // The file is empty, so each instance gets its own id at its first boot (machine-id(5)).
    replace(&root.join("etc/machine-id"), "")?;
    drop(std::fs::remove_file(root.join("etc/hostname")));
    let enable = ["enable", "--quiet", "cloud-init-local", "cloud-init", "cloud-config", "cloud-final"];
    let root_option = format!("--root={}", root.display());
    run("systemctl", [root_option.as_str()].into_iter().chain(enable)).await?;
    // Units that take seconds and are useless here: consoles, and package lists of an unreachable mirror.
    for unit in ["apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service"] {
        let mask = root.join("etc/systemd/system").join(unit);
        if !mask.is_symlink() {
            let cannot = |error| Failure::new(format!("could not mask {unit} in the image")).because(error);
            symlink("/dev/null", &mask).map_err(|error: std::io::Error| cannot(error))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let directory = path.parent().unwrap_or(path);
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(path, text));
    written.map_err(|error| Failure::new(format!("could not write {}", path.display())).because(error))
}

/// Replaces a file. A write through a link would leave the image.
fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    drop(std::fs::remove_file(path));
    write(path, text)
}

/// Removes a directory if it exists.
pub(crate) fn remove(directory: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("could not remove {}", directory.display())).because(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_what_is_before_the_pool() {
        let uris = "'https://mirror.example/debian/pool/main/b/base-files/base-files_12.4_amd64.deb' base-files.deb 7 SHA256:0\n";
        assert_eq!(mirror_in(uris).unwrap(), "https://mirror.example/debian");
        assert_eq!(mirror_in("E: No packages found\n"), None);
    }
}
