//! A node of the bare topology with an API server on its loopback, and the agent's own program beside it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    future::Future,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
};

use egressnat_crds::EgressPlan;
use egressnat_e2e::{
    command,
    netns::Netns,
    site::Site,
    topology::{Options, SERVER, Topology},
};
use kube::{
    Api,
    api::{DeleteParams, PatchParams},
};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use super::{support::*, world::eventually};

const HTTP: &str = "127.0.0.1:9740";

/// Everything is inside the node's network namespace: the API server, its clients, the agent.
pub struct World<'a> {
    pub topology: &'a Topology,
    pub plans: Api<EgressPlan>,
    /// The agent's own.
    pub flags: Vec<String>,
    /// Before the API server, whose folder has its log.
    pub agent: Agent,
    pub cluster: Cluster,
}

/// Runs a test on a thread inside the source node's namespace, with an agent that waits for its plan.
pub fn on_node<F: Future<Output = ()>>(test: impl FnOnce(World<'static>) -> F + Send) {
    on_node_with(Vec::new(), test);
}

/// The same, with an agent with these flags.
pub fn on_node_with<F: Future<Output = ()>>(
    flags: Vec<String>,
    test: impl FnOnce(World<'static>) -> F + Send,
) {
    // Leaked for the test's sake: its namespaces end with the test's process.
    let topology: &'static Topology = Box::leak(Box::new(Topology::new(Options::default()).unwrap()));
    let inside = || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::start();
            let client = cluster.admin().await;
            let kubeconfig = cluster.agent_kubeconfig(topology.source.name).await;
            let agent = Agent::start(topology.source.name, &kubeconfig, &flags);
            eventually("an agent without a plan", async || {
                get("/readyz").filter(|answer| answer.contains("waiting for the plan"))
            })
            .await;
            test(World {
                topology,
                cluster,
                plans: Api::all(client),
                flags,
                agent,
            })
            .await;
        });
    };
    topology.source.netns.run(inside).unwrap();
}

impl World<'_> {
    pub fn name(&self) -> &'static str {
        self.topology.source.name
    }

    /// Ends the agent and starts it anew.
    pub async fn restart_agent(&mut self) {
        self.agent.kill();
        let kubeconfig = self.cluster.agent_kubeconfig(self.name()).await;
        self.agent = Agent::start(self.name(), &kubeconfig, &self.flags);
    }

    /// Writes the node's plan as the operator does.
    pub async fn write(&self, spec: Value) {
        let params = PatchParams::apply("operator").force();
        self.plans
            .patch(self.name(), &params, &plan(self.name(), spec))
            .await
            .unwrap();
    }

    pub async fn delete_plan(&self) {
        self.plans
            .delete(self.name(), &DeleteParams::default())
            .await
            .unwrap();
    }

    /// The plan, once its agent says this of its present generation.
    pub async fn says(&self, status: &str, reason: &str) -> EgressPlan {
        eventually(&format!("Ready={status} {reason}"), async || {
            let plan = self.plans.get(self.name()).await.unwrap();
            let ready = plan
                .status
                .as_ref()?
                .conditions
                .iter()
                .find(|c| c.type_ == "Ready")?;
            let current = ready.observed_generation == plan.metadata.generation;
            (current && ready.status == status && ready.reason == reason).then_some(plan)
        })
        .await
    }

    /// A plan that leads one pod by a gateway to the server, in both families.
    pub fn spec(&self) -> Value {
        let Topology { source, gateway, .. } = self.topology;
        let pod = &source.pods[0];
        let to = |address: String| json!({"range": format!("{address}-{address}"), "policy": 7});
        json!({
            "underlay": source.address.v4,
            "cluster": ["10.241.0.0-10.241.255.255"],
            "peers": [{"node": gateway.name, "underlay": gateway.address.v4}],
            "policies": [{
                "id": 7,
                "name": "walk",
                "source": {"gateway": gateway.name, "families": ["IPv4", "IPv6"], "noGateway": "Drop"},
            }],
            "profiles": [{
                "id": 1,
                "destinations": [to(SERVER.v4.to_string()), to(SERVER.v6.to_string())],
            }],
            "pods": [{"uid": "1", "name": "default/pod", "ips": pod.address.both(), "profile": 1}],
        })
    }
}

/// What the node's kernel holds, whoever put it there, without counters. The table's flags are left out:
/// they say whether its owner lives.
pub fn kernel(netns: &Netns) -> String {
    let questions = [
        "nft -s list ruleset",
        "ip -4 rule",
        "ip -6 rule",
        "ip -br link",
        "ip -4 route show table all",
        "ip -6 route show table all",
    ];
    let answer = |question: &str| {
        let mut words = question.split(' ');
        let mut command = Command::new(words.next().unwrap());
        netns.output(command.args(words)).unwrap()
    };
    let text = questions.map(answer).concat();
    let lines = text.lines().filter(|line| !line.starts_with("\tflags "));
    let without_owner = lines.map(|line| line.split(" # progname").next().unwrap_or_default());
    without_owner.collect::<Vec<_>>().join("\n")
}

/// Ends the test with the lines that differ, if any do.
#[track_caller]
pub fn assert_same(before: &str, after: &str, why: &str) {
    let [old, new] = [before, after].map(|text| text.lines().collect::<BTreeSet<_>>());
    let differ: Vec<_> = old.symmetric_difference(&new).collect();
    assert!(before == after, "{why}: {differ:#?}");
}

/// What the agent answers, header included; nothing where it does not.
pub fn get(path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(HTTP).ok()?;
    let mut answer = String::new();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The agent's own program. It ends with this value, or with the test's process, whatever killed that.
pub struct Agent {
    guard: Child,
    input: Option<ChildStdin>,
    log: PathBuf,
}

const GUARD: &str = r#"
"$@" </dev/null &
read -r _
kill -KILL $!
wait
"#;

impl Agent {
    /// Starts the release program in the calling thread's network namespace.
    pub fn start(node: &str, kubeconfig: &PathBuf, flags: &[String]) -> Self {
        let program = Site::target().join("release/egressnat-agent");
        assert!(
            program.exists(),
            "{} is missing: run `make images`",
            program.display()
        );
        let log = kubeconfig.with_extension("log");
        let mut guard = Command::new("sh");
        guard
            .args(["-c", GUARD, "agent"])
            .arg(program)
            .arg(format!("--http-address={HTTP}"))
            .args(flags);
        guard
            .env("NODE_NAME", node)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let mut guard = guard
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", command::line(&guard)));
        Self {
            input: guard.stdin.take(),
            guard,
            log,
        }
    }

    /// Ends it at once, in the middle of whatever it does.
    pub fn kill(&mut self) {
        drop(self.input.take());
        // Waited for already where this is the second time.
        self.guard.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "the agent's log:\n{}",
                fs::read_to_string(&self.log).unwrap_or_default()
            );
        }
    }
}
