//! The kernel brought in step with a plan.

mod captured;
mod connections;
mod foreign;
mod guard;
mod pods;
mod ports;
mod released;
mod repair;
mod residents;
mod reverse_path;

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{ExhaustedPorts, Family, NodeExit, NodeInterface};

use self::captured::Captured;
use self::pods::Basis;
use self::ports::Ports;
use self::released::Releases;
use self::repair::Held;
use self::residents::Kept;
use super::metrics::Counters;
use crate::cli::{Cli, Safeguard};
use crate::compile;
use crate::diff::flows::Concerned;
use crate::diff::{self, NetObject, NetStep, NftStep, ObservedTable, Touched};
use crate::error::AgentError;
use crate::facts::{Facts, Masquerader};
use crate::kernel::clash::{self, Clash, Readings};
use crate::kernel::conntrack::Conntrack;
use crate::kernel::nft::{Foreign, ForeignMonitor, Nft, NftError, Ownership, TableMonitor};
use crate::kernel::observe_exits::exit_numbers;
use crate::kernel::observe_facts::{gateway_numbers, interfaces, observe_facts};
use crate::kernel::rtnl::{Monitor, MonitorError, Observed, Rtnl};
use crate::kernel::settings::SettingsMonitor;
use crate::kernel::sysctl::Sysctls;
use crate::model::{Desired, Link, Net};
use crate::owned::{Drop, Numbers};

/// What a try did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether anything had to be written.
    pub changed: bool,
    /// Messages of the nft transaction.
    pub nft_steps: usize,
    /// Changes to links, neighbours, routes, rules, sysctls.
    pub net_steps: usize,
    /// Conntrack entries deleted because the plan contradicts them.
    pub flows: usize,
    /// Egress addresses of the plan that this node does not hold.
    pub missing: BTreeSet<IpAddr>,
    /// Links of egress addresses, by name, that have no next hop.
    pub stranded: BTreeSet<(String, Family)>,
    /// The links, other than the default route's, by which egress addresses leave.
    pub exits: Vec<NodeExit>,
    /// Policies without a source port left for some destination.
    pub exhausted: Vec<ExhaustedPorts>,
    /// What the plan would have masqueraded, and another program translates already.
    pub left_to: Vec<Masquerader>,
    /// What hinders some traffic without keeping us from our work.
    pub warnings: Vec<Clash>,
    /// What another hand had removed or changed, and now is as it should be.
    pub touched: Vec<Touched>,
    /// The pods that are gone from the plan, and whose network is not.
    pub departed: usize,
}

/// The one writer of the node's datapath.
pub struct Datapath {
    node: String,
    numbers: Numbers,
    nft: Nft,
    rtnl: Rtnl,
    monitor: Monitor,
    settings: SettingsMonitor,
    /// Where others can change our table.
    table_monitor: Option<TableMonitor>,
    /// Where the plan has something to do with packets.
    foreign_monitor: Option<ForeignMonitor>,
    /// Whether other programs' tables have to be read again.
    foreign_stale: bool,
    /// Pods that the last look at everything found to bypass the node, and those that two have.
    suspects: BTreeSet<IpAddr>,
    astray: BTreeSet<IpAddr>,
    conntrack: Conntrack,
    /// What the kernel holds as far as we know. `None`: it must be read first.
    known: Option<Known>,
    /// What we last left in the kernel, while it is not known whether it is still there.
    held: Option<Held>,
    /// Whether we have put something into the kernel that concerns packets, and left it there.
    in_force: bool,
    /// Whether the next try reads everything back after it has written.
    verify: bool,
    /// Connections still to be judged: kept until conntrack has taken the answer, whatever fails between.
    unjudged: Concerned,
    /// Whether all connections are to be judged, since a process before us may have ended between
    /// writing the table and judging.
    judge_all: bool,
    /// What is left of connections that policies have given up with their pods.
    releases: Releases,
    interfaces: Vec<NodeInterface>,
    ports: Ports,
    kept: Kept,
    captured: Captured,
    /// Links that lead to no pods, as of the last try.
    uplinks: BTreeSet<u32>,
    /// Sources are not compared with the links that they come in by: nobody wants it.
    unchecked: bool,
}

