//! What is lost, and what goes on: a node's process, the plane, a host.

use super::central::Central;
use super::ensure;
use crate::Outcome;
use crate::guest::{ECHO, Guest, asks};
use crate::hosts::{WORLD, slow, until};
use crate::town::{SOON, Town, nodes_up};
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const RESTARTS: usize = 20;
/// Between a kill and the next.
const RESTART_EVERY: Duration = Duration::from_millis(1200);
const PINGS_PER_SECOND: u64 = 50;
/// Silence after which a node is lost, twice, and the time to move.
const LOST_MAX: Duration = Duration::from_secs(75);
/// What a lost host held of routers is with another by then.
const MOVED_MAX: Duration = Duration::from_secs(10);
const RATES_MBIT: [u32; 5] = [100, 50, 25, 10, 5];
/// How much shorter than the run that counts one is that looks for a rate.
const TRIAL_PART: u64 = 4;

/// Everything that must go on between guests of the second and third host and the world.
fn goes_on(town: &Town, floating: &str) -> Outcome {
    let (two, three) = (&town.blues[1], &town.blues[2]);
    let seen = [
        ("same subnet", two.asks(three.address(), ECHO)),
        ("routed", three.asks(town.greens[0].address(), ECHO)),
        ("floating in", asks(&town.machines.world, floating, ECHO)),
        ("floating out", two.asks(WORLD, ECHO)),
    ];
    let bad: Vec<_> = seen.iter().filter(|(_, seen)| seen.is_err()).collect();
    ensure(bad.is_empty(), if bad.is_empty() { "all goes on".to_string() } else { format!("lost: {bad:?}") })
}

fn snat_goes_on(town: &Town) -> Outcome {
    let seen = town.blues[2].asks(WORLD, ECHO);
    let same = seen.as_ref().is_ok_and(|seen| seen.starts_with(&format!("{}:", town.gateway)));
    ensure(same, format!("SNAT: {seen:?}"))
}

/// Without a plane, and with a node that starts anew meanwhile.
pub fn plane(town: &mut Town) -> Outcome {
    let (id, floating) = town.float(&town.blues[1])?;
    until(SOON, || goes_on(town, &floating))?;
    town.plane.crash();
    let check = |town: &Town, when: &str| {
        goes_on(town, &floating).and_then(|_| snat_goes_on(town)).map_err(|not| format!("{when}: {not}"))?;
        Ok(format!("all goes on {when}"))
    };
    let mut outcome = check(town, "without a plane");
    town.machines.hosts[1].crash();
    town.machines.hosts[1].start(1, None);
    std::thread::sleep(Duration::from_secs(2) * slow());
    outcome = outcome.and_then(|seen| Ok(format!("{seen}, {}", check(town, "with a node started anew")?)));
    town.plane.start()?;
    until(LOST_MAX, || ensure(nodes_up(&town.api)?.len() == 3, "not all nodes came back"))?;
    outcome = outcome.and_then(|seen| Ok(format!("{seen}, {}", check(town, "with the plane again")?)));
    town.unfloat(&id)?;
    outcome
}

/// A program that is ended with the guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(guest: &Guest, words: &str) -> Outcome<Running> {
    let mut words = words.split(' ');
    let mut command = guest.space.command(words.next().unwrap_or_default());
    let child = command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    child.map(Running).map_err(|e| format!("{command:?}: {e}"))
}

/// What it said until its end.
fn end(mut running: Running) -> Outcome {
    let mut said = String::new();
    let mut out = running.0.stdout.take().ok_or("no output")?;
    std::io::Read::read_to_string(&mut out, &mut said).map_err(|e| e.to_string())?;
    Ok(said)
}

/// Packets sent and lost.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: u64,
    lost: u64,
}

impl Count {
    fn share(self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "{} of {}", self.lost, self.sent)
    }
}

/// What a run lost of datagrams and of echoes.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    datagrams: Count,
    echoes: Count,
}

impl Lost {
    fn nothing(self) -> bool {
        self.datagrams.lost == 0 && self.echoes.lost == 0
    }

