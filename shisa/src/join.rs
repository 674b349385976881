//! `shisa node`: this machine as one node of a cloud whose plane is elsewhere.
//!
//! It joins once, by a token; what it was told then is in the state directory, and later starts need nothing. Without
//! its plane it goes on with the document that it has. A stop ends guests and network as `shisa up` does, a crash
//! leaves them, and the next start adopts them; so does another program that the plane orders (`program`).

use crate::cli::{Machine, Run};
use crate::down::{self, Kept};
use crate::plane::broken;
use crate::program::{self, Own};
use crate::progress::Progress;
use crate::state::{Directory, FORMAT, Held, Membership, host_name};
use crate::{logging, machine, up};
use base::join::{Token, authority};
use base::{Error, Result};
use node::remote::{self, Credentials, Remote};
use node::{Ending, MachineKind, Node, Settings, Simulated};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::sync::watch;

/// How a node's process ends that nothing failed in.
enum Ended {
    Stopped,
    /// It is to be the program of this file.
    Become(Own, PathBuf),
}

pub async fn run(directory: &Directory, args: &Run, begin: Instant) -> Result<()> {
    // Which program this process is comes first: one that is being tried goes back whatever fails.
    let early = match program::is_decided(directory) {
        true => {
            let held = directory.hold()?;
            Some((held, Own::begin(directory)?))
        }
        false => None,
    };
    let own = early.as_ref().map(|(_, own)| Trial(own.clone()));
    match (live(directory, args, begin, early).await, own) {
        (Ok(Ended::Stopped), own) => {
            own.iter().for_each(|own| own.0.stopped());
            Ok(())
        }
        (Ok(Ended::Become(own, file)), _) => Err(own.become_it(&file)),
        (Err(error), own) => {
            own.iter().for_each(|own| own.0.back(&error.chain()));
            Err(error)
        }
    }
}

/// A panic is a failure, too.
struct Trial(Own);

impl Drop for Trial {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.back("it panicked");
        }
    }
}

async fn live(
    directory: &Directory,
    args: &Run,
    begin: Instant,
    early: Option<(Held, Own)>,
) -> Result<Ended> {
    let progress = Progress::since(begin);
    let stop = up::stop_signals()?;
    if directory.ids()?.is_some() {
        let shown = directory.path().display();
        return Err(Error::conflict(format!("{shown} has a whole cloud; a node has a --state of its own")));
    }
    let had = directory.membership()?;
    let token = args.token.as_deref().map(|file| read_token(file, args.join.as_deref())).transpose()?;
    if had.is_none() && token.is_none() {
        let why =
            "this machine is no node yet: --token FILE has what `shisa node token` printed on the plane";
        return Err(Error::invalid(why));
    }
    let machine = machine::choose(args.machine, had.as_ref().map(|had| had.machine))?;
    let (_held, own) = match early {
        Some(early) => early,
        None => (directory.hold()?, Own::begin(directory)?),
    };
    logging::start(&directory.log())?;
    let mut credentials = Credentials::open(directory.path())?;
    let used = |token: &Token| had.as_ref().is_some_and(|had| had.token == fleet::join::hash(&token.secret));
    let membership = match (token.filter(|token| !used(token)), had) {
        (Some(token), had) => {
            let member = join(directory, &token, had, args, machine, &mut credentials).await?;
            progress.step("joined", format_args!("https://{} as {}", member.plane, member.name));
            member
        }
        (None, Some(had)) => had,
        (None, None) => return Err(Error::invalid("this machine is no node yet")),
    };
    let membership = said_again(membership, args)?;
    directory.note_membership(&membership)?;
    let node = Node::new(settings(directory, &membership, &credentials)?);
    let plane = Remote::new(&membership.plane, credentials);
    directory.note_running(&format!("https://{}", membership.plane))?;
    progress.step("up", format_args!("{} of https://{}; Ctrl-C stops it", membership.name, membership.plane));
    let outcome = work(&node, &plane, &own, directory.path(), stop).await;
    if matches!(outcome, Ok(Ended::Stopped)) {
        progress.step("stop", "ending servers and network");
        let kept = Kept::from(membership);
        down::end(directory, &kept, Ending::Ask(down::ASK_MAX)).await?;
        progress.step("stop", "stopped; the next start finds everything");
    }
    // Another program is the same process.
    if !matches!(outcome, Ok(Ended::Become(..))) {
        directory.note_stopped();
    }
    outcome
}

