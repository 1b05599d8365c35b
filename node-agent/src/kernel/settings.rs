//! Tells that somebody has changed a setting.
//!
//! The kernel announces `forwarding` and `rp_filter` (`RTM_NEWNETCONF`), and is silent on all others: at those that we
//! need, we look.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::MulticastGroup;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::listener::Listener;
use super::nft::attr::{Attrs, Message};
use super::sysctl::Sysctls;
use crate::model::Sysctl;

/// How often we look. Five files take about 30 µs.
const LOOK: Duration = Duration::from_millis(500);

/// One change of `ip_forward` is announced for every link.
const GATHER: Duration = Duration::from_millis(10);

const RTM_NEWNETCONF: u16 = 80;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_IFINDEX_ALL: i32 = -1;
/// `struct netconfmsg`, with its padding.
const NETCONFMSG: usize = 4;

/// Listens for changes of settings, and looks at those that are not announced.
pub struct SettingsMonitor {
    listener: Listener,
    look: Interval,
    sysctls: Sysctls,
    wanted: BTreeSet<Sysctl>,
    links: BTreeSet<u32>,
}

impl SettingsMonitor {
    /// Listens in the calling thread's network namespace, from now on. Needs a tokio runtime.
    pub fn open(sysctls: Sysctls) -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Netconf, MulticastGroup::Ipv6Netconf];
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            listener: Listener::open(NETLINK_ROUTE, &groups.map(|group| group as u32), GATHER)?,
            look,
            sysctls,
            wanted: BTreeSet::new(),
            links: BTreeSet::new(),
        })
    }

    /// What has to stay as it is, from now on: these settings, and what is announced of these links, by index.
    pub fn watch(&mut self, wanted: BTreeSet<Sysctl>, links: BTreeSet<u32>) {
        self.wanted = wanted;
        self.links = links;
    }

    /// Waits for a change of them, or of the settings for all links. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> io::Result<()> {
        let Self {
            listener,
            look,
            sysctls,
            wanted,
            links,
        } = self;
        loop {
            tokio::select! {
                changed = listener.changed(|message| concerns(links, message)) => return changed,
                _ = look.tick() => {
                    // One that cannot be read is no news: who needs it will say so.
                    if sysctls.observe(wanted).is_ok_and(|found| found != *wanted) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn concerns(links: &BTreeSet<u32>, message: &Message<'_>) -> bool {
    let attrs = Attrs(message.payload.get(NETCONFMSG..).unwrap_or_default());
    let index = attrs
        .get(NETCONFA_IFINDEX)
        .and_then(|value| value.try_into().ok());
    index.map(i32::from_ne_bytes).is_some_and(|index| {
        let link = u32::try_from(index).is_ok_and(|index| links.contains(&index));
        message.kind == RTM_NEWNETCONF && (link || index == NETCONFA_IFINDEX_ALL)
    })
}
