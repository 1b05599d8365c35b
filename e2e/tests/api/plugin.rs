//! `kubectl egressnat`, the built program, against the real API server with the real operator.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use egressnat_crds::EgressNATPolicy;
use egressnat_e2e::site::Site;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{support::*, world::*};

/// What the program said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// The program, and the cluster that it asks.
struct Plugin {
    kubeconfig: PathBuf,
}

impl Plugin {
    /// As the administrator of the cluster.
    fn of(cluster: &Cluster) -> Self {
        let config = cluster.kubectl(&["config", "view", "--raw", "--flatten"], "");
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plugin-kubeconfig-{}-{number}", std::process::id());
        let kubeconfig = Site::target().join(name);
        fs::write(&kubeconfig, config).unwrap();
        Self { kubeconfig }
    }

    fn says(&self, args: &[&str]) -> Said {
        self.says_of(args, "")
    }

    fn says_of(&self, args: &[&str], input: &str) -> Said {
        let mut child = Command::new(program())
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its input closes it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        let said = self.says(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.kubeconfig);
    }
}

/// The program, built as it is released: on its own, so that no feature of another crate reaches it.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "-p", "kubectl-egressnat"])
            .arg("--target-dir")
            .arg(Site::target())
            .current_dir(Site::root())
            .status()
            .unwrap();
        assert!(built.success());
        Site::target().join("debug/kubectl-egressnat")
    })
}

/// As [`spec_from_gateway`], with other destinations too, and weaker.
fn weaker() -> Value {
    let mut spec = spec_from_gateway();
    spec["priority"] = json!(50);
    spec["destinationCIDRs"] = json!(["198.51.100.0/24", "203.0.113.0/24"]);
    spec["egressSourceIP"] = json!(WORKER_IP);
    spec
}

#[tokio::test]
async fn the_plugin_explains_what_the_operator_and_the_agents_do() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    apply(&client, &policy("weaker", weaker())).await;
    let _operator = Operator::start(&cluster, "only").await;
    for node in [GATEWAY, WORKER] {
        eventually("a plan of both policies", async || {
            let plan = plan_with_policy(&client, node).await?;
            (plan.spec.policies.len() == 2).then_some(())
        })
        .await;
    }
    let plugin = Plugin::of(&cluster);
    let ask = ["explain", "on-worker", "-n", "apps", "--to", "198.51.100.7:443"];

    let before = plugin.says(&ask);
    assert_eq!(before.code, Some(0), "{}", before.err);
    assert!(
        before.out.contains("198.51.100.7 will see 192.0.2.11"),
        "{}",
        before.out
    );
    report(&cluster, GATEWAY).await;
    report(&cluster, WORKER).await;
    let after = plugin.says(&ask).out;
    assert!(
        after.contains("198.51.100.7 sees 192.0.2.11, by policy walk"),
        "{after}"
    );
    assert!(
        after.contains("wins over  weaker: priority 100 is above 50"),
        "{after}"
    );

    let explained = plugin.json(&["explain", "pod/on-worker", "--namespace=apps"]);
    assert_eq!(explained["policies"][1]["lost"][0]["to"], "walk");
    assert_eq!(explained["seen"][1]["address"], WORKER_IP);
    for (to, because) in [
        ("10.96.0.1", "it is a Service address"),
        (WORKER_IP, "it is an address of node worker"),
        ("10.1.1.2", "it is the address of pod apps/on-gateway"),
        ("8.8.8.8", "no policy that selects the pod"),
    ] {
        let said = plugin.says(&["explain", "on-worker", "-n", "apps", "--to", to]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(
            said.out.contains(&format!("Not captured, because {because}")),
            "{}",
            said.out
        );
    }

    eventually("both policies in place", async || {
        let said = plugin.says(&["status"]);
        (said.code == Some(0) && said.out.matches("Ready").count() == 2).then_some(())
    })
    .await;
    let status = plugin.json(&["status"]);
    assert_eq!(status["policies"][0]["addresses"], json!([GATEWAY_IP]));
    assert_eq!(status["nodes"][1]["state"], "Programmed");
}

