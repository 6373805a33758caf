//! The control groups of the instances. Each has one to itself: systemd takes the one that it is started in for the root of
//! all, and what another systemd has below it for its own.

use std::path::{Path, PathBuf};

use harness::Failure;

/// Ours among those of others.
const NAME: &str = "nats-tls-agent-lab";

/// Makes a control group for an instance; where it is, in every hierarchy that systemd uses.
pub(crate) fn create(instance: &str) -> Result<Vec<PathBuf>, Failure> {
    let groups: Vec<PathBuf> = own()?.into_iter().map(|group| group.join(NAME).join(instance)).collect();
    for group in &groups {
        std::fs::create_dir_all(group).map_err(|error| {
            Failure::new(format!("could not make the control group {}", group.display())).because(error)
        })?;
    }
    Ok(groups)
}

/// Removes the control groups of all instances, of an earlier lab too. They must be empty, as they are once nobody lives.
pub(crate) fn clear() -> Result<(), Failure> {
    for group in own()? {
        let group = group.join(NAME);
        clear_below(&group).map_err(|error| {
            Failure::new(format!("could not remove the control group {}", group.display())).because(error)
        })?;
    }
    Ok(())
}

/// From the leaves up: files in there go with their directory.
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

/// The control groups that this process is in.
fn own() -> Result<Vec<PathBuf>, Failure> {
    let file = "/proc/self/cgroup";
    let text =
        std::fs::read_to_string(file).map_err(|error| Failure::new(format!("could not read {file}")).because(error))?;
    let root = Path::new("/sys/fs/cgroup");
    let found = paths(&text, root.join("unified").is_dir());
    Ok(found.into_iter().map(|path| root.join(path)).collect())
}

/// The lines of version 2 and of systemd's own hierarchy of version 1 (cgroups(7)), below where systemd mounts them.
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
