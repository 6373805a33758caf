//! `cargo xtask package`: builds the .deb and the .rpm from the same tree of files, and checks both.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::setup::{self, Job};
use crate::step::{Step, conclude, step};
use crate::{Failure, both, cargo};

/// The glibc of Amazon Linux 2023, the oldest supported glibc. Ubuntu 22.04 has 2.35, and Debian 12 has 2.36.
const GLIBC: (u32, u32) = (2, 34);

/// Files of the repository, and their paths in the packages. `agent/Cargo.toml` has their modes, and marks all of etc/
/// as configuration.
///
/// nats-server's unit is in /etc. If an operator's unit exists there, the package manager puts our unit beside it. A
/// package of nats-server has its unit in /usr/lib, so the two files don't collide.
const FILES: [(&str, &str); 15] = [
    ("systemd/nats-tls-agent.service", "usr/lib/systemd/system/nats-tls-agent.service"),
    ("systemd/nats-tls-client.service", "usr/lib/systemd/system/nats-tls-client.service"),
    ("systemd/sysusers.conf", "usr/lib/sysusers.d/nats-tls-agent.conf"),
    ("systemd/tmpfiles.conf", "usr/lib/tmpfiles.d/nats-tls-agent.conf"),
    ("systemd/nats-server.service", "etc/systemd/system/nats-server.service"),
    (
        "systemd/nats-server.service.d/50-nats-tls-agent.conf",
        "etc/systemd/system/nats-server.service.d/50-nats-tls-agent.conf",
    ),
    ("templates/agent.toml", "usr/share/doc/nats-tls-agent/examples/agent.toml"),
    ("templates/client.toml", "usr/share/doc/nats-tls-agent/examples/client.toml"),
    ("templates/nats-server.conf.tera", "usr/share/doc/nats-tls-agent/examples/nats-server.conf.tera"),
    ("templates/user-data", "usr/share/doc/nats-tls-agent/examples/user-data"),
    ("templates/iam", "usr/share/doc/nats-tls-agent/examples/iam"),
    ("templates/prometheus", "usr/share/doc/nats-tls-agent/examples/prometheus"),
    // The documents keep their relative paths, so that their links work.
    ("docs", "usr/share/doc/nats-tls-agent/docs"),
    ("README.md", "usr/share/doc/nats-tls-agent/README.md"),
    ("SECURITY.md", "usr/share/doc/nats-tls-agent/SECURITY.md"),
];

/// Files of one package only: dpkg has a copyright file and overrides for lintian, and rpm has a directory of licences.
const IN_ONE: [&str; 3] = [
    "/usr/share/doc/nats-tls-agent/copyright",
    "/usr/share/lintian/overrides/nats-tls-agent",
    "/usr/share/licenses/nats-tls-agent/LICENSE",
];

/// The paths of the two packages.
pub(crate) struct Packages {
    /// For Debian and Ubuntu.
    pub(crate) deb: PathBuf,
    /// For Amazon Linux.
    pub(crate) rpm: PathBuf,
}

/// Provides the system's packages, builds both packages, and checks both as far as this machine can.
pub(crate) fn run(revision: u32) -> Result<ExitCode, Failure> {
    setup::provide(&[Job::Package])?;
    build()?;
    let packages = package(revision, &directory(), Size::Small)?;
    same_files(&packages)?;
    let mut steps = check(&packages);
    match cannot_install() {
        None => {
            // The newer packages only test the upgrade, so they go to another directory and may be large.
            let newer = package(revision + 1, &directory().join("newer"), Size::Large)?;
            steps.push(install(&packages, &newer));
        }
        Some(why) => println!("\n== installation, upgrade, removal: NOT CHECKED: {why}"),
    }
    println!("\n{}\n{}", packages.deb.display(), packages.rpm.display());
    Ok(conclude(&steps))
}

/// Builds the packages of two revisions for a trial. They lie in a directory of their own.
pub(crate) fn for_trial() -> Result<[Packages; 2], Failure> {
    build()?;
    let into = directory().join("trial");
    Ok([package(1, &into, Size::Large)?, package(2, &into, Size::Large)?])
}

/// The directory of the packages and of the files that they hold.
fn directory() -> PathBuf {
    cargo::workspace().join("target/packages")
}

/// Fills the tree of files. The release build ends with large crates, one after another. Meanwhile the tools compile.
fn build() -> Result<(), Failure> {
    setup::for_release_build()?;
    lay_out(&both(compile, setup::for_packages)?)
}