/// The kernel's state, read once and kept in step with what we write.
struct Known {
    network: Observed,
    table: Option<ObservedTable>,
    ownership: Ownership,
    /// For which families others' doings were looked at. `None`: nothing was to be programmed.
    checked: Option<Vec<Family>>,
    /// What others need to be told apart from us by; not read while nothing is to be programmed.
    readings: Readings,
    /// What others do to packets; not looked at where the plan has nothing to do with any.
    foreign: Option<Foreign>,
    /// What of links and settings is in the way.
    surroundings: Vec<Clash>,
    warnings: Vec<Clash>,
    /// Links whose reverse path filter we have made loose.
    loose: BTreeSet<Link>,
    /// What the table was compiled from, once that is known.
    basis: Option<Basis>,
}

impl Datapath {
    /// Opens the kernel's doors in the current network namespace. Changes nothing. Needs a tokio runtime.
    pub fn open(cli: &Cli) -> Result<Self, AgentError> {
        let numbers = cli.numbers();
        let sysctls = Sysctls::below(&cli.proc_sys_net);
        let nft = match cli.own_table {
            true => Nft::open()?,
            false => Nft::open_to_all()?,
        };
        let table_monitor = (!nft.can_own()).then(|| TableMonitor::open(&nft)).transpose();
        let mut conntrack = Conntrack::open()?;
        if cli.unsafe_without.contains(&Safeguard::Conntrack) {
            conntrack.keep_everything();
        }
        Ok(Self {
            node: cli.node_name.clone(),
            numbers,
            rtnl: Rtnl::open(numbers, sysctls.clone())?,
            monitor: Monitor::open(numbers)?,
            settings: SettingsMonitor::open(sysctls).map_err(MonitorError::from)?,
            table_monitor: table_monitor.map_err(MonitorError::from)?,
            foreign_monitor: None,
            foreign_stale: false,
            suspects: BTreeSet::new(),
            astray: BTreeSet::new(),
            nft,
            conntrack,
            known: None,
            held: None,
            in_force: false,
            verify: true,
            unjudged: Concerned::default(),
            judge_all: true,
            releases: Releases::default(),
            interfaces: Vec::new(),
            ports: Ports::default(),
            kept: Kept::read(&cli.gate),
            captured: Captured::read(&cli.gate),
            uplinks: BTreeSet::new(),
            unchecked: !cli.check_sources,
        })
    }

