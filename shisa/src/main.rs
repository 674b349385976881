//! The binary: configuration, roles, wiring, command line.
//!
//! `up` keeps a cloud: its planes, its front door and the nodes of this machine, which are processes of their own; `node`
//! is one node of a cloud on another machine. Everything a process keeps is in the state directory (`state`). An error is
//! one sentence on stderr.
//!
//! Exit codes: 0, 1 for an error, 2 for a wrong command line; `status` says 3 for a cloud that is not up, `network trace`
//! 4 for a packet that does not arrive.
//!
//! Deliberately absent so far: the dashboard.

mod cli;
mod clouds;
mod control;
mod demo;
mod door;
mod doors;
mod down;
mod env;
mod files;
mod first;
mod http;
mod image;
mod join;
mod logging;
mod machine;
mod maintenance;
mod nodes;
mod plane;
mod planes;
mod program;
mod progress;
mod pulse;
mod range;
mod records;
mod rollout;
mod routers;
mod state;
mod status;
mod token;
mod trace;
mod up;
mod webhook;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let begin = Instant::now();
    let command = match cli::parse() {
        Ok(command) => command,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads can be started: {error}")),
    };
    let outcome = runtime.block_on(cli::run(command, begin));
    // What still blocks on the disk or the kernel is not waited for.
    runtime.shutdown_background();
    outcome.unwrap_or_else(|error| fail(&error.chain()))
}

fn fail(sentence: &str) -> ExitCode {
    eprintln!("shisa: {sentence}");
    ExitCode::FAILURE
}
