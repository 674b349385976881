//! `shisa nodes`: the nodes of this machine, as the process that `shisa up` starts.
//!
//! It is told over its stdin where the active plane is, says over its stdout how far it has come, and ends with its
//! keeper at once, as a crash would: guests and network go on, and the next one adopts them.

use super::{Nodes, Said, Told, Wishes};
use crate::cli::NodesRun;
use crate::plane::broken;
use crate::progress::say;
use crate::state::Directory;
use crate::{files, logging};
use base::program::Runs;
use base::{Error, Result};
use node::Process;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The process before ends with its keeper; one that does not in this time is killed,
const LEASH_MAX: Duration = Duration::from_secs(2);
/// and has this long to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub async fn run(directory: &Directory, words: &NodesRun) -> Result<()> {
    let told = follow_keeper();
    let _held = hold(directory).await?;
    logging::start(&directory.local().join("log"))?;
    files::raise();
    let ids = directory.need_ids()?;
    let state = std::fs::canonicalize(directory.path())?;
    let wishes = Wishes { nodes: words.nodes, uplink: words.uplink.clone(), address: words.address };
    let nodes = Nodes::new(&ids, &state, &wishes, move || told.borrow().clone());
    let program = node::program::own(env!("CARGO_PKG_VERSION"))?;
    nodes.say(&Runs { program, ..Runs::default() });
    // Its end is the process's, by the keeper.
    let (_stop, stopped) = watch::channel(false);
    let work = async {
        broken::nodes().await;
        nodes.work(stopped).await
    };
    tokio::select! {
        outcome = work => outcome,
        () = tell(&nodes) => Ok(()),
    }
}

async fn tell(nodes: &Nodes) {
    let mut said = Said { version: env!("CARGO_PKG_VERSION").into(), ..Said::default() };
    let line = |said: &Said| say(serde_json::to_string(said).expect("words are JSON"));
    line(&said);
    nodes.met(|met| met.greeted).await;
    said.greeted = true;
    line(&said);
    nodes.met(node::Met::all).await;
    said.reported = true;
    line(&said);
    std::future::pending().await
}

/// What the keeper says, as it says it. This process ends with it, whatever else hangs.
fn follow_keeper() -> watch::Receiver<Option<PathBuf>> {
    let (plane, told) = watch::channel(None);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(std::io::Result::ok) {
            // Either side may be of another version.
            if let Ok(Told { plane: at }) = serde_json::from_str(&line) {
                plane.send_replace(at);
            }
        }
        std::process::exit(0);
    });
    told
}

/// Takes the machine: nobody else has its nodes for as long as the file is open.
async fn hold(directory: &Directory) -> Result<File> {
    std::fs::create_dir_all(directory.local())?;
    let mut file = free(directory).await?;
    let own = serde_json::to_string(&Process::of(std::process::id() as i32));
    let own = own.map_err(|e| Error::internal("cannot encode").because(e))?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(own.as_bytes())?;
    Ok(file)
}

/// Waits until no process has the nodes of this machine; one that outlives its keeper is ended.
pub async fn ended(directory: &Directory) -> Result<()> {
    if !directory.local().exists() {
        return Ok(());
    }
    free(directory).await.map(drop)
}

/// The lock, once nobody has it.
async fn free(directory: &Directory) -> Result<File> {
    let path = directory.local().join("lock");
    let mut file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    let (begin, mut killed) = (Instant::now(), false);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(Error::internal("the lock of the nodes cannot be taken").because(e)),
        }
        if begin.elapsed() > LEASH_MAX && !killed {
            killed = true;
            let mut text = String::new();
            file.rewind()?;
            file.read_to_string(&mut text)?;
            if let Ok(process) = serde_json::from_str::<Process>(&text) {
                process.kill()?;
            }
        }
        if begin.elapsed() > LEASH_MAX + GONE_MAX {
            return Err(Error::unavailable("another process has the nodes of this machine and does not end"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
