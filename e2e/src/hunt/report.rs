//! What the hunt found.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use serde_json::json;

use super::{
    judge::{Judgement, Why, judge},
    packet::Packet,
    place::{OUTSIDE, Source},
    timeline::Time,
    world::World,
};

/// Wrong packets of one kind that are told with their time line; more are counted.
const TOLD: usize = 20;

/// What became of the packets so far.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Packets that came to the outside.
    pub seen: u64,
    /// Those of pods.
    pub judged: u64,
    /// Those that were right with a policy's address.
    pub by_policy: u64,
    /// Those that were wrong.
    pub wrong: u64,
    kinds: BTreeMap<(Why, String, IpAddr), Kind>,
}

/// Wrong packets of one pod, with one source, for one reason.
#[derive(Debug, Clone)]
struct Kind {
    count: u64,
    first: Time,
    last: Time,
    port: Option<u16>,
    what: String,
}

impl Tally {
    /// Judges a packet and counts it.
    pub fn take(&mut self, packet: &Packet, world: &World) {
        self.seen += 1;
        let judgement = judge(packet, world);
        self.judged += u64::from(judgement != Judgement::Foreign);
        let is_policys = matches!(Source::of(packet.source), Source::Egress(_));
        self.by_policy += u64::from(judgement == Judgement::Right && is_policys);
        let Judgement::Wrong(why) = judgement else {
            return;
        };
        self.wrong += 1;
        let pod = packet.port.and_then(|port| world.pods.get(&port));
        let name = pod.map_or_else(|| "nobody".to_owned(), |pod| pod.name.clone());
        let kind = self
            .kinds
            .entry((why, name, packet.source))
            .or_insert_with(|| Kind {
                count: 0,
                first: packet.at,
                last: packet.at,
                port: packet.port,
                what: format!("{} to {}", packet.what, OUTSIDE[packet.destination][0]),
            });
        kind.count += 1;
        kind.last = packet.at;
    }

    /// Wrong packets with their time lines.
    fn time_lines(&self, world: &World) -> Vec<String> {
        let told = self.kinds.iter().take(TOLD).map(|((why, name, source), kind)| {
            let lasted = Duration::from_nanos(kind.last - kind.first);
            let head = format!(
                "{name}: {} packets {why}, {source}, within {lasted:.3?}, the first {}",
                kind.count, kind.what
            );
            let pod = kind.port.and_then(|port| world.pods.get(&port));
            let lines = world.time_line(pod, kind.first, "THE FIRST WRONG PACKET");
            let pod = pod.map_or(String::new(), |pod| format!(" ({})", super::describe(pod)));
            format!("{head}{pod}\n    {}", lines.join("\n    "))
        });
        told.collect()
    }
}

/// The end of a hunt.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed that it was made from.
    pub seed: u64,
    /// Pods that were created.
    pub pods: usize,
    /// Those of which a packet was seen.
    pub heard: usize,
    /// Changes that were made.
    pub changes: usize,
    /// What the last change still lacked when it had had its time; nothing where every change came into place.
    pub missing: Option<String>,
    /// Packets that came to a node which is no gateway for them.
    pub misdirected: u64,
    /// When the first of them were noticed.
    pub first_misdirected: Option<Time>,
    /// Nothing came any more once all pods were deleted.
    pub silent: bool,
    /// What became of the packets.
    pub tally: Tally,
    /// Packets that the capture had no room for.
    pub lost: u64,
    /// How long it took.
    pub took: Duration,
    /// The history.
    pub world: World,
}

impl Report {
    /// Why the hunt has failed; nothing when every packet was seen, judged and right.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if self.tally.wrong > 0 {
            return Some(format!("{} packets were wrong", self.tally.wrong));
        }
        if self.misdirected > 0 {
            return Some(format!(
                "{} packets came to a node that is no gateway for them",
                self.misdirected
            ));
        }
        // What lets nothing out is never wrong.
        if self.heard < self.pods / 4 || self.tally.by_policy < self.pods as u64 {
            return Some(format!(
                "{} pods of {} were heard, and {} packets had a policy's address: the hunt shows nothing",
                self.heard, self.pods, self.tally.by_policy
            ));
        }
        if let Some(missing) = &self.missing {
            return Some(format!("a change did not come into place: {missing}"));
        }
        if !self.silent {
            return Some("pods still send long after their deletion".into());
        }
        (self.lost > 0).then(|| format!("the capture lost {} packets", self.lost))
    }

    /// Pods a second.
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 pods")]
    fn rate(&self) -> f64 {
        self.pods as f64 / self.took.as_secs_f64()
    }

    /// How many packets were wrong for a reason.
    #[must_use]
    pub fn wrong_for(&self, reason: Why) -> u64 {
        let kinds = self.tally.kinds.iter();
        kinds
            .filter(|((why, _, _), _)| *why == reason)
            .map(|(_, kind)| kind.count)
            .sum()
    }

    /// One JSON object, in one line.
    #[must_use]
    pub fn json(&self) -> String {
        json!({
            "pods": self.pods,
            "heard": self.heard,
            "reused_addresses": self.world.reused,
            "changes": self.changes,
            "seen": self.tally.seen,
            "judged": self.tally.judged,
            "by_policy": self.tally.by_policy,
            "wrong": self.tally.wrong,
            "misdirected": self.misdirected,
            "lost": self.lost,
            "seed": self.seed,
            "seconds": self.took.as_secs(),
            "pods_per_second": (self.rate() * 10.0).round() / 10.0,
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.missing.is_some() {
            writeln!(
                formatter,
                "the last changes:\n    {}\n",
                self.world.last_changes().join("\n    ")
            )?;
        }
        if let Some(first) = self.first_misdirected {
            let lines = self
                .world
                .time_line(None, first, "THE FIRST MISDIRECTED PACKETS ARE NOTICED");
            writeln!(formatter, "misdirected packets:\n    {}\n", lines.join("\n    "))?;
        }
        for lines in self.tally.time_lines(&self.world) {
            writeln!(formatter, "{lines}\n")?;
        }
        if self.tally.kinds.len() > TOLD {
            writeln!(formatter, "and {} more such\n", self.tally.kinds.len() - TOLD)?;
        }
        self.write_reasons(formatter)?;
        self.write_table(formatter)
    }
}

impl Report {
    fn write_reasons(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons: BTreeMap<Why, (usize, u64)> = BTreeMap::new();
        for ((why, _, _), kind) in &self.tally.kinds {
            let sum = reasons.entry(*why).or_default();
            *sum = (sum.0 + 1, sum.1 + kind.count);
        }
        for (why, (pods, packets)) in reasons {
            writeln!(formatter, "{packets:>10} packets of {pods} pods {why}")?;
        }
        Ok(())
    }

    fn write_table(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, what) in [
            (self.pods as u64, "pods created"),
            (self.heard as u64, "pods heard"),
            (self.world.reused, "pods with an address that another had before"),
            (self.changes as u64, "changes"),
            (self.tally.seen, "packets seen"),
            (self.tally.judged, "packets judged"),
            (self.tally.by_policy, "packets right with a policy's address"),
            (self.tally.wrong, "packets wrong"),
            (self.misdirected, "packets at a node that is no gateway for them"),
            (self.lost, "packets lost by the capture"),
        ] {
            writeln!(formatter, "{count:>10} {what}")?;
        }
        writeln!(formatter, "{:>10} seconds", self.took.as_secs())?;
        writeln!(
            formatter,
            "{:>10.1} pods created and deleted a second",
            self.rate()
        )
    }
}
