//! What is watched once the candidate is active: that it stays so, what fails, how long answers take, whether it
//! answers at all, and what memory it needs. Whatever goes wrong is a trigger: the rollout is taken back.

use super::gates::{COST_TIMES, PROBE, too_large};
use super::record::Rollout;
use crate::planes::Planes;
use base::{Error, Result};
use fleet::door::{Sampled, Told};
use std::time::{Duration, Instant};
use tokio::sync::watch::Receiver;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Failed requests (5xx) since the switch that take it back,
const FAILED_MAX: u64 = 5;
/// when they are at least one in so many.
const FAILED_PART: u64 = 100;
/// Requests that waited for the switch are slow; they do not count.
const SETTLE: Duration = Duration::from_secs(1);
/// Answers without which nothing is said of their times.
const LATENCY_SAMPLES: u64 = 500;
/// Answers that stand for the time before.
const LATENCY_BEFORE: usize = 5_000;
/// What is below is noise.
const LATENCY_FLOOR_MS: f64 = 100.0;
/// Times are looked at once in so many looks: they are sorted for it.
const LATENCY_LOOKS: usize = 10;
const PROBE_MAX: Duration = Duration::from_secs(1);
/// Probes that fail one after the other.
const PROBES_FAILED: usize = 2;

/// How the door did before the switch.
pub struct Before {
    told: Told,
    p99_ms: Option<f64>,
    rss_bytes: Option<u64>,
}

impl Before {
    pub fn of(planes: &Planes) -> Before {
        let figures = planes.door().figures();
        let p99_ms =
            figures.p99_ms_of(LATENCY_BEFORE).or_else(|| figures.p99_ms_of(LATENCY_SAMPLES as usize));
        Before { told: figures.tell(), p99_ms, rss_bytes: None }
    }
}

/// Watches until the time is over.
///
/// Errors: what is to be taken back for.
pub async fn watch(
    planes: &Planes,
    rollout: &Rollout,
    mut before: Before,
    bake: Duration,
    mut back: Receiver<bool>,
) -> Result<String> {
    before.rss_bytes = planes.word(&rollout.from.name).await.ok().map(|word| word.rss_bytes);
    let trigger = tokio::select! {
        () = tokio::time::sleep(bake) => return Ok(summary(planes, &before)),
        _ = back.wait_for(|back| *back) => "an operator ended it".to_string(),
        why = failures(planes, before.told) => why,
        why = looks(planes, &rollout.to.name, &before) => why,
    };
    Err(Error::unavailable(format!("{trigger}; {}", summary(planes, &before))))
}

fn summary(planes: &Planes, before: &Before) -> String {
    let told = planes.door().figures().tell().since(before.told);
    format!("{} of {} requests failed", told.failed, told.requests)
}

/// Each failure is looked at when it comes.
async fn failures(planes: &Planes, before: Told) -> String {
    let mut failures = planes.door().figures().failures();
    loop {
        let told = planes.door().figures().tell().since(before);
        if told.failed >= FAILED_MAX && told.failed * FAILED_PART >= told.requests {
            return "requests fail".into();
        }
        if failures.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn looks(planes: &Planes, name: &str, before: &Before) -> String {
    let process = planes.seat(name).and_then(|(_, _, pid)| pid);
    let (mut failed, mut settled, begin) = (0, None, Instant::now());
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for look in 0_usize.. {
        every.tick().await;
        if planes.active().as_deref() != Some(name) {
            return format!("{name} is not active any more");
        }
        if planes.seat(name).and_then(|(_, _, pid)| pid) != process {
            return format!("{name} ended");
        }
        failed = if probe(planes, name).await { 0 } else { failed + 1 };
        if failed >= PROBES_FAILED {
            return format!("{name} does not answer GET {PROBE}");
        }
        if begin.elapsed() > SETTLE && settled.is_none() {
            settled = Some(planes.door().figures().tell().requests);
        }
        if look % LATENCY_LOOKS == 0
            && let Some(why) = slow(planes, before, settled).or(large(planes, name, before).await)
        {
            return format!("{name} {why}");
        }
    }
    std::future::pending().await
}

async fn probe(planes: &Planes, name: &str) -> bool {
    let Ok(upstream) = planes.upstream(name) else { return false };
    let answer = upstream.mirror(&Sampled::open(PROBE), PROBE_MAX).await;
    answer.is_ok_and(|answer| !answer.status.is_server_error())
}

fn slow(planes: &Planes, before: &Before, settled: Option<u64>) -> Option<String> {
    let figures = planes.door().figures();
    let answers = figures.tell().requests.saturating_sub(settled?);
    let (was, is) = (before.p99_ms?, figures.p99_ms_of(answers as usize)?);
    let over = answers >= LATENCY_SAMPLES && is > was * COST_TIMES as f64 && is - was > LATENCY_FLOOR_MS;
    over.then(|| format!("answers in {is:.0} ms at p99, {was:.0} ms before"))
}

async fn large(planes: &Planes, name: &str, before: &Before) -> Option<String> {
    let (was, is) = (before.rss_bytes?, planes.word(name).await.ok()?.rss_bytes);
    too_large(is, was).then(|| format!("needs {} MiB, {} MiB before", is >> 20, was >> 20))
}
