//! Answers as text, in other formats, and again when they change; and those that cannot be given.

use std::{
    io::{BufRead, BufReader},
    process::Child,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use super::*;

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
