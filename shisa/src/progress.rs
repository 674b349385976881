//! What a person sees while a command works: one line a step, with the seconds since the start.

use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

#[derive(Clone, Copy)]
pub struct Progress {
    begin: Instant,
}

impl Progress {
    pub fn since(begin: Instant) -> Progress {
        Progress { begin }
    }

    /// `   0.42 s  store     12 records`
    pub fn step(&self, about: &str, text: impl Display) {
        say(format_args!("{:>7.2} s  {about:<9} {text}", self.begin.elapsed().as_secs_f64()));
    }
}

/// A line on stdout at once, also into a pipe. Nobody reading it any more is no reason to stop a cloud.
pub fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