/// Makes the release build against the oldest supported glibc.
fn compile() -> Result<PathBuf, Failure> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let (major, minor) = GLIBC;
    println!("package: building for {target} with glibc {major}.{minor}; the first time takes many minutes");
    let build = ["--release", "--locked", "--package", "nats-tls-agent", "--target"];
    run_command(setup::zigbuild().args(build).arg(format!("{target}.{major}.{minor}")))?;
    let binary = cargo::workspace().join("target").join(target).join("release/agent");
    let highest = highest_glibc(&output(Command::new("readelf").args(["--version-info", "--wide"]).arg(&binary))?);
    match highest {
        Some((major, minor)) if (major, minor) <= GLIBC => {
            println!("package: the newest symbols are of GLIBC_{major}.{minor}");
            Ok(binary)
        }
        found => Err(Failure::new(format!(
            "{} needs glibc {found:?}, and {GLIBC:?} is the newest allowed version; find the symbol with \
             `objdump -T`, and then its caller",
            binary.display()
        ))),
    }
}

/// The highest version that `readelf --version-info` lists.
fn highest_glibc(versions: &str) -> Option<(u32, u32)> {
    let named = versions.split("GLIBC_").skip(1).filter_map(|rest| {
        let mut numbers =
            rest.split(|character: char| !character.is_ascii_digit() && character != '.').next()?.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    });
    named.max()
}

/// Fills target/packages/root, the tree of files that both packages hold.
fn lay_out(binary: &Path) -> Result<(), Failure> {
    let root = directory().join("root");
    if root.exists() {
        fs::remove_dir_all(&root)
            .map_err(|error| Failure::new(format!("could not remove {}", root.display())).because(error))?;
    }
    for (source, destination) in FILES {
        copy(&cargo::workspace().join(source), &root.join(destination))?;
    }
    let configuration = read(&cargo::workspace().join("templates/agent.toml"))?;
    write(&root.join("etc/nats-tls-agent/agent.toml"), &unconfigured(&configuration))?;

    let agent = root.join("usr/bin/agent");
    copy(binary, &agent)?;
    // A panic names its place in the source even in a stripped binary.
    run_command(Command::new("strip").arg(&agent))?;
    // A page refers to the pages of the commands below it.
    let mut pages = vec![String::new()];
    while let Some(command) = pages.pop() {
        let name = if command.is_empty() { "agent.1".to_owned() } else { format!("agent-{command}.1") };
        let page = root.join("usr/share/man/man1").join(name);
        let text = output(Command::new(&agent).arg("man").args(Some(&command).filter(|name| !name.is_empty())))?;
        pages.extend(commands(&text).into_iter().filter(|below| *below != command));
        write(&page, &text)?;
        run_command(Command::new("gzip").args(["--best", "--no-name"]).arg(&page))?;
    }
    let completions = [
        ("bash", root.join("usr/share/bash-completion/completions/agent")),
        ("fish", root.join("usr/share/fish/vendor_completions.d/agent.fish")),
        ("zsh", directory().join("_agent")),
    ];
    for (shell, file) in completions {
        write(&file, &output(Command::new(&agent).args(["completions", shell]))?)?;
    }
    Ok(())
}

/// The commands that the manual's first page refers to.
fn commands(page: &str) -> Vec<String> {
    let references = page.lines().filter_map(|line| line.strip_prefix(r"agent\-")?.strip_suffix("(1)"));
    references.map(|name| name.replace('\\', "")).collect()
}

/// The configuration with every key in a comment, because no default CA would be right.
fn unconfigured(configuration: &str) -> String {
    let is_key = |line: &str| line.starts_with(|first: char| first.is_ascii_lowercase());
    let comment = |line: &str| format!("{}{line}\n", if is_key(line) { "#" } else { "" });
    configuration.lines().map(comment).collect()
}

/// How small a package is. A small package takes a minute of compression.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