#[tokio::test]
async fn the_plugin_shows_plans_and_what_would_change() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let _operator = Operator::start(&cluster, "only").await;
    eventually("the worker's plan", async || {
        plan_with_policy(&client, WORKER).await
    })
    .await;
    eventually("the gateway's plan", async || {
        plan_with_policy(&client, GATEWAY).await
    })
    .await;
    let plugin = Plugin::of(&cluster);

    let plan = plugin.says(&["plan", WORKER]);
    assert_eq!(plan.code, Some(0), "{}", plan.err);
    for part in [
        "name: apps/on-worker",
        "table inet egressnat {",
        "ip route add default via",
    ] {
        assert!(plan.out.contains(part), "no {part} in\n{}", plan.out);
    }

    let extra = policy("extra", weaker()).to_string();
    let diff = plugin.says_of(&["plan", "--diff", "-"], &extra);
    assert_eq!(diff.code, Some(0), "{}", diff.err);
    for part in [
        "Policy extra would be new: it would capture packets of 2 pods.",
        "203.0.113.0/24: not captured -> extra, 192.0.2.12 by worker",
    ] {
        assert!(diff.out.contains(part), "no {part} in\n{}", diff.out);
    }
    assert!(!diff.out.contains("198.51.100"), "{}", diff.out);
    let same = plugin.says_of(
        &["plan", "--diff", "-"],
        &policy("walk", spec_from_gateway()).to_string(),
    );
    assert!(same.out.ends_with("Nothing would change.\n"), "{}", same.out);
    let mut lost = weaker();
    lost["egressSourceIP"] = json!("192.0.2.99");
    let lost = plugin.says_of(&["plan", "--diff", "-"], &policy("lost", lost).to_string());
    assert_eq!(lost.code, Some(1), "{}", lost.out);

    let policies: Api<EgressNATPolicy> = Api::all(client);
    assert!(
        policies.get_opt("extra").await.unwrap().is_none(),
        "nothing was applied"
    );
}

#[tokio::test]
async fn status_is_shown_again_when_it_changes() {
    let (cluster, client) = world().await;
    apply(&client, &policy("first", spec_from_gateway())).await;
    let plugin = Plugin::of(&cluster);
    let mut watching = Watching::start(&plugin);
    watching.shows("first");
    apply(&client, &policy("second", weaker())).await;
    watching.shows("second");
}

/// `status --watch`, ended with the value.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(plugin: &Plugin) -> Self {
        let mut child = Command::new(program())
            .args(["status", "--watch"])
            .env("KUBECONFIG", &plugin.kubeconfig)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (to, lines) = mpsc::channel();
        thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| to.send(line))
        });
        Self { child, lines }
    }

    /// Reads on until there is a line of this policy.
    fn shows(&mut self, policy: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            if line
                .unwrap_or_else(|error| panic!("no line of {policy}: {error}"))
                .starts_with(policy)
            {
                return;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn what_cannot_be_answered_says_what_to_do() {
    let cluster = shared();
    let mut plugin = Plugin::of(cluster);
    for (args, says) in [
        (
            &["explain", "gone"][..],
            "there is no pod gone in namespace default",
        ),
        (&["plan", "gone"], "there is no node gone"),
        (&["plan", "--diff", "/gone.yaml"], "failed to read /gone.yaml"),
        (&["status", "--context", "gone"], "--context"),
        (&["status", "--kubeconfig", "/gone"], "--kubeconfig"),
        (
            &["explain", "web", "--to", "example.org"],
            "write an address such as",
        ),
        (&["plan"], "required"),
    ] {
        let said = plugin.says(args);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(says), "{args:?}: {}", said.err);
    }
    plugin.kubeconfig = cluster.agent_kubeconfig("plugin-node").await;
    let said = plugin.says(&["status"]);
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("you may not list"), "{}", said.err);
}

