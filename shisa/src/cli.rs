//! The command line: what may be said, and which module carries it out.

use crate::maintenance::{Drain, NodeName};
use crate::state::Directory;
use crate::{
    control, demo, door, down, env, join, maintenance, nodes, plane, program, records, rollout, status,
    token, trace, up, webhook,
};
use base::{Error, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fleet::door::Certificates;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// A cloud in one process that speaks the OpenStack APIs.
#[derive(Debug, Parser)]
#[command(name = "shisa", version, after_help = AFTER, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Everything that the cloud keeps; each cloud has its own
    #[arg(long, global = true, value_name = "DIR", default_value = ".shisa")]
    state: PathBuf,
}

const AFTER: &str = "\
Example:
  shisa up --demo --image guest/out/guest.qcow2
  eval \"$(shisa env demo)\"
  openstack server list";

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the cloud and stay in the foreground; Ctrl-C ends it, servers included, and the next start finds all
    Up(Up),
    /// End everything of the cloud: its process, guests and network, also after a crash; records stay
    Down(Down),
    /// Be a node of a cloud on another machine; Ctrl-C ends its servers, kill -9 leaves them running for the next start
    Node(Node),
    /// Say whether the cloud is up, where, and what its nodes and servers are (exit code 3: it is not up)
    Status,
    /// Make a demo project with network, router, key, floating IP and a server, and wait until SSH answers
    Demo(Demo),
    /// Print `export OS_...` lines for the OpenStack clients
    Env(Env),
    /// Look after the planes of the cloud: the processes that own and follow its records
    #[command(subcommand)]
    Plane(Planes),
    /// Look after the front door of the cloud: the process that has the clients' connections
    #[command(subcommand)]
    Door(Door),
    /// Copy, save, bring back and look through the records of a cloud
    #[command(subcommand)]
    Store(Store),
    /// Bring a new version into service, with gates before the switch and a way back after it
    #[command(subcommand)]
    Rollout(Rollout),
    /// Look into the cloud's network
    #[command(subcommand)]
    Network(Network),
    /// Be the nodes of this machine: `shisa up` starts it
    #[command(hide = true)]
    Nodes(NodesRun),
    /// Answers the guests of a node: the node starts it
    #[command(hide = true)]
    Responder(Responder),
}

#[derive(Args, Debug)]
pub struct Up {
    /// Where the APIs listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    pub listen: SocketAddr,
    /// Where the records are: sqlite:PATH, postgres://USER@HOST:PORT/DATABASE or etcd://HOST:PORT,HOST:PORT/CELL
    /// [default: what was said last, else state.db in the state directory]. In the environment, a password is seen by
    /// nobody who lists processes
    #[arg(long, value_name = "URL", env = crate::planes::STORE, hide_env_values = true)]
    pub store: Option<String>,
    /// How many planes: the second stands by and takes over when the first ends
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    pub planes: u32,
    /// What runs servers [default: what the state directory has, else qemu where root may run it]
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<Machine>,
    /// How many nodes this machine is (more than one only with simulated ones; 0: all are on other machines)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub nodes: u32,
    /// Where nodes on other machines are listened for, by TLS; without it there are none
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub node_listen: Option<SocketAddr>,
    /// How nodes reach that, where it is not the address itself
    #[arg(long, value_name = "HOST:PORT", requires = "node_listen")]
    pub node_url: Option<String>,
    /// The address that this machine's own node has for the others [default: that of --node-listen]
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
    /// The host's network device through which servers reach the world; without it they end at the host
    #[arg(long, value_name = "DEVICE")]
    pub uplink: Option<String>,
    #[command(flatten)]
    pub tls: Tls,
    /// The authority that clients are to trust where their machine does not know it: for `shisa env` and clouds.yaml
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// What links in answers start with, behind a proxy or where the certificate has a name
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Policy rules that replace built-in ones: names to rules, as YAML or JSON
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    #[command(flatten)]
    pub webhook: webhook::Words,
    /// A disk image to upload as the public image `guest`, unless there is one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Go on as `shisa demo` does
    #[arg(long)]
    pub demo: bool,
}

