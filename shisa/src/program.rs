//! The program of `shisa node`: which one a start is, and how the process becomes another one that its plane orders
//! (`node::program` has the rules).
//!
//! A trial is watched by a thread of its own: whatever hangs, the process is the program of before again in time.

use crate::progress::say;
use crate::state::Directory;
use base::program::Order;
use base::{Error, Result};
use node::program::{Begin, PROVE_MAX, Programs};
use node::remote::Remote;
use node::{Met, Node};
use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How often children of the program before are waited for.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// `shisa node program`: what this build is, for whoever tries it.
pub fn run() -> Result<()> {
    let own = node::program::own(VERSION)?;
    say(serde_json::to_string(&own).map_err(|e| Error::internal("cannot encode").because(e))?);
    Ok(())
}

/// Whether the node's directory decides which program a start is.
pub fn is_decided(directory: &Directory) -> bool {
    Programs::are_kept(directory.path())
}

/// The program of this process. Clones are handles to the same.
#[derive(Clone)]
pub struct Own {
    programs: Arc<Mutex<Programs>>,
    directory: PathBuf,
}

impl Own {
    /// Becomes the proven program, if this one is not it; begins a trial. Only for who holds the directory.
    pub fn begin(directory: &Directory) -> Result<Own> {
        let (programs, begin) = Programs::open(directory.path(), node::program::own(VERSION)?)?;
        let own = Own { programs: Arc::new(Mutex::new(programs)), directory: directory.path().into() };
        match begin {
            Begin::Run => {}
            Begin::Trial(_) => own.watch(),
            Begin::Become(file) => return Err(own.become_it(&file)),
        }
        reap(children());
        Ok(own)
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        // A panic elsewhere leaves the file and what is known of it in step.
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces this process's program; returns only when that fails.
    ///
    /// What an operator said once is kept in the directory, so nothing of it is said again.
    pub fn become_it(&self, file: &Path) -> Error {
        let name = std::env::args_os().next().unwrap_or_else(|| "shisa".into());
        let mut command = Command::new(file);
        let failed = command.arg0(name).arg("--state").arg(&self.directory).arg("node").exec();
        Error::unavailable(format!("this process cannot become {}", file.display())).because(failed)
    }

    fn watch(&self) {
        let own = self.clone();
        std::thread::spawn(move || {
            std::thread::sleep(PROVE_MAX);
            own.back(&format!("it had not greeted its plane and reported after {} s", PROVE_MAX.as_secs()));
        });
    }

    /// A trial that failed: becomes the program before. Returns when there is none, or that fails, too.
    pub fn back(&self, why: &str) {
        // Nobody proves it meanwhile.
        let mut programs = self.programs();
        match programs.unproven(why) {
            Ok(Some(file)) => eprintln!("shisa: {}", self.become_it(&file).chain()),
            Ok(None) => {}
            Err(error) => eprintln!("shisa: {}", error.chain()),
        }
    }

    /// An operator ended it.
    pub fn stopped(&self) {
        if let Err(error) = self.programs().stopped() {
            tracing::warn!("{}", error.chain());
        }
    }

    /// Says what runs, proves it, and carries orders out; the file that this process is to become for one.
    pub async fn follow(&self, node: &Node, plane: &Remote) -> PathBuf {
        node.says(self.programs().runs());
        // The sender is the node's, so it does not end before us.
        let _ = node.met().wait_for(|met: &Met| met.all()).await;
        if let Err(error) = self.programs().proven() {
            tracing::error!("the program is not known to be proven: {}", error.chain());
        }
        let mut orders = node.orders();
        loop {
            let runs = self.programs().runs();
            let last = runs.order;
            node.says(runs);
            let new =
                orders.wait_for(|order| order.as_ref().is_some_and(|order| Some(order.at) > last)).await;
            let Some(order) = new.ok().and_then(|order| order.clone()) else {
                return std::future::pending().await;
            };
            tracing::info!("this node is to run {}", order.program.shown());
            match self.carry(&order, plane).await {
                Ok(Some(file)) => return file,
                Ok(None) => {}
                Err(error) => {
                    tracing::error!("it stays what it is: {}", error.chain());
                    if let Err(error) = self.programs().given_up(&order, &error.chain()) {
                        tracing::error!("{}", error.chain());
                    }
                }
            }
        }
    }

    /// None: this process is it already.
    async fn carry(&self, order: &Order, plane: &Remote) -> Result<Option<PathBuf>> {
        if self.programs().is(order)? {
            return Ok(None);
        }
        let fetch = self.programs().fetch(order);
        let file = fetch.carry(plane).await?;
        self.programs().try_out(order)?;
        Ok(Some(file))
    }
}

/// The children that the program before had: nobody else waits for their end.
fn children() -> Vec<Pid> {
    let parent = |stat: &str| stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok();
    let own = getpid().as_raw_nonzero().get();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| parent(&stat) == Some(own))
    });
    ours.filter_map(Pid::from_raw).collect()
}

fn reap(mut children: Vec<Pid>) {
    if children.is_empty() {
        return;
    }
    std::thread::spawn(move || {
        while !children.is_empty() {
            children.retain(|child| matches!(waitpid(Some(*child), WaitOptions::NOHANG), Ok(None)));
            std::thread::sleep(REAP_EVERY);
        }
    });
}