/// The agent links libnftnl, which is under the GPL; the plugin shares the agent's compiler and must not.
#[test]
fn the_plugin_links_no_library_of_the_agents() {
    let bytes = fs::read(program()).unwrap();
    let names = |library: &str| bytes.windows(library.len()).any(|w| w == library.as_bytes());
    assert!(names("libc.so"), "a library that it links is found");
    assert!(!names("libnftnl.so") && !names("libmnl.so"));
}

#[tokio::test]
async fn lint_refuses_what_the_api_server_refuses() {
    let client = shared().admin().await;
    let plugin = Plugin::of(shared());
    let good = spec_from_gateway();
    let with = |field: &str, value: Value| {
        let mut spec = good.clone();
        spec[field] = value;
        spec
    };
    let cases = [
        (true, good.clone()),
        (true, with("excludedCIDRs", json!(["198.51.100.0/25"]))),
        (true, with("priority", json!(-3))),
        (false, with("priority", json!("high"))),
        (false, with("priority", json!(3_000_000))),
        (false, with("noGateway", json!("Forward"))),
        (false, with("unknown", json!(1))),
        (false, with("selectors", json!([]))),
        (false, with("selectors", json!([{}]))),
        (
            false,
            with(
                "selectors",
                json!([{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]),
            ),
        ),
        (false, with("destinationCIDRs", json!(["198.51.100.1/24"]))),
        (false, with("destinationCIDRs", json!(["198.51.100"]))),
        (false, with("destinationCIDRs", json!(["2001:db8::/32"]))),
        (false, with("egressSourceIP", json!("192.0.2"))),
        (false, with("egressSourceIPs", json!(["192.0.2.1"]))),
        (false, with("egressGateway", json!({"nodeSelector": {}}))),
    ];
    for (right, spec) in cases {
        let object = policy("linted", spec);
        assert_eq!(
            accepts(&client, &object).await,
            right,
            "the API server of {object}"
        );
        let said = plugin.says_of(&["lint", "-"], &object.to_string());
        assert_eq!(
            said.code,
            Some(i32::from(!right)),
            "lint of {object}: {}{}",
            said.out,
            said.err
        );
    }
}

/// Whether the API server would take the policy, strictly.
async fn accepts(client: &Client, object: &Value) -> bool {
    let policies: Api<kube::api::DynamicObject> = Api::all_with(
        client.clone(),
        &kube::api::ApiResource::erase::<EgressNATPolicy>(&()),
    );
    let params = PatchParams::apply("lint").dry_run().validation_strict();
    let name = object["metadata"]["name"].as_str().unwrap();
    match policies.patch(name, &params, &Patch::Apply(object)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if [400, 422, 500].contains(&status.code) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Of all the kinds that it knows, the cluster has one.
#[test]
fn policies_of_another_gateway_are_migrated_from_the_cluster() {
    let plugin = Plugin::of(shared());
    let none = plugin.says(&["migrate", "--cluster"]);
    assert_eq!(none.code, Some(1), "{}{}", none.out, none.err);
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "egressips.k8s.ovn.org"},
        "spec": {
            "group": "k8s.ovn.org",
            "scope": "Cluster",
            "names": {"kind": "EgressIP", "plural": "egressips", "singular": "egressip"},
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    let egress_ip = json!({
        "apiVersion": "k8s.ovn.org/v1",
        "kind": "EgressIP",
        "metadata": {"name": "prod"},
        "spec": {
            "egressIPs": ["192.0.2.77"],
            "namespaceSelector": {"matchLabels": {"env": "prod"}},
        },
    });
    shared().kubectl(&["apply", "-f", "-"], &crd.to_string());
    let established = ["wait", "--for=condition=Established", "crd/egressips.k8s.ovn.org"];
    shared().kubectl(&established, "");
    shared().kubectl(&["apply", "-f", "-"], &egress_ip.to_string());
    let said = plugin.says(&["migrate", "--cluster"]);
    shared().kubectl(&["delete", "crd", "egressips.k8s.ovn.org"], "");
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert!(said.out.contains("192.0.2.77"), "{}", said.out);
    let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
    shared().kubectl(&create, &said.out);
}
