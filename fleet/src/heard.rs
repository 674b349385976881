//! When each node was heard last, and what its silence means.
//!
//! Most nodes ask once in `DOCUMENT_WAIT_MAX`, and count as down after `HEARD_MAX`. Those that hold what others need at
//! once, such as a router's gateway address, are watched closely: their questions are answered sooner, so that they ask
//! again, and their silence counts after `MISSED_MAX` of them.
//!
//! A node's process that starts anew is back in less than that. What is no proof of a node's silence: that the plane
//! itself stood still (`tick`), and a question of before it was watched closely, which waits as long as usual.
//!
//! Limits: `BEATS_MAX` questions a second of all closely watched nodes together; more of them are asked less often.

use crate::HEARD_MAX;
use base::node::DOCUMENT_WAIT_MAX;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// A closely watched node asks this often, while there are at most `BEATS_MAX` of them.
const BEAT: Duration = Duration::from_secs(1);
const BEATS_MAX: u32 = 2_000;
/// So many questions missing and a closely watched node counts as lost.
const MISSED_MAX: u32 = 4;
/// A loop of a second that was not run for this long: the plane stood still and heard nobody.
const STALL_MIN: Duration = Duration::from_millis(2_500);

pub(crate) struct Heard {
    started: Instant,
    last: HashMap<String, Instant>,
    /// Closely watched nodes, and since when.
    close: HashMap<String, Instant>,
    ticked: Instant,
    /// The plane did not stand still since then.
    awake: Instant,
}

impl Heard {
    pub fn new(now: Instant) -> Heard {
        let (last, close) = (HashMap::new(), HashMap::new());
        Heard { started: now, last, close, ticked: now, awake: now }
    }

    pub fn hear(&mut self, node: &str, now: Instant) {
        match self.last.get_mut(node) {
            Some(last) => *last = now,
            None => _ = self.last.insert(node.into(), now),
        }
    }

    /// The loop that watches closely is run; `nodes`: those that it watches.
    pub fn tick(&mut self, nodes: &BTreeSet<String>, now: Instant) {
        if now.duration_since(self.ticked) >= STALL_MIN {
            self.awake = now;
        }
        self.ticked = now;
        self.close.retain(|node, _| nodes.contains(node));
        for node in nodes {
            self.close.entry(node.clone()).or_insert(now);
        }
    }

    /// How long a node's question may wait for an answer.
    pub fn wait(&self, node: &str, wait: Duration) -> Duration {
        if self.close.contains_key(node) { wait.min(self.beat()) } else { wait }
    }

    /// How often a closely watched node asks.
    fn beat(&self) -> Duration {
        let all = u32::try_from(self.close.len()).unwrap_or(u32::MAX);
        (BEAT * all.div_ceil(BEATS_MAX).max(1)).min(DOCUMENT_WAIT_MAX)
    }

    /// Whether a node was heard lately. After a start every node counts as heard then that `was_silent` does not name.
    pub fn alive(&self, node: &str, now: Instant, was_silent: impl Fn() -> bool) -> bool {
        match self.last.get(node) {
            Some(at) => now.duration_since(*at) < HEARD_MAX,
            None => now.duration_since(self.started) < HEARD_MAX && !was_silent(),
        }
    }

    /// Whether a closely watched node has missed too many questions.
    pub fn missed(&self, node: &str, now: Instant) -> bool {
        let (Some(last), Some(since)) = (self.last.get(node), self.close.get(node)) else { return false };
        let quiet = now.duration_since((*last).max(self.awake));
        // A question of before it was watched waits as long as usual.
        let usual = if last < since { DOCUMENT_WAIT_MAX } else { Duration::ZERO };
        quiet >= (self.beat() * MISSED_MAX + usual).min(HEARD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that is turned by hand, and nodes that are watched closely.
    struct Watch {
        heard: Heard,
        now: Instant,
        close: BTreeSet<String>,
    }

    impl Watch {
        fn of(close: &[&str]) -> Watch {
            let now = Instant::now();
            Watch { heard: Heard::new(now), now, close: close.iter().map(|n| n.to_string()).collect() }
        }

        /// Time passes with the loop's ticks, while these nodes ask.
        fn pass(&mut self, ms: u64, asking: &[&str]) {
            for _ in 0..ms / 100 {
                self.now += Duration::from_millis(100);
                self.heard.tick(&self.close, self.now);
                asking.iter().for_each(|node| self.heard.hear(node, self.now));
            }
        }

        fn missed(&self, node: &str) -> bool {
            self.heard.missed(node, self.now)
        }

        fn alive(&self, node: &str) -> bool {
            self.heard.alive(node, self.now, || false)
        }
    }

    #[test]
    fn a_closely_watched_node_is_missed_after_seconds_and_down_much_later() {
        let mut watch = Watch::of(&["owner"]);
        watch.pass(10_000, &["owner", "other"]);
        watch.pass(3_900, &["other"]);
        assert!(!watch.missed("owner"));
        watch.pass(200, &["other"]);
        assert!(watch.missed("owner") && watch.alive("owner"));
        assert!(!watch.missed("other"), "nobody watches it closely");
        watch.pass(100, &["owner"]);
        assert!(!watch.missed("owner"), "it is back");
        watch.pass(HEARD_MAX.as_millis() as u64, &[]);
        assert!(!watch.alive("owner"));
    }

    #[test]
    fn a_process_that_starts_anew_is_not_missed() {
        let mut watch = Watch::of(&["owner"]);
        for _ in 0..20 {
            watch.pass(1_000, &["owner"]);
            watch.pass(2_900, &[]);
            assert!(!watch.missed("owner"));
        }
    }

    #[test]
    fn a_plane_that_stood_still_or_starts_counts_from_then() {
        let mut watch = Watch::of(&["owner"]);
        watch.pass(1_000, &["owner"]);
        watch.now += Duration::from_secs(60);
        watch.pass(3_000, &[]);
        assert!(!watch.missed("owner"));
        watch.pass(1_500, &[]);
        assert!(watch.missed("owner"));
        let mut anew = Watch::of(&["owner"]);
        anew.pass(20_000, &[]);
        assert!(!anew.missed("owner"), "nobody has asked this plane yet: each has the long limit");
    }

    #[test]
    fn a_question_of_before_waits_as_usual() {
        let mut watch = Watch::of(&[]);
        watch.pass(1_000, &["owner"]);
        watch.close = ["owner".to_string()].into();
        watch.pass(9_000, &[]);
        assert!(!watch.missed("owner"), "its question still waits");
        watch.pass(5_000, &[]);
        assert!(watch.missed("owner"));
        assert_eq!(watch.heard.wait("owner", DOCUMENT_WAIT_MAX), BEAT);
        assert_eq!(watch.heard.wait("other", DOCUMENT_WAIT_MAX), DOCUMENT_WAIT_MAX);
    }

    #[test]
    fn many_are_asked_less_often() {
        let names: Vec<String> = (0..=2 * BEATS_MAX).map(|n| format!("n{n}")).collect();
        let watch = {
            let mut watch = Watch::of(&names.iter().map(String::as_str).collect::<Vec<_>>());
            watch.pass(100, &["n0"]);
            watch.pass(6_000, &[]);
            watch
        };
        assert_eq!(watch.heard.wait("n0", DOCUMENT_WAIT_MAX), 3 * BEAT);
        assert!(!watch.missed("n0"));
    }
}
