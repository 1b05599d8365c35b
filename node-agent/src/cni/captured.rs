//! The sources that the node's kernel captures for policies, kept for when no agent answers: a pod that is given one of them
//! would send with another pod's egress address, whatever its own verdict is.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const FILE: &str = "captured.json";

/// Where they are kept: beside the agent's socket, in a folder that a boot empties as it empties the kernel.
pub fn beside(socket: &Path) -> PathBuf {
    socket.with_file_name(FILE)
}

/// The sources in a file; none where there is no file.
pub fn read(file: &Path) -> io::Result<BTreeSet<IpAddr>> {
    match std::fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// One of the addresses that is among them.
pub fn taken(captured: &BTreeSet<IpAddr>, addresses: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    addresses.intersection(captured).next().copied()
}
