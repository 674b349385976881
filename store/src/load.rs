//! Everything that an engine has, made a state: the caller's thread reads the images, two make records of them, one puts
//! those in their tables; the indexes come last, each from its keys in order.
//!
//! Limit: `CHUNKS_MAX` pieces of `CHUNK_BYTES` wait between two of them.

use crate::copy;
use crate::engine::{Engine, Head};
use crate::format::{FIRST, Format};
use crate::lane::Shared;
use crate::record::Record;
use crate::state::State;
use crate::table::Read;
use base::secret::with_cipher;
use base::{Error, Result};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

const CHUNK_BYTES: usize = 64 << 10;
const CHUNKS_MAX: usize = 8;
const READERS: usize = 2;

/// Images as they stand in the engine, each with its kind's slot.
#[derive(Default)]
struct Chunk {
    bodies: Vec<u8>,
    images: Vec<(usize, Range<usize>)>,
}

type Records = Vec<(usize, Read)>;

/// The state of a cell without what its engine says of its head, and that.
///
/// Errors: what the engine says; `Internal` when a stored record cannot be read; of a store whose format is too new that
/// alone is told.
pub(crate) fn load(shared: &Shared, engine: &mut dyn Engine) -> Result<(State, Head)> {
    let (chunks, read) = sync_channel::<Chunk>(CHUNKS_MAX);
    let (records, made) = sync_channel::<Result<Records>>(CHUNKS_MAX);
    let read = Arc::new(Mutex::new(read));
    let (images, loaded) = std::thread::scope(|scope| {
        for _ in 0..READERS {
            let (read, records) = (read.clone(), records.clone());
            scope.spawn(move || with_cipher(&shared.cipher, || make(shared, &read, &records)));
        }
        // They end with their channels, and nobody waits for one that has.
        drop((read, records));
        let putting = scope.spawn(|| put(shared, made));
        let images = images(shared, engine, chunks);
        (images, putting.join())
    });
    let (head, format) = images?;
    // A record that cannot be read may be of a later format, which then says more.
    shared.schema.check_format(format)?;
    let mut state = loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    state.index_all(head.revision)?;
    Ok((state, head))
}

fn images(shared: &Shared, engine: &mut dyn Engine, chunks: SyncSender<Chunk>) -> Result<(Head, u32)> {
    let (mut format, mut chunk) = (FIRST, Chunk::default());
    let gone = || Error::internal("a thread that loads has ended");
    let head = engine.images(&mut |kind, _, body| {
        if kind == Format::KIND {
            let read = serde_json::from_slice::<Format>(body);
            format = read.map_err(|e| Error::internal("the format cannot be read").because(e))?.number;
        }
        match shared.schema.slot_named(kind) {
            None if kind == copy::UNFINISHED => return Err(copy::unfinished()),
            Some(slot) => {
                let from = chunk.bodies.len();
                chunk.bodies.extend_from_slice(body);
                chunk.images.push((slot, from..chunk.bodies.len()));
            }
            // A kind of a newer version: the engine keeps it, we let it be.
            None => {}
        }
        match chunk.bodies.len() >= CHUNK_BYTES {
            true => chunks.send(std::mem::take(&mut chunk)).map_err(|_| gone()),
            false => Ok(()),
        }
    })?;
    chunks.send(chunk).map_err(|_| gone())?;
    Ok((head, format))
}

fn make(shared: &Shared, chunks: &Mutex<Receiver<Chunk>>, records: &SyncSender<Result<Records>>) {
    let empty = State::empty(shared.schema.clone());
    loop {
        let Ok(Chunk { bodies, images }) = chunks.lock().expect("no holder panics").recv() else { return };
        let read = images.into_iter().map(|(slot, at)| Ok((slot, empty.read(slot, &bodies[at])?)));
        // Whoever puts them goes on to the last.
        let _ = records.send(read.collect());
    }
}

/// What cannot be read is told when all was.
fn put(shared: &Shared, made: Receiver<Result<Records>>) -> Result<State> {
    let (mut state, mut failed) = (State::empty(shared.schema.clone()), Ok(()));
    for records in made {
        match records {
            Ok(records) => records.into_iter().for_each(|(slot, read)| state.load(slot, read)),
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed.map(|()| state)
}
