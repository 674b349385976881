//! What an engine keeps when its server is killed, cut off, full, or its owner asleep.

use crate::proxy::{ANSWER, Proxy, REQUEST};
use crate::servers::{Server, Small, Which};
use crate::world::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{Cause, Tx};

const CLIENTS: usize = 6;

async fn a_while() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

pub async fn killed(mut server: Server) {
    const ROUNDS: usize = 3;
    let url = url(&server, "killed");
    let cell = owner(&url);
    let writers = Writers::start(&cell, CLIENTS);
    for round in 0..ROUNDS {
        a_while().await;
        server.kill();
        a_while().await;
        server.restart();
        writes_again(&cell, &format!("round {round}")).await;
    }
    let (answered, failed) = writers.stop().await;
    eprintln!("{} answered, {failed} not", answered.len());
    // A server that is back within the lease may fail nothing: what was under way is appended again.
    assert!(answered.len() > 50, "only {} writes were answered, {failed} were not", answered.len());
    check(&url, &answered);
    cell.close();
}

pub async fn cut(server: Server) {
    const ROUNDS: usize = 16;
    let url = url(&server, "cut");
    let proxy = Proxy::to(server.port());
    let cell = owner(&server.through(&url, proxy.port));
    let writers = Writers::start(&cell, CLIENTS);
    for round in 0..ROUNDS {
        proxy.fail_next([ANSWER, REQUEST][round % 2]);
        comes("the fault", || proxy.has_failed()).await;
        writes_again(&cell, &format!("round {round}")).await;
    }
    let (answered, failed) = writers.stop().await;
    eprintln!("{} answered, {failed} not", answered.len());
    assert!(answered.len() > 50);
    assert_eq!(cell.read().epoch(), 1, "the owner lost the cell to a cut");
    check(&url, &answered);
    cell.close();
}

pub async fn full(which: Which, mib: u64) {
    let small = Small::new(mib);
    let server = Server::with(which, 1, Some(&small.0.path().join("data")), &[]);
    let url = url(&server, "full");
    let cell = owner(&url);
    add(&cell, "first", "note").await.unwrap();
    small.fill();
    let mut answered = Answered::new();
    let mut refused = Vec::new();
    for n in 0..20_000 {
        let id = n.to_string();
        match add(&cell, &id, &format!("note {}", n % 50)).await {
            Ok((revision, _)) => drop(answered.insert(id, revision)),
            Err(error) => {
                assert!(error.message().contains("no room"), "{}", error.chain());
                refused.push(id);
            }
        }
        if refused.len() == 5 {
            break;
        }
    }
    assert_eq!(refused.len(), 5, "the disk is never full");
    a_while().await;
    cell.owns().expect("who finds no room remains the owner");
    small.free();
    writes_again(&cell, "again").await;
    assert_eq!(cell.read().epoch(), 1);
    check(&url, &answered);
    assert_are_absent(&url, &refused);
    cell.close();
}

/// etcd's quota is its disk; it takes no lease while it is used up, so the owner falls silent and comes back.
pub async fn quota_used_up(mib: u64) {
    const SIZE: usize = 200 << 10;
    let quota = |mib: u64| vec![format!("--quota-backend-bytes={}", mib << 20)];
    let mut server = Server::start(Which::Etcd);
    server.kill();
    server.extra = quota(mib);
    server.restart();
    let url = url(&server, "quota");
    let cell = owner(&url);
    let (mut answered, mut refused) = (Answered::new(), Vec::new());
    for n in 0..1_000 {
        let id = n.to_string();
        match add(&cell, &id, &format!("{n} {}", "x".repeat(SIZE))).await {
            Ok((revision, _)) => drop(answered.insert(id, revision)),
            Err(error) => {
                assert!(!refused.is_empty() || error.message().contains("no room"), "{}", error.chain());
                refused.push(id);
            }
        }
        if refused.len() == 3 {
            break;
        }
    }
    assert!(refused.len() == 3 && answered.len() > 5, "{} answered", answered.len());
    comes("silence", || cell.owns().is_err()).await;
    server.kill();
    server.extra = quota(10 * mib);
    server.restart();
    assert!(server.etcdctl(&["alarm", "disarm"]));
    writes_again(&cell, "again").await;
    assert_eq!(cell.read().epoch(), 1);
    check(&url, &answered);
    assert_are_absent(&url, &refused);
    cell.close();
}

/// One member after the other is killed and comes back, so the leader is among them.
pub async fn a_member_is_lost(mut server: Server, members: usize) {
    let url = url(&server, "member");
    let cell = owner(&url);
    let green = follower(&url, "green");
    let writers = Writers::start(&cell, CLIENTS);
    for member in 0..members {
        a_while().await;
        server.kill_member(member);
        writes_again(&cell, &format!("without {member}")).await;
        green.current().await.unwrap();
        assert!(green.read().revision() > 0);
        server.restart();
    }
    let (answered, failed) = writers.stop().await;
    eprintln!("{} answered, {failed} not", answered.len());
    assert!(answered.len() > 50);
    check(&url, &answered);
    cell.close();
    green.close();
}

