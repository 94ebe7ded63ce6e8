//! The forgetful disk as a folder, by FUSE.
//!
//! Nothing is cached in the kernel: every write arrives here at once and in order, and
//! the disk behind the folder can be replaced as soon as no file is open.

use crate::disk::{Disk, Luck};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use rand::rngs::StdRng;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// How long files may stay open after their owner is dropped: its threads have to end first.
const CLOSING: Duration = Duration::from_secs(30);

const UNPOISONED: &str = "nothing panics under this lock";

#[derive(Default)]
struct State {
    disk: Disk,
    open: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    closed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }
}

/// A folder on a forgetful disk.
pub(crate) struct Mount {
    shared: Arc<Shared>,
    // Unmounted before the folder goes.
    _session: BackgroundSession,
    folder: TempDir,
}

impl Mount {
    /// An empty one; an error where FUSE can't be used.
    pub(crate) fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let shared = Arc::<Shared>::default();
        let session = Session::new(Fuse(shared.clone()), folder.path(), &Config::default())?;
        Ok(Mount { shared, _session: session.spawn()?, folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// See [`Disk::stop_after`].
    pub(crate) fn stop_after(&self, changes: u64) {
        self.shared.state().disk.stop_after(changes);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.shared.state().disk.stopped()
    }

    /// Starts over with an empty disk.
    pub(crate) fn clear(&self) {
        self.all_closed().disk = Disk::default();
    }

    /// Cuts the power, and switches it on again. Whoever had files open must have been dropped.
    pub(crate) fn cut(&self, luck: Luck, rng: &mut StdRng) {
        let mut state = self.all_closed();
        state.disk = state.disk.after_cut(luck, rng);
    }

    /// The process died, the machine goes on.
    pub(crate) fn kill(&self) {
        self.all_closed().disk.go_on();
    }

    fn all_closed(&self) -> MutexGuard<'_, State> {
        let open = |state: &mut State| state.open > 0;
        let waited = self.shared.closed.wait_timeout_while(self.shared.state(), CLOSING, open);
        let (state, timeout) = waited.expect(UNPOISONED);
        assert!(!timeout.timed_out(), "{} files are still open", state.open);
        state
    }
}

/// Nothing is remembered by the kernel.
const TTL: Duration = Duration::ZERO;

struct Fuse(Arc<Shared>);

impl Fuse {
    fn opened(&self) -> (FileHandle, FopenFlags) {
        self.0.state().open += 1;
        (FileHandle(0), FopenFlags::FOPEN_DIRECT_IO)
    }

    fn released(&self, reply: ReplyEmpty) {
        self.0.state().open -= 1;
        self.0.closed.notify_all();
        reply.ok();
    }

    fn attr(&self, req: &Request, number: u64) -> Result<FileAttr, Errno> {
        let len = self.0.state().disk.len(number)?;
        Ok(FileAttr {
            ino: INodeNo(number),
            size: len.unwrap_or(0),
            blocks: len.unwrap_or(0).div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: kind(len),
            perm: 0o755,
            nlink: 1,
            uid: req.uid(),
            gid: req.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn entry(&self, req: &Request, number: Result<u64, Errno>, reply: ReplyEntry) {
        match number.and_then(|number| self.attr(req, number)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }
}

fn kind(len: Option<u64>) -> FileType {
    if len.is_some() { FileType::RegularFile } else { FileType::Directory }
}

fn answer(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Fuse {
    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.state().disk.find(parent.0, name);
        self.entry(req, found, reply);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(req, ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = size.map_or(Ok(()), |size| self.0.state().disk.set_len(ino.0, size));
        match set.and_then(|()| self.attr(req, ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.0.state().disk.create(parent.0, name, true);
        self.entry(req, made, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.0.state().disk.create(parent.0, name, false);
        match made.and_then(|number| self.attr(req, number)) {
            Ok(attr) => {
                let (handle, flags) = self.opened();
                reply.created(&TTL, &attr, Generation(0), handle, flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.0.state().disk.remove(parent.0, name), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.0.state().disk.remove(parent.0, name), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let plain = parent == newparent && flags.is_empty();
        let done =
            if plain { self.0.state().disk.rename(parent.0, name, newname) } else { Err(Errno::EXDEV) };
        answer(done, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let (handle, flags) = self.opened();
        reply.opened(handle, flags);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.state().disk.read(ino.0, offset, size as usize);
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.state().disk.write(ino.0, offset, data);
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Closing a file syncs nothing.
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.released(reply);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer(self.0.state().disk.sync(ino.0), reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.0.state().open += 1;
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.0.state();
        let entries = match state.disk.entries(ino.0) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        // A name's place in the order is where to go on.
        for (at, (name, number)) in entries.iter().enumerate().skip(offset as usize) {
            let len = state.disk.len(*number).unwrap_or(None);
            if reply.add(INodeNo(*number), at as u64 + 1, kind(len), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.released(reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer(self.0.state().disk.sync(ino.0), reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const MANY: u64 = 1 << 30;
        reply.statfs(MANY, MANY, MANY, MANY, MANY, 4096, 255, 4096);
    }
}