    fn no_more_than(self, other: Lost) -> bool {
        self.datagrams.share() <= other.datagrams.share() && self.echoes.share() <= other.echoes.share()
    }

    /// Of both, what it lost most of.
    fn worse(self, other: Lost) -> Lost {
        let worse = |a: Count, b: Count| if a.share() < b.share() { b } else { a };
        Lost { datagrams: worse(self.datagrams, other.datagrams), echoes: worse(self.echoes, other.echoes) }
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "{} datagrams, {} echoes", self.datagrams, self.echoes)
    }
}

/// A datagram flow from the first host to the second, and echo routed between them, while `work` is done.
fn flows(town: &mut Town, mbit: u32, seconds: u64, work: impl FnOnce(&mut Town)) -> Outcome<Lost> {
    let server = start(&town.blues[1], "iperf3 -s -1 -J -p 5201")?;
    let to = town.blues[1].address();
    let flow = until(SOON, || {
        // The server's port opens a moment after its start.
        let listening = town.blues[1].space.run("ss -Hltn sport = :5201")?;
        ensure(!listening.is_empty(), "iperf3 does not listen")
    });
    flow?;
    let count = seconds * PINGS_PER_SECOND;
    let client = start(
        &town.blues[0],
        &format!("iperf3 -c {to} -p 5201 -u -b {mbit}M -l 1400 -w 4M -t {seconds} -J"),
    )?;
    let interval = 1.0 / PINGS_PER_SECOND as f64;
    let ping =
        start(&town.blues[0], &format!("ping -n -q -i {interval} -c {count} {}", town.greens[0].address()))?;
    work(town);
    let (flow, ping) = (end(client)?, end(ping)?);
    drop(server);
    let flow: Value = serde_json::from_str(&flow).map_err(|e| format!("iperf3: {e} {flow}"))?;
    let sum = &flow["end"]["sum"];
    let number =
        |key: &str| sum[key].as_u64().ok_or_else(|| format!("iperf3 without {key}: {}", flow["error"]));
    let datagrams = Count { sent: number("packets")?, lost: number("lost_packets")? };
    let words: Vec<&str> = ping.split_whitespace().collect();
    let before = |word: &str| {
        words
            .iter()
            .position(|w| w.starts_with(word))
            .and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok())
    };
    let received = words.windows(2).find(|w| w[1] == "received,").and_then(|w| w[0].parse::<u64>().ok());
    let (Some(sent), Some(received)) = (before("packets"), received) else {
        return Err(format!("ping: {ping}"));
    };
    Ok(Lost { datagrams, echoes: Count { sent, lost: sent.saturating_sub(received) } })
}

/// Room for what arrives while this busy machine does something else: a NIC's ring and a guest's memory are larger.
fn widen(town: &Town) -> Outcome<()> {
    for guest in &town.blues[..2] {
        guest.space.ip("link set eth0 txqueuelen 10000");
        guest.space.sysctl("net.ipv4.udp_rmem_min=4194304");
        let place = town.place(guest.host, &town.blue.id)?;
        place.ip(&format!("link set tap{} txqueuelen 10000", &guest.port.replace('-', "")[..11]));
    }
    Ok(())
}

/// The first rate that is carried without loss in a short run, or else the one that loses least; and what was tried.
fn rate(town: &mut Town, seconds: u64) -> Outcome<(u32, String)> {
    let mut tried: Vec<(u32, Lost)> = Vec::new();
    for mbit in RATES_MBIT {
        let lost = flows(town, mbit, seconds, |_| {})?;
        tried.push((mbit, lost));
        if lost.nothing() {
            break;
        }
    }
    let share = |lost: Lost| lost.datagrams.share().max(lost.echoes.share());
    let best = tried.iter().min_by(|(_, a), (_, b)| share(*a).total_cmp(&share(*b))).map(|(mbit, _)| *mbit);
    let told: Vec<String> = tried.iter().map(|(mbit, lost)| format!("{mbit} Mbit/s {lost}")).collect();
    Ok((best.ok_or("no rate was tried")?, told.join("; ")))
}

