//! Kernel settings: files below `/proc/sys/net`.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use crate::model::Sysctl;

/// Why a setting could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The path leads out of the root, or names no file.
    #[error("failed to use the sysctl path {path:?}: only plain names are allowed in it")]
    BadPath {
        /// The path below the root.
        path: String,
    },
    /// Reading or writing failed.
    #[error("failed to {action} the sysctl {path}: {source}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The path below the root.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The settings below one directory.
///
/// The kernel resolves `/proc/sys/net` for the network namespace of the calling thread, wherever the file
/// system is mounted.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::below("/proc/sys/net")
    }
}

impl Sysctls {
    /// The settings below `root`, which stands for `/proc/sys/net`.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The value, trimmed, absent where there is no such file.
    pub fn read(&self, path: &str) -> Result<Option<String>, SysctlError> {
        let mut value = String::new();
        let opened = options().read(true).open(self.resolve(path)?);
        let read = opened.and_then(|mut file| file.read_to_string(&mut value));
        match read {
            Ok(_) => Ok(Some(value.trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", path, source)),
        }
    }

    /// Writes the value. Never makes a file.
    pub fn write(&self, path: &str, value: &str) -> Result<(), SysctlError> {
        let opened = options().write(true).open(self.resolve(path)?);
        opened
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(|source| failed("write", path, source))
    }

    /// Those of `wanted` that exist, with the values that they have.
    pub fn observe(&self, wanted: &BTreeSet<Sysctl>) -> Result<BTreeSet<Sysctl>, SysctlError> {
        let mut observed = BTreeSet::new();
        for Sysctl { path, .. } in wanted {
            if let Some(value) = self.read(path)? {
                let path = path.clone();
                observed.insert(Sysctl { path, value });
            }
        }
        Ok(observed)
    }

    /// Whether the kernel does IPv6 and nobody has switched it off for the node as a whole.
    pub fn ipv6(&self) -> Result<bool, SysctlError> {
        Ok(self.read("ipv6/conf/all/disable_ipv6")?.as_deref() == Some("0"))
    }

    /// Whether the kernel has IPv6 at all, switched off or not.
    pub(super) fn has_ipv6(&self) -> bool {
        self.root.join("ipv6").is_dir()
    }

    fn resolve(&self, path: &str) -> Result<PathBuf, SysctlError> {
        let plain = Path::new(path)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
        match plain && !path.is_empty() && !path.contains('\0') {
            true => Ok(self.root.join(path)),
            false => Err(SysctlError::BadPath {
                path: path.to_owned(),
            }),
        }
    }
}

/// The root is a mount of the kernel's own file system, which has no links; a link means that it is not.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NOFOLLOW);
    options
}

fn failed(action: &'static str, path: &str, source: io::Error) -> SysctlError {
    SysctlError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_writes_and_tells_what_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("ipv4/conf/eth0.100")).unwrap();
        std::fs::write(dir.path().join("ipv4/conf/eth0.100/rp_filter"), "1\n").unwrap();
        let sysctls = Sysctls::below(dir.path());
        let path = "ipv4/conf/eth0.100/rp_filter";
        assert_eq!(sysctls.read(path).unwrap().as_deref(), Some("1"));
        sysctls.write(path, "2").unwrap();
        assert_eq!(sysctls.read(path).unwrap().as_deref(), Some("2"));
        assert_eq!(sysctls.read("ipv4/none").unwrap(), None);
        assert!(
            matches!(
                sysctls.write("ipv4/none", "1"),
                Err(SysctlError::Io { action: "write", .. })
            ),
            "a file was made"
        );
    }

    #[test]
    fn never_leaves_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(dir.path().join("secret"), "1").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        let sysctls = Sysctls::below(&root);
        for path in [
            "../secret",
            "/etc/hostname",
            "a/../../secret",
            "./secret",
            "",
            "a\0b",
        ] {
            assert!(
                matches!(sysctls.read(path), Err(SysctlError::BadPath { .. })),
                "{path:?}"
            );
            assert!(sysctls.write(path, "0").is_err(), "{path:?}");
        }
        assert!(sysctls.read("link").is_err());
        assert!(sysctls.write("link", "0").is_err());
        assert_eq!(std::fs::read_to_string(dir.path().join("secret")).unwrap(), "1");
    }
}
