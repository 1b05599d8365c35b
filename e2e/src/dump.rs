//! What a person wants to see of a cluster after a test failed, kept when the cluster goes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cluster::Cluster,
    command,
    error::{Context, Result},
    site::Site,
};

/// Questions for the API server.
const KUBECTL: [&str; 7] = [
    "get pods -A -o wide",
    "get nodes -o wide",
    "get events -A --sort-by=.lastTimestamp",
    "get egressnatpolicies,egressplans -o yaml",
    "describe pods -A",
    "-n egressnat-system logs -l app.kubernetes.io/component=operator --tail=-1 --prefix",
    "-n egressnat-system logs -l app.kubernetes.io/component=agent --tail=-1 --prefix",
];
/// Questions for each node's kernel.
const NODE: [&str; 9] = [
    "nft list ruleset",
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "ip -details -statistics link",
    "bridge fdb show",
    "conntrack -L",
    "conntrack -L -f ipv6",
];

/// Writes all that can be found out to `target/lab/failures/NAME`, and returns that folder. What cannot be
/// asked any more is noted in its place.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let folder = Site::shared().join("failures").join(name.replace("::", "-"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
    let answers = KUBECTL.map(|question| {
        let answer = cluster.kubectl().run(question.split(' '));
        section(&format!("kubectl {question}"), answer)
    });
    save(&folder.join("kubectl.txt"), &answers.concat())?;
    for node in cluster.nodes() {
        let answers = NODE.map(|question| {
            let mut words = question.split(' ');
            let mut command = Command::new(words.next().unwrap_or_default());
            section(
                question,
                node.netns().and_then(|netns| netns.output(command.args(words))),
            )
        });
        save(
            &folder.join(format!("{}.txt", node.spec().name)),
            &answers.concat(),
        )?;
    }
    let logs = cluster.site().path("logs").display().to_string();
    command::output(Command::new("cp").args(["-r", &logs]).arg(&folder))?;
    Ok(folder)
}

fn section(title: &str, answer: Result<String>) -> String {
    format!(
        "### {title}\n{}\n\n",
        answer.unwrap_or_else(|error| error.to_string()).trim_end()
    )
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).context(|| format!("write {}", path.display()))
}