/// A run with restarts beside one without before it. Where that one loses packets too, as a starved machine does at any
/// rate, another one after it says how much that varies, and the worse of the two is the measure.
pub fn restarts(town: &mut Town) -> Outcome {
    widen(town)?;
    let seconds = RESTARTS as u64 * (RESTART_EVERY * slow()).as_millis() as u64 / 1000 + 2;
    crate::town::rule(&town.api, &town.open, serde_json::json!({"protocol": "udp"}))?;
    crate::town::rule(
        &town.api,
        &town.open,
        serde_json::json!({"protocol": "tcp", "port_range_min": 5201, "port_range_max": 5201}),
    )?;
    until(SOON, || flows(town, 1, 1, |_| {}))?;
    let starts = |town: &Town| {
        town.machines.hosts.iter().map(|host| host.said().matches(" up ").count()).sum::<usize>()
    };
    let (mbit, tried) = rate(town, seconds / TRIAL_PART)?;
    let before = flows(town, mbit, seconds, |_| {})?;
    let started = starts(town);
    let then = flows(town, mbit, seconds, crash_often)?;
    // The last of them may still be on their way.
    until(SOON, || {
        let started = starts(town) - started;
        ensure(started == RESTARTS, format!("{started} starts"))
    })?;
    let mut seen = format!(
        "lost at {mbit} Mbit/s for {seconds} s: without restarts {before}; with {RESTARTS} restarts {then}"
    );
    let mut control = before;
    if !before.nothing() && !then.no_more_than(before) {
        let after = flows(town, mbit, seconds, |_| {})?;
        control = before.worse(after);
        seen += &format!("; without them once more {after}: this machine loses some itself");
    }
    ensure(then.no_more_than(control), format!("{seen}; tried {tried}"))
}

/// Both ends' nodes in turn.
fn crash_often(town: &mut Town) {
    let begin = Instant::now();
    for n in 0..RESTARTS {
        let host = n % 2;
        town.machines.hosts[host].crash();
        town.machines.hosts[host].start(host, None);
        let next = RESTART_EVERY * slow() * (n as u32 + 1);
        std::thread::sleep(next.saturating_sub(begin.elapsed()));
    }
}

/// The first host is lost for good: it answers for the gateway's address, and has a central router.
pub fn host(town: &mut Town) -> Outcome {
    let central =
        (31..34).map(|n| Central::make(town, &format!("central{n}"), n)).collect::<Outcome<Vec<_>>>()?;
    until(SOON, || central.iter().map(Central::works).collect::<Outcome<Vec<_>>>())?;
    let moved =
        central.iter().find(|one| one.at(town) == [0]).ok_or("no central router is on the first host")?;
    let (_, floating) = town.float(&town.blues[1])?;
    until(SOON, || goes_on(town, &floating))?;
    town.machines.hosts[0].lose();
    let begin = Instant::now();
    let own = town.blues[1].pings(town.blues[0].address());
    let at_once = goes_on(town, &floating)?;
    let snat = until(LOST_MAX, || snat_goes_on(town)).map(|_| begin.elapsed());
    let router = until(LOST_MAX, || moved.works()).map(|_| begin.elapsed());
    let (servers, still) = (
        town.api.get(&format!("/compute/v2.1/servers/{}", town.blues[0].server)).is_ok(),
        goes_on(town, &floating),
    );
    let soon = |moved: &Outcome<Duration>| moved.as_ref().is_ok_and(|after| *after < MOVED_MAX);
    let seen = format!(
        "others at once: {at_once}, its own guest echoes: {own}; the gateway's address moved after {snat:.1?}, the central router after {router:.1?} to host {:?}; its server is listed: {servers}; {still:?}",
        moved.at(town).iter().map(|n| n + 1).collect::<Vec<_>>()
    );
    ensure(!own && soon(&snat) && soon(&router) && servers && still.is_ok(), seen)
}
