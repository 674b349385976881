//! What an engine keeps when its server is killed, cut off, full, or its owner asleep.

use crate::proxy::{ANSWER, Proxy, REQUEST};
use crate::servers::{Server, Small, Which};
use crate::world::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    assert!(answered.len() > 50 && failed > 0);
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