/// Whoever loads while the owner writes gets one revision, not halves of several.
pub async fn loaded_meanwhile(server: Server) {
    // Enough for several pages.
    const GROUPS: usize = 700;
    const GROUP: usize = 8;
    const LOADS: usize = 60;
    const LOADS_MORE: usize = 1_000;
    let url = url(&server, "loaded");
    let cell = owner(&url);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let cell = cell.clone();
        tasks.spawn(async move {
            for n in client.. {
                let add = move |tx: &mut Tx| {
                    for member in 0..GROUP {
                        let name = format!("{} {member}", n % GROUPS);
                        let number = tx.get::<Note>(&name).map_or(0, |n| n.number) + 1;
                        tx.put(Note { name, number })?;
                    }
                    Ok(())
                };
                cell.write(Cause::step("group"), add).await.unwrap();
            }
        });
    }
    let other = url.clone();
    // A starved owner writes little during a load.
    let loads = tokio::task::spawn_blocking(move || {
        let mut newest = (0..LOADS).map(|_| load(&other, GROUP as u64)).max();
        for _ in 0..LOADS_MORE {
            if newest > Some(GROUPS as u64) {
                break;
            }
            newest = newest.max(Some(load(&other, GROUP as u64)));
        }
        newest
    });
    let newest = loads.await.unwrap();
    assert!(newest > Some(GROUPS as u64), "nothing was written meanwhile");
    tasks.abort_all();
    cell.close();
}

fn load(url: &str, group: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(15));
    let mut groups = std::collections::BTreeMap::<String, Vec<u64>>::new();
    let head = engine(url).images(&mut |_, key, body| {
        let note: Note = serde_json::from_slice(body).unwrap();
        groups.entry(key.split_once(' ').unwrap().0.into()).or_default().push(note.number);
        Ok(())
    });
    let revision = head.unwrap().revision;
    assert!(groups.values().all(|numbers| numbers.iter().all(|n| *n == numbers[0])), "{groups:?}");
    assert_eq!(groups.values().flatten().sum::<u64>(), group * revision, "{groups:?}");
    revision
}

fn assert_are_absent(url: &str, refused: &[String]) {
    let log = log(&mut *engine(url));
    let found = log.iter().find(|entry| refused.contains(&entry.cause.id));
    assert!(found.is_none(), "{:?} was refused and is there", found.map(|entry| &entry.cause.id));
}

/// The test again, as the process that is stopped. It ends with this value.
struct Sleeper {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Sleeper {
    fn start(url: &str, quiet: bool) -> Sleeper {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["the_sleeper", "--exact", "--nocapture"]).env("SLEEPER_URL", url);
        if quiet {
            command.env("SLEEPER_QUIET", "1");
        }
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let (lines, out) = (Arc::new(Mutex::new(Vec::new())), process.stdout.take().unwrap());
        let all = lines.clone();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).for_each(|line| all.lock().unwrap().push(line));
        });
        Sleeper { process, lines }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn said(&self, word: &str) -> Vec<String> {
        self.lines.lock().unwrap().iter().filter(|line| line.starts_with(word)).cloned().collect()
    }

    fn answered(&self) -> Answered {
        let pair = |line: &String| {
            let (revision, id) = line.strip_prefix("answered ")?.split_once(' ')?;
            Some((id.to_string(), revision.parse().ok()?))
        };
        self.said("answered").iter().filter_map(pair).collect()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The owner sleeps longer than its lease; another takes over; the first wakes up in the middle of what it did.
pub async fn asleep(server: Server) {
    let url = url(&server, "asleep");
    // A process that sleeps inside a transaction on a file holds its lock: there is nothing that could take it away.
    let sleeper = Sleeper::start(&url, server.which == Which::Sqlite);
    comes("the owner's answers", || sleeper.answered().len() > 20).await;
    let green = follower(&url, "green");
    green.stand_by(true);
    if server.which == Which::Sqlite {
        comes("silence", || !sleeper.said("quiet").is_empty()).await;
    }
    sleeper.signal(rustix::process::Signal::STOP);
    assert_eq!(owns(&green).await, 2);
    for n in 0..20 {
        add(&green, &format!("green {n}"), "green").await.unwrap();
    }
    let head = green.read().revision();
    let (reads, refused) = (sleeper.said("read").len(), sleeper.said("refused").len());
    sleeper.signal(rustix::process::Signal::CONT);
    comes("a refusal", || sleeper.said("refused").len() > refused + 8).await;
    // One answer may have been on its way when it fell asleep: a read of then, and writes that are in the log.
    assert!(sleeper.said("read").len() <= reads + 1, "it reads what is not its own any more");
    let mut answered = sleeper.answered();
    assert!(answered.values().all(|revision| *revision <= head - 20), "it answered under an old epoch");
    answered.extend((0..20).map(|n| (format!("green {n}"), head - 19 + n)));
    green.owns().unwrap();
    assert_eq!(check(&url, &answered), head);
    green.close();
}

/// What `asleep` puts to sleep.
pub async fn sleep(url: &str) {
    let cell = owner(url);
    let quiet = std::env::var("SLEEPER_QUIET").is_ok();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..4 {
        let cell = cell.clone();
        tasks.spawn(async move {
            for n in 0.. {
                // Whoever asks after that is asking the one that woke up.
                if quiet && n == 40 {
                    say("quiet");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                let id = format!("{client}.{n}");
                match add(&cell, &id, &format!("note {client}")).await {
                    Ok((revision, _)) => say(&format!("answered {revision} {id}")),
                    Err(_) => say("refused"),
                }
                if client == 0 && cell.owns().is_ok() {
                    say(&format!("read {}", cell.read().revision()));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    tasks.join_all().await;
}

/// A line as one system call: it is there or not.
fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}
