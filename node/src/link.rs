//! How a node talks with its plane: four questions, asked in the process or over HTTPS.
//!
//! A struct of closures and no trait: whoever wires a node says in place what each question does, and a node is one
//! type whatever its plane is.

use base::Result;
use base::node::{Hello, Known, Patch, Report};
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use uuid::Uuid;

/// What a plane tells one after the other, each from where the one before ended. The node asks again at the end; an
/// answer without any is none.
pub type Patches = Pin<Box<dyn Stream<Item = Result<Patch>> + Send>>;

/// The bytes of an image, from its first to its last.
pub type ImageBytes = Pin<Box<dyn AsyncRead + Send>>;

pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;
type Ask<A, T> = Arc<dyn Fn(A) -> Answer<T> + Send + Sync>;

/// The four questions. Any error but those named is tried again, later and later, while the node works on.
#[derive(Clone)]
pub struct Link {
    hello: Ask<Hello, ()>,
    document: Ask<(Known, Duration), Patches>,
    report: Ask<Report, ()>,
    image: Ask<Uuid, ImageBytes>,
}

fn ask<A, T: 'static, F: Future<Output = Result<T>> + Send + 'static>(
    question: impl Fn(A) -> F + Send + Sync + 'static,
) -> Ask<A, T> {
    Arc::new(move |argument| Box::pin(question(argument)))
}

impl Link {
    /// `document` goes on for at most the given time, with what is newer than what is known. `report` may answer
    /// `Conflict`: the plane wants everything again. `image` answers `NotFound` where there is none.
    pub fn new<H, D, R, I>(
        hello: impl Fn(Hello) -> H + Send + Sync + 'static,
        document: impl Fn(Known, Duration) -> D + Send + Sync + 'static,
        report: impl Fn(Report) -> R + Send + Sync + 'static,
        image: impl Fn(Uuid) -> I + Send + Sync + 'static,
    ) -> Link
    where
        H: Future<Output = Result<()>> + Send + 'static,
        D: Future<Output = Result<Patches>> + Send + 'static,
        R: Future<Output = Result<()>> + Send + 'static,
        I: Future<Output = Result<ImageBytes>> + Send + 'static,
    {
        Link {
            hello: ask(hello),
            document: ask(move |(after, wait)| document(after, wait)),
            report: ask(report),
            image: ask(image),
        }
    }

    pub fn hello(&self, hello: Hello) -> Answer<()> {
        (self.hello)(hello)
    }

    pub fn document(&self, known: impl Into<Known>, wait: Duration) -> Answer<Patches> {
        (self.document)((known.into(), wait))
    }

    pub fn report(&self, report: Report) -> Answer<()> {
        (self.report)(report)
    }

    pub fn image(&self, id: Uuid) -> Answer<ImageBytes> {
        (self.image)(id)
    }
}