    /// Waits until links, addresses, routes, rules or settings have changed, by whomever, our table by another hand, or
    /// what others do to packets; or until something of what is remembered is over, or it is time to look for pods that
    /// are gone from the plan. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> Result<(), AgentError> {
        let over = self.releases.next();
        tokio::select! {
            () = released::over(over) => return Ok(()),
            changed = self.monitor.changed() => changed?,
            // Rules of others come and go with pods, and nothing of ours with them.
            changed = foreign::changed(&mut self.foreign_monitor) => {
                self.foreign_stale = true;
                return Ok(changed?);
            }
            changed = repair::changed(&mut self.table_monitor) => changed?,
            // What is not known to be right is read again in any case.
            changed = self.settings.changed(), if self.known.is_some() => changed.map_err(MonitorError::from)?,
            () = self.kept.is_due() => return Ok(()),
        }
        self.doubt();
        Ok(())
    }

    /// Forgets what is known of the kernel: the next try reads and verifies everything.
    pub fn distrust(&mut self) {
        self.doubt();
        self.verify = true;
    }

    /// The named counters of the table, and what conntrack dropped for want of ports as of the last look; none of the
    /// table's where they cannot be read.
    pub fn counters(&mut self) -> Counters {
        let mut counters = self.nft.counters().unwrap_or_default();
        let of_conntrack = (self.ports.dropped(), 0);
        counters.insert(Drop::PortsExhausted.counter().into(), of_conntrack);
        counters
    }

    /// The node's interfaces and addresses, as of the last try.
    pub fn interfaces(&self) -> &[NodeInterface] {
        &self.interfaces
    }

    /// The sources that the kernel may capture.
    pub fn captured(&self) -> &BTreeSet<IpAddr> {
        self.captured.sources()
    }

    /// Makes the kernel hold what `plan` says, or nothing of ours where there is no plan. After an error the
    /// kernel is not trusted, and is read anew.
    pub async fn sync(&mut self, plan: Option<&EgressPlanSpec>) -> Result<Report, AgentError> {
        let nothing = EgressPlanSpec::default();
        let result = self.follow(plan.unwrap_or(&nothing), plan.is_some()).await;
        if result.is_err() {
            self.distrust();
        }
        result
    }

    async fn follow(&mut self, plan: &EgressPlanSpec, stays: bool) -> Result<Report, AgentError> {
        let mut report = Report::default();
        let plan = self.with_departed(plan, &mut report).await?;
        self.captured.begin(&plan);
        self.step(&plan, stays, &mut report).await?;
        if self.place(&mut report).await? {
            self.step(&plan, stays, &mut report).await?;
        }
        self.captured.end(&plan);
        Ok(report)
    }

    async fn step(
        &mut self,
        plan: &EgressPlanSpec,
        stays: bool,
        report: &mut Report,
    ) -> Result<(), AgentError> {
        let looked_at = |known: &Known| {
            known.checked == to_check(plan) && known.foreign.is_some() == foreign::concerned(plan)
        };
        if !self.known.as_ref().is_some_and(looked_at) {
            self.doubt();
        }
        let known = match self.known.take() {
            Some(mut known) => {
                let stale = std::mem::take(&mut self.foreign_stale);
                if stale {
                    known.foreign = self.foreign(plan)?;
                }
                if stale || !known.is_of(plan) {
                    self.judge(plan, &mut known)?;
                }
                known
            }
            None => self.read(plan).await?,
        };
        let (mut known, facts) = self.put_tunnel(plan, known, report).await?;
        self.watch(&known.network, &facts);
        self.kept.adopt(known.table.as_ref());
        self.releases
            .settle(known.table.as_ref().filter(|_| self.judge_all), stays);
        if self.verify || !self.pods_only(plan, &facts, &mut known, report).await? {
            let remembers = stays && known.table.as_ref().is_some_and(ObservedTable::remembers);
            let mut desired = self.compile(plan, &facts, remembers)?;
            known = self.write(plan, &mut desired, known, report).await?;
            if remembers && to_check(plan).is_none() && self.releases.is_empty() {
                // Nothing was given up that would need the table.
                desired = self.compile(plan, &facts, false)?;
                known = self.write(plan, &mut desired, known, report).await?;
            }
            if std::mem::take(&mut self.verify) {
                self.verify(&desired).await?;
            }
            known.basis = Some(Basis::new(plan, facts, &desired));
        }
        self.in_force = to_check(plan).is_some();
        self.set_ports(plan).await?;
        report.exhausted = self.ports.lacking();
        report.changed = report.nft_steps + report.net_steps + report.flows > 0;
        known.tell(report);
        report.warnings = known.warnings.clone();
        self.known = Some(known);
        Ok(())
    }

    /// Reads the kernel. Where something else on the node uses what is ours, that is an error, and nothing
    /// has been changed.
    async fn read(&mut self, plan: &EgressPlanSpec) -> Result<Known, AgentError> {
        let mut network = self.rtnl.observe().await?;
        self.compare(&mut network)?;
        self.interfaces = interfaces(&network);
        let checked = to_check(plan);
        let readings = match checked {
            Some(_) => Readings::read(&mut self.rtnl).await?,
            None => Readings::default(),
        };
        let surroundings = match checked {
            Some(_) => self.surroundings(plan, &network).await?,
            None => Vec::new(),
        };
        self.foreign_stale = false;
        let mut known = Known {
            foreign: self.foreign(plan)?,
            network,
            table: None,
            ownership: Ownership::Absent,
            checked,
            readings,
            surroundings,
            warnings: Vec::new(),
            loose: BTreeSet::new(),
            basis: None,
        };
        self.judge(plan, &mut known)?;
        known.ownership = self.nft.ownership()?;
        if let Ownership::Other(portid) = known.ownership {
            return Err(NftError::OwnedByOther { portid }.into());
        }
        if !known.network.strays.is_empty() {
            self.rtnl.remove_strays(&known.network.strays).await?;
            known.network = self.rtnl.observe().await?;
        }
        known.table = self.nft.observe()?;
        Ok(known)
    }

    fn facts(&self, plan: &EgressPlanSpec, known: &Known) -> Result<Facts, AgentError> {
        // What we remember of ours is not lost with what another hand has taken away of it.
        let (net, table) = match &self.held {
            Some(held) => (held.net(), held.table().or(known.table.as_ref())),
            None => (&known.network.net, known.table.as_ref()),
        };
        let facts = observe_facts(&known.network, table, self.rtnl.sysctls(), plan, &self.numbers)?;
        let foreign = known.foreign.as_ref().zip(plan.masquerade.as_ref());
        Ok(Facts {
            masqueraders: foreign.map_or_else(Vec::new, |(foreign, plan)| clash::masqueraders(foreign, plan)),
            gateway_numbers: gateway_numbers(net, &self.numbers),
            exit_numbers: exit_numbers(net, &self.numbers),
            sources_unchecked: self.sources_unchecked(),
            ..facts
        })
    }

    /// What may change where packets leave is told at once.
    fn watch(&mut self, network: &Observed, facts: &Facts) {
        let exits: BTreeSet<u32> = facts.exits.iter().map(|e| e.link.index).collect();
        let defaults = network.default_routes().map(|route| route.link);
        self.uplinks = defaults.chain(exits.iter().copied()).collect();
        self.monitor.watch(self.uplinks.clone(), exits);
    }

    /// The device comes first: rules name it by its index. Returns the facts with it.
    async fn put_tunnel(
        &mut self,
        plan: &EgressPlanSpec,
        mut known: Known,
        report: &mut Report,
    ) -> Result<(Known, Facts), AgentError> {
        let mut facts = self.facts(plan, &known)?;
        let tunnel = compile::tunnel(plan, &facts, &self.numbers)?;
        if let Some(tunnel) = tunnel.filter(|t| known.network.net.tunnel.as_ref() != Some(t)) {
            self.guard(&tunnel, &mut known, report).await?;
            self.rtnl
                .apply(&[NetStep::Put(NetObject::Tunnel(tunnel))])
                .await?;
            known.network = self.rtnl.observe().await?;
            facts = self.facts(plan, &known)?;
            report.net_steps += 1;
        }
        Ok((known, facts))
    }

    /// `remembers` where the table can take in what connections leave behind.
    fn compile(&self, plan: &EgressPlanSpec, facts: &Facts, remembers: bool) -> Result<Desired, AgentError> {
        let facts = Facts {
            links: self.kept.own_links(),
            released: (remembers || !self.releases.is_empty()).then(|| self.releases.ends()),
            ..facts.clone()
        };
        Ok(compile::compile(plan, &self.node, &facts, &self.numbers)?)
    }

    /// What the new ruleset leads to, the ruleset, the connections it concerns, what the old one led to.
    async fn write(
        &mut self,
        plan: &EgressPlanSpec,
        desired: &mut Desired,
        mut known: Known,
        report: &mut Report,
    ) -> Result<Known, AgentError> {
        let changes = diff::net::diff(&desired.net, &self.with_sysctls(&known.network.net, desired)?);
        self.touched(desired, &known, report)?;
        if report.touched.iter().any(|touched| touched.is_of_table()) {
            // Connections may have been judged without it.
            self.judge_all = true;
        }
        self.concern(plan, desired.ruleset.as_ref(), known.table.as_ref());
        self.leave_tunnel(plan, desired, known.table.as_mut(), report)
            .await?;
        let ruleset = desired.ruleset.as_ref();
        let mut steps = diff::nft::diff(ruleset, known.table.as_ref());
        if ruleset.is_some() {
            self.adopt(&mut known, report)?;
            if self.is_made_anew(known.ownership) {
                steps = diff::nft::diff(ruleset, None);
                steps.insert(0, NftStep::DeleteTable);
            }
        }
        report.net_steps += changes.before.len() + changes.after.len();
        report.nft_steps += steps.len();
        report.net_steps += self.restore_reverse_path(desired, &known)?;
        self.put(&changes.before).await?;
        let closes = desired.net.tunnel.is_none();
        if closes {
            // What came out of the tunnel now would meet no rule.
            self.put(&changes.after).await?;
        }
        self.nft.apply(&steps)?;
        report.net_steps += self.loosen_reverse_path(desired)?;
        if !steps.is_empty() {
            known.table = ruleset.map(ObservedTable::from);
            known.ownership = self.nft.ownership()?;
        }
        report.flows += self.forget(plan, known.table.as_mut()).await?;
        self.releases.complete(desired.ruleset.as_mut());
        if !closes {
            self.put(&changes.after).await?;
        }
        known.network.net = desired.net.clone();
        known.loose = desired.loose.keys().cloned().collect();
        self.watch_settings(&known);
        Ok(known)
    }

    async fn put(&mut self, steps: &[NetStep]) -> Result<(), AgentError> {
        if !steps.is_empty() {
            self.rtnl.apply(steps).await?;
        }
        Ok(())
    }

    fn with_sysctls(&self, net: &Net, desired: &Desired) -> Result<Net, AgentError> {
        let sysctls = self.rtnl.sysctls().observe(&desired.net.sysctls)?;
        Ok(Net {
            sysctls,
            ..net.clone()
        })
    }

    /// Reads everything back; what still differs was not done.
    async fn verify(&mut self, desired: &Desired) -> Result<(), AgentError> {
        let table = self.nft.observe()?;
        let network = self.rtnl.observe().await?;
        let net = self.with_sysctls(&network.net, desired)?;
        let changes = diff::net::diff(&desired.net, &net);
        let rest = changes
            .before
            .iter()
            .chain(&changes.after)
            .map(ToString::to_string);
        let nft = diff::nft::diff(desired.ruleset.as_ref(), table.as_ref());
        let strict = self.strict(desired)?.into_iter();
        let strict = strict.map(|link| format!("{} filters by strict reverse path", link.name));
        let rest = rest.chain(nft.iter().map(ToString::to_string)).chain(strict);
        let rest: Vec<String> = rest.take(3).collect();
        if rest.is_empty() {
            Ok(())
        } else {
            Err(AgentError::Verify(rest.join("; ")))
        }
    }
}

/// The families that the plan's pods and addresses are of; `None` for a plan that programs nothing.
fn to_check(plan: &EgressPlanSpec) -> Option<Vec<Family>> {
    if plan.policies.is_empty() && plan.peers.is_empty() {
        return None;
    }
    let held = plan.policies.iter().filter_map(|p| p.gateway.as_ref());
    let held = held.flat_map(|g| &g.addresses);
    let addresses = held.chain(plan.pods.iter().flat_map(|pod| &pod.ips));
    let families = [Family::IPv4, Family::IPv6];
    Some(
        families
            .into_iter()
            .filter(|f| addresses.clone().any(|a| *f == (*a).into()))
            .collect(),
    )
}
