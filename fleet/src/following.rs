//! The answer to a node that follows: one patch after another, each from where the one before ended.
//!
//! A line of JSON is a patch, and there is at least one. The answer is in order when its time is over: the node asks
//! again, and is heard by that. It breaks off when this process owns the cell no longer, and the node looks for another plane.
//! Where a node is removed it ends, so that the next question is refused.
//!
//! Limits: an answer goes on for as long as a question may wait, less up to a quarter: nodes that came at once do not
//! stay together.

use crate::document::line;
use crate::{Fleet, Role};
use base::node::{Generation, Known, Patch};
use base::{Error, Result};
use bytes::Bytes;
use futures_util::Stream;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

pub(crate) struct Following {
    fleet: Fleet,
    node: String,
    known: Known,
    /// That the cell is owned under.
    epoch: u64,
    role: watch::Receiver<Role>,
    until: Pin<Box<Sleep>>,
    lines: Lines,
}

/// How far the answer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// None was told.
    None,
    Some,
    /// There are no more.
    Ended,
}

impl Fleet {
    /// What changes for a node from what it knows on, one line after another.
    ///
    /// Errors: `Unavailable` when another process owns the cell.
    pub(crate) async fn follows(&self, node: &str, known: Known, wait: Duration) -> Result<Following> {
        let wait = spread(node, self.asked(node, wait));
        let role = self.inner.cell.role();
        let Role::Owner(epoch) = *role.borrow() else {
            return Err(Error::unavailable("Another plane owns the cell."));
        };
        let until = Instant::now() + wait;
        self.inner.documents.followed_to(known, epoch, until).await;
        let until = Box::pin(tokio::time::sleep_until(until));
        Ok(Following {
            fleet: self.clone(),
            node: node.into(),
            known,
            epoch,
            role,
            until,
            lines: Lines::None,
        })
    }
}

/// The same for a node each time, another for each.
fn spread(node: &str, wait: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    wait - wait / 4 * (hasher.finish() % 256) as u32 / 256
}

impl Following {
    fn hand(&mut self, generation: Generation, line: Bytes) -> Poll<Option<io::Result<Bytes>>> {
        self.lines = Lines::Some;
        self.known = Known { generation, sum: None, ..self.known };
        Poll::Ready(Some(Ok(line)))
    }

    /// One with nothing new in it.
    fn empty(&self) -> Patch {
        Patch { generation: self.known.generation, ..Patch::default() }
    }

    fn go_on(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let documents = &self.fleet.inner.documents;
        if self.lines == Lines::Ended {
            return Poll::Ready(None);
        }
        // Also where something comes all the time: a node that does not ask is not heard.
        let over = self.until.deadline() <= Instant::now();
        if self.lines == Lines::Some && (over || !documents.has(&self.node)) {
            self.lines = Lines::Ended;
            return Poll::Ready(None);
        }
        let told = documents.poll_line(cx, &self.node, self.known, self.epoch);
        // From here on it is polled again when this changes.
        if *self.role.borrow() != Role::Owner(self.epoch) {
            self.lines = Lines::Ended;
            return Poll::Ready(Some(Err(io::Error::other("another plane owns the cell"))));
        }
        if let Poll::Ready((generation, line)) = told {
            return self.hand(generation, line);
        }
        if let Some(order) = self.fleet.order_for(&self.node, self.known.order) {
            let (at, patch) = (order.at, Patch { order: Some(order), ..self.empty() });
            self.known.order = Some(at);
            return self.hand(patch.generation, line(&patch));
        }
        ready!(self.until.as_mut().poll(cx));
        if self.lines == Lines::None {
            return self.hand(self.known.generation, line(&self.empty()));
        }
        self.lines = Lines::Ended;
        Poll::Ready(None)
    }
}

impl Stream for Following {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.get_mut().go_on(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Node, Source, Touched, node};
    use base::node::{Document, Group, Hello, Patched, Section, SectionKey};
    use base::program::Program;
    use futures_util::StreamExt;
    use std::net::IpAddr;
    use std::path::Path;
    use store::engine::sqlite::Sqlite;
    use store::{Cause, Cell, Entry, Options, Schema, State};
    use uuid::Uuid;

