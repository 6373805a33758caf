//! The children of a process. A kernel may lack the file that lists children, so a search of `/proc` finds them.

/// The children, each with its `/proc/PID/status` (proc_pid_status(5)).
pub(crate) fn of(parent: u32) -> impl Iterator<Item = (u32, String)> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let with_status = pids.filter_map(|pid| Some((pid, std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)));
    let parent = parent.to_string();
    with_status.filter(move |(_, status)| last(status, "PPid") == parent)
}

/// The last value of a field. If the field has a value for each namespace, the last value is the innermost namespace's.
pub(crate) fn last<'a>(status: &'a str, field: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_by_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = of(std::process::id()).any(|(pid, _)| pid == child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }

    #[test]
    fn of_several_namespaces_the_innermost_counts() {
        let status = "Name:\tsystemd\nPid:\t14\nPPid:\t11\nNSpid:\t14\t1\n";
        assert_eq!([last(status, "NSpid"), last(status, "Pid"), last(status, "Threads")], ["1", "14", ""]);
    }
}
