//! A world apart for a run: namespaces of processes, mounts and network that end with it, also by Ctrl-C or SIGKILL.
//!
//! Three processes: the one that was started waits for `unshare`, which dies with it and takes along the first process
//! of the new world, and with that all others. That one adopts orphans, as nobody else would, and waits for the third.

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Says how deep we are.
const DEPTH: &str = "SHISA_FABRIC_DEPTH";
/// A run that hangs is ended. The long form takes some minutes.
const RUN_MAX_SECS: u32 = 1800;

/// The code to exit with, or none in the innermost process.
pub fn isolated() -> Option<ExitCode> {
    match std::env::var(DEPTH).as_deref() {
        Err(_) => Some(apart()),
        Ok("1") => Some(first()),
        Ok(_) => None,
    }
}

fn again(mut command: Command, depth: &str) -> Command {
    command.args(std::env::args_os().skip(1)).env(DEPTH, depth);
    command
}

fn apart() -> ExitCode {
    nix::unistd::alarm::set(RUN_MAX_SECS * crate::hosts::slow());
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]).arg(own);
    let mut command = again(command, "1");
    // SAFETY: only a system call is made.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    match command.status() {
        Ok(status) => ExitCode::from(status.code().unwrap_or(1) as u8),
        Err(error) => {
            eprintln!("unshare (Debian package util-linux) does not run: {error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::zombie_processes, reason = "it is waited for, by its id among all others")]
fn first() -> ExitCode {
    let child = again(Command::new("/proc/self/exe"), "2").spawn().unwrap();
    let child = Pid::from_raw(child.id() as i32);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return ExitCode::from(code as u8),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == child => return ExitCode::FAILURE,
            _ => {}
        }
    }
}
