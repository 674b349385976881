//! Nodes get the new binary when the planes have it: first those of this machine, whose process is replaced, then those on
//! other machines, in waves.
//!
//! ```text
//! local -> programs -> wave 1 (one node) -> wave 2 (a tenth) -> wave 3 (the rest) -> later (those that are down)
//!   any --a node gives up, falls silent or is late, a server comes into ERROR, an operator ends it--> nodes back
//! ```
//!
//! A node has done its part when it has become the program, greeted the plane and reported what it found; of what does
//! not work it goes back by itself, and says why (`node::program`). Guests and network go on meanwhile. A node that is down
//! is ordered the program all the same, and gets it when it comes back; one of a version that knows of no orders is named
//! and left alone.
//!
//! Limits: `AT_ONCE_MAX` nodes on their way, `NODE_MAX` for each, `PROGRAMS_MAX` files that are kept for nodes.

use super::Run;
use super::record::Seat;
use crate::plane::programs::{Faults, Look, Names, Orders, PAGE};
use crate::state::Directory;
use base::program::{Outcome, Program};
use base::{Error, Result, Timestamp};
use fleet::Far;
use hyper::Method;
use node::program::PROVE_MAX;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

/// Nodes that are between two programs: each loads a file from this machine, and answers no console meanwhile.
const AT_ONCE_MAX: usize = 20;
/// The second wave is this part of all.
const TENTH: usize = 10;
/// More than a node takes to give up by itself: its own reason says more.
const NODE_MAX: Duration = Duration::from_secs(720);
/// A node on its way that is silent may be trying a program, and goes back by itself in this time.
const SILENT_MAX: Duration = PROVE_MAX;
/// A wave is watched for so long when all of its nodes are done.
const SETTLE: Duration = Duration::from_secs(2);
/// Nodes that go back are waited for.
const BACK_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A plane that does not answer may just be switched or started again.
const AWAY_MAX: Duration = Duration::from_secs(30);
const ASK_MAX: Duration = Duration::from_secs(5);
/// Programs that are kept; the oldest go.
const PROGRAMS_MAX: usize = 4;
/// Nodes that are named in a line.
const NAMES_SHOWN: usize = 10;

/// What nodes on other machines are to a rollout.
#[derive(Debug, Default, PartialEq)]
struct Sorted {
    /// To be rolled, with what they run.
    able: BTreeMap<String, Program>,
    down: BTreeMap<String, Program>,
    /// They know of no orders.
    old: Vec<String>,
    /// They run it already.
    same: usize,
}