    const KEY: SectionKey = SectionKey::Rules(0);
    const LONG: Duration = Duration::from_secs(9);

    /// What every node holds that has said hello: an address for each that there is.
    fn count(state: &State) -> Section {
        let members = state.all::<Node>().enumerate().map(|(n, _)| IpAddr::from([10, 0, 0, n as u8]));
        Section::Group(Group { id: Uuid::nil(), members: members.collect() })
    }

    fn touched(_: &State, entry: &Entry) -> Touched {
        let mut touched = Touched::default();
        for (before, after) in entry.changes.iter().filter_map(|change| change.of::<Node>()) {
            let nodes = before.into_iter().chain(after);
            touched.hosts.extend(nodes.map(|node| node.hello.name.clone()));
            touched.key(KEY);
        }
        touched
    }

    /// A plane over the store in a folder, as its process is.
    fn plane(dir: &Path, name: &str) -> Fleet {
        let engine = Sqlite::open(&dir.join("state.db")).unwrap();
        let cipher = store::cipher::CellKey::cipher([7; 32]);
        let schema = crate::records(Schema::default());
        let options = Options { owner: name.into(), ..Options::default() };
        let cell = Cell::follow(Box::new(engine), schema, cipher, options).unwrap();
        let source = Source {
            keys: |state, name| node::named(state, name).map(|_| KEY).into_iter().collect(),
            section: |state, _, key| (*key == KEY).then(|| count(state)),
            touched,
        };
        let fleet = Fleet::new(cell, vec![source], Vec::new());
        let follows = fleet.clone();
        tokio::spawn(async move { follows.follow().await });
        fleet
    }

    async fn owner(dir: &Path, name: &str) -> Fleet {
        let fleet = plane(dir, name);
        owns(&fleet).await;
        fleet
    }

    async fn owns(fleet: &Fleet) {
        fleet.cell().stand_by(true);
        fleet.cell().role().wait_for(|role| matches!(role, Role::Owner(_))).await.unwrap();
    }

    async fn hello(fleet: &Fleet, n: u8) {
        let hello = Hello::of(&format!("n{n}"), Uuid::from_u128(n.into()), [192, 0, 2, n].into());
        fleet.hello(hello).await.unwrap();
    }

    /// The next line, within a time in which something must come.
    async fn next(following: &mut Following) -> Option<io::Result<Patch>> {
        let line = tokio::time::timeout(2 * LONG, following.next()).await.unwrap()?;
        Some(line.map(|line| serde_json::from_slice(line.strip_suffix(b"\n").unwrap()).unwrap()))
    }

    /// Takes patches until the node has what there is.
    async fn caught_up(fleet: &Fleet, following: &mut Following, document: &mut Document) {
        while document.sections.get(&KEY) != Some(&count(&fleet.cell().read())) {
            let patch = next(following).await.unwrap().unwrap();
            assert_eq!(document.patch(patch), Patched::Taken);
        }
    }

