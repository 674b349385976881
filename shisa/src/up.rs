//! `shisa up`: from the state directory to a cloud in the foreground, and back.
//!
//! What can be known to fail is asked first, before anything is written. A stop drains the API, then ends guests and
//! network; the records stay, so the next start begins the servers again. A crash leaves guests running, and the next
//! start adopts them.

use crate::cli::{Machine, Up};
use crate::cloud::{self, Cloud, Wishes};
use crate::clouds::Clouds;
use crate::progress::{Progress, say};
use crate::range::{self, Claim};
use crate::state::{Directory, Ids};
use crate::{demo, down, first, image, logging, machine};
use base::{Error, Result};
use identity::user::password::hash_now;
use node::Ending;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use store::Cell;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub async fn run(directory: &Directory, args: &Up, begin: Instant) -> Result<()> {
    let progress = Progress::since(begin);
    let stop = stop_signals()?;
    let machine = machine::choose(args.machine, directory.ids()?.map(|ids| ids.machine))?;
    if machine == Machine::Qemu && args.nodes > 1 {
        return Err(Error::invalid("one machine is one node: --nodes is for --machine simulated"));
    }
    let wishes = Wishes {
        nodes: args.nodes,
        uplink: args.uplink.clone(),
        address: args.address.or(args.node_listen.map(|at| at.ip()).filter(|ip| !ip.is_unspecified())),
        policy: args.policy.as_deref().map(policy).transpose()?.unwrap_or_default(),
        public_url: args.public_url.clone(),
    };
    args.image.as_deref().map(image::check).transpose()?;
    let _held = directory.hold()?;
    let listener = listen(args.listen, "--listen").await?;
    let nodes = nodes_listener(args).await?;
    let address = format!("http://{}", reached_at(listener.local_addr()?));
    logging::start(directory)?;
    let ids = directory.make_ids(machine)?;
    let (cell, _claim) = open(directory, &ids, &address, args.public_url.as_deref(), &progress).await?;
    let cloud = Cloud::new(cell.clone(), directory, &ids, wishes, nodes).await?;
    directory.note_running(&address)?;
    let outcome =
        serve(&cloud, listener, stop, after(&cloud, directory, args, &address, &ids, &progress)).await;
    cell.close();
    if outcome.is_ok() {
        progress.step("stop", "the API has answered what was asked; ending servers and network");
        down::end(directory, &(&ids).into(), Ending::Ask(down::ASK_MAX)).await?;
        progress.step("stop", "stopped; the next start finds everything");
    }
    directory.note_stopped();
    outcome
}

/// Runs everything until a stop or until a node fails.
async fn serve(
    cloud: &Cloud,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
    after: impl Future<Output = ()>,
) -> Result<()> {
    let loops = cloud.loops();
    let (ending, mut ended) = watch::channel(false);
    let (mut stopped, working) = (stop.clone(), ended.clone());
    let stopping = async move { drop(ended.wait_for(|end| *end).await) };
    let life = async {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => Ok(()),
            outcome = cloud.work(working) => outcome,
            () = async { after.await; std::future::pending().await } => Ok(()),
        }
    };
    let life = async {
        let outcome = life.await;
        ending.send_replace(true);
        outcome
    };
    let (outcome, ()) = tokio::join!(life, cloud.serve(listener, stopping));
    drop(loops);
    outcome
}

/// What a start does once the API answers: waits for its nodes, uploads an image, makes the demo.
async fn after(
    cloud: &Cloud,
    directory: &Directory,
    args: &Up,
    address: &str,
    ids: &Ids,
    progress: &Progress,
) {
    progress.step("api", address);
    if let Some(authority) = cloud.nodes_reach() {
        progress.step("listen", format_args!("for nodes at https://{authority}"));
    }
    let nodes = async {
        cloud.nodes_greeted().await;
        if args.nodes > 0 {
            progress.step("nodes", format!("{} of machine {:?}", args.nodes, ids.machine).to_lowercase());
        }
    };
    let outcome = match args.demo {
        true => demo::make(directory, address, args.image.as_deref(), progress, nodes).await,
        false => {
            let upload = async {
                match &args.image {
                    Some(file) => image::upload_as_admin(directory, address, file, progress).await,
                    None => Ok(()),
                }
            };
            tokio::join!(upload, nodes).0
        }
    };
    match outcome {
        Ok(()) => progress.step("up", "Ctrl-C stops it"),
        Err(error) => {
            eprintln!("shisa: {}", error.chain());
            progress.step("up", "without what failed; Ctrl-C stops it");
        }
    }
    if !args.demo {
        say(format_args!("            clients: {}", directory.clouds().display()));
    }
}

