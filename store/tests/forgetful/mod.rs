//! A file layer for SQLite that forgets what was not synced when its process dies: what a power cut does to a disk.
//!
//! Writes stay in this process's memory until `xSync`; reads see them. Now and then one reaches the file early and out
//! of order, as a kernel may do it. Locks, names and deletions are the real layer's. There is no shared memory, so WAL
//! works only with `locking_mode=EXCLUSIVE`.

use rusqlite::ffi;
use std::ffi::{CStr, c_int, c_void};
use std::sync::Once;

const NAME: &CStr = c"forgetful";
/// One write in so many reaches the file before its sync.
const EARLY_EVERY: u64 = 7;

/// Opens a database over the layer. `early`: whether unsynced writes may reach the file.
pub fn open(path: &std::path::Path, early: bool) -> rusqlite::Result<rusqlite::Connection> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(register);
    EARLY.store(early, std::sync::atomic::Ordering::Relaxed);
    let flags = rusqlite::OpenFlags::default();
    rusqlite::Connection::open_with_flags_and_vfs(path, flags, NAME)
}

static EARLY: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);

fn register() {
    // SAFETY: the default layer lives as long as the process; the copy is leaked, as SQLite wants it.
    unsafe {
        let real = ffi::sqlite3_vfs_find(std::ptr::null());
        let mut vfs = *real;
        vfs.iVersion = 1;
        vfs.szOsFile += size_of::<File>() as c_int;
        vfs.zName = NAME.as_ptr();
        vfs.pNext = std::ptr::null_mut();
        vfs.xOpen = Some(open_file);
        assert_eq!(ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0), ffi::SQLITE_OK);
    }
}

/// What SQLite allocates for an open file; the real layer's own part follows it.
#[repr(C)]
struct File {
    methods: *const ffi::sqlite3_io_methods,
    memory: *mut Memory,
}

/// The content as the process sees it, and what of it the file does not have.
struct Memory {
    bytes: Vec<u8>,
    pending: Vec<Op>,
    writes: u64,
}

enum Op {
    Write(u64, Vec<u8>),
    Size(u64),
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

type Raw = *mut ffi::sqlite3_file;

/// SAFETY: `file` is one that `open_file` filled in.
unsafe fn real(file: Raw) -> (Raw, &'static ffi::sqlite3_io_methods) {
    unsafe {
        let real: Raw = file.cast::<File>().add(1).cast();
        (real, &*(*real).pMethods)
    }
}

/// SAFETY: `file` is one that `open_file` filled in, and SQLite uses a file from one thread at a time.
unsafe fn memory(file: Raw) -> &'static mut Memory {
    unsafe { &mut *(*file.cast::<File>()).memory }
}

// SAFETY, for all below: SQLite calls them as its manual says, with files that `open_file` filled in.

unsafe extern "C" fn open_file(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: Raw,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    unsafe {
        let ours = file.cast::<File>();
        (*ours).methods = std::ptr::null();
        let below: Raw = ours.add(1).cast();
        let default = ffi::sqlite3_vfs_find(std::ptr::null());
        let code = (*default).xOpen.unwrap()(default, name, below, flags, out);
        if code != ffi::SQLITE_OK {
            return code;
        }
        let mut size = 0;
        let methods = &*(*below).pMethods;
        methods.xFileSize.unwrap()(below, &mut size);
        let mut bytes = vec![0; size as usize];
        let code = methods.xRead.unwrap()(below, bytes.as_mut_ptr().cast(), size as c_int, 0);
        (*ours).memory = Box::into_raw(Box::new(Memory { bytes, pending: Vec::new(), writes: 0 }));
        (*ours).methods = &METHODS;
        code
    }
}

unsafe extern "C" fn close(file: Raw) -> c_int {
    unsafe {
        let (real, methods) = real(file);
        drop(Box::from_raw((*file.cast::<File>()).memory));
        methods.xClose.unwrap()(real)
    }
}

unsafe extern "C" fn read(file: Raw, to: *mut c_void, amount: c_int, offset: i64) -> c_int {
    let (amount, offset) = (amount as usize, offset as usize);
    unsafe {
        let bytes = &memory(file).bytes;
        let there = bytes.get(offset..bytes.len().min(offset + amount)).unwrap_or_default();
        std::ptr::write_bytes(to.cast::<u8>(), 0, amount);
        std::ptr::copy_nonoverlapping(there.as_ptr(), to.cast(), there.len());
        if there.len() == amount { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_SHORT_READ }
    }
}

unsafe extern "C" fn write(file: Raw, from: *const c_void, amount: c_int, offset: i64) -> c_int {
    unsafe {
        let data = std::slice::from_raw_parts(from.cast::<u8>(), amount as usize);
        let memory = memory(file);
        let end = offset as usize + data.len();
        if memory.bytes.len() < end {
            memory.bytes.resize(end, 0);
        }
        memory.bytes[offset as usize..end].copy_from_slice(data);
        memory.pending.push(Op::Write(offset as u64, data.to_vec()));
        memory.writes += 1;
        if EARLY.load(std::sync::atomic::Ordering::Relaxed) && memory.writes.is_multiple_of(EARLY_EVERY) {
            let (real, methods) = real(file);
            return methods.xWrite.unwrap()(real, from, amount, offset);
        }
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn truncate(file: Raw, size: i64) -> c_int {
    unsafe {
        let memory = memory(file);
        memory.bytes.resize(size as usize, 0);
        memory.pending.push(Op::Size(size as u64));
    }
    ffi::SQLITE_OK
}

/// What is synced outlives the process: no `fsync` below, as the machine itself stays up.
unsafe extern "C" fn sync(file: Raw, _: c_int) -> c_int {
    unsafe {
        let (real, methods) = real(file);
        for op in memory(file).pending.drain(..) {
            let code = match op {
                Op::Write(at, data) => {
                    methods.xWrite.unwrap()(real, data.as_ptr().cast(), data.len() as c_int, at as i64)
                }
                Op::Size(size) => methods.xTruncate.unwrap()(real, size as i64),
            };
            if code != ffi::SQLITE_OK {
                return code;
            }
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn size(file: Raw, to: *mut i64) -> c_int {
    unsafe { *to = memory(file).bytes.len() as i64 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn lock(file: Raw, level: c_int) -> c_int {
    unsafe {
        let (real, methods) = real(file);
        methods.xLock.unwrap()(real, level)
    }
}

unsafe extern "C" fn unlock(file: Raw, level: c_int) -> c_int {
    unsafe {
        let (real, methods) = real(file);
        methods.xUnlock.unwrap()(real, level)
    }
}

unsafe extern "C" fn reserved(file: Raw, to: *mut c_int) -> c_int {
    unsafe {
        let (real, methods) = real(file);
        methods.xCheckReservedLock.unwrap()(real, to)
    }
}

unsafe extern "C" fn control(_: Raw, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector(_: Raw) -> c_int {
    4096
}

unsafe extern "C" fn characteristics(_: Raw) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}
