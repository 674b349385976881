//! The nodes of a cell: which there are, what each is told (`document`), and what each says (`report`).
//!
//! Services render the sections of their own records; this crate collects them. A report is a transaction that hands
//! what was seen to the services; one that changes nothing writes nothing. Last-heard is memory of the owner.
//!
//! A node is in the plane's process, or on another machine: then it joins by a token (`join`), is known by a
//! certificate of the cell's own `authority`, and asks over HTTPS (`listener`, `plane`).
//!
//! Limits: `HEARD_MAX` without a word and a node counts as down; for those that others need at once see `heard`.
//!
//! What program a node runs is ordered, too (`order`). Several planes stand over one cell: the `door` carries clients to the one that is active.
//!
//! Deliberately absent so far: fencing.

pub mod authority;
pub mod cost;
pub mod document;
pub mod door;
mod following;
mod heard;
pub mod join;
mod listener;
pub mod node;
mod order;
pub mod plane;
mod question;
mod rest;
mod silent;

pub use document::{Source, Touched};
pub use node::{Node, NodeId};
pub use order::{Far, ORDERS_MAX};
pub use rest::{App, service};
pub use silent::SilentNodesClosed;

use base::join::{Answer, Ask, Question};
use base::node::{Document, Hello, Known, Patch, Report, SectionKey};
use base::{Error, Result, Secret};
use document::Documents;
use heard::Heard;
use question::Questions;
use serde::Serialize;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};
use store::{Cause, Cell, Role, Schema, State, Tx};
use uuid::Uuid;

/// A node that was not heard for this long counts as down. A waiting node asks again after `DOCUMENT_WAIT_MAX`.
pub const HEARD_MAX: Duration = Duration::from_secs(25);

/// What a node said is kept in the log up to this size: it counts as part of the transaction. What is larger is not tried
/// again by another version.
const SAID_BYTES_MAX: usize = 64 << 10;

/// Nodes that joined since are looked for this often.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// What takes a report to its service.
pub type Sink = fn(&mut Tx, node: &str, report: &Report) -> Result<()>;

/// The kinds of records of this crate.
pub fn records(schema: Schema) -> Schema {
    schema
        .record::<Node>()
        .record::<authority::Authority>()
        .record::<join::JoinToken>()
        .record::<join::Member>()
}

/// The nodes of a cell, as its owner sees them. Clones are handles to the same.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    cell: Cell,
    documents: Documents,
    sinks: Vec<Sink>,
    questions: Questions,
    heard: Mutex<Heard>,
}

impl Fleet {
    /// `sources` render sections; `sinks` take reports.
    pub fn new(cell: Cell, sources: Vec<Source>, sinks: Vec<Sink>) -> Fleet {
        let documents = Documents::new(cell.clone(), sources);
        let (questions, heard) = (Questions::default(), Mutex::new(Heard::new(Instant::now())));
        let inner = Inner { cell, documents, sinks, questions, heard };
        Fleet { inner: Arc::new(inner) }
    }

    /// Keeps the documents of all nodes up with the log, until it ends.
    pub async fn follow(&self) {
        tokio::select! {
            () = self.inner.documents.follow() => {}
            () = self.keep_documents() => {}
            () = self.end_answers() => {}
        }
    }

    /// Answers that go on break off when this process owns the cell no longer.
    async fn end_answers(&self) {
        let mut role = self.inner.cell.role();
        while role.changed().await.is_ok() {
            self.inner.documents.wake_all();
        }
        std::future::pending().await
    }

    /// A node may come from another plane at any time, and is told what changed only where its document is there.
    async fn keep_documents(&self) {
        loop {
            let state = self.inner.cell.read();
            for node in state.all::<Node>() {
                if self.inner.documents.keep(&node.hello.name) {
                    // Others need this thread, too.
                    tokio::task::yield_now().await;
                }
            }
            drop(state);
            // Looked up anew: one that came meanwhile stays.
            self.inner.documents.forget(|name| node::named(&self.inner.cell.read(), name).is_none());
            tokio::time::sleep(KEEP_EVERY).await;
        }
    }

    /// A node says what it is; its record is made or brought up to date.
    pub async fn hello(&self, hello: Hello) -> Result<()> {
        self.heard(&hello.name);
        self.join(hello).await
    }

    async fn join(&self, hello: Hello) -> Result<()> {
        let cause = step("hello", &hello.name, &hello);
        self.inner.cell.write(cause, move |tx| node::join(tx, &hello)).await
    }

    /// What a node said, as the log keeps it, once more: within a trial, where nothing counts.
    ///
    /// Errors: `Invalid` with the reason when it cannot be said again.
    pub async fn again(&self, cause: &Cause) -> Result<()> {
        let said = cause.body.as_ref().map(Secret::expose).unwrap_or_default();
        let bad =
            |e| Error::invalid(format!("what the node said in its {} is not kept", cause.route)).because(e);
        let outcome = match cause.route.as_str() {
            "hello" => self.join(serde_json::from_str(said).map_err(bad)?).await,
            "report" => self.reported(&cause.who, serde_json::from_str(said).map_err(bad)?).await.map(drop),
            other => return Err(Error::invalid(format!("nobody knows how to take the step {other} again"))),
        };
        // It is compared, not told.
        drop(outcome);
        Ok(())
    }

    /// What a node is told at a state: to look at it. The node itself asks by `document`.
    pub fn document_at(&self, state: &State, node: &str) -> Document {
        self.inner.documents.at(state, node)
    }

