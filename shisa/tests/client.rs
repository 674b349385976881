//! What a person does with the unmodified `openstack` client on a cloud with real guests: `conformance/acceptance`.
//!
//! Needs what `guest.rs` needs and `conformance/clients`; what a machine lacks is said, and the test skipped.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};
use support::real::{Real, lacks, top};

/// Four minutes on an idle machine.
const MAX: Duration = Duration::from_secs(900);

#[test]
#[ignore = "wants the machine for itself: make acceptance, which make test runs after the others"]
fn the_unmodified_client_does_what_a_person_would() {
    let python = top().join(".venv/bin/python");
    let client = top().join(".venv/bin/openstack");
    let lacks = lacks().or((!client.exists()).then_some(".venv/bin/openstack (conformance/clients)"));
    if let Some(what) = lacks {
        println!("skipped: this machine has no {what}");
        return;
    }
    let real = Real::new();
    let _cloud = real.up();
    let begin = Instant::now();
    // It prints as it goes.
    let mut acceptance = Command::new(python);
    let mut child = acceptance.arg(top().join("conformance/acceptance")).arg(&real.state).spawn().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > MAX {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("conformance/acceptance did not end in {MAX:?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(status.success(), "conformance/acceptance says above what failed");
}
