//! The agent's shell: watches the plan and the kernel, brings the datapath in step, says so.

mod datapath;
mod file;
#[cfg(test)]
mod fixtures;
mod gate;
mod health;
mod http;
mod logging;
mod metrics;
mod repairs;
mod report;
mod residents;
mod retry;

use std::borrow::Cow;
use std::time::Duration;

use egressnat_crds::EgressPlan;
use futures::{Stream, StreamExt};
use kube::{Api, Client};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::watch_object;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, error, info, warn};

pub use datapath::{Datapath, Report};
use gate::{Asked, Gate, News};
pub use health::Health;
pub use logging::init as init_logging;
pub use metrics::Metrics;
use metrics::Question;

use crate::cli::Cli;
use crate::cni::gate::Request;
use crate::diff::Touched;
use crate::error::AgentError;
use crate::kernel::clash::Clash;
use report::Reporter;
use retry::Retry;

/// How often the kernel is read in full and compared, whether or not anything was noticed.
const RECHECK: Duration = Duration::from_secs(60);

/// How often conntrack is asked whether it has refused connections, where a policy gives some ports alone.
const LOOK_AT_PORTS: Duration = Duration::from_secs(5);

/// Up to how many requests to the gate share a turn.
const TOGETHER: usize = 64;

/// How long a report that is under way may take when the agent is told to stop.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. The datapath stays in place: what the kernel holds is in force without us.
pub async fn run(cli: Cli) -> Result<(), AgentError> {
    let (metrics, questions) = Metrics::new();
    let health = Health::default();
    http::serve(cli.http_address, metrics.clone(), health.clone()).await?;
    let client = egressnat_api_client::connect()
        .await
        .map_err(AgentError::Client)?;
    let datapath = Datapath::open(&cli)?;
    let plans = plans(client.clone(), &cli.node_name, metrics.clone());
    let agent = Agent {
        datapath,
        gate: gate(&cli)?,
        reporter: Reporter::new(client, &cli.node_name),
        plan: Plan::Unknown,
        holds_until: None,
        hold: Duration::from_secs(cli.hold_without_plan_seconds.into()),
        outcome: None,
        retry: Retry::default(),
        hindrances: Vec::new(),
        questions,
        metrics,
        health,
    };
    info!(
        node = cli.node_name,
        version = env!("CARGO_PKG_VERSION"),
        "started"
    );
    agent.work(plans).await
}

fn gate(cli: &Cli) -> Result<Option<Gate>, AgentError> {
    let gate = cli.gate.enabled.then(|| Gate::open(&cli.gate));
    gate.transpose().map_err(AgentError::Gate)
}

/// What is known of this node's plan.
enum Plan {
    /// The watch has not synced: nothing is touched.
    Unknown,
    /// There is none: what is ours is removed.
    Absent,
    Present(Box<EgressPlan>),
}

/// This node's plan whenever it changes, `None` where the API server says that there is none. A watch that
/// breaks yields nothing, and is taken up again with backoff.
fn plans(client: Client, node: &str, metrics: Metrics) -> impl Stream<Item = Option<EgressPlan>> + use<> {
    watch_object(Api::<EgressPlan>::all(client), node)
        .default_backoff()
        .filter_map(move |event| {
            let event = event
                .inspect_err(|error| {
                    warn!(%error, "failed to watch the plan: the datapath stays as it is");
                    metrics.error("Watch");
                })
                .ok();
            std::future::ready(event)
        })
}

struct Agent {
    datapath: Datapath,
    gate: Option<Gate>,
    reporter: Reporter,
    plan: Plan,
    /// Until when the plan holds that the API server has no more.
    holds_until: Option<Instant>,
    /// How long one does.
    hold: Duration,
    /// What became of the last try.
    outcome: Option<Result<Report, AgentError>>,
    retry: Retry,
    /// What is in the way, as it was last said.
    hindrances: Vec<Clash>,
    /// Scrapes that ask for the kernel's counters.
    questions: mpsc::Receiver<Question>,
    metrics: Metrics,
    health: Health,
}

