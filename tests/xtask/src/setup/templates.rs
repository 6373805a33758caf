//! The programs that read templates: cloud-init for user data, and Prometheus's promtool for the alarms.
//!
//! The set-up unpacks both from Debian's packages and installs neither. An installed cloud-init would take the machine
//! over at its next boot, and an installed Prometheus would run. Tests skip a template whose program is absent.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{apt, directory, finish, is_in_path, lock, packages};
use crate::{Failure, Stopwatch, seconds};

/// A program, the directory where the set-up unpacks it, and the template that only this program checks.
struct Unpacked {
    program: &'static str,
    directory: &'static str,
    checked: &'static str,
    /// The program's own package, and the packages of the program's imports.
    packages: &'static [&'static str],
}

/// `harness::tools` looks the programs up by these names.
const PROGRAMS: [Unpacked; 2] = [
    Unpacked {
        program: "cloud-init",
        directory: "cloud-init",
        checked: "the schema of templates/user-data",
        packages: &[
            "cloud-init",
            "python3-attr",
            "python3-configobj",
            "python3-json-pointer",
            "python3-jsonpatch",
            "python3-jsonschema",
            "python3-jinja2",
            "python3-markupsafe",
            "python3-netifaces",
            "python3-oauthlib",
            "python3-pyrsistent",
            "python3-requests",
            "python3-urllib3",
            "python3-certifi",
            "python3-chardet",
            "python3-charset-normalizer",
            "python3-idna",
            "python3-serial",
            "python3-yaml",
        ],
    },
    Unpacked {
        program: "promtool",
        directory: "prometheus",
        checked: "templates/prometheus",
        packages: &["prometheus"],
    },
];

/// Unpacks the missing programs, and prints which templates stay unchecked.
pub(super) fn provide() -> Result<(), Failure> {
    if !is_in_path("terraform") {
        println!(
            "setup: terraform: not installed, so the format, the templatefile and the plans of templates/terraform are NOT CHECKED"
        );
    }
    let tools = directory();
    let _lock = lock(&tools)?;
    PROGRAMS.iter().try_for_each(|program| program.provide(&tools))
}

impl Unpacked {
    fn provide(&self, tools: &Path) -> Result<(), Failure> {
        let Self { program, checked, .. } = self;
        if self.is_there(tools) {
            println!("setup: {program}: up to date");
            return Ok(());
        }
        let watch = Stopwatch::start();
        let downloads = tools.join(format!("{}.packages", self.directory));
        replace(&downloads)?;
        if is_in_path("apt-get") {
            println!("setup: {program}: unpacking");
        }
        match download(self.packages, &downloads) {
            Ok(()) => {
                self.unpack(&downloads, tools)?;
                println!("setup: {program}: done after {}", seconds(watch.read()));
            }
            Err(said) => {
                let cause = said.lines().last().unwrap_or_default();
                println!("setup: {program}: not available here, so {checked} is NOT CHECKED: {cause}");
            }
        }
        fs::remove_dir_all(&downloads).map_err(|error| cannot("remove", &downloads).because(error))
    }

    fn is_there(&self, tools: &Path) -> bool {
        tools.join(self.directory).join("usr/bin").join(self.program).is_file() || is_in_path(self.program)
    }

    /// The directory gets its final name once it is complete, so an existing program proves a complete directory.
    fn unpack(&self, downloads: &Path, tools: &Path) -> Result<(), Failure> {
        let (directory, unfinished) =
            (tools.join(self.directory), tools.join(format!("{}.unfinished", self.directory)));
        replace(&unfinished)?;
        let entries = fs::read_dir(downloads).map_err(|error| cannot("list", downloads).because(error))?;
        for package in entries.flatten() {
            finish(Command::new("dpkg-deb").arg("--extract").arg(package.path()).arg(&unfinished))
                .map_err(|said| cannot("unpack into", &unfinished).because(said))?;
        }
        if !unfinished.join("usr/bin").join(self.program).is_file() {
            return Err(cannot(&format!("find {} in the packages that were unpacked into", self.program), &unfinished));
        }
        replace(&directory)?;
        fs::rename(&unfinished, &directory).map_err(|error| cannot("rename", &unfinished).because(error))
    }
}

/// The machine's package lists may be old or absent. Only root can renew the lists.
fn download(packages: &[&str], directory: &Path) -> Result<(), String> {
    if !is_in_path("apt-get") {
        return Err("there is no apt-get".into());
    }
    if packages::is_root() {
        apt::update()?;
    }
    apt::download(packages, directory)
}

/// Makes an empty directory, and removes what an earlier run has left there.
fn replace(directory: &Path) -> Result<(), Failure> {
    let make = || {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)
    };
    make().map_err(|error| cannot("make", directory).because(error))
}

fn cannot(what: &str, path: &Path) -> Failure {
    Failure::new(format!("could not {what} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_its_name_only_once_its_program_is_there() {
        let tools = std::env::temp_dir().join(format!("nats-tls-agent-templates-{}", std::process::id()));
        let downloads = tools.join("downloads");
        fs::create_dir_all(&downloads).unwrap();
        let packages = &["no-such-package"];
        let unpacked = Unpacked { program: "no-such-program", directory: "some", checked: "nothing", packages };
        let failure = unpacked.unpack(&downloads, &tools).unwrap_err();
        assert!(failure.to_string().contains("could not find no-such-program"), "{failure}");
        assert!(!tools.join("some").exists() && !unpacked.is_there(&tools));
        fs::create_dir_all(tools.join("some/usr/bin")).unwrap();
        fs::write(tools.join("some/usr/bin/no-such-program"), "").unwrap();
        assert!(unpacked.is_there(&tools));
        fs::remove_dir_all(&tools).unwrap();
    }
}
