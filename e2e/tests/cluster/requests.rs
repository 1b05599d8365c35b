//! Pods that ask the echo server again and again, and what they and the outside saw.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use egressnat_e2e::{
    capture::Capture,
    error::{Context, Result},
    netns::Netns,
    wait,
};

use crate::{
    pod::Pod,
    scene::{DEADLINE, EGRESS, Scene, Seen, echo_urls, egress, own},
};

/// By each family a request every 100 ms, each on a connection of its own, until the end of its input. What
/// is not answered within two seconds has failed.
const SCRIPT: &str = r#"
ask() {
    while :; do
        timeout 2 wget -q -O - "$1" 2>/dev/null || echo failed
        usleep 100000
    done
}
ask "$0" & v4=$!
ask "$1" & v6=$!
read -r _
kill $v4 $v6
"#;

/// Selected pods whose requests are under way, and a capture at the echo server of all that asks it with another address
/// than the scenarios' policy's.
pub struct Served {
    requests: Vec<Requests>,
    strangers: Capture,
}

impl Served {
    /// Begins, and returns when each pod has had answers.
    pub fn start<'a>(scene: &Scene, pods: impl IntoIterator<Item = &'a Pod>) -> Result<Self> {
        let echo = Netns::open(&scene.cluster.site().netns("echo"))?;
        let [v4, v6] = EGRESS;
        let strangers = format!("tcp dst port 80 and not src host {v4} and not src host {v6}");
        let strangers = Capture::start(&echo, "eth0", &strangers)?;
        let requests = pods.into_iter().map(|pod| Requests::start(scene, pod));
        Ok(Self {
            requests: requests.collect::<Result<_>>()?,
            strangers,
        })
    }

    /// Waits until each pod has had twenty more answers, failures among them.
    pub fn wait_for_more(&self) -> Result<()> {
        self.requests.iter().try_for_each(Requests::wait_for_more)
    }

    /// Ends the requests, and the test unless every single one was answered with the policy's address, and no packet came
    /// with another. One of a pod that no policy selects shows that it would have been seen.
    pub fn end(self, scene: &Scene) -> Result<()> {
        for requests in self.requests {
            requests.end(&egress())?;
        }
        let [_, other, _] = scene.peers()?;
        scene.expect("a pod that no policy selects", &[(&other, own(&other))])?;
        let its = own(&other).map(Option::unwrap_or_default);
        let is_its = |line: &str| its.iter().any(|address| line.contains(&format!(" {address}.")));
        self.strangers
            .wait_for("a packet of that pod", DEADLINE, is_its)?;
        let wrong: Vec<String> = self.strangers.stop()?;
        let wrong: Vec<&String> = wrong.iter().filter(|line| !is_its(line)).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    }
}

/// Requests under way.
pub struct Requests {
    pod: Pod,
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Arc<Mutex<BTreeMap<String, usize>>>,
    reader: Option<JoinHandle<()>>,
}

impl Requests {
    /// Begins, and returns when both families have had answers.
    pub fn start(scene: &Scene, pod: &Pod) -> Result<Self> {
        let [v4, v6] = &echo_urls();
        let exec = ["exec", "-i", &pod.name, "--", "sh", "-c", SCRIPT, v4, v6];
        let mut command = scene
            .kubectl
            .command(["-n", &pod.namespace].into_iter().chain(exec));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().context(|| format!("run requests in {pod}"))?;
        let answers = Arc::default();
        let lines = child.stdout.take().map(BufReader::new);
        let sink: Arc<Mutex<BTreeMap<String, usize>>> = Arc::clone(&answers);
        let reader = thread::spawn(move || {
            let lines = lines.into_iter().flat_map(BufRead::lines);
            for line in lines.map_while(std::result::Result::ok) {
                let mut answers = sink.lock().unwrap_or_else(PoisonError::into_inner);
                *answers.entry(line).or_default() += 1;
            }
        });
        let requests = Self {
            pod: pod.clone(),
            stdin: child.stdin.take(),
            child,
            answers,
            reader: Some(reader),
        };
        requests.wait_for_more()?;
        Ok(requests)
    }

    /// Waits until there have been twenty more answers, failures among them.
    pub fn wait_for_more(&self) -> Result<()> {
        let count = || self.answers().values().sum::<usize>();
        let before = count();
        wait::until("twenty more answers", DEADLINE, || match count() {
            now if now >= before + 20 => Ok(()),
            now => Err(format!("{} so far", now - before)),
        })
    }

    /// Ends the requests, and the test unless every single one was answered with these addresses. Returns how many.
    pub fn end(mut self, expected: &Seen) -> Result<usize> {
        self.wait_for_more()?;
        self.stop();
        let answers = self.answers();
        let wrong: Vec<_> = answers
            .iter()
            .filter(|(answer, _)| !expected.contains(&Some((*answer).clone())))
            .collect();
        assert!(wrong.is_empty(), "{}: {answers:?}", self.pod);
        for address in expected.iter().flatten() {
            assert!(answers.contains_key(address), "{}: {answers:?}", self.pod);
        }
        Ok(answers.values().sum())
    }

    fn answers(&self) -> BTreeMap<String, usize> {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn stop(&mut self) {
        drop(self.stdin.take());
        // It ends by itself at the end of its input; what it returns says nothing.
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.stop();
    }
}
