//! BPF programs at the traffic control hooks of links (`clsact`).
//!
//! Those attached by tcx or netkit are not shown by netlink, but by `bpf()` alone, which the default seccomp profile of
//! container runtimes keeps from programs without `CAP_BPF`.

use std::collections::BTreeSet;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use super::{NetError, Rtnl};

/// A hook of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcHook {
    /// What comes in by it.
    Ingress,
    /// What leaves by it.
    Egress,
}

impl TcHook {
    /// `TC_H_CLSACT` with the hook's number.
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => 0xfff2,
            Self::Egress => 0xfff3,
        };
        TcHandle {
            major: u16::MAX,
            minor,
        }
    }
}

impl Rtnl {
    /// The names of the BPF programs at a hook of a link.
    pub async fn bpf_programs(&mut self, link: u32, hook: TcHook) -> Result<BTreeSet<String>, NetError> {
        let Ok(index) = i32::try_from(link) else {
            return Ok(BTreeSet::new());
        };
        let mut message = TcMessage::with_index(index);
        message.header.parent = hook.parent();
        let request = RouteNetlinkMessage::GetTrafficFilter(message);
        let programs = self.wire.dump("filters", request, |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(m) if m.header.index == index => program(m),
            _ => None,
        });
        Ok(programs.await?.into_iter().collect())
    }
}

/// The program of a filter, if it is one of BPF. It has a name where who attached it gave one.
fn program(message: TcMessage) -> Option<String> {
    let (mut bpf, mut name) = (false, None);
    for attribute in message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => bpf = kind == "bpf",
            TcAttribute::Options(options) => {
                name = options.into_iter().find_map(|option| match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    bpf.then(|| name.unwrap_or_else(|| "without a name".into()))
}
