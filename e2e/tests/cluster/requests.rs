//! A pod that asks the echo server again and again, and what it was told.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use egressnat_e2e::{
    error::{Context, Result},
    wait,
};

use crate::{
    pod::Pod,
    scene::{DEADLINE, Scene, Seen, echo_urls},
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

    /// Ends the requests, and the test unless every single one was answered with these addresses.
    pub fn end(mut self, expected: &Seen) -> Result<()> {
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
        Ok(())
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
