//! The programs that the machine itself must have, each with the Debian package that holds the program.
//!
//! A task checks the packages before it builds, so a missing package ends a run at once.

use std::fs;
use std::process::Command;

use super::{apt, is_in_path};
use crate::{Failure, Stopwatch, seconds};

/// A command of xtask, or the part of a command that has needs of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Job {
    Demo,
    Test,
    Fuzz,
    Package,
    Lab,
    Deny,
}

/// A package that some jobs need.
#[derive(Debug)]
struct Need {
    proof: Proof,
    package: &'static str,
    purpose: &'static str,
    jobs: &'static [Job],
    /// A job also runs without an optional package, and then leaves out the purpose.
    is_optional: bool,
}

/// The proof that the machine has a package's content, whatever installed the content.
#[derive(Clone, Copy, Debug)]
enum Proof {
    /// A program in `PATH`.
    Program(&'static str),
    /// A file below the library directory of the machine's architecture.
    Library(&'static str),
    /// Modules that python3 imports.
    PythonModules(&'static str),
}

use Job::{Demo, Deny, Fuzz, Lab, Package, Test};
use Proof::{Library, Program, PythonModules};

const NEEDS: [Need; 18] = [
    required(
        PythonModules("ensurepip, venv"),
        "python3-venv",
        "holds the fetched tools in environments of their own",
        &[Demo, Test, Package, Lab, Deny],
    ),
    required(Program("curl"), "curl", "downloads what user data asks for", &[Test]),
    required(Program("envsubst"), "gettext-base", "fills in templates by the README's commands", &[Test]),
    required(Library("faketime/libfaketimeMT.so.1"), "libfaketime", "sets the clock of one process", &[Test]),
    required(Program("openssl"), "openssl", "verifies unusual chains beside the agent", &[Test]),
    required(Program("strace"), "strace", "finds every system call to crash at", &[Test]),
    required(Program("c++"), "g++", "compiles libFuzzer", &[Fuzz]),
    required(Program("debootstrap"), "debootstrap", "makes the image of an instance", &[Lab]),
    required(Program("systemd-nspawn"), "systemd-container", "boots an instance", &[Lab]),
    required(Program("journalctl"), "systemd", "reads the log of an instance", &[Lab]),
    required(Program("ip"), "iproute2", "makes the network of the instances", &[Lab]),
    required(Program("dnsmasq"), "dnsmasq-base", "is the name server of the instances", &[Lab]),
    required(Program("nsenter"), "util-linux", "enters an instance", &[Lab]),
    optional(Program("systemd-analyze"), "systemd", "checks the units", &[Test]),
    optional(Program("lintian"), "lintian", "checks the .deb", &[Package]),
    optional(Program("rpm"), "rpm", "compares the .rpm with the .deb, and installs the .rpm", &[Package]),
    optional(Program("rpmlint"), "rpmlint", "checks the .rpm", &[Package]),
    optional(Program("systemd-sysusers"), "systemd", "makes the packages' user on a trial installation", &[Package]),
];

const fn required(proof: Proof, package: &'static str, purpose: &'static str, jobs: &'static [Job]) -> Need {
    Need { proof, package, purpose, jobs, is_optional: false }
}

const fn optional(proof: Proof, package: &'static str, purpose: &'static str, jobs: &'static [Job]) -> Need {
    Need { is_optional: true, ..required(proof, package, purpose, jobs) }
}

/// How this machine can get a missing package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Means {
    /// Root has apt-get.
    Install,
    /// Another user has apt-get.
    AskForPackages,
    /// Another distribution names its packages differently.
    AskForPrograms,
}

#[derive(Debug)]
enum Plan {
    Proceed { left_out: Vec<&'static Need> },
    Install(Vec<&'static Need>),
    Refuse(String),
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Installs the packages that the jobs need and the machine lacks, or fails and names the packages.
pub(crate) fn provide(jobs: &[Job]) -> Result<(), Failure> {
    match plan(missing(jobs, Proof::holds), means()) {
        Plan::Refuse(request) => Err(Failure::new(request)),
        Plan::Install(needs) => install(&needs),
        Plan::Proceed { left_out } if left_out.is_empty() => {
            println!("setup: packages of the system: all present");
            Ok(())
        }
        Plan::Proceed { left_out } => {
            println!("setup: packages of the system: missing, so the run leaves their work out:");
            println!("{}", list(&left_out, |need| need.package));
            Ok(())
        }
    }
}

fn means() -> Means {
    match (is_in_path("apt-get"), is_root()) {
        (true, true) => Means::Install,
        (true, false) => Means::AskForPackages,
        (false, _) => Means::AskForPrograms,
    }
}

/// The needs of these jobs that this machine doesn't meet, by the probe.
fn missing(jobs: &[Job], is_there: impl Fn(Proof) -> bool) -> Vec<&'static Need> {
    let of_these = |need: &&Need| need.jobs.iter().any(|job| jobs.contains(job));
    NEEDS.iter().filter(of_these).filter(|need| !is_there(need.proof)).collect()
}

fn plan(missing: Vec<&'static Need>, means: Means) -> Plan {
    if means == Means::Install && !missing.is_empty() {
        return Plan::Install(missing);
    }
    let (left_out, required): (Vec<_>, Vec<_>) = missing.into_iter().partition(|need| need.is_optional);
    if required.is_empty() {
        return Plan::Proceed { left_out };
    }
    Plan::Refuse(if means == Means::AskForPrograms {
        let programs = list(&required, |need| need.proof.name());
        format!("this machine lacks programs that are needed; install them and try again:\n{programs}")
    } else {
        let (packages, command) = (list(&required, |need| need.package), apt::install_by_hand(&packages(&required)));
        format!("this machine lacks packages that are needed:\n{packages}\ninstall them and try again:\n  {command}")
    })
}

fn install(needs: &[&Need]) -> Result<(), Failure> {
    println!("setup: packages of the system: installing:\n{}", list(needs, |need| need.package));
    let watch = Stopwatch::start();
    let packages = packages(needs);
    let cannot = || Failure::new(format!("could not install {}", packages.join(" ")));
    apt::update().and_then(|()| apt::install(&packages)).map_err(|said| cannot().because(said))?;
    // The package of another release may lack the program, and root's PATH may lack /usr/sbin.
    if let Some(need) = needs.iter().find(|need| !need.proof.holds()) {
        let name = need.proof.name();
        let cause = format!("apt-get has installed {}, but {name} is neither in PATH nor in /usr/lib", need.package);
        return Err(cannot().because(cause));
    }
    println!("setup: packages of the system: done after {}", seconds(watch.read()));
    Ok(())
}

/// Each package once, sorted.
fn packages(needs: &[&Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = needs.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// A line for each need, with the need's name and purpose.
fn list(needs: &[&Need], name: impl Fn(&Need) -> &'static str) -> String {
    let width = needs.iter().map(|need| name(need).len()).max().unwrap_or_default();
    needs.iter().map(|need| format!("  {:width$}  {}", name(need), need.purpose)).collect::<Vec<_>>().join("\n")
}

impl Proof {
    fn holds(self) -> bool {
        match self {
            Program(program) => is_in_path(program),
            Library(file) => fs::read_dir("/usr/lib").is_ok_and(|architectures| {
                architectures.flatten().any(|architecture| architecture.path().join(file).is_file())
            }),
            PythonModules(modules) => Command::new("python3")
                .args(["-c", &format!("import {modules}")])
                .output()
                .is_ok_and(|output| output.status.success()),
        }
    }

    /// The name that a person looks for on a machine without Debian's packages.
    fn name(self) -> &'static str {
        match self {
            Program(program) => program,
            Library(file) => file.rsplit('/').next().unwrap_or(file),
            PythonModules(_) => "python3 with its modules ensurepip and venv",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probe of a fresh Debian with Rust and Python, which has no program and no library of the table.
    fn fresh(proof: Proof) -> bool {
        matches!(proof, PythonModules(_))
    }

    fn refusal(jobs: &[Job], means: Means) -> String {
        match plan(missing(jobs, fresh), means) {
            Plan::Refuse(request) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_asks_for_its_own_packages_alone() {
        let of = |job: Job| packages(&missing(&[job], |_| false));
        assert_eq!(of(Demo), ["python3-venv"]);
        assert_eq!(of(Deny), ["python3-venv"]);
        assert_eq!(of(Test), ["curl", "gettext-base", "libfaketime", "openssl", "python3-venv", "strace", "systemd"]);
        assert_eq!(of(Fuzz), ["g++"]);
        assert_eq!(of(Package), ["lintian", "python3-venv", "rpm", "rpmlint", "systemd"]);
        let lab =
            ["debootstrap", "dnsmasq-base", "iproute2", "python3-venv", "systemd", "systemd-container", "util-linux"];
        assert_eq!(of(Lab), lab);
        assert_eq!(packages(&missing(&[Demo], fresh)), [""; 0]);
    }

    #[test]
    fn nothing_is_done_where_all_is_there() {
        for means in [Means::Install, Means::AskForPackages, Means::AskForPrograms] {
            let plan = plan(missing(&[Demo, Test, Fuzz, Package, Lab, Deny], |_| true), means);
            assert!(matches!(&plan, Plan::Proceed { left_out } if left_out.is_empty()), "{plan:?}");
        }
    }

    #[test]
    fn root_installs_what_is_missing_and_nothing_else() {
        let all_but_strace = |proof| !matches!(proof, Program("strace"));
        match plan(missing(&[Test], all_but_strace), Means::Install) {
            Plan::Install(needs) => assert_eq!(packages(&needs), ["strace"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_user_is_told_what_is_missing_and_the_one_command() {
        let request = refusal(&[Test], Means::AskForPackages);
        assert!(request.contains("\n  libfaketime   sets the clock of one process\n"), "{request}");
        let command = "\n  sudo apt-get install --no-install-recommends curl gettext-base libfaketime openssl strace";
        assert!(request.ends_with(command), "{request}");
    }

    #[test]
    fn another_distribution_is_told_the_programs() {
        let request = refusal(&[Test], Means::AskForPrograms);
        for program in ["curl", "envsubst", "libfaketimeMT.so.1", "strace"] {
            assert!(request.contains(&format!("\n  {program} ")), "{program}: {request}");
        }
        assert!(!request.contains("gettext-base") && !request.contains("apt-get"), "{request}");
    }

    #[test]
    fn what_is_optional_is_left_out_where_nobody_installs() {
        for means in [Means::AskForPackages, Means::AskForPrograms] {
            match plan(missing(&[Package], fresh), means) {
                Plan::Proceed { left_out } => assert_eq!(packages(&left_out), ["lintian", "rpm", "rpmlint", "systemd"]),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_proof_is_looked_for_on_this_machine() {
        assert!(Program("sh").holds() && !Program("no-such-command-anywhere").holds());
        assert!(!Library("faketime/no-such-library.so").holds());
        assert!(PythonModules("sys").holds() && !PythonModules("no_such_module_anywhere").holds());
    }
}
