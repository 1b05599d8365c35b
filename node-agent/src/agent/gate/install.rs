//! The plugin in the node's network configuration: put there, kept there, and taken out again.
//!
//! A runtime may read the folder at any time, so every file is replaced as a whole, and at every moment the first
//! configuration by name is a working one.

use std::fs::{self, DirEntry};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::agent::file;
use crate::cni::PLUGIN;
use crate::cni::config::{ConfigError, Network, active, is_configuration};

/// Files of a folder that are looked at, and the longest of them, in bytes.
const MOST_FILES: usize = 256;
const LONGEST: u64 = 1 << 20;
/// What a file is called that a chain of ours stands in for. No runtime reads it.
const ORIGINAL: &str = ".egressnat-original";
/// What a file is called that is not complete yet.
const NEW: &str = ".egressnat-new";

/// Where the plugin belongs.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The plugin's program in the agent's image.
    pub program: PathBuf,
    /// The node's folder of plugins, such as /opt/cni/bin.
    pub programs: PathBuf,
    /// The node's folder of network configurations, such as /etc/cni/net.d.
    pub configurations: PathBuf,
    /// Our part of a configuration.
    pub entry: Value,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The active configuration calls the plugin last.
    Armed {
        /// Its file.
        file: String,
        /// It had to be put there.
        changed: bool,
    },
    /// The CNI has no configuration yet: the node starts no pods.
    Waiting,
}

/// Why the plugin is not where it belongs.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file.
    #[error("failed to {what} {}: {source}", .path.display())]
    File {
        /// What was done with it.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The active configuration cannot have a chained plugin.
    #[error("failed to add {PLUGIN} to {file}: {source}")]
    Config {
        /// Its file.
        file: String,
        /// Why.
        source: ConfigError,
    },
}

type Result<T> = std::result::Result<T, InstallError>;

impl Installer {
    /// Puts program and entry where they belong, if they are not there. The program comes first: a configuration
    /// must not name what is missing.
    pub fn ensure(&self) -> Result<Installed> {
        let files = self.files()?;
        let Some((name, network)) = active(files.iter().map(|(n, t)| (n.as_str(), t.as_str()))) else {
            return Ok(Installed::Waiting);
        };
        self.put_program()?;
        let changed = !network.has(&self.entry);
        if changed {
            let text = network.with(&self.entry).map_err(|source| InstallError::Config {
                file: name.to_owned(),
                source,
            })?;
            self.chain(name, &network, &text)?;
        }
        Ok(Installed::Armed {
            file: name.to_owned(),
            changed,
        })
    }

    /// Takes the plugin out of every configuration, then its program, and puts back what was set aside. Whether there
    /// was anything.
    pub fn remove(&self) -> Result<bool> {
        let mut found = false;
        for (name, text) in self.files()? {
            let Ok(network) = Network::parse(&text) else {
                continue;
            };
            if network.mentions_us() {
                found = true;
                self.unchain(&self.configurations.join(name), &network)?;
            }
        }
        self.sweep()?;
        let program = self.programs.join(PLUGIN);
        Ok(remove_if_there(&program)? || found)
    }

    /// Puts `text` in force for the configuration `network` of the file `name`. What the CNI wrote is kept.
    fn chain(&self, name: &str, network: &Network, text: &str) -> Result<()> {
        let file = self.configurations.join(name);
        match network {
            Network::List(_) => {
                if !network.mentions_us() {
                    set_aside(&file)?;
                    // The CNI has written a chain itself since.
                    singles(&file)
                        .iter()
                        .try_for_each(|s| remove_if_there(&original(s)).map(|_| ()))?;
                }
                replace(&file, text.as_bytes(), mode(&file))
            }
            // Of one name, `.conf` comes before `.conflist`: until it is set aside it is the active one, and works.
            Network::Single(_) => {
                let list = file.with_extension("conflist");
                if is_foreign(&list) {
                    set_aside(&list)?;
                }
                replace(&list, text.as_bytes(), mode(&file))?;
                fs::rename(&file, original(&file)).map_err(failed("set aside", &file))
            }
        }
    }

