//! The direction of dependencies: a crate uses the rows below its own (DESIGN.md, "The crates").

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

/// From the top. A new crate, or a new row, is its own change with its own reason.
const ROWS: [&[&str]; 8] = [
    &["bench", "sim"],
    &["shisa"],
    &["platform", "gozer"],
    &["compute"],
    &["network", "storage"],
    &["identity", "fleet"],
    &["api", "node"],
    &["store", "fabric"],
];
const BOTTOM: &str = "base";

fn row(name: &str) -> Option<usize> {
    let found = ROWS.iter().position(|row| row.contains(&name));
    found.or((name == BOTTOM).then_some(ROWS.len()))
}

/// Each crate of the workspace with those of the workspace that it uses, its own tests' included.
fn uses() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_string();
    let packages = metadata["packages"].as_array().unwrap();
    let uses = |package: &serde_json::Value| {
        let paths = package["dependencies"].as_array().unwrap().iter().filter(|d| d["path"].is_string());
        paths.map(|d| text(&d["name"])).collect()
    };
    packages.iter().map(|p| (text(&p["name"]), uses(p))).collect()
}

#[test]
fn a_crate_uses_only_rows_below_its_own() {
    let mut slips = Vec::new();
    for (name, uses) in uses() {
        let Some(own) = row(&name) else {
            slips.push(format!("{name} is in no row"));
            continue;
        };
        let beside = uses.iter().filter(|other| **other != name && row(other).is_none_or(|row| row <= own));
        slips.extend(beside.map(|other| format!("{name} uses {other}")));
    }
    assert!(slips.is_empty(), "{}", slips.join("\n"));
}