/// Makes both packages from the tree of files.
fn package(revision: u32, into: &Path, size: Size) -> Result<Packages, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let architecture = std::env::consts::ARCH;
    let debian = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    fs::create_dir_all(into)
        .map_err(|error| Failure::new(format!("could not make {}", into.display())).because(error))?;
    println!("package: revision {revision}, .deb and .rpm");
    let packages = Packages {
        deb: into.join(format!("nats-tls-agent_{version}-{revision}_{debian}.deb")),
        rpm: into.join(format!("nats-tls-agent-{version}-{revision}.{architecture}.rpm")),
    };
    let deb = ["deb", "--quiet", "--no-build", "--no-strip", "--package", "nats-tls-agent", "--deb-revision"];
    let (fast, payload) = match size {
        Size::Small => (None, "zstd"),
        Size::Large => (Some("--fast"), "gzip"),
    };
    run_command(
        cargo::command(deb)
            .arg(revision.to_string())
            .args(fast)
            .arg("--output")
            .arg(&packages.deb)
            .stdout(Stdio::null()),
    )?;
    let rpm = ["generate-rpm", "--package", "agent", "--payload-compress", payload, "--output"];
    run_command(cargo::command(rpm).arg(&packages.rpm).arg("--set-metadata").arg(format!("release = \"{revision}\"")))?;
    Ok(packages)
}

/// Checks that both packages hold the same files, with the same modes and contents.
fn same_files(packages: &Packages) -> Result<(), Failure> {
    if !setup::is_in_path("rpm") || !setup::is_in_path("dpkg-deb") {
        println!(
            "package: NOT CHECKED that both hold the same files: the check needs dpkg-deb and rpm (Debian: apt-get install rpm)"
        );
        return Ok(());
    }
    let (deb, rpm) = (files_of_deb(&packages.deb)?, files_of_rpm(&packages.rpm)?);
    let differing: Vec<_> = deb.keys().chain(rpm.keys()).filter(|path| deb.get(*path) != rpm.get(*path)).collect();
    if differing.is_empty() {
        println!("package: both hold the same {} files", deb.len());
        return Ok(());
    }
    Err(Failure::new(format!("the packages differ in {differing:?}; see the two lists of assets in agent/Cargo.toml")))
}

/// Mode and SHA-256 of each file that both packages should hold.
type Files = BTreeMap<String, String>;

fn files_of_deb(deb: &Path) -> Result<Files, Failure> {
    let unpacked = directory().join("unpacked");
    run_command(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&unpacked))?;
    let listed = output(Command::new("find").arg(".").args(["-type", "f"]).current_dir(&unpacked))?;
    let files = listed.lines().map(|line| {
        let file = unpacked.join(line);
        let cannot = |error| Failure::new(format!("could not look at {}", file.display())).because(error);
        let mode = fs::metadata(&file).map_err(cannot)?.permissions().mode() & 0o7777;
        let digest = output(Command::new("sha256sum").arg(&file))?;
        Ok((line.trim_start_matches('.').to_owned(), mode, digest.split(' ').next().unwrap_or_default().to_owned()))
    });
    let files = files.collect::<Result<Vec<_>, Failure>>()?;
    fs::remove_dir_all(&unpacked)
        .map_err(|error| Failure::new(format!("could not remove {}", unpacked.display())).because(error))?;
    Ok(in_both(files))
}

fn files_of_rpm(rpm: &Path) -> Result<Files, Failure> {
    let format = "[%{FILENAMES} %{FILEMODES:octal} %{FILEDIGESTS}\\n]";
    let listed = output(Command::new("rpm").args(["--query", "--package", "--queryformat", format]).arg(rpm))?;
    let files = listed.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, mode, digest) = (words.next()?, words.next()?, words.next()?);
        Some((name.to_owned(), u32::from_str_radix(mode, 8).ok()? & 0o7777, digest.to_owned()))
    });
    Ok(in_both(files.collect()))
}

/// Keeps the files of both packages. zsh's directory differs between distributions, so its file gets one name here.
fn in_both(files: Vec<(String, u32, String)>) -> Files {
    let shared = files.into_iter().filter(|(name, ..)| !IN_ONE.contains(&name.as_str()));
    let named = shared.map(|(name, mode, digest)| {
        (name.replace("/zsh/vendor-completions/", "/zsh/site-functions/"), format!("{mode:04o} {digest}"))
    });
    named.collect()
}

/// The script that installs, upgrades and removes the packages.
fn installation() -> PathBuf {
    cargo::workspace().join("tests/xtask/src/package/installation")
}

/// Checks the packages and the scripts with shellcheck, lintian and rpmlint.
fn check(packages: &Packages) -> Vec<Step> {
    let sources = cargo::workspace().join("agent/packages");
    let mut steps = Vec::new();
    let scripts = ["postinst", "prerm", "postrm"].map(|script| sources.join(script));
    steps.push(step("shellcheck", setup::shellcheck().args(scripts).arg(installation())));
    let mut lintian = Command::new("lintian");
    // lintian warns about root unless it gets --allow-root.
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]).arg(&packages.deb);
    let mut rpmlint = Command::new("rpmlint");
    rpmlint.arg("--config").arg(sources.join("rpmlint.toml")).arg(&packages.rpm);
    for (name, command) in [("lintian", &mut lintian), ("rpmlint", &mut rpmlint)] {
        if setup::is_in_path(name) {
            steps.push(step(name, command));
        } else {
            println!("\n== {name}: NOT CHECKED: {name} isn't installed (Debian: apt-get install {name})");
        }
    }
    steps
}