    /// What changed for a node since what it knows, and what it is ordered; waits at most `wait` for something to change.
    ///
    /// Errors: `Unavailable` when another process owns the cell.
    pub async fn document(&self, node: &str, known: impl Into<Known>, wait: Duration) -> Result<Patch> {
        let wait = self.asked(node, wait);
        let Role::Owner(epoch) = *self.inner.cell.role().borrow() else {
            return Err(Error::unavailable("Another plane owns the cell."));
        };
        let known = known.into();
        let documents = &self.inner.documents;
        let ordered = poll_fn(|cx| {
            // An order that comes between the look and the ear is heard.
            documents.listen(cx, node);
            match self.order_for(node, known.order) {
                Some(_) => Poll::Ready(()),
                None => Poll::Pending,
            }
        });
        let patch = tokio::select! {
            biased;
            () = ordered => documents.after(node, known, epoch, Duration::ZERO).await,
            patch = documents.after(node, known, epoch, wait) => patch,
        };
        Ok(Patch { order: self.order_for(node, known.order), ..patch })
    }

    /// What a node saw.
    ///
    /// Errors: `Conflict` when the node is not known: it says hello and reports everything.
    pub async fn report(&self, node: &str, report: Report) -> Result<()> {
        self.heard(node);
        if self.reported(node, report).await? {
            self.say_slow(node);
        }
        Ok(())
    }

    /// Whether its kernel is found to be slow.
    async fn reported(&self, node: &str, report: Report) -> Result<bool> {
        let (name, inner) = (node.to_string(), self.inner.clone());
        let cause = step("report", node, &report);
        let (sinks, report) = (inner.sinks.clone(), Arc::new(report));
        let write = self.inner.cell.write(cause, move |tx| {
            let known = tx.one(&node::BY_NAME, name.as_str()).map(|node| node.id);
            let id = known.ok_or_else(|| Error::conflict(format!("The node {name} is not known.")))?;
            sinks.iter().try_for_each(|sink| sink(tx, &name, &report))?;
            report.costs.map_or(Ok(false), |costs| node::measured(tx, &id, costs))
        });
        write.await
    }

    /// Says what a node is slow at.
    fn say_slow(&self, node: &str) {
        let slow = cost::slow(&self.inner.cell.read()).remove(node);
        slow.into_iter().flatten().for_each(|slow| tracing::warn!("node {node}: {slow}"));
    }

    /// Whether a section is in a node's document.
    pub(crate) fn needs(&self, node: &str, key: &SectionKey) -> bool {
        self.inner.documents.needs(&self.inner.cell.read(), node, key)
    }

    /// What a guest on a node on another machine wrote to its console.
    ///
    /// Errors: `NotFound` when the guest is not there; `Unavailable` when the node does not answer.
    pub async fn console(&self, node: &str, vm: Uuid, lines: Option<usize>) -> Result<String> {
        if !self.alive(node) {
            return Err(Error::unavailable(format!("The node {node} is down.")));
        }
        self.inner.questions.ask(node, Ask::Console { vm, lines }).await
    }

    /// What a node is asked, when it is, or nothing after `wait`.
    pub(crate) async fn questions(&self, node: &str, wait: Duration) -> Vec<Question> {
        let wait = self.asked(node, wait);
        self.inner.questions.of(node, wait).await
    }

    pub(crate) fn answered(&self, node: &str, answer: Answer) {
        self.inner.questions.answer(node, answer);
    }

    /// This process owns the cell now: nodes that were heard by another count as heard now.
    pub fn took_over(&self) {
        *self.memory() = Heard::new(Instant::now());
    }

    fn memory(&self) -> MutexGuard<'_, Heard> {
        self.inner.heard.lock().expect("no holder panics")
    }

    fn heard(&self, node: &str) {
        self.memory().hear(node, Instant::now());
    }

    /// A node asks; returns how long it may wait for the answer.
    fn asked(&self, node: &str, wait: Duration) -> Duration {
        let mut heard = self.memory();
        heard.hear(node, Instant::now());
        heard.wait(node, wait)
    }

    /// Whether a node was heard lately. After a start every node counts as heard then that was not silent before.
    pub fn alive(&self, name: &str) -> bool {
        let was_silent = || node::named(&self.inner.cell.read(), name).is_some_and(|n| n.silent);
        self.memory().alive(name, Instant::now(), was_silent)
    }

    /// Watches these nodes closely, and no others; those of them that are lost. To be asked every second: a longer
    /// silence of the asker is taken for the plane's own.
    pub fn lost_of(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        let now = Instant::now();
        let mut heard = self.memory();
        heard.tick(names, now);
        let missed = names.iter().filter(|name| heard.missed(name, now)).cloned();
        let mut lost: BTreeSet<String> = missed.collect();
        drop(heard);
        lost.extend(names.iter().filter(|name| !self.alive(name)).cloned());
        lost
    }

    pub fn cell(&self) -> &Cell {
        &self.inner.cell
    }
}

/// Why a node's word is written, with the word where that is short.
fn step(name: &str, node: &str, said: &impl Serialize) -> Cause {
    let body = serde_json::to_string(said).ok().filter(|said| said.len() <= SAID_BYTES_MAX).map(Secret::new);
    Cause { who: node.into(), body, ..Cause::step(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_said_is_kept_where_it_is_short() {
        let check = |letters: usize, kept: bool| {
            let cause = step("report", "node-1", &"x".repeat(letters));
            assert_eq!((cause.body.is_some(), cause.who.as_str()), (kept, "node-1"), "{letters}");
            assert!(cause.is_step());
        };
        // Its JSON has quotes.
        check(SAID_BYTES_MAX - 2, true);
        check(SAID_BYTES_MAX - 1, false);
        check(store::TX_BYTES_MAX, false);
    }
}