    #[tokio::test]
    async fn patches_come_one_after_another_in_one_answer() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = owner(dir.path(), "blue").await;
        let mut document = Document::default();
        let mut following = fleet.follows("n1", Known::default(), LONG).await.unwrap();
        for n in 1..6 {
            hello(&fleet, n).await;
            caught_up(&fleet, &mut following, &mut document).await;
        }
    }

    #[tokio::test]
    async fn an_answer_has_a_line_and_ends_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = owner(dir.path(), "blue").await;
        hello(&fleet, 1).await;
        let mut document = Document::default();
        let mut following = fleet.follows("n1", Known::default(), LONG).await.unwrap();
        caught_up(&fleet, &mut following, &mut document).await;
        let mut following =
            fleet.follows("n1", document.generation.into(), Duration::from_millis(20)).await.unwrap();
        let empty = Patch { generation: document.generation, ..Patch::default() };
        assert_eq!(next(&mut following).await.unwrap().unwrap(), empty);
        assert!(next(&mut following).await.is_none() && next(&mut following).await.is_none());
    }

    #[tokio::test]
    async fn an_order_is_told_in_an_answer_that_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = owner(dir.path(), "blue").await;
        hello(&fleet, 1).await;
        let known = Known { order: Some(base::Timestamp(0)), ..Known::default() };
        let mut following = fleet.follows("n1", known, LONG).await.unwrap();
        assert!(next(&mut following).await.unwrap().unwrap().whole);
        let give = |tx: &mut store::Tx| {
            let id = node::named(tx, "n1").expect("it said hello").id;
            let order = base::program::Order { at: base::Timestamp(5), program: Program::default() };
            tx.update::<Node>(&id, |node| node.order = Some(order.clone()))?;
            Ok(())
        };
        let (told, ()) = tokio::join!(next(&mut following), async {
            fleet.cell().write(Cause::step("test"), give).await.unwrap();
            fleet.inner.documents.wake("n1");
        });
        let mut told = told.unwrap().unwrap();
        while told.order.is_none() {
            told = next(&mut following).await.unwrap().unwrap();
        }
        assert_eq!(told.order.unwrap().at, base::Timestamp(5));
    }

    #[tokio::test]
    async fn a_removed_node_is_told_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = owner(dir.path(), "blue").await;
        hello(&fleet, 1).await;
        let mut following = fleet.follows("n1", Known::default(), LONG).await.unwrap();
        next(&mut following).await.unwrap().unwrap();
        let remove = |tx: &mut store::Tx| {
            let id = node::named(tx, "n1").expect("it said hello").id;
            node::remove(tx, &id)
        };
        let begin = Instant::now();
        fleet.cell().write(Cause::step("test"), remove).await.unwrap();
        while let Some(line) = next(&mut following).await {
            line.unwrap();
        }
        // Long before its time is over.
        assert!(begin.elapsed() < LONG / 2, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn an_answer_breaks_off_with_the_ownership_and_the_next_plane_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut planes = [owner(dir.path(), "blue").await, plane(dir.path(), "green")];
        hello(&planes[0], 1).await;
        let mut document = Document::default();
        let mut whole = 0;
        for n in 2..6 {
            let known = Known { sum: Some(document.sum()), ..document.generation.into() };
            let mut following = planes[0].follows("n1", known, LONG).await.unwrap();
            hello(&planes[0], n).await;
            while document.sections.get(&KEY) != Some(&count(&planes[0].cell().read())) {
                let patch = next(&mut following).await.unwrap().unwrap();
                whole += usize::from(patch.whole);
                assert_eq!(document.patch(patch), Patched::Taken);
            }
            // What comes last may be told by this plane or by the next.
            hello(&planes[0], n + 10).await;
            planes[0].cell().stand_by(false);
            planes[0].cell().release().await.unwrap();
            let broken = loop {
                match next(&mut following).await.unwrap() {
                    Ok(patch) => assert_eq!(document.patch(patch), Patched::Taken),
                    Err(error) => break error,
                }
            };
            assert!(broken.to_string().contains("another plane"), "{broken}");
            assert!(next(&mut following).await.is_none());
            assert!(planes[0].follows("n1", Generation::default().into(), LONG).await.is_err());
            planes.swap(0, 1);
            owns(&planes[0]).await;
        }
        // Each plane at most once: the second may not have known of the node before.
        assert!((1..=2).contains(&whole), "{whole}");
    }

    #[test]
    fn answers_of_nodes_that_came_at_once_end_at_different_times() {
        let lengths: Vec<Duration> = (0..1_000).map(|n| spread(&format!("n{n}"), 4 * LONG)).collect();
        assert!(lengths.iter().all(|length| (3 * LONG..=4 * LONG).contains(length)));
        let early = lengths.iter().filter(|length| **length < LONG * 7 / 2).count();
        assert!((400..600).contains(&early), "{early}");
    }
}
