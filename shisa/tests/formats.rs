//! Two versions over one store that take turns: nothing is lost, and what the older one cannot read waits until a rollout
//! to the newer one is finalised. `make formats-test` builds them: this version with a later format (`SHISA_NEXT`), and
//! the last release (`SHISA_LAST`).

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use store::{Cause, Cell, Options, Record, Schema, Tx, engine};
use support::{Cloud, finish, refusal};

const ROUNDS: usize = 5;

/// A region, as far as the test looks at it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Region {
    id: String,
    #[serde(default)]
    next: Value,
}

impl Record for Region {
    const KIND: &'static str = "region";
    type Key = String;

    fn key(&self) -> String {
        self.id.clone()
    }
}

struct Ground {
    _dir: tempfile::TempDir,
    state: PathBuf,
    old: PathBuf,
    new: PathBuf,
    cloud: Cloud,
    token: String,
}

impl Ground {
    fn up(old: &Path, new: &Path) -> Ground {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("cloud");
        let cloud = Cloud::up_as(old, &state, &["--machine", "simulated"]);
        let token = cloud.token(&state);
        Ground { _dir: dir, state, old: old.into(), new: new.into(), cloud, token }
    }

    /// A command of the older version: it is what the operator has.
    fn run(&self, words: &[&str]) -> Output {
        finish(Command::new(&self.old).args(words).arg("--state").arg(&self.state))
    }

