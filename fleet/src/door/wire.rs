//! What a door and its keeper, two processes, tell each other: one line of JSON each, over a pair of sockets.
//!
//! ```text
//! started --routes--> ready --serve--> serving --drain--> draining --nothing runs any more, or the limit--> ended
//! any --the keeper is gone--> ended
//! ```
//!
//! The keeper's own `Door` has the routes that the process follows, and sums up what that counts and samples; several
//! processes may be there at once while one follows another. Either side may be of another version: a line that is not
//! understood is passed over. Lines hold tokens of clients, and are nobody else's to read.

use super::figures::Taken;
use super::{Door, Drain, Routes, Sampled, Upstream, sample};
use base::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;

/// Figures and reads are told so often, when there are any.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// An active plane answers a door that begins within this, or the door says that none did.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// What any plane answers to anyone.
const PROBE: &str = "/";

/// What a keeper wants of a door process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Orders {
    /// To accept clients.
    pub serve: bool,
    /// To accept none any more, and to end.
    pub drain: Option<Drain>,
}

/// What a door process says when it could serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    pub version: String,
    /// A plane answered it; none where no plane is active.
    pub answered: Option<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ToDoor {
    Routes(Routing),
    Serve,
    Drain(Drain),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromDoor {
    Ready(Ready),
    Figures(Taken),
    Reads(Vec<sample::Told>),
}

#[derive(Serialize, Deserialize)]
struct Routing {
    active: Option<Seat>,
    readers: Vec<Seat>,
    held: bool,
}

#[derive(Serialize, Deserialize)]
struct Seat {
    name: String,
    socket: PathBuf,
    number: u64,
}

impl Routing {
    fn of(routes: &Routes) -> Routing {
        let seat = |upstream: &Upstream| Seat {
            name: upstream.name.to_string(),
            socket: upstream.socket.to_path_buf(),
            number: upstream.number,
        };
        let (active, readers) = (routes.active.as_ref().map(seat), routes.readers.iter().map(seat).collect());
        Routing { active, readers, held: routes.held }
    }

    /// The same with connections, those that are `known` with theirs.
    fn routes(&self, known: &mut BTreeMap<u64, Upstream>) -> Routes {
        let seats = || self.active.iter().chain(&self.readers);
        known.retain(|number, _| seats().any(|seat| seat.number == *number));
        let mut upstream = |seat: &Seat| {
            let new = || Upstream::numbered(&seat.name, &seat.socket, seat.number);
            known.entry(seat.number).or_insert_with(new).clone()
        };
        let active = self.active.as_ref().map(&mut upstream);
        Routes { active, readers: self.readers.iter().map(upstream).collect(), held: self.held }
    }
}

impl Door {
    /// The keeper's side of one door process: until that is gone.
    pub async fn lead(
        &self,
        door: UnixStream,
        mut orders: watch::Receiver<Orders>,
        ready: watch::Sender<Option<Ready>>,
    ) {
        let (read, mut write) = door.into_split();
        let mut lines = BufReader::new(read).lines();
        let heard = async {
            while let Ok(Some(line)) = lines.next_line().await {
                match parse(&line) {
                    Some(FromDoor::Ready(word)) => drop(ready.send_replace(Some(word))),
                    Some(FromDoor::Figures(taken)) => self.figures().add(taken),
                    Some(FromDoor::Reads(reads)) => self.inner.sample.add(reads),
                    None => {}
                }
            }
        };
        let told = async {
            let (mut routes, mut now) = (self.routes(), Orders::default());
            loop {
                let routing = Routing::of(&routes.borrow_and_update());
                tell(&mut write, &ToDoor::Routes(routing)).await?;
                let wanted = *orders.borrow_and_update();
                if wanted.serve && !now.serve {
                    tell(&mut write, &ToDoor::Serve).await?;
                }
                if let Some(drain) = wanted.drain.filter(|_| wanted.drain != now.drain) {
                    tell(&mut write, &ToDoor::Drain(drain)).await?;
                }
                now = wanted;
                let changed = tokio::select! { c = routes.changed() => c, c = orders.changed() => c };
                if changed.is_err() {
                    return Ok::<_, Error>(());
                }
            }
        };
        tokio::select! {
            () = heard => {}
            // Then it is gone, and what it said is still to be heard.
            _ = async { let _ = told.await; std::future::pending::<()>().await } => {}
        }
    }

    /// The process's side: follows the routes, and runs `serving` once it is told to; that ends when `drain` has a way.
    ///
    /// Errors: `Unavailable` when the keeper is gone.
    pub async fn follow(
        &self,
        keeper: UnixStream,
        drain: watch::Sender<Option<Drain>>,
        serving: impl Future<Output = ()>,
    ) -> Result<()> {
        let (read, mut write) = keeper.into_split();
        let mut lines = BufReader::new(read).lines();
        let (serve, mut wanted) = watch::channel(false);
        let (end, mut ended) = watch::channel(false);
        let mut known = BTreeMap::new();
        let gone = || Error::unavailable("the keeper of the door is gone");
        let first = loop {
            let line = lines.next_line().await?.ok_or_else(gone)?;
            if let Some(ToDoor::Routes(routing)) = parse(&line) {
                break routing.routes(&mut known);
            }
        };
        let active = first.active.clone();
        self.route(|routes| *routes = first);
        let heard = async {
            while let Some(line) = lines.next_line().await? {
                match parse(&line) {
                    Some(ToDoor::Routes(routing)) => {
                        let next = routing.routes(&mut known);
                        self.route(|routes| *routes = next);
                    }
                    Some(ToDoor::Serve) => drop(serve.send_replace(true)),
                    Some(ToDoor::Drain(how)) => {
                        drain.send_replace(Some(how));
                        // One that never served has nothing to finish.
                        serve.send_replace(true);
                    }
                    None => {}
                }
            }
            Err(gone())
        };
        let told = async {
            let answered = match &active {
                Some(active) => Some(answers(active).await),
                None => None,
            };
            let version = env!("CARGO_PKG_VERSION").to_string();
            tell(&mut write, &FromDoor::Ready(Ready { version, answered })).await?;
            loop {
                let last = *ended.borrow_and_update();
                self.tell_all(&mut write).await?;
                if last {
                    return Ok(());
                }
                let _ = tokio::time::timeout(TELL_EVERY, ended.wait_for(|ended| *ended)).await;
            }
        };
        let served = async {
            let _ = wanted.wait_for(|serve| *serve).await;
            serving.await;
            end.send_replace(true);
        };
        tokio::select! {
            outcome = heard => outcome,
            (outcome, ()) = async { tokio::join!(told, served) } => outcome,
        }
    }

    async fn tell_all(&self, keeper: &mut OwnedWriteHalf) -> Result<()> {
        let (taken, reads) = (self.figures().take(), self.inner.sample.take());
        if taken != Taken::default() {
            tell(keeper, &FromDoor::Figures(taken)).await?;
        }
        if !reads.is_empty() {
            tell(keeper, &FromDoor::Reads(reads)).await?;
        }
        Ok(())
    }
}

async fn answers(active: &Upstream) -> bool {
    let answer = active.mirror(&Sampled::open(PROBE), PROBE_MAX).await;
    answer.is_ok_and(|answer| !answer.status.is_server_error())
}

async fn tell(to: &mut OwnedWriteHalf, what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(what).map_err(|e| Error::internal("cannot encode").because(e))?;
    line.push(b'\n');
    to.write_all(&line).await.map_err(|e| Error::unavailable("the other side is gone").because(e))
}

/// What another version says that this one does not know is passed over.
fn parse<T: DeserializeOwned>(line: &str) -> Option<T> {
    let parsed = serde_json::from_str(line);
    let warn = |e| tracing::warn!("a word between door and keeper is not understood: {}", place(&e));
    parsed.map_err(warn).ok()
}

/// What is wrong with a line, and where, without a word of it: it may hold tokens.
fn place(error: &serde_json::Error) -> String {
    let category = format!("{:?}", error.classify()).to_lowercase();
    format!("{category} at line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_not_quoted() {
        let check = |line: &str, quotes: bool, expect: &str| {
            let error = serde_json::from_str::<FromDoor>(line).err().unwrap();
            assert_eq!(error.to_string().contains("secret"), quotes, "{error}");
            assert_eq!(place(&error), expect);
        };
        check(r#"{"secret": 1}"#, true, "data at line 1 column 9");
        check(r#"{"reads": "secret"}"#, true, "data at line 1 column 18");
        check(r#"{"secret"#, false, "eof at line 1 column 8");
    }
}
