//! The control groups of the instances. Each instance has its own group, because systemd treats its own group as the
//! root. A systemd also takes over the groups of any other systemd below that root.

use std::path::{Path, PathBuf};

use harness::Failure;

/// The lab's own control group.
const NAME: &str = "nats-tls-agent-lab";

/// Makes a control group for an instance. Returns its path in every hierarchy that systemd uses.
pub(crate) fn create(instance: &str) -> Result<Vec<PathBuf>, Failure> {
    let groups: Vec<PathBuf> = own()?.into_iter().map(|group| group.join(NAME).join(instance)).collect();
    for group in &groups {
        std::fs::create_dir_all(group).map_err(|error| {
            Failure::new(format!("could not make the control group {}", group.display())).because(error)
        })?;
    }
    Ok(groups)
}

/// Removes the control groups of all instances, including those of an earlier lab. A group is empty once its processes
/// have ended.
pub(crate) fn clear() -> Result<(), Failure> {
    for group in own()? {
        let group = group.join(NAME);
        clear_below(&group).map_err(|error| {
            Failure::new(format!("could not remove the control group {}", group.display())).because(error)
        })?;
    }
    Ok(())
}

/// Removes directories from the leaves up. The kernel removes the files with their directory.
fn clear_below(group: &Path) -> std::io::Result<()> {
    let Ok(entries) = std::fs::read_dir(group) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            clear_below(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// The control groups of this process.
fn own() -> Result<Vec<PathBuf>, Failure> {
    let file = "/proc/self/cgroup";
    let text =
        std::fs::read_to_string(file).map_err(|error| Failure::new(format!("could not read {file}")).because(error))?;
    let root = Path::new("/sys/fs/cgroup");
    let found = paths(&text, root.join("unified").is_dir());
    Ok(found.into_iter().map(|path| root.join(path)).collect())
}

/// The paths of version 2 and of systemd's own hierarchy of version 1 (cgroups(7)), below systemd's mount points.
fn paths(text: &str, hybrid: bool) -> Vec<String> {
    let path = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let below = match controllers {
            "" if hybrid => "unified",
            "" => ".",
            "name=systemd" => "systemd",
            _ => return None,
        };
        Some(format!("{below}{path}"))
    };
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_hierarchies_are_told_from_the_controllers() {
        assert_eq!(paths("0::/user.slice/x.scope\n", false), ["./user.slice/x.scope"]);
        let hybrid = "9:name=systemd:/a\n4:memory:/b\n0::/c\n";
        assert_eq!(paths(hybrid, true), ["systemd/a", "unified/c"]);
    }

    #[test]
    fn a_tree_goes_from_its_leaves_up_and_none_is_no_failure() {
        let directory = std::env::temp_dir().join(format!("lab-cgroup-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("one/two")).unwrap();
        std::fs::create_dir_all(directory.join("three")).unwrap();
        clear_below(&directory).unwrap();
        assert!(!directory.exists());
        clear_below(&directory).unwrap();
    }
}
