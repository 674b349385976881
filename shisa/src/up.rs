//! `shisa up`: from the state directory to a cloud in the foreground, and back.
//!
//! This process is the keeper of the planes (`planes`), of the front door (`doors`) and of its machine's nodes (`nodes`),
//! which are processes of their own. What can be known to fail is asked first, before anything is written. A stop
//! drains the API, then ends guests and network; the records stay, so the next start begins the servers again. A crash
//! leaves guests running, and the next start adopts them.

use crate::cli::{Machine, Up};
use crate::clouds::{Clouds, Trust};
use crate::doors::Doors;
use crate::nodes::{self, Keeper, Wishes};
use crate::plane::{self, BACKLOG, First};
use crate::planes::{COLOURS, Launch, Planes};
use crate::progress::{Progress, say};
use crate::range::{self, Claim};
use crate::rollout::Rollouts;
use crate::state::{Directory, Ids};
use crate::{control, demo, down, files, image, logging, machine};
use base::{Error, Result};
use fleet::door::{Door, check_authority};
use hyper::Method;
use identity::user::password::hash_now;
use ipnet::Ipv4Net;
use node::Ending;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The records of a new cloud are made in this time.
const FIRST_MAX: Duration = Duration::from_secs(20);

pub async fn run(directory: &Directory, args: &Up, begin: Instant) -> Result<()> {
    let progress = Progress::since(begin);
    let stop = stop_signals()?;
    let machine = machine::choose(args.machine, directory.ids()?.map(|ids| ids.machine))?;
    if machine == Machine::Qemu && args.nodes > 1 {
        return Err(Error::invalid("one machine is one node: --nodes is for --machine simulated"));
    }
    args.policy.as_deref().map(policy).transpose()?;
    args.webhook.read()?;
    args.image.as_deref().map(image::check).transpose()?;
    let tls = args.tls.certificates()?;
    args.tls_ca.as_deref().map(check_authority).transpose()?;
    let _held = directory.hold()?;
    let listener = listen(args.listen, "--listen").await?;
    let far = nodes_listener(args).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://{}", reached_at(listener.local_addr()?));
    logging::start(&directory.log())?;
    files::raise();
    let ids = directory.make_ids(machine)?;
    let door = Door::default();
    let planes = Planes::new(launch(directory, args, far.as_ref().map(|(_, reach)| reach.clone()))?, door);
    let up = Rising { directory, args, address: &address, ids: &ids, progress: &progress, planes: &planes };
    let outcome = up.live(listener, far, stop).await;
    planes.stop().await;
    if outcome.is_ok() {
        progress.step("stop", "the API has answered what was asked; ending servers and network");
        down::end(directory, &(&ids).into(), Ending::Ask(down::ASK_MAX)).await?;
        progress.step("stop", "stopped; the next start finds everything");
    }
    directory.note_stopped();
    outcome
}

/// A cloud that is being brought up.
struct Rising<'a> {
    directory: &'a Directory,
    args: &'a Up,
    address: &'a str,
    ids: &'a Ids,
    progress: &'a Progress,
    planes: &'a Planes,
}

