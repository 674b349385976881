use super::*;
use base::node::{Elements, Group, Patched};
use base::{Id, IdKind};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use store::{Cause, Options, Record, Schema};
use uuid::Uuid;

/// A record that stands on a node under its own key and is listed in one shared section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Thing {
    id: Id<Thing>,
    host: String,
    size: u128,
}

impl IdKind for Thing {}

impl Record for Thing {
    const KIND: &'static str = "thing";
    type Key = Id<Thing>;

    fn key(&self) -> Id<Thing> {
        self.id
    }
}

const SHARED: SectionKey = SectionKey::Group(uuid::Uuid::nil());
/// What is in the set beside what changes.
const CROWD: u32 = 100;

fn keys(state: &State, node: &str) -> BTreeSet<SectionKey> {
    let own = state.all::<Thing>().filter(|t| t.host == node).map(|t| SectionKey::Rules(number(t)));
    let mut keys: BTreeSet<_> = own.collect();
    if !keys.is_empty() {
        keys.insert(SHARED);
    }
    keys
}

fn number(thing: &Thing) -> u64 {
    thing.id.uuid().as_u128() as u64
}

/// Another than every other thing's.
fn element(thing: &Thing) -> IpAddr {
    address(1000 + thing.size as u32 % 13 * 10 + number(thing) as u32)
}

fn address(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(n))
}

fn section(state: &State, _: &str, key: &SectionKey) -> Option<Section> {
    match key {
        SectionKey::Rules(n) => {
            let thing = state.get::<Thing>(&Id::from_uuid(Uuid::from_u128((*n).into())))?;
            Some(Section::Group(Group { id: Uuid::from_u128(thing.size), ..Group::default() }))
        }
        _ => {
            let members = (0..CROWD).map(address).chain(state.all::<Thing>().map(|t| element(t))).collect();
            Some(Section::Group(Group { id: Uuid::nil(), members }))
        }
    }
}

fn touched(_: &State, entry: &Entry) -> Touched {
    let mut touched = Touched::default();
    for (before, after) in entry.changes.iter().filter_map(|c| c.of::<Thing>()) {
        for thing in before.into_iter().chain(after) {
            touched.key(SectionKey::Rules(number(thing)));
            touched.hosts.insert(thing.host.clone());
        }
        let of = |thing: Option<&Thing>| thing.into_iter().map(element).collect::<BTreeSet<_>>();
        match entry.revision % 5 {
            // As a whole, now and then.
            0 => touched.key(SHARED),
            _ => touched.elements(SHARED, Elements::Group { come: of(after), gone: of(before) }),
        }
    }
    touched
}

struct World {
    _dir: tempfile::TempDir,
    cell: Cell,
    documents: Arc<Documents>,
    /// As another plane has them, which follows in other steps.
    other: Arc<Documents>,
    following: tokio::task::JoinHandle<()>,
}

/// That the planes of these tests own the cell under.
const EPOCH: u64 = 1;