async fn work(
    node: &Node,
    plane: &Remote,
    own: &Own,
    state: &Path,
    mut stop: watch::Receiver<bool>,
) -> Result<Ended> {
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    let working = async {
        broken::nodes().await;
        node.run(plane.link(), stopped).await
    };
    tokio::select! {
        outcome = working => outcome.map(|()| Ended::Stopped),
        () = plane.keep(node, state) => Ok(Ended::Stopped),
        file = own.follow(node, plane) => Ok(Ended::Become(own.clone(), file)),
    }
}

/// Errors: `Invalid` when the file has no token.
fn read_token(file: &Path, url: Option<&str>) -> Result<Token> {
    let cannot = |e| Error::invalid(format!("the token file {} cannot be read", file.display())).because(e);
    let mut token: Token = std::fs::read_to_string(file).map_err(cannot)?.parse()?;
    if let Some(url) = url {
        token.authority = authority(url)?;
    }
    Ok(token)
}

/// Joins, for the first time or again with the same key.
async fn join(
    directory: &Directory,
    token: &Token,
    had: Option<Membership>,
    args: &Run,
    machine: Machine,
    credentials: &mut Credentials,
) -> Result<Membership> {
    let name = had.as_ref().map(|had| had.name.clone()).or(args.name.clone()).unwrap_or_else(host_name);
    let arrival = remote::join(token, &name, credentials, directory.path()).await?;
    let new = || Membership {
        format: FORMAT,
        cloud: 0,
        plane: String::new(),
        token: String::new(),
        name,
        machine,
        fabric: machine == Machine::Qemu,
        address: arrival.from,
        uplink: None,
        physical: Default::default(),
    };
    let membership = Membership {
        cloud: arrival.joined.cloud,
        plane: token.authority.clone(),
        token: fleet::join::hash(&token.secret),
        ..had.unwrap_or_else(new)
    };
    directory.note_membership(&membership)?;
    Ok(membership)
}

/// Errors: `Conflict` for another name: the cloud knows the node by it.
fn said_again(mut membership: Membership, args: &Run) -> Result<Membership> {
    if let Some(name) = args.name.as_ref().filter(|name| **name != membership.name) {
        let old = &membership.name;
        return Err(Error::conflict(format!("this node's name is {old} and cannot become {name}")));
    }
    if let Some(url) = &args.join {
        membership.plane = authority(url)?;
    }
    membership.address = args.address.unwrap_or(membership.address);
    membership.fabric |= args.fabric;
    membership.uplink = args.uplink.clone().or(membership.uplink);
    if !args.physical.is_empty() {
        membership.physical = args.physical.iter().cloned().collect();
    }
    Ok(membership)
}

fn settings(directory: &Directory, membership: &Membership, credentials: &Credentials) -> Result<Settings> {
    let state = std::fs::canonicalize(directory.path())?;
    Ok(Settings {
        name: membership.name.clone(),
        id: credentials.id,
        state: state.join("nodes").join(&membership.name),
        machine: match membership.machine {
            Machine::Qemu => MachineKind::Qemu,
            Machine::Simulated => MachineKind::Simulated(Simulated::default()),
        },
        cloud: membership.cloud,
        uplink: membership.uplink.clone(),
        physical: membership.physical.clone(),
        address: membership.address,
        fabric: membership.has_network(),
        guest_uids: machine::guest_uids(membership.cloud, &state),
        responder: std::env::current_exe().ok(),
    })
}
