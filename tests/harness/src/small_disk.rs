//! A disk of one megabyte that a test can fill. The disk is a tmpfs(5), which answers `ENOSPC` as every file system
//! does.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;

const OPTIONS: &str = "size=1m,mode=0700";
const CHUNK: [u8; 4096] = [0; 4096];

/// A small disk over a directory, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    /// Makes the directory and mounts the disk over it.
    ///
    /// # Errors
    /// The caller is not root, and only root may mount.
    pub fn mount(directory: &Path) -> Result<Self, Failure> {
        let cannot = || Failure::new(format!("could not mount a small disk on {}", directory.display()));
        std::fs::create_dir_all(directory).map_err(|error| cannot().because(error))?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", OPTIONS, "tmpfs"]).arg(directory).output();
        let mounted = mounted.map_err(|error| cannot().because(error))?;
        if !mounted.status.success() {
            return Err(cannot().because(String::from_utf8_lossy(&mounted.stderr).trim().to_owned()));
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Fills the disk completely.
    pub fn fill(&self) -> Result<(), Failure> {
        use std::io::Write as _;
        let cannot = |error| Failure::new(format!("could not fill {}", self.directory.display())).because(error);
        let mut ballast = std::fs::File::create(self.ballast()).map_err(cannot)?;
        loop {
            match ballast.write(&CHUNK) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(cannot(error)),
            }
        }
    }

    /// Undoes [`SmallDisk::fill`].
    pub fn free(&self) -> Result<(), Failure> {
        std::fs::remove_file(self.ballast())
            .map_err(|error| Failure::new(format!("could not free {}", self.directory.display())).because(error))
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The unmount is lazy, because a process that is about to be killed may have a file open.
        drop(Command::new("umount").arg("--lazy").arg(&self.directory).status());
    }
}
