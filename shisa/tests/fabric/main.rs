//! Three hosts with real packets: `make fabric-test`, and a short form of it among the ordinary tests.
//!
//! Each host is a namespace with a node's process of its own; a plane's process is on the wire between them; the world
//! is behind a provider's router. Guests are Linux network stacks behind the ports' taps. What is done is done by the
//! API, what is seen is packets. Each check says what it expects and what was seen; one that cannot run has failed.
//! All of it is in namespaces without names (`isolate`), so nothing is left behind however a run ends.
//!
//! Words: `--full` for the long form, `--only PART` for the checks whose names have the part. Needs root, busybox, iperf3.

#![allow(clippy::unwrap_used, reason = "a test")]

mod checks;
mod cloud;
mod guest;
mod hosts;
mod isolate;
mod packets;
mod space;
mod town;

use checks::Check;
use nix::mount::{MsFlags, mount};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use town::Town;

/// The program that is tried: this build's, or `SHISA` on a machine that has no build.
pub fn shisa() -> String {
    std::env::var("SHISA").unwrap_or_else(|_| env!("CARGO_BIN_EXE_shisa").to_string())
}

/// What was wanted, or why not.
pub type Outcome<T = String> = Result<T, String>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let said = |word: &str| words.iter().any(|w| w == word);
    if said("--list") {
        // Test runners ask so; the long form is none of theirs.
        if !said("--ignored") {
            println!("short: test");
        }
        return ExitCode::SUCCESS;
    }
    let full = said("--full");
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: packets in namespaces need root");
        return if full { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    if let Some(code) = isolate::isolated() {
        return code;
    }
    let part = words.iter().position(|w| w == "--only").and_then(|at| words.get(at + 1));
    let wanted = |check: &&Check| match part {
        Some(part) => check.name.contains(part.as_str()),
        None => full || check.short,
    };
    run(&checks::ALL.iter().filter(wanted).collect::<Vec<_>>())
}

fn run(checks: &[&Check]) -> ExitCode {
    let begin = Instant::now();
    let work = workplace();
    let town = catch_unwind(|| Town::build(&work)).unwrap_or_else(|panic| Err(reason(&*panic)));
    let mut town = match town {
        Ok(town) => town,
        Err(why) => {
            println!("the cloud did not come up: {why}");
            println!("{0} checks, {0} failed, 0 skipped", checks.len());
            return ExitCode::FAILURE;
        }
    };
    println!("three nodes and five guests after {:.1} s", begin.elapsed().as_secs_f32());
    let failed: Vec<&str> =
        checks.iter().filter(|check| !passes(check, &mut town)).map(|check| check.name).collect();
    if !failed.is_empty() {
        println!("what nodes and plane said:");
        town.machines.hosts.iter().for_each(|host| print!("{}", host.said()));
        print!("{}", town.plane.said());
        println!("failed: {}", failed.join(" "));
    }
    println!("{:.0} s", begin.elapsed().as_secs_f32());
    println!("{} checks, {} failed, 0 skipped", checks.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Carries a check out, and says what came of it.
fn passes(check: &Check, town: &mut Town) -> bool {
    let begin = Instant::now();
    let outcome =
        catch_unwind(AssertUnwindSafe(|| (check.run)(town))).unwrap_or_else(|panic| Err(reason(&*panic)));
    let word = if outcome.is_ok() { "ok    " } else { "FAILED" };
    let seen = outcome.as_ref().unwrap_or_else(|not| not);
    println!(
        "{word} {:<26} {:4.1} s  expected: {}; seen: {seen}",
        check.name,
        begin.elapsed().as_secs_f32(),
        check.expect
    );
    outcome.is_ok()
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("?"))
}

/// A directory that only we see, and that ends with us. Programs that we run look for namespaces below it, too.
fn workplace() -> std::path::PathBuf {
    let none = None::<&str>;
    let resolver = std::fs::canonicalize("/etc/resolv.conf");
    mount(none, "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    std::fs::create_dir_all("/run/netns").unwrap();
    // It may have been a link into what is hidden now.
    if let Some(folder) =
        resolver.ok().as_deref().and_then(Path::parent).filter(|folder| folder.starts_with("/run"))
    {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("resolv.conf"), "").unwrap();
    }
    let work = Path::new("/run/work");
    std::fs::create_dir(work).unwrap();
    work.to_path_buf()
}