impl Run {
    /// Errors: why nodes are to go back; those of this machine have then done so, if it is for them.
    pub async fn nodes(&self) -> Result<()> {
        if self.rollout.no_nodes {
            return Ok(());
        }
        if self.inner.nodes.seen().is_some() {
            self.step("local", "the nodes of this machine are replaced", self.local()).await?;
        }
        let (mut program, mut sorted) = (Program::default(), Sorted::default());
        let far = self.far().await;
        if far.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(());
        }
        let begun = async {
            program = self.kept(&self.rollout.to).await?;
            sorted = sort(far?, &program);
            Ok(sorted.told(&program))
        };
        self.step("programs", "", begun).await?;
        let waves = waves(sorted.able.keys().cloned().collect());
        let since = Timestamp::wall();
        for (n, wave) in waves.iter().enumerate() {
            let told = format!("wave {} of {}: {}", n + 1, waves.len(), names(wave));
            let before = &sorted.able;
            self.step("wave", &told, self.wave(&told, wave, before, &program, since)).await?;
        }
        if !sorted.down.is_empty() {
            self.step("later", "", self.later(&sorted.down, &program)).await?;
        }
        Ok(())
    }

    async fn local(&self) -> Result<String> {
        let before = self.inner.nodes.seen().map(|seen| seen.binary);
        let said = self.replaced_local(&self.rollout.to.binary).await?;
        self.inner.book.change(|rollout| rollout.local_before = before);
        self.goes_on()?;
        Ok(said)
    }

    /// Errors: an operator wants it to end.
    fn goes_on(&self) -> Result<()> {
        match *self.inner.back.borrow() {
            true => Err(Error::conflict("an operator ended it")),
            false => Ok(()),
        }
    }

    async fn replaced_local(&self, binary: &Path) -> Result<String> {
        let seen = self.inner.nodes.replace(binary).await?;
        let (pid, version) = (seen.pid, &seen.version);
        Ok(format!("the nodes of this machine are process {pid} with version {version}"))
    }

    /// A binary as a file that nodes are given.
    async fn kept(&self, seat: &Seat) -> Result<Program> {
        let directory = Directory::at(self.planes().launch().directory.clone());
        let version = self.inner.book.last().map(|last| last.version).unwrap_or_default();
        let (binary, folder) = (seat.binary.clone(), directory.programs());
        let kept = tokio::task::spawn_blocking(move || {
            let program = node::program::digest(&binary, &version)?;
            let file = folder.join(&program.sha256);
            node::program::copy(&binary, &file)?;
            match node::program::digest(&file, &version)? == program {
                true => sweep(&folder),
                false => return Err(Error::conflict(format!("{} changes", binary.display()))),
            }
            Ok(program)
        });
        kept.await.map_err(|e| Error::internal("a program was not kept").because(e))?
    }

    /// All nodes on other machines.
    async fn far(&self) -> Result<Vec<Far>> {
        let mut all: Vec<Far> = Vec::new();
        loop {
            let after = all.last().map_or("", |far| far.name.as_str());
            let page: Vec<Far> = self.ask(Method::GET, &format!("/far?after={after}"), &Value::Null).await?;
            let full = page.len() == PAGE;
            all.extend(page);
            if !full {
                return Ok(all);
            }
        }
    }

    /// Asks the active plane; one that is away is asked again.
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: &Value) -> Result<T> {
        let begin = Instant::now();
        loop {
            let planes = self.planes();
            let answer = match planes.active() {
                Some(active) => planes.ask(&active, method.clone(), path, body, ASK_MAX).await,
                None => Err(Error::unavailable("no plane is active")),
            };
            match answer {
                Ok(answer) => {
                    let wrong = |e| Error::internal("a plane's word is none").because(e);
                    return serde_json::from_value(answer).map_err(wrong);
                }
                Err(error) if error.kind() != base::Kind::Unavailable || begin.elapsed() > AWAY_MAX => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn order(&self, orders: BTreeMap<String, Program>) -> Result<()> {
        self.ask::<Value>(Method::POST, "/far/orders", &json!(Orders { orders })).await.map(drop)
    }

    async fn look(&self, names: Vec<String>, since: Timestamp) -> Result<Look> {
        self.ask(Method::POST, "/far/look", &json!(Names { names, since })).await
    }

    async fn wave(
        &self,
        told: &str,
        wave: &[String],
        before: &BTreeMap<String, Program>,
        program: &Program,
        since: Timestamp,
    ) -> Result<String> {
        let (begin, had) = (Instant::now(), self.look(Vec::new(), since).await?.faults);
        let mut waiting: VecDeque<&String> = wave.iter().collect();
        let mut way: BTreeMap<String, Instant> = BTreeMap::new();
        let mut silent: BTreeMap<String, Instant> = BTreeMap::new();
        let mut done: Option<Instant> = None;
        loop {
            self.goes_on()?;
            if self.planes().active().is_some_and(|active| active != self.candidate()) {
                return Err(Error::unavailable(format!("{} is not active any more", self.candidate())));
            }
            let free = AT_ONCE_MAX.saturating_sub(way.len()).min(waiting.len());
            let next: Vec<String> = waiting.drain(..free).cloned().collect();
            if !next.is_empty() {
                let now = next.iter().filter_map(|name| Some((name.clone(), before.get(name)?.clone())));
                self.inner.book.change(|rollout| rollout.nodes_before.extend(now));
                self.order(next.iter().map(|name| (name.clone(), program.clone())).collect()).await?;
                way.extend(next.into_iter().map(|name| (name, Instant::now())));
            }
            let look = self.look(way.keys().cloned().collect(), since).await?;
            silent.retain(|name, _| look.silent.contains(name) && way.contains_key(name));
            for name in look.silent.iter().filter(|name| way.contains_key(*name)) {
                silent.entry(name.clone()).or_insert_with(Instant::now);
            }
            let rolled = self.inner.book.last().map(|last| last.nodes_before).unwrap_or_default();
            let trying = |name: &String| {
                silent.get(name).map_or(way.contains_key(name), |at| at.elapsed() < SILENT_MAX)
            };
            trouble(&look, &rolled, &had, trying)?;
            for far in &look.nodes {
                match outcome_of(far) {
                    Outcome::Done => _ = way.remove(&far.name),
                    Outcome::Failed(why) => {
                        return Err(Error::unavailable(format!("{} went back: {why}", far.name)));
                    }
                    Outcome::Pending => {}
                }
            }
            if let Some((name, _)) = way.iter().find(|(_, since)| since.elapsed() > NODE_MAX) {
                let late = NODE_MAX.as_secs();
                return Err(Error::unavailable(format!("{name} does not run it after {late} s")));
            }
            done = (way.is_empty() && waiting.is_empty()).then(|| done.unwrap_or_else(Instant::now));
            if done.is_some_and(|at| at.elapsed() >= SETTLE) {
                let took = (begin.elapsed() - SETTLE).as_secs_f64();
                return Ok(format!("{told}: done after {took:.1} s"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn later(&self, down: &BTreeMap<String, Program>, program: &Program) -> Result<String> {
        self.inner.book.change(|rollout| rollout.nodes_before.extend(down.clone()));
        let all: Vec<&String> = down.keys().collect();
        for chunk in all.chunks(PAGE) {
            self.order(chunk.iter().map(|name| ((*name).clone(), program.clone())).collect()).await?;
        }
        Ok(format!("ordered for those that are down: {}", names(all)))
    }

    /// Takes nodes back that were rolled, those on other machines all at once but for `AT_ONCE_MAX`.
    ///
    /// Errors: which did not come back; the others have.
    pub async fn nodes_back(&self) -> Result<()> {
        let Some(last) = self.inner.book.last() else { return Ok(()) };
        let mut outcome = Ok(());
        if !last.nodes_before.is_empty() {
            outcome = self.step("nodes-back", "", self.far_back(&last.nodes_before)).await;
            self.inner.book.change(|rollout| rollout.nodes_before.clear());
        }
        if let Some(binary) = last.local_before {
            let back = self.step("local-back", "", self.replaced_local(&binary)).await;
            self.inner.book.change(|rollout| rollout.local_before = None);
            outcome = outcome.and(back);
        }
        outcome
    }

    async fn far_back(&self, before: &BTreeMap<String, Program>) -> Result<String> {
        let since = Timestamp::wall();
        let (mut down, mut stay) = (Vec::new(), BTreeMap::new());
        let all: Vec<(&String, &Program)> = before.iter().collect();
        for chunk in all.chunks(AT_ONCE_MAX) {
            let orders = chunk.iter().map(|(name, program)| ((*name).clone(), (*program).clone()));
            self.order(orders.collect()).await?;
            let mut way: BTreeSet<String> = chunk.iter().map(|(name, _)| (*name).clone()).collect();
            let begin = Instant::now();
            while !way.is_empty() && begin.elapsed() < BACK_MAX {
                let look = self.look(way.iter().cloned().collect(), since).await?;
                for far in look.nodes {
                    match outcome_of(&far) {
                        Outcome::Pending if far.alive => continue,
                        // It goes back when it is there again.
                        Outcome::Pending => down.push(far.name.clone()),
                        Outcome::Failed(why) => _ = stay.insert(far.name.clone(), why),
                        Outcome::Done => {}
                    }
                    way.remove(&far.name);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            stay.extend(way.into_iter().map(|name| (name, "it does not answer the order".to_string())));
        }
        let later = match down.is_empty() {
            true => String::new(),
            false => format!("; down, they go back when they come: {}", names(&down)),
        };
        match stay.first_key_value() {
            None => Ok(format!("nodes run what they ran before: {}{later}", names(before.keys()))),
            Some((name, why)) => Err(Error::unavailable(format!(
                "of {} nodes these do not go back: {}; {name}: {why}{later}",
                before.len(),
                names(stay.keys())
            ))),
        }
    }
}

/// What became of a node's order.
fn outcome_of(far: &Far) -> Outcome {
    match (&far.order, &far.runs) {
        (Some(order), Some(runs)) => order.outcome(runs),
        _ => Outcome::Pending,
    }
}

/// Errors: a node that was rolled and is not `trying` is silent, or a server on one came into ERROR.
fn trouble(
    look: &Look,
    rolled: &BTreeMap<String, Program>,
    had: &Faults,
    trying: impl Fn(&String) -> bool,
) -> Result<()> {
    if let Some(name) = rolled.keys().find(|name| look.silent.contains(*name) && !trying(name)) {
        return Err(Error::unavailable(format!("{name} is silent")));
    }
    let new = look.faults.iter().find(|(id, node)| rolled.contains_key(*node) && !had.contains_key(id));
    match new {
        Some((id, node)) => Err(Error::unavailable(format!("server {id} on {node} is in ERROR"))),
        None => Ok(()),
    }
}

fn sort(all: Vec<Far>, program: &Program) -> Sorted {
    let mut sorted = Sorted::default();
    for far in all {
        match far.runs {
            None => sorted.old.push(far.name),
            Some(runs) if runs.program.sha256 == program.sha256 => sorted.same += 1,
            Some(runs) if !far.alive => _ = sorted.down.insert(far.name, runs.program),
            Some(runs) => _ = sorted.able.insert(far.name, runs.program),
        }
    }
    sorted
}

impl Sorted {
    fn told(&self, program: &Program) -> String {
        let mut told = format!("{} for {} nodes on other machines", program.shown(), self.able.len());
        let mut more = |n: usize, text: String| {
            if n > 0 {
                told.push_str("; ");
                told.push_str(&text);
            }
        };
        more(self.same, format!("{} run it already", self.same));
        more(self.down.len(), format!("down, they get it when they come back: {}", names(self.down.keys())));
        more(
            self.old.len(),
            format!("of a version that takes no orders, to be replaced there: {}", names(&self.old)),
        );
        told
    }
}

/// One node, a tenth of them, the rest.
fn waves(nodes: Vec<String>) -> Vec<Vec<String>> {
    let mut rest = VecDeque::from(nodes);
    let sizes = [1, rest.len().div_ceil(TENTH), usize::MAX];
    let waves = sizes.map(|size| rest.drain(..size.min(rest.len())).collect::<Vec<_>>());
    waves.into_iter().filter(|wave| !wave.is_empty()).collect()
}

fn names<'a>(all: impl IntoIterator<Item = &'a String>) -> String {
    let all: Vec<&str> = all.into_iter().map(String::as_str).collect();
    let shown = all[..all.len().min(NAMES_SHOWN)].join(", ");
    match all.len() - all.len().min(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Removes the oldest programs but `PROGRAMS_MAX`.
fn sweep(folder: &Path) {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> =
        files.filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path()))).collect();
    files.sort();
    let over = files.len().saturating_sub(PROGRAMS_MAX);
    for (_, file) in &files[..over] {
        let _ = std::fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Id;
    use base::program::Runs;

    #[test]
    fn waves_grow_from_one_node() {
        let check = |n: usize, expect: &[usize]| {
            let nodes: Vec<String> = (0..n).map(|n| format!("n{n:04}")).collect();
            let waves = waves(nodes.clone());
            assert_eq!(waves.iter().map(Vec::len).collect::<Vec<_>>(), expect, "{n}");
            assert_eq!(waves.concat(), nodes);
        };
        check(0, &[]);
        check(1, &[1]);
        check(2, &[1, 1]);
        check(3, &[1, 1, 1]);
        check(25, &[1, 3, 21]);
        check(1000, &[1, 100, 899]);
    }

    #[test]
    fn nodes_are_sorted_by_what_can_be_done_for_them() {
        let program = |sha256: &str| Program { version: "1".into(), sha256: sha256.into(), size: 1 };
        let far = |name: &str, alive, runs: Option<&str>| Far {
            name: name.into(),
            alive,
            runs: runs.map(|sha256| Runs { program: program(sha256), ..Runs::default() }),
            order: None,
        };
        let all = vec![
            far("a", true, Some("old")),
            far("b", false, Some("old")),
            far("c", true, None),
            far("d", true, Some("new")),
        ];
        let sorted = sort(all, &program("new"));
        assert_eq!(
            sorted.told(&program("new")),
            "1 (new) for 1 nodes on other machines; 1 run it already; down, they get it when they come back: b; \
             of a version that takes no orders, to be replaced there: c"
        );
        assert_eq!(sorted.able, [("a".to_string(), program("old"))].into());
    }

    #[test]
    fn what_befalls_a_rolled_node_or_its_servers_is_trouble() {
        let rolled = ["a", "c"].map(|name| (name.to_string(), Program::default())).into();
        let server = Id::from_uuid(uuid::Uuid::from_u128(7));
        let check = |silent: &str, fault: &str, expect: Option<&str>| {
            let look = Look {
                silent: [silent.to_string()].into(),
                faults: [(server, fault.to_string())].into(),
                ..Look::default()
            };
            let why = trouble(&look, &rolled, &BTreeMap::new(), |name| name == "c").err();
            assert_eq!(why.as_ref().map(|why| why.message().split(' ').next().unwrap()), expect);
        };
        check("b", "b", None);
        check("a", "b", Some("a"));
        check("c", "b", None);
        check("c", "c", Some("server"));
        check("b", "a", Some("server"));
        let look = Look { faults: [(server, "a".to_string())].into(), ..Look::default() };
        assert!(trouble(&look, &rolled, &look.faults, |_| false).is_ok());
    }
}
