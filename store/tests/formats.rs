//! Two versions of a program over one store, the newer with a field at each level, a kind and a value of an enum more:
//! each keeps what it does not know, and what the older one cannot read waits until the format is raised.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;
use store::{Cause, Cell, Form, Options, Record, Role, Schema, Tx, engine, format};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Shade {
    Light,
    Dark,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum NewShade {
    Light,
    Dark,
    Grey,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    size: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct NewInner {
    // In another place than the older version would have it: order is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    size: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Thing {
    name: String,
    inner: Inner,
    shade: Shade,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NewThing {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    inner: NewInner,
    shade: NewShade,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Extra {
    name: String,
}

macro_rules! record {
    ($type:ident, $kind:literal) => {
        impl Record for $type {
            const KIND: &'static str = $kind;
            type Key = String;

            fn key(&self) -> String {
                self.name.clone()
            }
        }
    };
}
record!(Thing, "thing");
record!(NewThing, "thing");
record!(Extra, "extra");

fn follow(dir: &Path, schema: Schema) -> Result<Cell> {
    let engine = engine::open(&format!("sqlite:{}/state.db", dir.display())).unwrap();
    Cell::follow(engine, schema, store::cipher::CellKey::cipher([1; 32]), Options::default())
}

fn old(dir: &Path) -> Result<Cell> {
    follow(dir, Schema::default().formats(1, 1).record::<Thing>())
}

fn new(dir: &Path) -> Result<Cell> {
    follow(dir, Schema::default().formats(1, 2).record::<NewThing>().record::<Extra>())
}

/// The lease goes from one to the other.
async fn switch(from: &Cell, to: &Cell) {
    from.stand_by(false);
    let _ = from.release().await;
    to.stand_by(true);
    to.role().wait_for(|role| matches!(role, Role::Owner(_))).await.unwrap();
}

async fn old_writes(cell: &Cell, name: &str, size: u64) {
    let name = name.to_string();
    let write = move |tx: &mut Tx| {
        let shade = if size.is_multiple_of(2) { Shade::Light } else { Shade::Dark };
        let mut thing = tx.get::<Thing>(&name).map_or_else(
            || Thing { name: name.clone(), inner: Inner { size: 0 }, shade },
            |thing| Thing::clone(thing),
        );
        (thing.inner.size, thing.shade) = (size, shade);
        tx.put(thing)?;
        Ok(())
    };
    cell.write(Cause::step("old"), write).await.unwrap();
}

/// The new version, which asks whether it may use what is new.
async fn new_writes(cell: &Cell, name: &str, size: u64) {
    let name = name.to_string();
    let write = move |tx: &mut Tx| {
        let raised = tx.format() >= 2;
        let thing = NewThing {
            name: name.clone(),
            label: Some(format!("label {size}")),
            inner: NewInner { size, unit: Some("m".into()) },
            shade: if raised { NewShade::Grey } else { NewShade::Light },
        };
        tx.put(thing)?;
        if raised {
            tx.put(Extra { name: name.clone() })?;
        }
        Ok(())
    };
    cell.write(Cause::step("new"), write).await.unwrap();
}

async fn equal(one: &Cell, two: &Cell) {
    one.current().await.unwrap();
    two.current().await.unwrap();
    let revision = one.read().revision();
    let digest = |cell: &Cell| cell.digests(revision, Form::Sorted).unwrap()["thing"];
    assert_eq!(digest(one), digest(two), "at {revision}");
    assert!(digest(one).records > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_however_versions_take_turns_until_the_format_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (old(dir.path()).unwrap(), new(dir.path()).unwrap());
    blue.stand_by(true);
    blue.role().wait_for(|role| matches!(role, Role::Owner(_))).await.unwrap();
    for turn in 0..20_u64 {
        old_writes(&blue, "old", turn).await;
        // It knows neither label nor unit of this one.
        old_writes(&blue, "shared", turn).await;
        equal(&blue, &green).await;
        switch(&blue, &green).await;
        let seen = green.read().get::<NewThing>(&"shared".into()).unwrap().clone();
        assert_eq!(seen.inner.size, turn);
        let label = (turn > 0).then(|| format!("label {}", 100 + turn - 1));
        assert_eq!(
            (seen.label.clone(), seen.inner.unit.is_some()),
            (label, turn > 0),
            "what the old one kept"
        );
        new_writes(&green, "new", turn).await;
        new_writes(&green, "shared", 100 + turn).await;
        assert_eq!(green.read().count::<Extra>(), 0, "it emulates the version before");
        equal(&blue, &green).await;
        switch(&green, &blue).await;
        assert_eq!(blue.read().get::<Thing>(&"shared".into()).unwrap().inner.size, 100 + turn);
    }
    // A version that comes new to the same store finds it so, too.
    equal(&blue, &old(dir.path()).unwrap()).await;
    equal(&blue, &new(dir.path()).unwrap()).await;

    switch(&blue, &green).await;
    assert_eq!(green.write(Cause::step("finalise"), format::finalise).await.unwrap(), (1, 2));
    assert_eq!(green.write(Cause::step("finalise"), format::finalise).await.unwrap(), (2, 2));
    new_writes(&green, "new", 7).await;
    assert_eq!(green.read().get::<NewThing>(&"new".into()).unwrap().shade, NewShade::Grey);
    assert_eq!(green.read().count::<Extra>(), 1);

    // The one before is out: it answers nothing more, takes nothing over, and does not start again.
    let late = tokio::time::timeout(std::time::Duration::from_secs(1), blue.current()).await;
    assert!(late.is_err() || late.unwrap().is_err());
    let refused = old(dir.path()).err().unwrap();
    assert!(
        refused.message().starts_with("the records are of format 2, and this version writes"),
        "{refused:?}"
    );
    let later =
        |dir: &Path| follow(dir, Schema::default().formats(3, 4).record::<NewThing>().record::<Extra>());
    let refused = later(dir.path()).err().unwrap();
    assert!(refused.message().contains("emulates format 3 at least"), "{refused:?}");
    let again = new(dir.path()).unwrap();
    assert_eq!((again.read().format(), again.read().count::<Extra>()), (2, 1));
}

/// What a version writes that has not raised the format, and should have.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let owner = follow(dir.path(), Schema::default().formats(1, 1).record::<NewThing>()).unwrap();
    owner.stand_by(true);
    owner.role().wait_for(|role| matches!(role, Role::Owner(_))).await.unwrap();
    let put = async |name: &str, shade| {
        let thing = NewThing { name: name.into(), label: None, inner: NewInner::default(), shade };
        owner.write(Cause::step("put"), move |tx| Ok(tx.put(thing.clone())?)).await.unwrap();
    };
    put("one", NewShade::Light).await;
    let older = old(dir.path()).unwrap();
    older.current().await.unwrap();
    let revision = older.read().revision();
    put("two", NewShade::Grey).await;
    put("three", NewShade::Dark).await;
    // It does not answer as if it had all, then or later.
    assert!(older.current().await.is_err() && older.current().await.is_err());
    assert_eq!((older.read().revision(), older.read().count::<Thing>()), (revision, 1));
    older.close();
    owner.close();
}
