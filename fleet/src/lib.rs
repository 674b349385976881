//! The nodes of a cell: which there are, what each is told (`document`), and what each says (`report`).
//!
//! Services render the sections of their own records; this crate collects them. A report is a transaction that hands
//! what was seen to the services; one that changes nothing writes nothing. Last-heard is memory of the owner.
//!
//! Limits: `HEARD_MAX` without a word and a node counts as down.
//!
//! Deliberately absent so far: joining over the network with certificates, fencing, planes.

pub mod document;
pub mod node;

pub use document::{Source, Touched};
pub use node::{Node, NodeId};

use base::node::{Generation, Hello, Patch, Report};
use base::{Error, Result};
use document::Documents;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::{Cause, Cell, Schema, Tx};

/// A node that was not heard for this long counts as down. A waiting node asks again every 30 s.
pub const HEARD_MAX: Duration = Duration::from_secs(60);

/// What takes a report to its service.
pub type Sink = fn(&mut Tx, node: &str, report: &Report) -> Result<()>;

/// The kinds of records of this crate.
pub fn records(schema: Schema) -> Schema {
    schema.record::<Node>()
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
    heard: Mutex<HashMap<String, Instant>>,
    started: Instant,
}

impl Fleet {
    /// `sources` render sections; `sinks` take reports.
    pub fn new(cell: Cell, sources: Vec<Source>, sinks: Vec<Sink>) -> Fleet {
        let documents = Documents::new(cell.clone(), sources);
        let inner = Inner { cell, documents, sinks, heard: Mutex::default(), started: Instant::now() };
        Fleet { inner: Arc::new(inner) }
    }

    /// Keeps the documents up with the log, for ever.
    pub async fn follow(&self) {
        self.inner.documents.follow().await;
    }

    /// A node says what it is; its record is made or brought up to date.
    pub async fn hello(&self, hello: Hello) -> Result<()> {
        self.heard(&hello.name);
        self.inner.cell.write(Cause::step("hello"), move |tx| node::join(tx, &hello)).await
    }

    /// What changed for a node since `after`; waits at most `wait` for something to change.
    pub async fn document(&self, node: &str, after: Generation, wait: Duration) -> Result<Patch> {
        self.heard(node);
        let patch = self.inner.documents.after(node, after, wait).await;
        self.heard(node);
        Ok(patch)
    }

    /// What a node saw.
    ///
    /// Errors: `Conflict` when the node is not known: it says hello and reports everything.
    pub async fn report(&self, node: &str, report: Report) -> Result<()> {
        self.heard(node);
        let (name, inner) = (node.to_string(), self.inner.clone());
        let (sinks, report) = (inner.sinks.clone(), Arc::new(report));
        let write = self.inner.cell.write(Cause::step("report"), move |tx| {
            tx.one(&node::BY_NAME, name.as_str())
                .ok_or_else(|| Error::conflict(format!("The node {name} is not known.")))?;
            sinks.iter().try_for_each(|sink| sink(tx, &name, &report))
        });
        write.await
    }

    fn heard(&self, node: &str) {
        self.inner.heard.lock().expect("no holder panics").insert(node.into(), Instant::now());
    }

    /// Whether a node was heard lately. After a start every node counts as heard then.
    pub fn alive(&self, node: &str) -> bool {
        let heard = self.inner.heard.lock().expect("no holder panics").get(node).copied();
        heard.unwrap_or(self.inner.started).elapsed() < HEARD_MAX
    }

    pub fn cell(&self) -> &Cell {
        &self.inner.cell
    }
}
