//! Changes to the node's network. Each is idempotent: what is already so is no error.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::observed::NodeLink;
use super::{NetError, Rtnl, Stray, link, neighbour, route, rule};
use crate::diff::{NetObject, NetStep};
use crate::kernel::netlink::NetlinkError;
use crate::model::{RouteKind, Tunnel};
use crate::owned::TUNNEL;

const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;
const MAKE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// What the kernel says when something to be removed is not there, or its link is not.
const GONE: [Errno; 5] = [
    Errno::ENOENT,
    Errno::ESRCH,
    Errno::ENODEV,
    Errno::ENXIO,
    Errno::EADDRNOTAVAIL,
];

impl Rtnl {
    /// Makes the changes in order. All are tried, so that one that is refused does not keep off the others;
    /// the first refusal is returned. Without a tunnel device the rest has no ground, and is not tried.
    pub async fn apply(&mut self, steps: &[NetStep]) -> Result<(), NetError> {
        let mut present = self.tunnel_link().await?;
        // Removing a neighbour goes by its address alone, and would take the one just put.
        let put: BTreeSet<IpAddr> = steps.iter().filter_map(put_neighbour).collect();
        let mut outcome = Ok(());
        for step in steps {
            let tunnel = present.as_ref().filter(|l| l.vxlan.is_some()).map(|l| l.index);
            let done = match step {
                NetStep::Put(NetObject::Tunnel(wanted)) => {
                    present = Some(self.put_tunnel(wanted, present.take(), step).await?);
                    Ok(())
                }
                NetStep::Remove(NetObject::Tunnel(_)) => {
                    present = None;
                    self.delete_link(tunnel, step).await
                }
                NetStep::Remove(NetObject::Neighbour(n)) if put.contains(&n.address) => Ok(()),
                NetStep::Put(object) => self.put(object, tunnel, step).await,
                NetStep::Remove(object) => self.remove(object, tunnel, step).await,
            };
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Makes the tunnel device, unless it is there, and leaves it down: nothing comes out of it before it is put.
    /// Returns its index.
    pub async fn prepare_tunnel(&mut self, wanted: &Tunnel) -> Result<u32, NetError> {
        let step = &NetStep::Put(NetObject::Tunnel(wanted.clone()));
        if let Some(link) = self.tunnel_link().await? {
            match link.tunnel(&[]) {
                None => return Err(NetError::NameTaken { kind: link.kind }),
                Some(tunnel) if tunnel.same_device(wanted) => return Ok(link.index),
                Some(_) => self.delete_link(Some(link.index), step).await?,
            }
        }
        unless(
            self.wire.request(link::create_down(wanted), MAKE).await,
            &[],
            step,
        )?;
        let made = self.tunnel_link().await?;
        Ok(made.ok_or_else(|| no_tunnel(step))?.index)
    }

    /// Removes things that [`Rtnl::observe`] has found on our ground.
    pub async fn remove_strays(&mut self, strays: &[Stray]) -> Result<(), NetError> {
        let mut outcome = Ok(());
        for stray in strays {
            let removed = self.wire.request(stray.removal(), 0).await;
            outcome = outcome.and(unless(removed, &GONE, &format_args!("remove the {stray}")));
        }
        outcome
    }

    async fn put(&mut self, object: &NetObject, tunnel: Option<u32>, step: &NetStep) -> Result<(), NetError> {
        let index = || tunnel.ok_or_else(|| no_tunnel(step));
        let (message, flags) = match object {
            NetObject::Tunnel(_) => return Ok(()),
            NetObject::Sysctl(sysctl) => return Ok(self.sysctls.write(&sysctl.path, &sysctl.value)?),
            NetObject::IpRule(rule) => (RouteNetlinkMessage::NewRule(rule::write(rule)), MAKE),
            NetObject::Route(route) => {
                let index = match route.kind {
                    RouteKind::Tunnel { .. } => index()?,
                    _ => 0,
                };
                (RouteNetlinkMessage::NewRoute(route::write(route, index)), PUT)
            }
            NetObject::Fdb(fdb) => {
                let message = neighbour::fdb(fdb, index()?);
                (RouteNetlinkMessage::NewNeighbour(message), PUT)
            }
            NetObject::Neighbour(n) => {
                let message = neighbour::neighbour(n, index()?);
                (RouteNetlinkMessage::NewNeighbour(message), PUT)
            }
        };
        let put = self.wire.request(message, flags).await;
        unless(put, &[Errno::EEXIST], step)
    }

    async fn remove(
        &mut self,
        object: &NetObject,
        tunnel: Option<u32>,
        step: &NetStep,
    ) -> Result<(), NetError> {
        let message = match (object, tunnel) {
            (NetObject::IpRule(rule), _) => RouteNetlinkMessage::DelRule(rule::write(rule)),
            (NetObject::Route(route), Some(index)) => {
                RouteNetlinkMessage::DelRoute(route::write(route, index))
            }
            (NetObject::Route(route), None) if !matches!(route.kind, RouteKind::Tunnel { .. }) => {
                RouteNetlinkMessage::DelRoute(route::write(route, 0))
            }
            (NetObject::Fdb(fdb), Some(index)) => {
                RouteNetlinkMessage::DelNeighbour(neighbour::fdb(fdb, index))
            }
            (NetObject::Neighbour(n), Some(index)) => {
                RouteNetlinkMessage::DelNeighbour(neighbour::neighbour(n, index))
            }
            // Those of a device go with it.
            _ => return Ok(()),
        };
        let removed = self.wire.request(message, 0).await;
        unless(removed, &GONE, step)
    }

    /// Makes the device as it should be: by a change where that can be, otherwise anew, which takes all
    /// that hangs on it.
    async fn put_tunnel(
        &mut self,
        wanted: &Tunnel,
        present: Option<NodeLink>,
        step: &NetStep,
    ) -> Result<NodeLink, NetError> {
        if let Some(link) = present {
            let Some(tunnel) = link.tunnel(&[]) else {
                return Err(NetError::NameTaken { kind: link.kind });
            };
            if tunnel.same_device(wanted) {
                let adjusted = self.wire.request(link::adjust(link.index, wanted), 0).await;
                unless(adjusted, &[], step)?;
                self.add_address(&link, wanted, step).await?;
                return Ok(link);
            }
            self.delete_link(Some(link.index), step).await?;
        }
        let created = self.wire.request(link::create(wanted), MAKE).await;
        unless(created, &[], step)?;
        let link = self.tunnel_link().await?.ok_or_else(|| no_tunnel(step))?;
        self.add_address(&link, wanted, step).await?;
        Ok(link)
    }

    async fn add_address(
        &mut self,
        link: &NodeLink,
        wanted: &Tunnel,
        step: &NetStep,
    ) -> Result<(), NetError> {
        let added = self
            .wire
            .request(link::add_address(link.index, wanted), PUT)
            .await;
        unless(added, &[], step)
    }

    async fn delete_link(&mut self, index: Option<u32>, step: &NetStep) -> Result<(), NetError> {
        let Some(index) = index else {
            return Ok(());
        };
        let deleted = self.wire.request(link::delete(index), 0).await;
        unless(deleted, &GONE, step)
    }

    /// The link with the tunnel's name.
    async fn tunnel_link(&mut self) -> Result<Option<NodeLink>, NetError> {
        match self.wire.request(link::get_tunnel(), 0).await {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(m) => Some(NodeLink::read(m)),
                _ => None,
            })),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(source) => Err(NetError::Read { what: TUNNEL, source }),
        }
    }
}

fn put_neighbour(step: &NetStep) -> Option<IpAddr> {
    match step {
        NetStep::Put(NetObject::Neighbour(n)) => Some(n.address),
        _ => None,
    }
}

fn no_tunnel(step: &NetStep) -> NetError {
    NetError::NoTunnel {
        step: step.to_string(),
    }
}

/// The outcome of a change, with the refusals that mean that it is already so taken for success.
fn unless<T>(
    outcome: Result<T, NetlinkError>,
    fine: &[Errno],
    step: &dyn std::fmt::Display,
) -> Result<(), NetError> {
    match outcome {
        Ok(_) => Ok(()),
        Err(e) if e.errno().is_some_and(|errno| fine.contains(&errno)) => Ok(()),
        Err(source) => Err(NetError::Refused {
            step: format!("`{step}`"),
            source,
        }),
    }
}