    fn well(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{}", text.trim_end());
        assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn call(&self, method: &str, path: &str, body: Value, expect: u16) -> Value {
        let (status, _, answer) = self.cloud.call(method, path, &self.token, body);
        assert_eq!(status, expect, "{method} {path}: {answer}");
        answer
    }

    /// The field of the later format that a region has, as the store has it.
    fn noted(&self, region: &str) -> Value {
        let key = store::cipher::CellKey::open(&self.state.join("cell.key")).unwrap();
        let engine = engine::open(&format!("sqlite:{}", self.state.join("state.db").display())).unwrap();
        let schema = Schema::default().formats(1, 99).record::<Region>();
        let cell = Cell::follow(engine, schema, key, Options::default()).unwrap();
        let noted = cell.read().get::<Region>(&region.to_string()).unwrap().next.clone();
        cell.close();
        noted
    }

    fn rollout(&self) -> String {
        self.well(&["rollout", "start", "--binary", self.new.to_str().unwrap(), "--bake", "1s"])
    }

    /// One version writes: its own region, one that both change, and a network that comes and goes.
    fn write(&self, by: &str, turn: usize) {
        let name = format!("{by}-{turn}");
        let region = json!({"region": {"id": name, "description": name}});
        self.call("POST", "/identity/v3/regions", region, 201);
        let text = json!({"region": {"description": format!("by {name}")}});
        self.call("PATCH", "/identity/v3/regions/shared", text.clone(), 200);
        if turn > 0 {
            // What the other one made.
            for other in ["old", "new"] {
                self.call("PATCH", &format!("/identity/v3/regions/{other}-{}", turn - 1), text.clone(), 200);
            }
        }
        let made = self.call("POST", "/network/v2.0/networks", json!({"network": {"name": name}}), 201);
        let path = format!("/network/v2.0/networks/{}", made["network"]["id"].as_str().unwrap());
        let tagged = json!({"network": {"description": name}});
        self.call("PUT", &path, tagged, 200);
        if turn % 2 == 1 {
            self.call("DELETE", &path, Value::Null, 204);
        }
    }

    /// Both write in turns; the newer one is active before and after.
    fn take_turns(&self) {
        for turn in 0..ROUNDS {
            self.well(&["plane", "promote", "blue"]);
            self.write("old", turn);
            self.well(&["plane", "promote", "green"]);
            self.write("new", turn);
        }
    }

    /// All that both wrote is there.
    fn complete(&self) {
        let regions = self.call("GET", "/identity/v3/regions", Value::Null, 200);
        let names: Vec<&str> =
            regions["regions"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
        let networks = self.call("GET", "/network/v2.0/networks", Value::Null, 200);
        let network = |name: &str| networks["networks"].as_array().unwrap().iter().any(|n| n["name"] == name);
        for (by, turn) in ["old", "new"].into_iter().flat_map(|by| (0..ROUNDS).map(move |turn| (by, turn))) {
            let name = format!("{by}-{turn}");
            assert!(names.contains(&name.as_str()), "{name} is lost");
            assert_eq!(network(&name), turn % 2 == 0, "{name}");
        }
    }
}

#[test]
fn a_version_refuses_records_of_a_later_format() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("cloud");
    Cloud::up(&state).stop();
    let url = format!("sqlite:{}", state.join("state.db").display());
    let key = store::cipher::CellKey::open(&state.join("cell.key")).unwrap();
    let schema = Schema::default().formats(1, 99);
    let cell = Cell::open(engine::open(&url).unwrap(), schema, key, Options::default()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let raise = |tx: &mut Tx| store::format::finalise(tx);
    assert_eq!(runtime.block_on(cell.write(Cause::step("finalise"), raise)).unwrap(), (2, 99));
    cell.close();
    for words in [["up", "--listen", "127.0.0.1:0"].as_slice(), &["store", "verify"]] {
        let refused = finish(support::shisa().args(words).arg("--state").arg(&state));
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(
            text.contains(
                "the records are of format 99, and this version writes format 2 at most: start the version"
            ),
            "{text}"
        );
    }
}

#[test]
#[ignore = "needs this version with a later format: make formats-test"]
fn a_later_format_is_emulated_until_it_is_finalised() {
    let next = PathBuf::from(std::env::var("SHISA_NEXT").unwrap());
    let ground = Ground::up(Path::new(env!("CARGO_BIN_EXE_shisa")), &next);
    ground.call("POST", "/identity/v3/regions", json!({"region": {"id": "shared"}}), 201);
    ground.rollout();
    ground.take_turns();
    ground.complete();
    // How each began, however often the older version changed it.
    let begun = || {
        let noted = |id: String| ground.noted(&id);
        (0..ROUNDS).for_each(|turn| {
            assert_eq!(noted(format!("new-{turn}")), json!({"length": format!("new-{turn}").len()}));
            assert_eq!(noted(format!("old-{turn}")), Value::Null);
        });
    };
    begun();
    let services = ground.call("GET", "/identity/v3/services", Value::Null, 200);
    let endpoint = json!({"endpoint": {
        "service_id": services["services"][0]["id"], "interface": "next", "url": "http://example.org", "region_id": "shared",
    }});
    let kinds = || ground.well(&["store", "verify"]);
    ground.call("POST", "/identity/v3/endpoints", endpoint.clone(), 400);
    assert!(!kinds().contains("next_format_seen"));

    // Back, and once more: the gate compares all that was written in turns.
    ground.well(&["plane", "rollback"]);
    begun();
    let text = ground.rollout();
    assert!(text.contains(" kinds are equal at revision "), "{text}");
    let text = ground.well(&["plane", "finalise"]);
    println!("{text}");
    let show = ground.well(&["rollout", "show"]);
    assert!(show.contains("the records are of format 3, of 2 before"), "{show}");
    begun();
    ground.call("POST", "/identity/v3/endpoints", endpoint, 201);
    ground.write("new", ROUNDS);

    // The older version is out.
    ground.well(&["plane", "drain", "blue"]);
    let why = refusal(&ground.run(&["plane", "add"]), 1);
    assert!(why.contains("the records are of format 3, and this version writes format 2 at most"), "{why}");
    let Ground { cloud, state, old, _dir, .. } = ground;
    cloud.stop();
    let refused = finish(Command::new(&old).args(["up", "--listen", "127.0.0.1:0", "--state"]).arg(&state));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the records are of format 3"));
    Cloud::up_as(&next, &state, &[]).stop();
}

#[test]
#[ignore = "needs the last release: make formats-test"]
fn this_version_and_the_last_release_take_turns() {
    let last = PathBuf::from(std::env::var("SHISA_LAST").unwrap());
    let ground = Ground::up(&last, Path::new(env!("CARGO_BIN_EXE_shisa")));
    ground.call("POST", "/identity/v3/regions", json!({"region": {"id": "shared"}}), 201);
    ground.rollout();
    ground.take_turns();
    ground.complete();
    ground.well(&["plane", "rollback"]);
    ground.complete();
    // The gate compares all that was written in turns.
    let text = ground.rollout();
    assert!(text.contains(" kinds are equal at revision "), "{text}");
    ground.complete();
    ground.cloud.stop();
}
