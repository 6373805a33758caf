//! What a machine may refuse even to root, as a container's host does: tried before minutes are spent.

use std::path::Path;

use crate::command::run_in;
use crate::{cgroup, image};

const PROBE: &str = "probe";
const MOUNT: &str = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root";

/// Why there can be no instances here.
pub(crate) async fn found(lab: &Path) -> Option<String> {
    let groups = match cgroup::create(PROBE) {
        Ok(groups) => groups,
        Err(failure) => return Some(failure.chain()),
    };
    if groups.is_empty() {
        return Some("there is no control group hierarchy that systemd could use".into());
    }
    // Those of an earlier lab that is just ending can't go yet; they are waited for later.
    drop(cgroup::clear());
    let directory = lab.join(PROBE);
    let parts = ["lower", "upper", "work", "root"].map(|part| directory.join(part));
    if let Some(error) = parts.iter().find_map(|part| std::fs::create_dir_all(part).err()) {
        return Some(format!("could not make {}: {error}", directory.display()));
    }
    // Its mount goes with its namespace.
    let mounted = run_in(&directory, "unshare", ["--mount", "sh", "-c", MOUNT]).await;
    let removed = image::remove(&directory);
    mounted.map(drop).and(removed).err().map(|failure| failure.chain())
}
