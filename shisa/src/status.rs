//! `shisa status`: what a cloud is now, asked through its own API.

use crate::http::text;
use crate::image;
use crate::progress::say;
use crate::state::Directory;
use base::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// A cloud that is not up, as service managers expect it.
const NOT_UP: u8 = 3;

pub async fn run(directory: &Directory) -> Result<ExitCode> {
    let ids = directory.need_ids()?;
    let Some(running) = directory.running() else {
        say(format_args!("not up; its state is in {}", directory.path().display()));
        return Ok(ExitCode::from(NOT_UP));
    };
    say(format_args!("up: {} (process {})", running.address, running.process.pid));
    let admin = image::admin(directory, &running.address).await?;
    let nodes = admin.get("/compute/v2.1/os-hypervisors").await?;
    let up = count(&nodes["hypervisors"], "state");
    say(format_args!("nodes: {} (machine {})", told(&up), format!("{:?}", ids.machine).to_lowercase()));
    let servers = admin.get("/compute/v2.1/servers/detail?all_tenants=1").await?;
    say(format_args!("servers: {}", told(&count(&servers["servers"], "status"))));
    Ok(ExitCode::SUCCESS)
}

/// How many there are of each word in a field.
fn count(list: &Value, field: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in list.as_array().into_iter().flatten() {
        *counts.entry(text(&one[field])).or_default() += 1;
    }
    counts
}

fn told(counts: &BTreeMap<String, usize>) -> String {
    let words: Vec<_> = counts.iter().map(|(word, n)| format!("{n} {word}")).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}