    /// What the CNI wrote comes back as it was, unless the chain is another since but for us.
    fn unchain(&self, file: &Path, network: &Network) -> Result<()> {
        let text = network.without();
        let mut single = false;
        for one in singles(file) {
            // What the CNI has written anew since is newer than what we have kept.
            single |= match one.exists() {
                true => remove_if_there(&original(&one))?,
                false => put_back(&one)?,
            };
        }
        let kept = fs::read_to_string(original(file)).ok();
        let same = |kept: String| {
            let both = (Network::parse(&kept), Network::parse(&text));
            matches!(both, (Ok(kept), Ok(now)) if kept == now)
        };
        let keeps = kept.map(|kept| single || same(kept));
        match keeps {
            Some(true) => put_back(file).map(|_| ()),
            Some(false) => replace(file, text.as_bytes(), mode(file)),
            None if single => remove_if_there(file).map(|_| ()),
            None => replace(file, text.as_bytes(), mode(file)),
        }
    }

    /// What of ours is left without the file that it belongs to: a single plugin goes back to its place, a chain that
    /// somebody has removed or written anew since is nobody's.
    fn sweep(&self) -> Result<()> {
        let entries = match fs::read_dir(&self.configurations) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("read", &self.configurations)(error)),
        };
        for entry in entries.take(MOST_FILES) {
            let path = entry.map_err(failed("read", &self.configurations))?.path();
            let name = path.to_string_lossy();
            if let Some(of) = name.strip_suffix(ORIGINAL).map(PathBuf::from) {
                let is_single = of.extension().is_some_and(|e| e != "conflist");
                match is_single && !of.exists() && !of.with_extension("conflist").exists() {
                    true => put_back(&of)?,
                    false => remove_if_there(&path)?,
                };
            } else if name.ends_with(NEW) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    fn put_program(&self) -> Result<()> {
        let ours = fs::read(&self.program).map_err(failed("read", &self.program))?;
        let there = self.programs.join(PLUGIN);
        if fs::read(&there).is_ok_and(|found| found == ours) {
            return Ok(());
        }
        replace(&there, &ours, 0o755)
    }

    /// The configuration files with their texts. What is no file, is too long or is no text is nobody's
    /// configuration.
    fn files(&self) -> Result<Vec<(String, String)>> {
        let folder = &self.configurations;
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", folder)(error)),
        };
        let mut files = Vec::new();
        for entry in entries.take(MOST_FILES) {
            files.extend(text_of(&entry.map_err(failed("read", folder))?));
        }
        Ok(files)
    }
}

fn text_of(entry: &DirEntry) -> Option<(String, String)> {
    let name = entry.file_name().into_string().ok()?;
    if !is_configuration(&name) || !fs::metadata(entry.path()).ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    let file = fs::File::open(entry.path()).ok()?;
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    Some((name, text))
}

/// The single plugins that this chain may stand in for.
fn singles(list: &Path) -> [PathBuf; 2] {
    ["conf", "json"].map(|extension| list.with_extension(extension))
}

/// Where a file is kept while ours is in its place.
fn original(file: &Path) -> PathBuf {
    with_suffix(file, ORIGINAL)
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether the file is there, and somebody else's.
fn is_foreign(file: &Path) -> bool {
    let text = fs::read_to_string(file);
    text.is_ok_and(|text| !Network::parse(&text).is_ok_and(|network| network.mentions_us()))
}

/// Keeps the file, with its mode and owner, for when ours is gone; it stays in its place as well.
fn set_aside(file: &Path) -> Result<()> {
    let kept = original(file);
    remove_if_there(&kept)?;
    fs::hard_link(file, &kept).map_err(failed("set aside", file))
}

/// Whether there was anything to put back.
fn put_back(file: &Path) -> Result<bool> {
    let kept = original(file);
    match fs::rename(&kept, file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("put back", &kept)(error)),
    }
}

/// Whether it was there.
fn remove_if_there(file: &Path) -> Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", file)(error)),
    }
}

/// The mode of a file; what CNIs use where there is none.
fn mode(file: &Path) -> u32 {
    fs::metadata(file).map_or(0o644, |metadata| metadata.permissions().mode() & 0o777)
}

/// Writes a file beside and puts it in place.
fn replace(file: &Path, content: &[u8], mode: u32) -> Result<()> {
    file::replace(file, &with_suffix(file, NEW), content, mode).map_err(failed("write", file))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { what, path, source }
}

#[cfg(test)]
mod tests;
