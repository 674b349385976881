//! `shisa rollout ...`, `shisa plane rollback` and `finalise`, of whoever types them: asked of the process that is up.

use super::record::{self, Mark};
use super::{New, Outcome, Rollout};
use crate::cli;
use crate::progress::{Progress, say};
use crate::state::Directory;
use base::{Error, Result};
use fleet::door::ask;
use hyper::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A finalise starts a plane, which may load for long.
const ANSWER_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub async fn run(directory: &Directory, words: &cli::Rollout, begin: Instant) -> Result<()> {
    match words {
        cli::Rollout::Start(start) => {
            directory.need_running()?;
            let binary = program(&start.binary)?;
            let new = json!(New {
                binary,
                bake_s: start.bake.unsigned_abs(),
                conformance: start.conformance.clone(),
                without_copy: start.without_copy,
                no_nodes: start.no_nodes,
            });
            let rollout = tell(directory, Method::POST, "/rollouts", &new).await?;
            watch(directory, rollout, begin).await
        }
        cli::Rollout::Show(show) => {
            directory.need_ids()?;
            let rollouts = record::read(directory)?;
            let skipped = if show.all { 0 } else { rollouts.len().saturating_sub(1) };
            rollouts.iter().skip(skipped).flat_map(Rollout::lines).for_each(say);
            match rollouts.is_empty() {
                true => Err(Error::not_found(
                    "there was no rollout: `shisa rollout start --binary PATH` begins one",
                )),
                false => Ok(()),
            }
        }
    }
}

pub async fn rollback(directory: &Directory, begin: Instant) -> Result<()> {
    directory.need_running()?;
    let going = tell(directory, Method::POST, "/rollouts/last/rollback", &Value::Null).await?;
    let last = match going.outcome {
        Outcome::Running => {
            say("the rollout that goes on is told to end");
            ended(directory, going, begin).await?
        }
        _ => going,
    };
    match last.outcome {
        Outcome::TakenBack | Outcome::RolledBack | Outcome::Stopped => {
            say(format_args!("{} is active with {}", last.from.name, last.from.binary.display()));
            Ok(())
        }
        other => Err(Error::conflict(format!("it was not taken back: {}", other.told()))),
    }
}

pub async fn finalise(directory: &Directory) -> Result<()> {
    directory.need_running()?;
    let last = tell(directory, Method::POST, "/rollouts/last/finalise", &Value::Null).await?;
    let (from, to) = (&last.from.name, &last.to);
    let binary = to.binary.display();
    say(format_args!("{} is active and {from} stands by, both with {binary}", to.name));
    say(format_args!(
        "there is no way back from here: start the cloud with {binary} from now on (`shisa up` is the process that started it)"
    ));
    Ok(())
}

async fn tell(directory: &Directory, method: Method, path: &str, body: &Value) -> Result<Rollout> {
    let answer = ask(&directory.control(), method, path, body, ANSWER_MAX).await?;
    serde_json::from_value(answer).map_err(|e| Error::internal("the answer is no rollout").because(e))
}

/// Prints steps as they come; ends well only with the candidate active.
async fn watch(directory: &Directory, rollout: Rollout, begin: Instant) -> Result<()> {
    let (number, last) = (rollout.number, ended(directory, rollout, begin).await?);
    let progress = Progress::since(begin);
    if last.outcome == Outcome::Active && last.failed().is_none() {
        let (from, to) = (&last.from, &last.to);
        progress.step(
            "done",
            format_args!("{} is active; {} stands by with {}", to.name, from.name, from.binary.display()),
        );
        say(
            "            `shisa plane finalise` gives that one the new binary, `shisa plane rollback` goes back to it",
        );
        return Ok(());
    }
    let why = last.failed().map(|step| format!(" at {}: {}", step.name, step.detail)).unwrap_or_default();
    Err(Error::conflict(format!(
        "rollout {number} did not end with the candidate active ({}){why}",
        last.outcome.told()
    )))
}

/// The rollout when it has ended.
async fn ended(directory: &Directory, mut rollout: Rollout, begin: Instant) -> Result<Rollout> {
    let (progress, number) = (Progress::since(begin), rollout.number);
    let mut said = HashSet::new();
    loop {
        for (n, step) in rollout.steps.iter().enumerate() {
            if !step.detail.is_empty() && said.insert((n, step.mark != Mark::Running)) {
                let failed = if step.mark == Mark::Failed { "FAILED: " } else { "" };
                progress.step(&step.name, format_args!("{failed}{}", step.detail));
            }
        }
        if rollout.outcome != Outcome::Running || rollout.number != number {
            return Ok(rollout);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let away = |e| {
            let sentence =
                "the cloud's process does not answer any more; `shisa rollout show` says how far it was";
            Error::unavailable(sentence).because(e)
        };
        rollout = tell(directory, Method::GET, "/rollouts/last", &Value::Null).await.map_err(away)?;
    }
}

/// The file of a candidate.
///
/// Errors: `Invalid` when there is none.
fn program(path: &Path) -> Result<PathBuf> {
    let none = |e| Error::invalid(format!("there is no program at {}", path.display())).because(e);
    let binary = std::fs::canonicalize(path).map_err(none)?;
    match binary.is_file() {
        true => Ok(binary),
        false => Err(Error::invalid(format!("{} is no file", path.display()))),
    }
}
