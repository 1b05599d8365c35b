//! The agent's side of the start gate: hears of pods from the plugin before the plan does, and answers when the
//! kernel knows them.
//!
//! What the gate knows is kept on the node: the interfaces that are up in the folder of the socket, which a boot
//! empties as it ends them; what plugins need while no agent runs in a folder that stays.
//!
//! Where the gate is open, or the plugin was not in the chain yet, the runtime's cached results tell of pods instead
//! ([`results`]): soon, but nobody waits for it.

mod install;
mod ledger;
mod results;
mod server;
mod watched;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use egressnat_crds::EgressPlanSpec;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use self::install::{Installed, Installer};
use self::ledger::{Ledger, may_be_selected, verdict};
pub use self::ledger::{Verdict, known};
pub use self::results::Changes;
use self::results::Results;
pub use self::server::Asked;
use self::watched::Watched;
use super::file::{keep, read, write};
use crate::cli::GateFlags;
use crate::cni::PLUGIN;
use crate::cni::captured;
use crate::cni::gate::{Answer, Request};
use crate::cni::notes::{Note, Notes};
use crate::cni::spec::{PodName, ValidAttachment};
use crate::cni::standing::Standing;

/// The socket, below the folder that a boot empties.
pub const SOCKET: &str = "gate.sock";
/// The file that plugins read while no agent answers, below the folder that stays.
const STANDING: &str = "standing.json";
/// Names of ungated pods in the plan's status.
const SHOWN: usize = 16;
const ATTACHMENTS: &str = "attachments.json";

/// The gate.
pub struct Gate {
    asked: mpsc::Receiver<Asked>,
    installer: Installer,
    /// The folder of network configurations: what the CNI does there is noticed at once.
    configurations: Watched,
    results: Results,
    /// Whether the plugin is where it belongs, as of the last look, and is to be there.
    installed: Option<bool>,
    state: State,
    ledger: Ledger,
    waiting: Vec<Waiting>,
    attachments: PathBuf,
    standing: PathBuf,
    /// What the file says, as far as we know.
    stood: Option<Standing>,
}

/// A pod that may not start yet.
struct Waiting {
    pod: PodName,
    addresses: BTreeSet<IpAddr>,
    until: Instant,
    answer: oneshot::Sender<Answer>,
}

/// Whether pods wait for their verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// They do not: the plan does not ask for it.
    Off,
    /// They do.
    Armed,
    /// They do not: the CNI has no configuration on this node yet.
    NoConfiguration,
    /// They do not, for this reason.
    Failed(String),
}

/// What the plan's status says of the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateReport {
    /// Whether pods wait for their verdict.
    pub state: State,
    /// The first few selected pods that started before the gate was there, by name.
    pub ungated: Vec<String>,
}

/// What the gate has heard.
pub enum News {
    /// A request.
    Asked(Asked),
    /// The node's network configurations are not what they were.
    Configurations,
    /// What the runtime has cached is another.
    Results(Changes),
    /// Somebody has waited long enough.
    Due,
}

impl Gate {
    /// Listens, and takes in what a former process has left.
    pub fn open(flags: &GateFlags) -> io::Result<Self> {
        std::fs::create_dir_all(&flags.state)?;
        let asked = server::listen(&flags.run.join(SOCKET))?;
        let attachments = flags.run.join(ATTACHMENTS);
        let standing = flags.state.join(STANDING);
        let mut gate = Self {
            asked,
            configurations: Watched::folder(&flags.configurations)?,
            results: Results::below(&flags.cni_cache),
            installer: installer(flags),
            installed: None,
            state: State::Off,
            ledger: read(&attachments),
            waiting: Vec::new(),
            attachments,
            stood: read(&standing),
            standing,
        };
        gate.take_notes(&Notes::beside(&flags.run.join(SOCKET)));
        let found = gate.results.look();
        gate.take_results(&found);
        Ok(gate)
    }

    /// Takes in the pods that started while no agent answered.
    fn take_notes(&mut self, notes: &Notes) {
        let left = notes.read();
        for Note {
            pod,
            attachment,
            addresses,
        } in left.clone()
        {
            self.ledger.add(attachment, pod, addresses);
        }
        if !left.is_empty() {
            self.save();
        }
        left.iter().for_each(|note| notes.remove(&note.attachment));
    }

    /// Whether there is any news in it.
    fn take_results(&mut self, changes: &Changes) -> bool {
        let mut news = self.release(|held| changes.gone.contains(held));
        for note in &changes.come {
            news |= self.ledger.add_cached(note);
        }
        news
    }

    /// What the plan's status says of the gate.
    pub fn report(&self, plan: &EgressPlanSpec) -> GateReport {
        GateReport {
            state: self.state.clone(),
            ungated: self.ungated(plan).take(SHOWN).map(str::to_owned).collect(),
        }
    }