impl Rising<'_> {
    async fn live(
        &self,
        clients: TcpListener,
        far: Option<(TcpListener, String)>,
        stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let binary = std::env::current_exe()?;
        self.planes.add(COLOURS[0], &binary).await?;
        self.planes.take_any().await?;
        // Not before a plane could use it.
        if self.args.store.is_some() && self.args.store != self.ids.store {
            let store = self.args.store.clone();
            self.directory.note_ids(&Ids { store, ..self.ids.clone() })?;
        }
        if self.args.planes > 1 {
            self.planes.add(COLOURS[1], &binary).await?;
            self.planes.stand_by(COLOURS[1]).await?;
        }
        let _claims = self.records().await?;
        self.directory.note_running(self.address)?;
        let wishes = Wishes {
            nodes: self.args.nodes,
            uplink: self.args.uplink.clone(),
            address: self.args.address.or(self
                .args
                .node_listen
                .map(|at| at.ip())
                .filter(|ip| !ip.is_unspecified())),
        };
        let nodes = Keeper::new(self.directory, &wishes, self.planes.clone());
        let rollouts = Rollouts::open(self.directory, self.planes.clone(), nodes.clone())?;
        let control = plane::bind(&self.directory.control())?;
        let doors = door_words(self.args);
        let doors =
            Doors::open(self.directory, clients.into_std()?, doors, self.planes.clone(), &binary).await?;
        let control = control::serve(control, self.planes.clone(), rollouts.clone(), doors.clone());
        let (far, reach) = far.unzip();
        let carried = async {
            match far {
                Some(listener) => nodes::carry_far(listener, self.planes.clone()).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = self.serve(&nodes, &binary, stop, self.after(&nodes, reach.as_deref())) => outcome,
            () = carried => Ok(()),
            () = control => Ok(()),
        };
        rollouts.stop();
        nodes.stop().await;
        doors.stop().await;
        let _ = std::fs::remove_file(self.directory.control());
        outcome
    }

    /// The first start, when none was; the claims on this machine's ranges.
    async fn records(&self) -> Result<Vec<Claim>> {
        let mut clouds = Clouds::open(self.directory.clouds())?;
        let url = self.args.public_url.as_deref().unwrap_or(self.address);
        let auth_url = format!("{}/identity/v3", url.trim_end_matches('/'));
        let word = self.planes.word(COLOURS[0]).await?;
        let trust = match (&self.args.tls_ca, &self.args.tls.tls_cert) {
            (Some(authority), _) => Trust::Authority(std::fs::canonicalize(authority)?),
            (None, Some(_)) => Trust::Machine,
            (None, None) => Trust::Unsaid,
        };
        if word.first_done {
            clouds.lead_to(&auth_url, &trust)?;
            let claims = claims(&word.ranges, self.ids)?;
            self.progress.step("store", format_args!("at revision {}", word.revision));
            return Ok(claims);
        }
        let password = clouds.make("admin", &auth_url)?.auth.password;
        clouds.lead_to(&auth_url, &trust)?;
        let cost = identity::Settings::default().bcrypt_cost;
        let hash = tokio::task::spawn_blocking(move || hash_now(&password, cost)).await;
        let hash = hash.map_err(|e| Error::internal("a password hash was cut off").because(e))??;
        let (range, claim) = range::choose(self.ids.cloud)?;
        let first = First { password_hash: hash.expose().into(), range };
        let first = serde_json::to_value(first).map_err(|e| Error::internal("cannot encode").because(e))?;
        self.planes.ask(COLOURS[0], Method::POST, "/first", &first, FIRST_MAX).await?;
        self.progress.step("store", format_args!("first start; floating addresses are in {range}"));
        Ok(vec![claim])
    }

    /// What a start does once the API answers: waits for its nodes, uploads an image, makes the demo.
    async fn after(&self, nodes: &Keeper, reach: Option<&str>) {
        let (progress, args) = (self.progress, self.args);
        progress.step("api", self.address);
        if let Some(authority) = reach {
            progress.step("listen", format_args!("for nodes at https://{authority}"));
        }
        let greeted = async {
            nodes.greeted().await;
            if args.nodes > 0 {
                let machine = self.ids.machine;
                progress.step("nodes", format!("{} of machine {machine:?}", args.nodes).to_lowercase());
            }
        };
        let outcome = match args.demo {
            true => demo::make(self.directory, args.image.as_deref(), progress, greeted).await,
            false => {
                let upload = async {
                    match &args.image {
                        Some(file) => image::upload_as_admin(self.directory, file, progress).await,
                        None => Ok(()),
                    }
                };
                tokio::join!(upload, greeted).0
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
            say(format_args!("            clients: {}", self.directory.clouds().display()));
        }
    }

    /// Runs everything until a stop, or until it is seen that this machine can be no node.
    async fn serve(
        &self,
        nodes: &Keeper,
        binary: &Path,
        mut stop: watch::Receiver<bool>,
        after: impl Future<Output = ()>,
    ) -> Result<()> {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => Ok(()),
            outcome = nodes.work(binary) => outcome,
            () = async { after.await; std::future::pending().await } => Ok(()),
        }
    }
}

/// What a door is told.
fn door_words(args: &Up) -> Vec<OsString> {
    let said = [("--tls-cert", &args.tls.tls_cert), ("--tls-key", &args.tls.tls_key)];
    let word = |(flag, file): (&str, &Option<PathBuf>)| Some([flag.into(), file.as_ref()?.into()]);
    said.into_iter().filter_map(word).flatten().collect()
}

/// How planes are started.
fn launch(directory: &Directory, args: &Up, reach: Option<String>) -> Result<Launch> {
    if directory.need_ids()?.store.is_none() {
        // SQLite would make it readable by all.
        std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(directory.database())?;
    }
    let mut words = Vec::new();
    let mut say = |flag: &str, value: String| words.extend([flag.to_string(), value]);
    if let Some(policy) = &args.policy {
        say("--policy", policy.display().to_string());
    }
    if let Some(url) = &args.public_url {
        say("--public-url", url.clone());
    }
    if let Some(reach) = reach {
        say("--reach", reach);
    }
    args.webhook.pairs().into_iter().for_each(|(flag, value)| say(flag, value));
    let store = args.store.clone().map_or_else(|| directory.need_store(), Ok)?;
    Ok(Launch { directory: directory.path().into(), store, words, whose: "" })
}

/// A simulated network is in nobody's way.
fn claims(ranges: &[Ipv4Net], ids: &Ids) -> Result<Vec<Claim>> {
    match ids.machine {
        Machine::Qemu => ranges.iter().copied().map(range::claim).collect(),
        Machine::Simulated => Ok(Vec::new()),
    }
}

async fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    let cannot = |e: std::io::Error| match e.kind() {
        ErrorKind::AddrInUse => Error::conflict(format!(
            "{address} is in use by another program; {flag} names another address, port 0 takes a free one"
        )),
        _ => Error::unavailable(format!("cannot listen on {address}")).because(e),
    };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|e| cannot(e.into()))?;
    Ok(listener)
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
pub fn policy(path: &Path) -> Result<BTreeMap<String, String>> {
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
