//! A client of QEMU's machine protocol, as far as we use it: one connection, one command at a time, events.
//!
//! Limits: a line of `LINE_MAX` bytes, an answer within `ANSWER_MAX`, `EVENTS_MAX` unread events (older ones are lost:
//! whoever waits for one also looks at the state). Deliberately absent: out-of-band commands.
//!
//! Source: QEMU Machine Protocol Specification.

use base::{Error, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};

const LINE_MAX: u64 = 4 << 20;
const ANSWER_MAX: Duration = Duration::from_secs(10);
const EVENTS_MAX: usize = 64;

/// An event's name and data.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

type Waiting = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Result<Value>>>>>;

pub struct Qmp {
    write: tokio::sync::Mutex<(OwnedWriteHalf, u64)>,
    waiting: Waiting,
    events: broadcast::Sender<Event>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects to `directory/name`, whatever the length of the directory's path, and greets.
    pub async fn connect(directory: &Path, name: &str) -> Result<Qmp> {
        let fail = |e: std::io::Error| Error::unavailable("cannot connect to the guest's monitor").because(e);
        // The path of a socket has at most 107 bytes: go by the directory's descriptor.
        let directory: OwnedFd = std::fs::File::open(directory).map_err(fail)?.into();
        let path = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let stream = UnixStream::connect(path).await.map_err(fail)?;
        limited(Qmp::greet(stream)).await
    }

    async fn greet(stream: UnixStream) -> Result<Qmp> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = line(&mut read).await?;
        if greeting.get("QMP").is_none() {
            return Err(Error::internal("the guest's monitor does not greet"));
        }
        let waiting = Waiting::default();
        let events = broadcast::channel(EVENTS_MAX).0;
        let reader = tokio::spawn(receive(read, waiting.clone(), events.clone()));
        let qmp = Qmp { write: tokio::sync::Mutex::new((write, 0)), waiting, events, reader };
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// False: QEMU is gone, or has closed the connection.
    pub fn open(&self) -> bool {
        !self.reader.is_finished()
    }

    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Runs a command; its `return` is the answer.
    ///
    /// Errors: `Conflict` when QEMU refuses it, `Unavailable` when QEMU is gone or does not answer.
    pub async fn run(&self, command: &str, arguments: Value) -> Result<Value> {
        limited(self.send(command, arguments, None)).await
    }

    /// Hands a descriptor over under a name.
    pub async fn give(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        limited(self.send("getfd", json!({ "fdname": name }), Some(descriptor))).await.map(|_| ())
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value> {
        let (sender, answer) = oneshot::channel();
        let mut write = self.write.lock().await;
        write.1 += 1;
        let id = write.1;
        self.waiting().insert(id, sender);
        let text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        let sent = transmit(&write.0, text.as_bytes(), descriptor).await;
        drop(write);
        if !self.open() {
            self.waiting().clear();
        }
        sent.map_err(|e| Error::unavailable("the guest's monitor is gone").because(e))?;
        let gone = |e| Error::unavailable("the guest's monitor is gone").because(e);
        let result = answer.await.map_err(gone)?;
        result.map_err(|e| Error::new(e.kind(), format!("{command}: {}", e.message())))
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Result<Value>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn limited<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |e| Error::unavailable("the guest's monitor does not answer").because(e);
    tokio::time::timeout(ANSWER_MAX, answer).await.unwrap_or_else(|e| Err(late(e)))
}

async fn line(read: &mut BufReader<OwnedReadHalf>) -> Result<Value> {
    let mut line = Vec::new();
    (&mut *read).take(LINE_MAX).read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line).map_err(|e| Error::unavailable("the guest's monitor is gone").because(e))
}

/// Takes answers and events apart until the connection ends; then whoever waits learns that it did.
async fn receive(mut read: BufReader<OwnedReadHalf>, waiting: Waiting, events: broadcast::Sender<Event>) {
    while let Ok(mut message) = line(&mut read).await {
        if let Some(name) = message["event"].as_str() {
            // Nobody listening is no error.
            let _ = events.send(Event { name: name.into(), data: message["data"].take() });
            continue;
        }
        let id = message["id"].as_u64().unwrap_or_default();
        let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(sender) = sender {
            let _ = sender.send(answer(message));
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn answer(mut message: Value) -> Result<Value> {
    match message.get("error") {
        Some(error) => Err(Error::conflict(error["desc"].as_str().unwrap_or("refused"))),
        None => Ok(message["return"].take()),
    }
}

/// Writes all of `bytes`; the descriptor goes with the first of them.
async fn transmit(
    write: &OwnedWriteHalf,
    mut bytes: &[u8],
    mut descriptor: Option<BorrowedFd<'_>>,
) -> std::io::Result<()> {
    let stream: &UnixStream = write.as_ref();
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || send_once(stream.as_fd(), bytes, descriptor)) {
            Ok(n) => {
                bytes = &bytes[n..];
                descriptor = None;
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn send_once(socket: BorrowedFd, bytes: &[u8], descriptor: Option<BorrowedFd>) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|d| [d]);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Kind;
    use std::process::{Command, Stdio};

    struct Qemu(std::process::Child);

    impl Drop for Qemu {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// None: there is no QEMU here.
    async fn qemu(directory: &Path) -> Option<(Qemu, Qmp)> {
        let child = Command::new("qemu-system-x86_64")
            .args(["-machine", "none", "-S", "-nodefaults", "-display", "none"])
            .args(["-qmp", "unix:qmp,server=on,wait=off"])
            .current_dir(directory)
            .stdin(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            println!("skipped: this machine has no qemu-system-x86_64");
            return None;
        };
        let child = Qemu(child);
        for _ in 0..200 {
            if let Ok(qmp) = Qmp::connect(directory, "qmp").await {
                return Some((child, qmp));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("QEMU did not open its monitor");
    }

    #[tokio::test]
    async fn commands_events_refusals_descriptors_and_the_end() {
        let directory = tempfile::tempdir().unwrap();
        // Longer than the path of a socket may be.
        let long = directory.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let Some((_child, qmp)) = qemu(&long).await else { return };
        assert_eq!(qmp.run("query-status", json!({})).await.unwrap()["running"], false);
        let refused = qmp.run("no-such-command", json!({})).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict);
        assert!(refused.message().starts_with("no-such-command: "));
        let file = std::fs::File::open("/dev/null").unwrap();
        qmp.give("null", file.as_fd()).await.unwrap();
        qmp.run("closefd", json!({ "fdname": "null" })).await.unwrap();
        let both = tokio::join!(qmp.run("query-name", json!({})), qmp.run("query-kvm", json!({})));
        assert!(both.0.is_ok() && both.1.unwrap()["enabled"] == false);
        let mut events = qmp.events();
        qmp.run("quit", json!({})).await.unwrap();
        assert_eq!(events.recv().await.unwrap().name, "SHUTDOWN");
        while qmp.open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(qmp.run("query-name", json!({})).await.unwrap_err().kind(), Kind::Unavailable);
    }
}