impl Agent {
    async fn work(mut self, plans: impl Stream<Item = Option<EgressPlan>>) -> Result<(), AgentError> {
        let mut plans = std::pin::pin!(plans);
        let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signal)?;
        let mut recheck = interval(RECHECK);
        recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK_AT_PORTS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = self.retry.due();
            let due = self.reporter.due().filter(|_| self.told_plan().is_some());
            let over = self.holds_until;
            tokio::select! {
                plan = plans.next() => self.take_plan(plan.ok_or(AgentError::WatchEnded)?),
                () = until(over) => {
                    warn!("there is no plan any more: what is ours is removed");
                    (self.plan, self.holds_until) = (Plan::Absent, None);
                }
                changed = self.datapath.changed() => {
                    changed?;
                    debug!("what the kernel holds has changed");
                }
                news = heard(&mut self.gate) => if !self.take(news) {
                    self.tell();
                    continue;
                },
                _ = recheck.tick() => {
                    self.datapath.distrust();
                    self.gate.iter_mut().for_each(Gate::alive);
                }
                () = until(retry) => self.datapath.distrust(),
                () = until(due) => {
                    self.tell();
                    continue;
                }
                told = self.reporter.told() => {
                    self.heed(told);
                    continue;
                }
                _ = look.tick() => if !self.look_at_ports().await {
                    continue;
                },
                Some(answer) = self.questions.recv() => {
                    let news = self.look_at_ports().await;
                    // A scrape that has given up needs no answer.
                    let _ = answer.send(self.datapath.counters());
                    if !news {
                        continue;
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            self.sync().await;
        }
        self.last_word().await;
        info!("stopping; the datapath stays in place");
        Ok(())
    }

    /// Takes in what the API server says of the plan. That it has none is no word that pods may leave with their node's
    /// address: their Node object may have been deleted, or the plan by hand, with the pods still there. The last plan holds
    /// until the operator has written it again, or for a while; one that tears down ends at once.
    fn take_plan(&mut self, plan: Option<EgressPlan>) {
        match (plan, &self.plan) {
            (Some(plan), _) => {
                self.plan = Plan::Present(Box::new(plan));
                self.holds_until = None;
            }
            (None, Plan::Present(plan)) if !plan.spec.teardown && !self.hold.is_zero() => {
                if self.holds_until.is_none() {
                    warn!(hold = ?self.hold, "the plan of this node is gone: the last one holds for a while");
                    self.holds_until = Some(Instant::now() + self.hold);
                }
            }
            (None, _) => self.plan = Plan::Absent,
        }
    }

    /// The plan whose status may be written.
    fn told_plan(&self) -> Option<&EgressPlan> {
        match &self.plan {
            Plan::Present(plan) if self.holds_until.is_none() => Some(plan),
            _ => None,
        }
    }

    /// Ends the report that is under way, and what has come to be told meanwhile.
    async fn last_word(&mut self) {
        let told = async {
            while self.reporter.is_telling() {
                let told = self.reporter.told().await;
                self.heed(told);
            }
        };
        // Who comes next says it again.
        let _ = timeout(LAST_WORD, told).await;
    }

    /// Says what became of the last try.
    fn tell(&mut self) {
        let (Plan::Present(plan), Some(outcome), None) = (&self.plan, &self.outcome, self.holds_until) else {
            return;
        };
        let gate = self.gate.as_ref().map(|gate| gate.report(&plan.spec));
        let interfaces = self.datapath.interfaces().to_vec();
        self.reporter.report(plan, interfaces, gate, outcome);
    }

    /// A report has come to its end: there may be more to say by now.
    fn heed(&mut self, told: Result<(), AgentError>) {
        if let Err(error) = told {
            warn!(%error, "failed to write the plan's status");
            self.metrics.error(error.category());
        }
        self.tell();
    }

    /// Whether the plan's status has something new to say of ports.
    async fn look_at_ports(&mut self) -> bool {
        let looked = self.datapath.look_at_ports().await;
        looked.unwrap_or_else(|error| {
            warn!(%error, "failed to see whether ports are lacking");
            self.metrics.error(error.category());
            false
        })
    }

    /// Takes in what the gate has heard, and all that has come meanwhile: pods that start together share a turn. Whether
    /// the datapath has to be brought in step.
    fn take(&mut self, news: News) -> bool {
        let mut turn = self.take_one(news);
        for _ in 1..TOGETHER {
            match self.gate.as_mut().and_then(Gate::further) {
                Some(news) => turn |= self.take_one(news),
                None => break,
            }
        }
        turn
    }

    fn take_one(&mut self, news: News) -> bool {
        match &news {
            News::Asked(Asked {
                request: Request::Add { pod, addresses, .. },
                ..
            }) => self.datapath.give(&pod.uid, addresses),
            News::Results(changes) => {
                let come = changes.come.iter();
                come.for_each(|note| self.datapath.give(&note.pod.uid, &note.addresses));
            }
            News::Asked(_) | News::Configurations | News::Due => {}
        }
        let plan = match &self.plan {
            Plan::Present(plan) => Some(&plan.spec),
            Plan::Absent | Plan::Unknown => None,
        };
        let captured = self.datapath.captured();
        self.gate
            .as_mut()
            .is_some_and(|gate| gate.take(news, plan, captured))
    }

    /// Brings the kernel in step with what is known of the plan, and reports.
    async fn sync(&mut self) {
        let plan = match &self.plan {
            Plan::Unknown => return,
            Plan::Absent => None,
            Plan::Present(plan) => Some(&**plan),
        };
        let began = std::time::Instant::now();
        let in_force = plan.filter(|plan| !plan.spec.teardown);
        let complete = in_force.map(|plan| match &mut self.gate {
            Some(gate) => gate.complete(&plan.spec),
            None => Cow::Borrowed(&plan.spec),
        });
        let result = self.datapath.sync(complete.as_deref()).await;
        let failure = result.as_ref().err().map(ToString::to_string);
        match (&mut self.gate, in_force) {
            (Some(gate), Some(plan)) => {
                gate.settle(&plan.spec, failure.as_deref(), self.datapath.captured());
            }
            (Some(gate), None) => gate.retire(),
            (None, _) => {}
        }
        let generation = plan.and_then(|p| p.metadata.generation);
        match &result {
            Ok(report) => {
                log_hindrances(generation, &self.hindrances, &report.warnings);
                self.hindrances.clone_from(&report.warnings);
                log_report(generation, report);
            }
            Err(error) => {
                error!(generation, category = error.category(), %error, "failed to bring the datapath in step")
            }
        }
        self.metrics
            .synced(began, generation, plan.map(|p| &p.spec), &result);
        self.health.synced(&result);
        if let Ok(report) = &result {
            self.reporter.note(&report.touched);
        }
        self.retry.note(result.is_ok(), Instant::now());
        self.outcome = Some(result);
        self.tell();
    }
}

/// What has come into the way since the last try, and what is gone.
fn log_hindrances(generation: Option<i64>, before: &[Clash], now: &[Clash]) {
    for new in now.iter().filter(|clash| !before.contains(clash)) {
        warn!(generation, category = new.category(), "{new}");
    }
    for gone in before.iter().filter(|clash| !now.contains(clash)) {
        info!(generation, category = gone.category(), "no longer: {gone}");
    }
}

fn log_report(generation: Option<i64>, report: &Report) {
    for by in &report.left_to {
        warn!(
            generation,
            category = "CniMasquerades",
            "pods are masqueraded already: {by}; ours is left out"
        );
    }
    for Touched { object, what } in &report.touched {
        warn!(
            generation,
            category = "DatapathRepaired",
            ?object,
            what,
            "another program had removed or changed it"
        );
    }
    if report.changed {
        info!(
            generation,
            nft_steps = report.nft_steps,
            net_steps = report.net_steps,
            flows = report.flows,
            "programmed"
        );
    } else {
        debug!(generation, "nothing to do");
    }
}

/// What the gate hears next; nothing without a gate.
async fn heard(gate: &mut Option<Gate>) -> News {
    match gate {
        Some(gate) => gate.next().await,
        None => std::future::pending().await,
    }
}

/// At the given time; never without one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
