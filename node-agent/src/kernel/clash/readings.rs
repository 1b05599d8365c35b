//! What the judgement needs beyond a look at the network.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egressnat_crds::plan::Family;

use crate::kernel::rtnl::{NetError, Rtnl};
use crate::kernel::sysctl::SysctlError;

/// Of the calling thread's network namespace. `/proc/net` is that of the process's first thread.
const SOCKETS: [&str; 2] = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];

/// The tables that `iptables-legacy` has in the namespace; there is no file where the kernel has none.
const LEGACY: [(Family, &str); 2] = [
    (Family::IPv4, "/proc/thread-self/net/ip_tables_names"),
    (Family::IPv6, "/proc/thread-self/net/ip6_tables_names"),
];

/// Why the node could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadingsError {
    /// A list of the kernel's, of sockets or of tables.
    #[error("failed to read {path}: {source}")]
    List {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Netlink.
    #[error(transparent)]
    Net(#[from] NetError),
}

/// What the judgement needs beyond a look at the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Where UDP sockets are bound, the kernel's own included.
    pub udp: BTreeSet<SocketAddr>,
    /// The families whose packets are forwarded.
    pub forwarding: BTreeSet<Family>,
    /// The kernel can do VXLAN.
    pub vxlan: bool,
    /// The tables of `iptables-legacy`.
    pub legacy: BTreeSet<(Family, String)>,
}

impl Readings {
    /// Reads the node, in the calling thread's network namespace.
    pub async fn read(rtnl: &mut Rtnl) -> Result<Self, ReadingsError> {
        let mut readings = Self::default();
        for path in SOCKETS {
            readings.udp.extend(list(path)?.lines().filter_map(socket));
        }
        for (family, path) in LEGACY {
            let tables = list(path)?;
            readings
                .legacy
                .extend(tables.lines().map(|table| (family, table.to_owned())));
        }
        let switches = [
            (Family::IPv4, "ipv4/ip_forward"),
            (Family::IPv6, "ipv6/conf/all/forwarding"),
        ];
        for (family, path) in switches {
            let value = rtnl.sysctls().read(path)?;
            readings
                .forwarding
                .extend(value.filter(|v| v != "0").map(|_| family));
        }
        readings.vxlan = rtnl.has_vxlan().await?;
        Ok(readings)
    }
}

/// A file of the kernel's; nothing where the kernel has no such thing.
fn list(path: &'static str) -> Result<String, ReadingsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ReadingsError::List { path, source }),
    }
}

/// The local address of a line such as `  12: 0100007F:0035 00000000:0000 07 ...`: numbers of 32 bits in
/// host byte order, and the port.
fn socket(line: &str) -> Option<SocketAddr> {
    let (address, port) = line.split_whitespace().nth(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| {
        let digits = address.get(i * 8..(i + 1) * 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (i, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(i)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn reads_the_lines_of_the_kernel() {
        let head = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid";
        assert_eq!(socket(head), None);
        let v4 = "  163: 0100007F:168A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0";
        assert_eq!(socket(v4), Some("127.0.0.1:5770".parse().unwrap()));
        let v6 = " 1630: 000000FD000000000000000001000000:168A 00000000000000000000000000000000:0000 07";
        assert_eq!(socket(v6), Some("[fd00::1]:5770".parse().unwrap()));
        for broken in ["", "1:", "1: :", "1: 0100007F", "1: 0100:168A", "1: ééééééé:168A"] {
            assert_eq!(socket(broken), None, "{broken:?}");
        }
    }
}