impl Drop for World {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let engine = store::engine::sqlite::Sqlite::open(&dir.path().join("state.db")).unwrap();
        let cipher = store::cipher::CellKey::cipher([7; 32]);
        let schema = Schema::default().record::<Thing>();
        let cell = Cell::open(Box::new(engine), schema, cipher, Options::default()).unwrap();
        let documents = Arc::new(Documents::new(cell.clone(), vec![Source { keys, section, touched }]));
        let other = Arc::new(Documents::new(cell.clone(), vec![Source { keys, section, touched }]));
        let (one, two) = (documents.clone(), other.clone());
        let following = tokio::spawn(async move { _ = tokio::join!(one.follow(), two.follow()) });
        World { _dir: dir, cell, documents, other, following }
    }

    async fn put(&self, id: u128, host: &str, size: u128) {
        let thing = Thing { id: Id::from_uuid(Uuid::from_u128(id)), host: host.into(), size };
        let step = move |tx: &mut store::Tx| tx.put(thing.clone()).map(drop).map_err(base::Error::from);
        self.cell.write(Cause::step("put"), step).await.unwrap();
    }

    async fn delete(&self, id: u128) {
        let id = Id::from_uuid(Uuid::from_u128(id));
        let step = move |tx: &mut store::Tx| Ok(tx.delete::<Thing>(&id).is_some());
        self.cell.write(Cause::step("delete"), step).await.unwrap();
    }

    /// One question. What goes astray is asked for as a whole.
    async fn ask(&self, name: &str, node: &mut Document, epoch: u64, wait_ms: u64) -> Patch {
        let planes = [&self.documents, &self.other];
        let plane = planes[(epoch - EPOCH) as usize % 2];
        let wait = Duration::from_millis(wait_ms);
        let known = node.generation.into();
        // As an answer that goes on tells it, now and then.
        let line = poll_fn(|cx| plane.poll_line(cx, name, known, epoch));
        let patch = match node.generation.revision % 3 {
            0 if node.generation.epoch == epoch => match tokio::time::timeout(wait, line).await {
                Ok((_, line)) => serde_json::from_slice(&line).unwrap(),
                Err(_) => Patch { generation: node.generation, ..Patch::default() },
            },
            _ => plane.after(name, known, epoch, wait).await,
        };
        assert!(patch.elements.keys().all(|key| !patch.changed.contains_key(key)));
        if node.patch(patch.clone()) == Patched::Astray {
            assert!(patch.sum.is_some());
            let whole = plane.after(name, Known::default(), epoch, wait).await;
            assert!(whole.whole);
            assert_eq!(node.patch(whole), Patched::Taken);
        }
        patch
    }

    /// Asks until the node has what there is.
    async fn caught_up(&self, name: &str, node: &mut Document, epoch: u64) {
        let state = self.cell.read();
        let one = |key: SectionKey| (key.clone(), section(&state, name, &key).unwrap());
        let scratch: BTreeMap<_, _> = keys(&state, name).into_iter().map(one).collect();
        let begin = Instant::now();
        while node.sections != scratch {
            assert!(begin.elapsed() < Duration::from_secs(20), "{name} stays at {:?}", node.generation);
            self.ask(name, node, epoch, 50).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patched_equals_built_from_scratch() {
    let world = World::new();
    // One that asks all the time, one now and then, one that mostly sleeps, and one that has nothing of its own.
    let mut nodes =
        [("a", 1), ("b", 7), ("c", 90), ("d", 5)].map(|(n, every)| (n, every, Document::default()));
    let mut by_elements = 0;
    for step in 0..400u128 {
        match step * step % 11 {
            4 => world.delete(step % 7).await,
            _ => world.put(step % 7, ["a", "b", "c"][(step * 5 % 17 % 3) as usize], step).await,
        }
        for (name, every, node) in &mut nodes {
            if step % *every == 0 {
                let patch = world.ask(name, node, EPOCH, 2).await;
                by_elements += patch.elements.len();
            }
        }
        if step % 40 == 0 {
            for (name, _, node) in &mut nodes {
                world.caught_up(name, node, EPOCH).await;
            }
        }
    }
    for (name, _, node) in &mut nodes {
        world.caught_up(name, node, EPOCH).await;
    }
    assert!(by_elements > 40, "{by_elements}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_is_told_while_changes_keep_coming() {
    const SILENT: u128 = 200;
    let world = World::new();
    for n in 0..SILENT {
        world.put(n, &format!("n{n:03}"), n).await;
        world.documents.keep(&format!("n{n:03}"));
    }
    world.put(SILENT, "z", 1).await;
    let mut node = Document::default();
    world.caught_up("z", &mut node, EPOCH).await;
    // The last that is told of them, though more come before all were.
    let changes = async {
        for size in 1..1_000 {
            world.put(0, "n000", size).await;
            tokio::time::sleep(gathered::TOLD_EVERY).await;
        }
    };
    let told = world.documents.after("z", node.generation.into(), EPOCH, Duration::from_secs(20));
    tokio::select! {
        patch = told => assert!(patch.elements.contains_key(&SHARED), "{patch:?}"),
        () = changes => panic!("it waits for those before it"),
    }
}

#[tokio::test]
async fn a_set_is_told_by_its_elements_and_gathered() {
    let world = World::new();
    world.put(1, "a", 0).await;
    let mut node = Document::default();
    world.caught_up("a", &mut node, EPOCH).await;
    // Five changes of the set, none of a's own.
    for id in 2..7 {
        world.put(id, "b", 0).await;
    }
    let known = node.generation.into();
    let patch = world.documents.after("a", known, EPOCH, Duration::from_secs(20)).await;
    assert!(patch.changed.is_empty() && patch.removed.is_empty());
    let Some(Elements::Group { come, gone }) = patch.elements.get(&SHARED) else { panic!("{patch:?}") };
    assert!(!come.is_empty() && gone.is_empty());
    node.patch(patch);
    world.caught_up("a", &mut node, EPOCH).await;
    // What is a's own does not wait, and takes with it what does.
    world.put(7, "b", 0).await;
    world.put(1, "a", 9).await;
    while node.sections.get(&SectionKey::Rules(1))
        != section(&world.cell.read(), "a", &SectionKey::Rules(1)).as_ref()
    {
        world.ask("a", &mut node, EPOCH, 20_000).await;
    }
    world.caught_up("a", &mut node, EPOCH).await;
}

#[tokio::test]
async fn nodes_with_the_same_changes_of_sets_are_told_one_line_and_others_their_own() {
    let world = World::new();
    let names = ["a", "b", "c"];
    for (id, name) in (1..).zip(names) {
        world.put(id, name, 0).await;
    }
    let mut nodes = [(); 3].map(|()| Document::default());
    for (name, node) in names.iter().zip(&mut nodes) {
        world.caught_up(name, node, EPOCH).await;
    }
    // `c` is elsewhere in between, and has something of its own.
    world.put(4, "d", 1).await;
    for (name, node) in names.iter().zip(&mut nodes).take(2) {
        world.caught_up(name, node, EPOCH).await;
    }
    world.put(5, "d", 2).await;
    world.put(3, "c", 9).await;
    let newest = world.cell.read().revision();
    world.documents.followed.subscribe().wait_for(|at| *at >= newest).await.unwrap();
    let mut lines = Vec::new();
    for (name, node) in names.iter().zip(&mut nodes) {
        let known = node.generation.into();
        let line = poll_fn(|cx| world.documents.poll_line(cx, name, known, EPOCH));
        let (generation, line) = tokio::time::timeout(Duration::from_secs(20), line).await.unwrap();
        let patch: Patch = serde_json::from_slice(&line).unwrap();
        assert_eq!(patch.generation, generation);
        assert_eq!(node.patch(patch), Patched::Taken);
        world.caught_up(name, node, EPOCH).await;
        lines.push(line);
    }
    assert!(lines[0] == lines[1] && lines[0] != lines[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_from_plane_to_plane_has_what_one_has_that_stays() {
    let world = World::new();
    let mut nodes =
        [("a", 1), ("b", 3), ("c", 40), ("d", 5)].map(|(n, every)| (n, every, Document::default()));
    nodes.iter().for_each(|(name, ..)| assert!(world.documents.keep(name) && world.other.keep(name)));
    let (mut whole, mut across) = (0, 0);
    for step in 0..600u128 {
        match step * step % 11 {
            4 => world.delete(step % 7).await,
            _ => world.put(step % 7, ["a", "b", "c"][(step * 5 % 17 % 3) as usize], step).await,
        }
        let epoch = EPOCH + step as u64 / 9;
        for (name, every, node) in &mut nodes {
            if step % *every == 0 {
                let moved = node.generation.epoch != epoch;
                let patch = world.ask(name, node, epoch, 2).await;
                whole += usize::from(patch.whole);
                across += usize::from(moved && !patch.whole);
            }
            if step % 60 == 0 {
                world.caught_up(name, node, epoch).await;
            }
        }
    }
    for (name, _, node) in &mut nodes {
        world.caught_up(name, node, EPOCH + 600 / 9).await;
    }
    assert_eq!(whole, nodes.len(), "each had the whole once");
    assert!(across > 100, "{across}");
}

#[tokio::test]
async fn a_plane_that_starts_anew_tells_nothing_to_whom_nothing_is_missing() {
    let world = World::new();
    world.put(1, "a", 7).await;
    let mut node = Document::default();
    world.caught_up("a", &mut node, EPOCH).await;
    world.put(2, "b", 7).await;
    world.put(2, "b", 8).await;
    world.caught_up("a", &mut node, EPOCH).await;
    // One that knows nothing of before, and that nobody told anything yet.
    let anew = Documents::new(world.cell.clone(), vec![Source { keys, section, touched }]);
    let old = Generation { epoch: 0, revision: 1 };
    let known = Known { sum: Some(node.sum()), ..old.into() };
    let patch = anew.after("a", known, EPOCH + 1, Duration::ZERO).await;
    assert!(!patch.whole && patch.changed.is_empty() && patch.generation.epoch == EPOCH + 1, "{patch:?}");
    let other = Known { sum: Some(1), ..old.into() };
    assert!(anew.after("a", other, EPOCH + 1, Duration::ZERO).await.whole);
}
