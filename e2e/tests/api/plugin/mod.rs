//! `kubectl egressnat`, the built program, against the real API server with the real operator.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
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

mod migrate;

/// This machine's architecture, with a C library that is linked in.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-musl"
} else {
    "x86_64-unknown-linux-musl"
};

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

/// The program, built as it is released: static, and on its own, so that no feature of another crate reaches it.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "-p", "kubectl-egressnat", "--target", TARGET])
            .arg("--target-dir")
            .arg(Site::target())
            .current_dir(Site::root())
            .status()
            .unwrap();
        assert!(built.success());
        Site::target().join(TARGET).join("debug/kubectl-egressnat")
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
    let mut table = Watching::start(&plugin, &[]);
    let mut json = Watching::start(&plugin, &["-o", "json"]);
    table.shows("first");
    json.shows("\"name\": \"first\"");
    apply(&client, &policy("second", weaker())).await;
    table.shows("second");
    json.shows("\"name\": \"second\"");
}

/// `status --watch`, ended with the value.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(plugin: &Plugin, more: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["status", "--watch"])
            .args(more)
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

    /// Reads on until there is a line that begins so.
    fn shows(&mut self, beginning: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            if line
                .unwrap_or_else(|error| panic!("no line of {beginning}: {error}"))
                .trim_start()
                .starts_with(beginning)
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
    assert!(
        names("ring_core_"),
        "a library that it links is found by its symbols"
    );
    assert!(!names("nftnl_rule_") && !names("mnl_socket_"));
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

#[test]
fn completion_is_a_script_of_each_shell() {
    let plugin = Plugin::of(shared());
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let said = plugin.says(&["completion", shell]);
        assert_eq!(said.code, Some(0), "{shell}: {}", said.err);
        assert!(said.out.contains("migrate"), "{shell}: {}", said.out);
    }
    let script = plugin.says(&["completion", "bash"]).out;
    let understood = |script: &str| {
        let bash = Command::new("bash").args(["-n", "-c", script]).status();
        bash.unwrap().success()
    };
    assert!(understood(&script));
    assert!(!understood(&format!("{script}\nif")), "bash sees what is wrong");
}

#[test]
fn the_help_of_every_question_has_examples() {
    let plugin = Plugin::of(shared());
    for question in ["explain", "status", "plan", "lint", "migrate", "completion"] {
        let said = plugin.says(&[question, "--help"]);
        assert_eq!(said.code, Some(0), "{question}");
        assert!(said.out.contains("Examples:\n  "), "{question}: {}", said.out);
        assert!(plugin.says(&["--help"]).out.contains(question));
    }
}

#[tokio::test]
async fn answers_are_the_same_in_every_format_and_plain_in_a_pipe() {
    let (cluster, client) = world().await;
    apply(&client, &policy("first", spec_from_gateway())).await;
    let plugin = Plugin::of(&cluster);
    let json = plugin.json(&["status"]);
    assert_eq!(json["policies"][0]["name"], "first");
    let yaml = plugin.says(&["status", "-o", "yaml"]).out;
    assert_eq!(serde_yaml_ng::from_str::<Value>(&yaml).unwrap(), json);
    let text = plugin.says(&["status"]).out;
    assert!(text.contains("first") && !text.contains('\x1b'), "{text}");
}

#[tokio::test]
async fn addresses_of_services_are_not_captured() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "front", "namespace": "apps"},
        "spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.81"], "ports": [{"port": 443}]},
    });
    cluster.kubectl(&["apply", "-f", "-"], &service.to_string());
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.80"}]}}}).to_string();
    let patch = [
        "-n",
        "apps",
        "patch",
        "service",
        "front",
        "--subresource=status",
        "-p",
        &status,
    ];
    cluster.kubectl(&patch, "");
    let plugin = Plugin::of(&cluster);
    for (to, says) in [
        (
            "198.51.100.80",
            "Not captured, because it is the ingress address of Service apps/front",
        ),
        (
            "198.51.100.81:443",
            "Not captured, because it is the external address of Service apps/front",
        ),
        ("198.51.100.80:53", "policy walk"),
        ("198.51.100.82", "policy walk"),
    ] {
        let said = plugin.says(&["explain", "on-worker", "-n", "apps", "--to", to]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(said.out.contains(says), "{to}: {}", said.out);
    }
    cluster.kubectl(&["-n", "apps", "delete", "service", "front"], "");
}

/// No interpreter is named in the program's headers: it runs wherever its kernel does.
#[test]
fn the_program_is_static() {
    const PT_INTERP: u32 = 3;
    let has_interpreter = |program: &Path| {
        let file = fs::read(program).unwrap();
        let half = |at: usize| usize::from(u16::from_le_bytes(file[at..at + 2].try_into().unwrap()));
        let offset = u64::from_le_bytes(file[32..40].try_into().unwrap());
        // ELF-64: the offset, size and number of the program headers, which begin with their type.
        let (size, number) = (half(54), half(56));
        let headers = (0..number).map(|i| usize::try_from(offset).unwrap() + i * size);
        let mut kinds = headers.map(|at| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()));
        kinds.any(|kind| kind == PT_INTERP)
    };
    assert!(
        has_interpreter(&env::current_exe().unwrap()),
        "this test's own program has one"
    );
    assert!(!has_interpreter(program()));
    let version = Command::new(program()).arg("--version").output().unwrap();
    assert!(version.status.success());
    let policy = policy("p", spec_from_gateway()).to_string();
    let lint = Plugin::of(shared()).says_of(&["lint", "-"], &policy);
    assert_eq!(lint.code, Some(0), "{}{}", lint.out, lint.err);
}

/// As kubectl has it: the API server judges by the rights of whom it is asked as.
#[test]
fn another_user_can_be_impersonated() {
    let plugin = Plugin::of(shared());
    let own = plugin.says(&["status"]);
    assert_ne!(own.code, Some(2), "{}", own.err);
    let nobody = plugin.says(&["status", "--as", "nobody"]);
    assert_eq!(nobody.code, Some(2), "{}", nobody.out);
    assert!(nobody.err.contains("\"nobody\""), "{}", nobody.err);
    let groups = [
        "status",
        "--as",
        "nobody",
        "--as-group",
        "some",
        "--as-group",
        "system:masters",
    ];
    let master = plugin.says(&groups);
    assert_eq!(master.code, own.code, "{}", master.err);
    let alone = plugin.says(&["status", "--as-group", "system:masters"]);
    assert_eq!(alone.code, Some(2), "{}", alone.out);
}