    /// A request that has come already.
    pub fn further(&mut self) -> Option<News> {
        self.asked.try_recv().ok().map(News::Asked)
    }

    /// Waits for the next. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> News {
        let due = self.waiting.iter().map(|w| w.until).min();
        let passes = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(asked) = self.asked.recv() => News::Asked(asked),
            () = self.configurations.changed() => News::Configurations,
            () = self.results.changed() => News::Results(self.results.look()),
            () = passes => News::Due,
        }
    }

    /// Takes the news in; `captured` are the sources that the kernel may capture. Whether the datapath has to be brought in
    /// step.
    pub fn take(&mut self, news: News, plan: Option<&EgressPlanSpec>, captured: &BTreeSet<IpAddr>) -> bool {
        match news {
            News::Due => {
                self.expire(plan, captured);
                false
            }
            News::Configurations => {
                if let Some(plan) = plan {
                    self.install(plan);
                }
                false
            }
            News::Results(changes) => self.take_results(&changes) && plan.is_some(),
            News::Asked(Asked { request, answer }) => self.serve(request, answer, plan),
        }
    }

    /// The plan with what the gate knows besides.
    pub fn complete<'a>(&mut self, plan: &'a EgressPlanSpec) -> Cow<'a, EgressPlanSpec> {
        if self.ledger.meet(plan) {
            self.save();
        }
        self.ledger.complete(plan)
    }

    /// The datapath was brought in step with `plan`, or not, for this reason: those who wait are told. `captured` are the
    /// sources that the kernel may capture.
    pub fn settle(&mut self, plan: &EgressPlanSpec, failure: Option<&str>, captured: &BTreeSet<IpAddr>) {
        let mut news = self.ledger.observe(plan);
        for waiting in std::mem::take(&mut self.waiting) {
            let answer = match (verdict(plan, &waiting.pod), failure) {
                (Verdict::Selected, None) => Answer::Programmed,
                (Verdict::NotSelected, None) => Answer::NotSelected,
                (Verdict::NotSelected, Some(_)) => waiting.unselected(captured),
                (Verdict::Selected, Some(why)) => Answer::NotYet { why: why.to_owned() },
                (Verdict::Unknown, _) => {
                    self.waiting.push(waiting);
                    continue;
                }
            };
            if matches!(answer, Answer::Programmed | Answer::NotSelected) {
                self.ledger.pass(&waiting.pod.uid);
                news = true;
            }
            waiting.say(answer);
        }
        if news {
            self.save();
        }
        self.stand(plan);
        if self.installed != Some(plan.closed_gate().is_some()) {
            self.install(plan);
        }
    }

    /// The node has no plan any more, and the gate no say.
    pub fn retire(&mut self) {
        self.install(&EgressPlanSpec::default());
        self.ledger = self.ledger.only(true);
        for file in [&self.attachments, &self.standing] {
            // What cannot be removed disarms the plugin when it is old.
            let _ = std::fs::remove_file(file);
        }
        self.stood = None;
        for waiting in self.waiting.drain(..) {
            waiting.say(Answer::NotYet {
                why: "this node has no plan; is the operator running?".into(),
            });
        }
    }

    fn serve(
        &mut self,
        request: Request,
        answer: oneshot::Sender<Answer>,
        plan: Option<&EgressPlanSpec>,
    ) -> bool {
        match request {
            Request::Add {
                pod,
                attachment,
                addresses,
                patience,
            } => {
                self.ledger.add(attachment, pod.clone(), addresses.clone());
                self.save();
                let until = Instant::now() + Duration::from_millis(patience.min(60_000));
                self.waiting.push(Waiting {
                    pod,
                    addresses,
                    until,
                    answer,
                });
                // An address may have been another pod's, which is still in the kernel.
                plan.is_some()
            }
            Request::Check { pod, addresses } => {
                let said = check(plan, &pod, &addresses, &self.ledger);
                let _ = answer.send(said);
                false
            }
            Request::Del { attachment } => {
                let released = self.release(|held| *held == attachment);
                let _ = answer.send(Answer::Done);
                released && plan.is_some()
            }
            Request::Gc { valid } => {
                let released = self.release(|held| !valid.contains(held));
                let _ = answer.send(Answer::Done);
                released && plan.is_some()
            }
        }
    }

    /// Selected pods that never passed the gate, by name: they started before it was there.
    fn ungated<'a>(&self, plan: &'a EgressPlanSpec) -> impl Iterator<Item = &'a str> {
        let armed = plan.closed_gate().is_some();
        let passed: BTreeSet<String> = self.ledger.passed().map(str::to_owned).collect();
        let pods = plan.pods.iter().filter(move |pod| armed && !pod.ips.is_empty());
        pods.filter(move |pod| !passed.contains(&pod.uid))
            .map(|pod| pod.name.as_str())
    }

    fn release(&mut self, gone: impl Fn(&ValidAttachment) -> bool) -> bool {
        let released = self.ledger.release(gone);
        if released {
            self.save();
        }
        released
    }

    fn expire(&mut self, plan: Option<&EgressPlanSpec>, captured: &BTreeSet<IpAddr>) {
        let now = Instant::now();
        for waiting in self.waiting.extract_if(.., |waiting| waiting.until <= now) {
            let answer = match late(plan, self.stood.as_ref(), &waiting.pod) {
                Answer::NotSelected => waiting.unselected(captured),
                answer => answer,
            };
            waiting.say(answer);
        }
    }

    /// Puts the plugin into the node's network configuration, or takes it out, as the plan says.
    fn install(&mut self, plan: &EgressPlanSpec) {
        let closed = plan.closed_gate().is_some();
        let state = match closed {
            true => self.installer.ensure().map(|installed| match installed {
                Installed::Armed { .. } => State::Armed,
                Installed::Waiting => State::NoConfiguration,
            }),
            false => self.installer.remove().map(|_| State::Off),
        };
        let state = state.unwrap_or_else(|error| State::Failed(error.to_string()));
        self.installed = matches!(state, State::Armed | State::Off).then_some(closed);
        if state != self.state {
            info!(?state, "the start gate");
        }
        self.state = state;
    }

    fn save(&self) {
        write(&self.attachments, &self.ledger.only(false));
    }

    /// Writes what plugins need without us. Writing it is also the sign of life.
    fn stand(&mut self, plan: &EgressPlanSpec) {
        let Some(gate) = plan.closed_gate() else {
            return;
        };
        let standing = Standing {
            namespaces: gate.namespaces.iter().cloned().collect(),
        };
        if self.stood.as_ref() != Some(&standing) {
            keep(&self.standing, &standing);
            self.stood = Some(standing);
        }
    }

    /// The agent lives: said to plugins once a minute. And whatever became of the plugin is found within that.
    pub fn alive(&mut self) {
        self.installed = None;
        if let Some(standing) = &self.stood {
            keep(&self.standing, standing);
        }
    }
}