#[derive(Args, Debug)]
pub struct Tls {
    /// Clients are answered by TLS: the server's certificate and those between it and its authority, as PEM; read
    /// anew when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

impl Tls {
    /// By what clients' TLS is answered.
    ///
    /// Errors: what is wrong with the files.
    pub fn certificates(&self) -> Result<Option<Certificates>> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => Certificates::open(chain, key).map(Some),
            _ => Ok(None),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Door {
    /// Put another binary in the front door's place; what clients asked is finished
    Upgrade(Upgrade),
    /// Be the front door: `shisa up` starts it
    #[command(hide = true)]
    Run(DoorRun),
}

#[derive(Args, Debug)]
pub struct Upgrade {
    /// The new version's program
    #[arg(long, value_name = "PATH")]
    pub binary: PathBuf,
}

#[derive(Args, Debug)]
pub struct DoorRun {
    #[command(flatten)]
    pub tls: Tls,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Node {
    #[command(subcommand)]
    command: Option<NodeCommand>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// On the plane's machine: print a token by which machines may join
    Token(Token),
    /// On the plane's machine: say which nodes there are, how many servers each has, and which are drained
    List,
    /// On the plane's machine: before work on a node, tell its servers' owners, and at a deadline stop what still runs
    /// there. Shows what is left; Ctrl-C leaves the drain going, and the same command shows it again
    Drain(Drain),
    /// On the plane's machine: end a node's drain; servers that it stopped are started again
    Undrain(NodeName),
    /// The same as without a word
    Run(Run),
    /// Say what this build is, as JSON
    #[command(hide = true)]
    Program,
}

#[derive(Args, Debug)]
pub struct Token {
    /// How many machines it lets in
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub uses: u32,
    /// How long it is good for: 30s, 10m, 1h, 2d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    pub ttl: i64,
    /// A file for it, readable by its owner only, instead of the terminal
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What is said once is kept in the state directory; said again, it replaces what was kept.
#[derive(Args, Debug)]
pub struct Run {
    /// Where the plane listens for nodes [default: what the token says]
    #[arg(long, value_name = "URL")]
    pub join: Option<String>,
    /// The token of `shisa node token`; needed once
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// The node's name in the cloud, for good [default: this machine's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The address that other nodes reach this one by [default: the one that it reached the plane from when it joined]
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
    /// What runs servers, for good [default: qemu where root may run it]
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<Machine>,
    /// With --machine simulated: make a real network, into which nobody plugs; needs root
    #[arg(long)]
    pub fabric: bool,
    /// This machine's network device through which servers reach the world
    #[arg(long, value_name = "DEVICE")]
    pub uplink: Option<String>,
    /// A physical network and this machine's device on it; may be said several times
    #[arg(long, value_name = "NAME=DEVICE", value_parser = physical)]
    pub physical: Vec<(String, String)>,
}

/// `30s`, `10m`, `1h`, `2d`
pub fn seconds(text: &str) -> Result<i64, String> {
    let wrong = || "a number with s, m, h or d behind it".to_string();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let each = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: i64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
    number.checked_mul(each).filter(|n| *n > 0).ok_or_else(wrong)
}

fn physical(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, device)) if !name.is_empty() && !device.is_empty() => Ok((name.into(), device.into())),
        _ => Err("NAME=DEVICE".into()),
    }
}

#[derive(Args, Debug)]
pub struct Down {
    /// Remove the records and everything else in the state directory, too
    #[arg(long)]
    pub wipe: bool,
}

#[derive(Args, Debug)]
pub struct Demo {
    /// A disk image to upload as the public image `guest`, unless there is one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Env {
    /// A cloud of clouds.yaml: admin or demo [default: demo when it is there, else admin]
    pub name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Network {
    /// Say which way a packet would take, and the rule that stops it (exit code 4: it does not arrive); none is sent
    Trace(Trace),
}

#[derive(Args, Debug)]
pub struct Trace {
    /// The port that the packet comes from: its id, name or address
    #[arg(long, value_name = "PORT")]
    pub from: String,
    /// Where it goes
    #[arg(long, value_name = "ADDRESS")]
    pub to: std::net::IpAddr,
    /// icmp, tcp, udp, sctp or a number
    #[arg(long, value_name = "PROTOCOL", default_value = "icmp")]
    pub protocol: String,
    /// The port of the receiver, for protocols that have ports
    #[arg(long, value_name = "NUMBER")]
    pub port: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub enum Store {
    /// Copy all records of a cloud that is down into an empty store, and compare
    Copy {
        /// sqlite:PATH, postgres://USER@HOST:PORT/DATABASE or etcd://HOST:PORT,HOST:PORT/CELL
        from: String,
        to: String,
    },
    /// Write all records, as of one revision, to a new file; the cloud may be up
    Backup { file: PathBuf },
    /// Bring back what a backup has; the cloud is down
    Restore {
        file: PathBuf,
        /// Also when there are records, which are gone then
        #[arg(long)]
        replace: bool,
    },
    /// Read every record as this version does; how many there are of each kind, and a digest
    Verify {
        /// [default: this cloud's]
        #[arg(long, value_name = "URL", env = crate::planes::STORE, hide_env_values = true)]
        store: Option<String>,
    },
    /// Say what changed, when, and by which request
    Log {
        /// [default: this cloud's]
        #[arg(long, value_name = "URL", env = crate::planes::STORE, hide_env_values = true)]
        store: Option<String>,
        /// How many changes
        #[arg(long, value_name = "N", default_value_t = 20)]
        last: u64,
        /// The first ones after this revision, instead of the last ones
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Planes {
    /// Say which planes there are, which is active, and how they do
    List,
    /// Start another plane, which follows and stands by
    Add(Add),
    /// Make a plane the active one; clients notice nothing
    Promote(Named),
    /// End a plane that is not active
    Drain(Named),
    /// Go back to the plane before the last rollout, also while it goes on
    Rollback,
    /// Give the plane before the last rollout the new binary, too: there is no way back then
    Finalise,
    /// Be a plane: `shisa up` starts it
    #[command(hide = true)]
    Run(Plane),
}

#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// Start another binary as a plane, compare it with the active one, switch to it and watch it (exit code 1: it was
    /// stopped or taken back). Ctrl-C leaves the rollout going
    Start(RolloutStart),
    /// Print what became of the last rollout: each gate and switch with its time and what it found
    Show(RolloutShow),
}

#[derive(Args, Debug)]
pub struct RolloutStart {
    /// The new version's program; not the file that the active plane runs
    #[arg(long, value_name = "PATH")]
    pub binary: PathBuf,
    /// A command that tries the candidate on a copy of the cloud, instead of the built-in suite: it is run by /bin/sh
    /// with OS_AUTH_URL and its companions, and its exit code decides
    #[arg(long, value_name = "COMMAND")]
    pub conformance: Option<String>,
    /// Try nothing on a copy of the cloud: no conformance, no rehearsal of the way back
    #[arg(long, conflicts_with = "conformance")]
    pub without_copy: bool,
    /// Nodes keep the binary that they have
    #[arg(long)]
    pub no_nodes: bool,
    /// How long it is watched after the switch, and taken back when something goes wrong: 30s, 10m, 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = seconds)]
    pub bake: i64,
}

#[derive(Args, Debug)]
pub struct RolloutShow {
    /// All that are remembered, not only the last
    #[arg(long)]
    pub all: bool,
}

#[derive(Args, Debug)]
pub struct Add {
    /// The program that it runs [default: this one]
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Named {
    /// blue or green
    pub name: String,
}

#[derive(Args, Debug)]
pub struct Plane {
    #[arg(long)]
    pub name: String,
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Where nodes on other machines reach the door
    #[arg(long, value_name = "HOST:PORT")]
    pub reach: Option<String>,
    #[command(flatten)]
    pub webhook: webhook::Words,
}

#[derive(Args, Debug)]
pub struct NodesRun {
    #[arg(long, value_name = "N")]
    pub nodes: u32,
    #[arg(long, value_name = "DEVICE")]
    pub uplink: Option<String>,
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
}

#[derive(Args, Debug)]
pub struct Responder {
    /// What the node keeps
    pub node: PathBuf,
    /// The short id of its cloud
    pub cloud: u32,
}

/// What stands behind a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// Real guests and a real network; needs root
    Qemu,
    /// Servers that only say they run
    Simulated,
}

/// What was said, or the code to exit with: help was printed, or one sentence about a slip.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        if !error.use_stderr() {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = error.print();
            return ExitCode::from(2);
        }
        let text = error.to_string();
        eprintln!("shisa: {}; `shisa --help` says what there is", sentence(&text));
        ExitCode::from(2)
    })
}