/// Installs, upgrades, removes and purges the packages in a temporary file system.
fn install(packages: &Packages, newer: &Packages) -> Step {
    // The mount namespace, and with it every mount, ends with the script.
    let alone = ["--mount", "--fork", "--kill-child", "sh"];
    let files = [&packages.deb, &newer.deb, &packages.rpm, &newer.rpm];
    step("installation", Command::new("unshare").args(alone).arg(installation()).args(files))
}

/// Why this machine can't install the packages into a temporary file system.
fn cannot_install() -> Option<&'static str> {
    if !setup::is_in_path("unshare")
        || !setup::is_in_path("dpkg")
        || !setup::is_in_path("rpm")
        || !setup::is_in_path("systemd-sysusers")
    {
        return Some("the check needs unshare, dpkg, rpm and systemd, as on Debian");
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("the check needs root");
    }
    (!can_unshare(&["--mount"]))
        .then_some("this machine can't make a mount namespace, for instance a container without the privilege")
}

/// Whether this process can make these namespaces on this machine.
pub(crate) fn can_unshare(namespaces: &[&str]) -> bool {
    let mut tried = Command::new("unshare");
    tried.args(namespaces).arg("true").stdin(Stdio::null()).stderr(Stdio::null());
    tried.status().is_ok_and(|status| status.success())
}

fn copy(source: &Path, destination: &Path) -> Result<(), Failure> {
    let make = || {
        if let Some(parent) = destination.parent() {
            fs::create_dir_all(parent)?;
        }
        if !source.is_dir() {
            return fs::copy(source, destination).map(drop);
        }
        fs::create_dir_all(destination)?;
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            fs::copy(entry.path(), destination.join(entry.file_name()))?;
        }
        Ok(())
    };
    make().map_err(|error: std::io::Error| {
        Failure::new(format!("could not copy {} to {}", source.display(), destination.display())).because(error)
    })
}

fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|error| Failure::new(format!("could not read {}", file.display())).because(error))
}

fn write(file: &Path, content: &str) -> Result<(), Failure> {
    let make = || {
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(file, content)
    };
    make().map_err(|error| Failure::new(format!("could not write {}", file.display())).because(error))
}

/// Runs a command that reports its own errors.
fn run_command(command: &mut Command) -> Result<(), Failure> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("{command:?} ended with {status}; see its output above"))),
        Err(error) => Err(Failure::new(format!("could not run {command:?}")).because(error)),
    }
}

/// The standard output of a command.
fn output(command: &mut Command) -> Result<String, Failure> {
    let cause = match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => match String::from_utf8(output.stdout) {
            Ok(text) => return Ok(text),
            Err(error) => error.to_string(),
        },
        Ok(output) => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => error.to_string(),
    };
    Err(Failure::new(format!("could not run {command:?}")).because(cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_glibc_is_by_number() {
        let versions =
            "  0x0010:   Name: GLIBC_2.4  Flags: none\n  0x0020:   Name: GLIBC_2.2.5 \n 0x30: Name: GLIBC_2.34\n";
        assert_eq!(highest_glibc(versions), Some((2, 34)));
        assert_eq!(highest_glibc("Name: GCC_3.0"), None);
    }

    #[test]
    fn the_configuration_of_a_package_sets_nothing() {
        let template = read(&cargo::workspace().join("templates/agent.toml")).unwrap();
        let unconfigured = unconfigured(&template);
        assert!(template.contains("\nca_arn = "));
        assert!(unconfigured.contains("\n#ca_arn = "));
        assert!(unconfigured.lines().all(|line| line.is_empty() || line.starts_with(['#', '['])), "{unconfigured}");
    }

    #[test]
    fn the_manual_has_a_page_for_every_command_that_it_names() {
        let page = ".SH SUBCOMMANDS\n.TP\nagent\\-run(1)\nRun the daemon\n.TP\nagent\\-man(1)\nPrint";
        assert_eq!(commands(page), ["run", "man"]);
        assert_eq!(commands("agent\\-client\\-fetch(1)\n"), ["client-fetch"]);
    }
}