fn installer(flags: &GateFlags) -> Installer {
    let entry = json!({
        "type": PLUGIN,
        "socket": flags.run.join(SOCKET),
        "standing": flags.state.join(STANDING),
        "kubeletPods": flags.kubelet_pods,
        "timeoutSeconds": flags.timeout_seconds,
        "onTimeout": flags.on_timeout,
        "exemptNamespaces": flags.exempt_namespaces,
    });
    Installer {
        program: flags.plugin.clone(),
        programs: flags.programs.clone(),
        configurations: flags.configurations.clone(),
        entry,
    }
}

impl Waiting {
    /// What it is told where no policy selects it, and the kernel may not be as the plan says.
    fn unselected(&self, captured: &BTreeSet<IpAddr>) -> Answer {
        match captured::taken(captured, &self.addresses) {
            Some(address) => Answer::Taken { address },
            None => Answer::NotSelected,
        }
    }

    /// A plugin that has given up needs no answer.
    fn say(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

/// What a pod is told for which no verdict has come in time. One whose namespace no policy is known to select pods of
/// starts: that the operator is away must not keep it.
/// Before the plan is read, that is what the last one said.
fn late(plan: Option<&EgressPlanSpec>, stood: Option<&Standing>, pod: &PodName) -> Answer {
    let why = match (plan, stood) {
        (Some(plan), _) if !may_be_selected(plan, pod) => return Answer::NotSelected,
        (Some(_), _) => "the plan of this node does not know the pod yet",
        (None, Some(stood)) if !stood.namespaces.contains(&pod.namespace) => return Answer::NotSelected,
        (None, _) => "this node's agent has not read the node's plan yet",
    };
    Answer::NotYet {
        why: format!("{why}; is the operator running?"),
    }
}

fn check(
    plan: Option<&EgressPlanSpec>,
    pod: &PodName,
    addresses: &BTreeSet<IpAddr>,
    ledger: &Ledger,
) -> Answer {
    let Some(plan) = plan else {
        return Answer::NotSelected;
    };
    if verdict(plan, pod) != Verdict::Selected {
        return Answer::NotSelected;
    }
    let complete = ledger.complete(plan);
    let known = complete.pods.iter().find(|p| p.uid == pod.uid);
    match known.is_some_and(|known| addresses.iter().all(|ip| known.ips.contains(ip))) {
        true => Answer::Programmed,
        false => Answer::NotYet {
            why: "its addresses are not programmed".into(),
        },
    }
}

#[cfg(test)]
mod tests;