/// The first paragraph of clap's message, in one line.
fn sentence(text: &str) -> String {
    let first = text.split("\n\n").next().unwrap_or(text);
    let first = first.strip_prefix("error: ").unwrap_or(first);
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub async fn run(cli: Cli, begin: Instant) -> Result<ExitCode> {
    let directory = Directory::at(cli.state);
    match cli.command {
        Command::Up(up) => up::run(&directory, &up, begin).await?,
        Command::Down(down) => down::run(&directory, down.wipe).await?,
        Command::Node(Node { command: Some(NodeCommand::Token(token)), .. }) => {
            token::run(&directory, &token).await?;
        }
        Command::Node(Node { command: Some(NodeCommand::Program), .. }) => program::run()?,
        Command::Node(Node { command: Some(NodeCommand::List), .. }) => maintenance::list(&directory).await?,
        Command::Node(Node { command: Some(NodeCommand::Drain(drain)), .. }) => {
            maintenance::drain(&directory, &drain, begin).await?;
        }
        Command::Node(Node { command: Some(NodeCommand::Undrain(node)), .. }) => {
            maintenance::undrain(&directory, &node).await?;
        }
        Command::Node(Node { command: Some(NodeCommand::Run(run)), .. } | Node { command: None, run }) => {
            join::run(&directory, &run, begin).await?;
        }
        Command::Status => return status::run(&directory).await,
        Command::Demo(demo) => demo::run(&directory, demo.image.as_deref(), begin).await?,
        Command::Env(env) => env::run(&directory, env.name.as_deref())?,
        Command::Store(words) => {
            let work = move || records::run(&directory, &words, begin);
            let done = tokio::task::spawn_blocking(work).await;
            done.map_err(|e| Error::internal("it was cut off").because(e))??;
        }
        Command::Plane(Planes::Run(args)) => plane::run(&directory, &args).await?,
        Command::Plane(Planes::Rollback) => rollout::command::rollback(&directory, begin).await?,
        Command::Plane(Planes::Finalise) => rollout::command::finalise(&directory).await?,
        Command::Door(words) => door::run(&directory, &words).await?,
        Command::Plane(planes) => control::run(&directory, &planes).await?,
        Command::Rollout(words) => rollout::command::run(&directory, &words, begin).await?,
        Command::Network(Network::Trace(trace)) => return trace::run(&directory, &trace).await,
        Command::Nodes(words) => nodes::process::run(&directory, &words).await?,
        Command::Responder(of) => node::respond(&of.node, of.cloud).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_table_of_flags_is_sound_and_slips_are_one_sentence() {
        Cli::command().debug_assert();
        let slip = |words: &[&str]| sentence(&Cli::try_parse_from(words).unwrap_err().to_string());
        assert_eq!(slip(&["shisa", "up", "--nodse", "3"]), "unexpected argument '--nodse' found");
        let text = slip(&["shisa", "up", "--listen", "here"]);
        assert!(text.starts_with("invalid value 'here' for '--listen <ADDRESS>'"), "{text}");
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("2d"), Ok(172_800));
        for wrong in ["", "h", "1", "1w", "-1h", "0s", "99999999999999999d", "1é"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
