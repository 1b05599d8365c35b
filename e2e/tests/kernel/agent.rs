//! A node's agent without its shell: the datapath, on a thread of its own inside the node.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Parser;
use egressnat_agent::{
    agent::{Datapath, Report},
    cli::Cli,
    error::AgentError,
    owned::Drop as DropReason,
};
use egressnat_crds::EgressPlanSpec;
use egressnat_e2e::topology::Node;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    time::timeout,
};

type Job = Box<dyn FnOnce(&Runtime, &mut Datapath) + Send>;

/// A running agent. Dropping it leaves the datapath in place, as the agent's exit does.
pub struct Agent {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts one on `node`, with further arguments as on its command line.
    pub fn start(node: &Node, arguments: &[&str]) -> Self {
        let cli = Cli::parse_from([&["egressnat-agent", "--node-name", node.name], arguments].concat());
        let (jobs, todo) = mpsc::channel::<Job>();
        let work = move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("failed to start a runtime");
            let opened = {
                let _in_runtime = runtime.enter();
                Datapath::open(&cli)
            };
            let mut datapath = opened.expect("failed to open the datapath");
            for job in todo {
                job(&runtime, &mut datapath);
            }
        };
        // A thread is born in the namespace of the one that starts it.
        let thread = node
            .netns
            .run(|| thread::spawn(work))
            .expect("failed to enter the node");
        Self {
            jobs: Some(jobs),
            thread: Some(thread),
        }
    }

    /// Brings the node in step with a plan, or removes everything.
    pub fn sync(&self, plan: Option<&EgressPlanSpec>) -> Result<Report, AgentError> {
        let plan = plan.cloned();
        self.call(move |runtime, datapath| runtime.block_on(datapath.sync(plan.as_ref())))
    }

    /// Makes the next [`Agent::sync`] read everything from the kernel, as the periodic check does.
    pub fn distrust(&self) {
        self.call(|_, datapath| datapath.distrust());
    }

    /// Lets it look after its node under this plan, as it does by itself, until the answer is dropped.
    pub fn look_after(&self, plan: &EgressPlanSpec) -> Watch {
        let (plan, reports) = (plan.clone(), Arc::<Mutex<Vec<_>>>::default());
        let (stop, mut stopped) = oneshot::channel();
        let (told, ended) = (Arc::clone(&reports), mpsc::channel());
        let job: Job = Box::new(move |runtime, datapath| {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        biased;
                        _ = &mut stopped => break,
                        changed = datapath.changed() => changed.expect("it hears of changes no more"),
                    }
                    let report = datapath.sync(Some(&plan)).await;
                    let mut told = told.lock().expect("no test has failed with it");
                    told.push((Instant::now(), report));
                }
            });
            // Nobody waits where the test has failed.
            let _ = ended.0.send(());
        });
        let jobs = self.jobs.as_ref().expect("the agent is running");
        jobs.send(job).expect("the agent's thread has died");
        Watch {
            reports,
            stop: Some(stop),
            ended: ended.1,
        }
    }

    /// Whether it hears of a change of its node's network before so long.
    pub fn changed(&self, within: Duration) -> bool {
        self.call(move |runtime, datapath| {
            let changed = runtime.block_on(async { timeout(within, datapath.changed()).await });
            changed.is_ok_and(|changed| changed.is_ok())
        })
    }

    /// How many packets were dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.counters()
            .get(reason.counter())
            .map_or(0, |(packets, _)| *packets)
    }

    /// Every counter: packets and octets.
    pub fn counters(&self) -> BTreeMap<String, (u64, u64)> {
        self.call(|runtime, datapath| {
            let looked = runtime.block_on(datapath.look_at_ports());
            looked.expect("failed to look at the ports");
            datapath.counters()
        })
    }

    /// Ends it.
    pub fn stop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // What it died of was printed by then.
            let _ = thread.join();
        }
    }

    fn call<T: Send + 'static>(&self, work: impl FnOnce(&Runtime, &mut Datapath) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move |runtime, datapath| {
            // Nobody listens any more only where the test has failed.
            let _ = answer.send(work(runtime, datapath));
        });
        let jobs = self.jobs.as_ref().expect("the agent is running");
        jobs.send(job).expect("the agent's thread has died");
        answered.recv().expect("the agent's thread has died")
    }
}

/// What an agent did, and when it was done.
pub type Told = (Instant, Result<Report, AgentError>);

/// An agent at work.
pub struct Watch {
    reports: Arc<Mutex<Vec<Told>>>,
    stop: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

impl Watch {
    /// What it did and when, so far.
    pub fn with<T>(&self, look: impl FnOnce(&[Told]) -> T) -> T {
        look(&self.reports.lock().expect("the agent's thread has died"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It has ended, or its thread has.
        let _ = self.ended.recv();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}