/// The records, with the first start done.
async fn open(
    directory: &Directory,
    ids: &Ids,
    address: &str,
    public_url: Option<&str>,
    progress: &Progress,
) -> Result<(Cell, Vec<Claim>)> {
    let cell = cloud::open(directory)?;
    let mut clouds = Clouds::open(directory.clouds())?;
    let auth_url = format!("{}/identity/v3", public_url.unwrap_or(address).trim_end_matches('/'));
    if first::done(&cell.read()) {
        clouds.lead_to(&auth_url)?;
        let claims = claims(&cell, ids)?;
        progress.step("store", format_args!("at revision {}", cell.read().revision()));
        return Ok((cell, claims));
    }
    let password = clouds.make("admin", &auth_url)?.auth.password;
    clouds.lead_to(&auth_url)?;
    let cost = identity::Settings::default().bcrypt_cost;
    let hash = tokio::task::spawn_blocking(move || hash_now(&password, cost)).await;
    let hash = hash.map_err(|e| Error::internal("a password hash was cut off").because(e))??;
    let (range, claim) = range::choose(ids.cloud)?;
    first::start(&cell, hash, range).await?;
    progress.step("store", format_args!("first start; floating addresses are in {range}"));
    Ok((cell, vec![claim]))
}

/// A simulated network is in nobody's way.
fn claims(cell: &Cell, ids: &Ids) -> Result<Vec<Claim>> {
    match ids.machine {
        Machine::Qemu => first::ranges(&cell.read()).into_iter().map(range::claim).collect(),
        Machine::Simulated => Ok(Vec::new()),
    }
}

async fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => Error::conflict(format!(
            "{address} is in use by another program; {flag} names another address, port 0 takes a free one"
        )),
        _ => Error::unavailable(format!("cannot listen on {address}")).because(e),
    })
}

/// The second listener, and what nodes are told to reach it by.
async fn nodes_listener(args: &Up) -> Result<Option<(TcpListener, String)>> {
    let Some(address) = args.node_listen else { return Ok(None) };
    let listener = listen(address, "--node-listen").await?;
    let authority = match &args.node_url {
        Some(url) => base::join::authority(url)?,
        None => outside(listener.local_addr()?).to_string(),
    };
    Ok(Some((listener, authority)))
}

/// A listener's address for others: where it has all of this machine's, the one that leads outside.
fn outside(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        // Connecting a datagram socket sends nothing.
        let (any, far) =
            if address.is_ipv4() { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
        let socket =
            std::net::UdpSocket::bind(any).and_then(|s| s.connect(far).and_then(|()| s.local_addr()));
        address.set_ip(socket.map_or_else(|_| reached_at(address).ip(), |at| at.ip()));
    }
    address
}

/// Where this machine reaches a listener.
fn reached_at(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

/// An oslo.policy file: names to rules.
fn policy(path: &Path) -> Result<BTreeMap<String, String>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::invalid(format!("the policy file {shown} cannot be read")).because(e))?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(BTreeMap::new());
    }
    serde_norway::from_str(&text).map_err(|e| {
        Error::invalid(format!("the policy file {shown} does not map names to rules")).because(e)
    })
}

/// One wish to stop may come as several signals: from the terminal, and from whoever started us.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// Becomes true with Ctrl-C or SIGTERM; a later second one ends the process at once.
pub fn stop_signals() -> Result<watch::Receiver<bool>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            stop.send_replace(true);
            if first.get_or_insert_with(Instant::now).elapsed() > SAME_SIGNAL {
                eprintln!("shisa: ended at once; `shisa down` ends what is left");
                std::process::exit(130);
            }
        }
    });
    Ok(stopped)
}
