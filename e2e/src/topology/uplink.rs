//! A second interface of the gateway, and the network that it leads to.
//!
//! ```text
//!   gateway eth1 ────── uplink             198.18.7.3, 2001:db8:7::3 and 198.18.7.100, 2001:db8:7::100
//! ```

use super::{Dual, ELSEWHERE, Node, PORT, Server, Tap};
use crate::{error::Result, netns::Netns};

/// The gateway's address there.
const GATEWAY: Dual = on_uplink(3, 0x3);
/// The server there, and the router of everything beyond.
pub const ROUTER: Dual = on_uplink(100, 0x100);
/// The name of the other end of the gateway's interface.
const PORT_OF_GATEWAY: &str = "gateway";

/// What a second interface of the gateway, `eth1`, leads to: a network that has a server, and is the other way to
/// [`ELSEWHERE`], where another server answers than by the way of all others. The gateway's main table has a default
/// route by it, of a metric that makes it the second choice. Its reverse path filter is strict, as all others'.
#[derive(Debug)]
pub struct Uplink {
    /// The network.
    pub netns: Netns,
    /// The gateway's addresses in it.
    pub address: Dual,
    _server: Server,
}

impl Uplink {
    pub(super) fn new(gateway: &Node) -> Result<Self> {
        let netns = Netns::anonymous()?;
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        netns.ip(&format!(
            "link add {PORT_OF_GATEWAY} type veth peer name eth1 netns {}\n\
             link set {PORT_OF_GATEWAY} addrgenmode none up",
            gateway.netns.path().display()
        ))?;
        let mut batch = String::new();
        for (address, lengths) in [(ROUTER, [24, 64]), (ELSEWHERE, [32, 128])] {
            for (address, length) in address.both().iter().zip(lengths) {
                batch += &format!("addr add {address}/{length} dev {PORT_OF_GATEWAY} nodad\n");
            }
        }
        netns.ip(&batch)?;
        let server = Server::start(&netns, &[ROUTER, ELSEWHERE].map(Dual::both).concat(), PORT)?;
        let uplink = Self {
            netns,
            address: GATEWAY,
            _server: server,
        };
        uplink.connect(gateway)?;
        Ok(uplink)
    }

    /// Gives the gateway its interface's addresses and routes, which go when the interface is down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connect(&self, gateway: &Node) -> Result<()> {
        gateway.netns.ip(&format!(
            "link set eth1 up\n\
             addr replace {}/24 dev eth1\n\
             addr replace {}/64 dev eth1 nodad\n\
             route replace 0.0.0.0/0 via {} metric 2000\n\
             route replace ::/0 via {} metric 2000",
            self.address.v4, self.address.v6, ROUTER.v4, ROUTER.v6,
        ))
    }

    /// Sees every packet that the gateway sends there from now on.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn tap(&self) -> Result<Tap> {
        Tap::incoming(&self.netns, &[PORT_OF_GATEWAY])
    }
}

const fn on_uplink(v4: u8, v6: u16) -> Dual {
    Dual::new([198, 18, 7, v4], [0x2001, 0xdb8, 0x7, 0, 0, 0, 0, v6])
}
