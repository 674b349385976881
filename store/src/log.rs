//! The log: what changed, when, and by whose request.

use crate::record::{Derived, Image, Record, Schema};
use base::context::Who;
use base::{Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The number of a transaction; one more than the one before it.
pub type Revision = u64;

/// Why a transaction ran: the request, report or loop step itself, so that another version can try it again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cause {
    /// The request id, or the name of the loop.
    pub id: String,
    /// User and project ids of a request; the node's name of a step that takes what a node said; else empty.
    pub who: String,
    /// The client's, as the front door saw it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Method and path as they came, or the step.
    pub route: String,
    /// The microversion that was negotiated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The id that the front door gave the request: what it asks for a second time is answered from the log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mutation: String,
    /// The body, sealed with the cell's key: it may hold passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<base::Secret>,
    /// What else another version needs to try the request again; none of a step, and of releases before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Arc<Asked>>,
}

/// A request as it came to the router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The whole path with its query, as the client wrote it.
    #[serde(default)]
    pub uri: String,
    /// Whom its token named, and what for.
    #[serde(default)]
    pub holder: Who,
    /// Headers that its changes may depend on, sealed: one is a token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, base::Secret>,
    /// Its body was a stream, which is not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streamed: bool,
}

impl Cause {
    /// The cause of a step that a loop or the first start takes.
    pub fn step(name: &str) -> Cause {
        Cause { id: name.into(), route: name.into(), ..Cause::default() }
    }

    /// It is a step of ours, and not a request of a client.
    pub fn is_step(&self) -> bool {
        self.id == self.route
    }
}

/// One record before and after a transaction.
#[derive(Clone)]
pub struct Change {
    pub(crate) slot: usize,
    pub kind: &'static str,
    pub key: Box<str>,
    pub(crate) before: Option<Image>,
    pub(crate) after: Option<Image>,
    /// What a newer version wrote beside the fields of `after` that this one knows.
    pub(crate) unknown: Option<Arc<Value>>,
}

impl Change {
    /// Whether both leave the same record behind.
    pub(crate) fn same(&self, other: &Change, schema: &Schema) -> bool {
        let same = match (&self.after, &other.after) {
            (None, None) => true,
            (Some(a), Some(b)) => (schema.kinds[self.slot].same)(&**a, &**b),
            (Some(_), None) | (None, Some(_)) => false,
        };
        (self.slot, &self.key) == (other.slot, &other.key) && same
    }

    /// Lets derived state follow.
    pub(crate) fn forth(&self, derived: &mut [Box<dyn Derived>]) {
        self.tell(derived, &self.before, &self.after);
    }

    /// Takes back what derived state followed.
    pub(crate) fn back(&self, derived: &mut [Box<dyn Derived>]) {
        self.tell(derived, &self.after, &self.before);
    }

    fn tell(&self, derived: &mut [Box<dyn Derived>], from: &Option<Image>, to: &Option<Image>) {
        fn plain(image: &Option<Image>) -> Option<&dyn Any> {
            image.as_deref().map(|i| i as &dyn Any)
        }
        derived.iter_mut().for_each(|d| d.changed(self.kind, plain(from), plain(to)));
    }

    /// The record before and after, if it is an `R`.
    pub fn of<R: Record>(&self) -> Option<(Option<&R>, Option<&R>)> {
        (self.kind == R::KIND).then(|| {
            (
                self.before.as_deref().and_then(|i| i.downcast_ref()),
                self.after.as_deref().and_then(|i| i.downcast_ref()),
            )
        })
    }
}

/// One transaction, as watchers see it.
pub struct Entry {
    pub revision: Revision,
    pub epoch: u64,
    pub time: Timestamp,
    pub seed: u128,
    pub cause: Cause,
    pub changes: Vec<Change>,
}

/// An entry as it stands in the engine, read again.
#[derive(Deserialize)]
pub struct Written {
    pub time: i64,
    /// 32 hexadecimal digits.
    pub seed: String,
    pub cause: Cause,
    /// Kind, key and after-image; no image where the record was deleted.
    pub changes: Vec<(String, String, Option<Box<RawValue>>)>,
}

impl Written {
    /// Errors: `Internal` when the entry cannot be read.
    pub fn read(body: &[u8]) -> Result<Written> {
        serde_json::from_slice(body).map_err(|e| Error::internal("a log entry cannot be read").because(e))
    }
}

/// The JSON of an entry, and where in it each change's after-image stands.
pub struct Encoded {
    pub body: Vec<u8>,
    images: Vec<Option<Range<usize>>>,
}

impl Encoded {
    /// The after-images, in the order of the entry's changes.
    pub fn images(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.images.iter().map(|range| range.clone().map(|range| &self.body[range]))
    }
}

/// Writes the JSON of an entry (`Written`), change by change.
pub(crate) struct Encoder {
    body: Vec<u8>,
    images: Vec<Option<Range<usize>>>,
}

impl Encoder {
    pub fn begin(time: Timestamp, seed: u128, cause: &Cause) -> Result<Encoder> {
        let mut body = format!("{{\"time\":{},\"seed\":\"{seed:032x}\",\"cause\":", time.0).into_bytes();
        json(&mut body, cause)?;
        body.extend_from_slice(b",\"changes\":[");
        Ok(Encoder { body, images: Vec::new() })
    }

    /// `image` appends the after-image; none is a deletion.
    pub fn push(
        &mut self,
        kind: &str,
        key: &str,
        image: Option<impl FnOnce(&mut Vec<u8>) -> Result<()>>,
    ) -> Result<()> {
        let body = &mut self.body;
        body.extend_from_slice(if self.images.is_empty() { b"[" } else { b",[" });
        json(body, kind)?;
        body.push(b',');
        json(body, key)?;
        body.push(b',');
        let from = body.len();
        self.images.push(match image {
            Some(write) => {
                write(body)?;
                Some(from..body.len())
            }
            None => {
                body.extend_from_slice(b"null");
                None
            }
        });
        body.push(b']');
        Ok(())
    }

    pub fn end(mut self) -> Encoded {
        self.body.extend_from_slice(b"]}");
        Encoded { body: self.body, images: self.images }
    }
}

impl Entry {
    /// The entry's JSON (`Written`), with the unknown fields that a newer version wrote.
    pub(crate) fn encode(&self, schema: &Schema) -> Result<Encoded> {
        let mut encoder = Encoder::begin(self.time, self.seed, &self.cause)?;
        for change in &self.changes {
            let render = change.after.as_ref().map(|image| {
                |body: &mut Vec<u8>| {
                    schema.kinds[change.slot].render(&**image, change.unknown.as_deref(), body)
                }
            });
            encoder.push(change.kind, &change.key, render)?;
        }
        Ok(encoder.end())
    }
}

fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<()> {
    serde_json::to_writer(out, value).map_err(|e| Error::internal("a log entry cannot be written").because(e))
}
