//! Tries, before the lab starts, the operations that a machine may refuse even to root. A container's host is such a
//! machine.

use std::path::Path;

use crate::command::run_in;
use crate::{cgroup, image};

const PROBE: &str = "probe";
const MOUNT: &str = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root";

/// The reason why this machine can't hold instances, if there is one.
pub(crate) async fn found(lab: &Path) -> Option<String> {
    let groups = match cgroup::create(PROBE) {
        Ok(groups) => groups,
        Err(failure) => return Some(failure.chain()),
    };
    if groups.is_empty() {
        return Some("there is no control group hierarchy that systemd could use".into());
    }
    // Groups of an earlier lab may still be in use. A later step waits for them.
    drop(cgroup::clear());
    let directory = lab.join(PROBE);
    let parts = ["lower", "upper", "work", "root"].map(|part| directory.join(part));
    if let Some(error) = parts.iter().find_map(|part| std::fs::create_dir_all(part).err()) {
        return Some(format!("could not make {}: {error}", directory.display()));
    }
    // The mount ends with its namespace.
    let mounted = run_in(&directory, "unshare", ["--mount", "sh", "-c", MOUNT]).await;
    let removed = image::remove(&directory);
    mounted.map(drop).and(removed).err().map(|failure| failure.chain())
}
