//! A disk in memory that knows what was synced, and forgets the rest when its power is cut.
//!
//! The model is as strict as POSIX, which is stricter than most file systems: `fsync` of a file
//! makes its bytes and its length durable and nothing else, `fsync` of a folder makes the names in it
//! durable, and a new file or folder is found again only if both it and its name are. What
//! was not synced is lost or not, as [`Luck`] has it. Names change in order, a rename at once.
//!
//! A disk has one more switch: after so many changes every operation fails, which is how the power
//! ends in the middle of somebody's work, or a process that is killed.

use fuser::Errno;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

/// What the kernel writes in one piece.
const PAGE: usize = 4096;

/// What reaches a platter in one piece.
const SECTOR: u64 = 512;

/// The root folder's number.
pub(crate) const ROOT: u64 = 1;

/// What becomes of changes that were not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Luck {
    /// All are lost.
    Lost,
    /// Of each file and each folder the first ones are kept, the last of them up to any sector.
    Prefix,
    /// Of each file any pages are kept, in no order; of each folder the first changes.
    Scattered,
}

impl Luck {
    pub(crate) fn any(rng: &mut StdRng) -> Self {
        [Luck::Lost, Luck::Prefix, Luck::Scattered][rng.random_range(0..3)]
    }
}

#[derive(Clone, Default)]
struct Content {
    len: u64,
    /// Zeros where there is none.
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl Content {
    fn read(&self, at: u64, most: usize) -> Vec<u8> {
        let end = self.len.min(at + most as u64);
        let mut bytes = Vec::with_capacity(most);
        while at + (bytes.len() as u64) < end {
            let here = at + bytes.len() as u64;
            let from = (here % PAGE as u64) as usize;
            let many = (PAGE - from).min((end - here) as usize);
            match self.pages.get(&(here / PAGE as u64)) {
                Some(page) => bytes.extend_from_slice(&page[from..from + many]),
                None => bytes.resize(bytes.len() + many, 0),
            }
        }
        bytes
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(at, bytes) => pieces(*at, bytes).for_each(|(at, piece)| self.write(at, piece)),
            Change::Length(len) => {
                self.len = *len;
                let last = len / PAGE as u64;
                self.pages.split_off(&(last + 1));
                if let Some(page) = self.pages.get_mut(&last) {
                    Arc::make_mut(page)[(len % PAGE as u64) as usize..].fill(0);
                }
            }
        }
    }

    /// Writes bytes that lie in one page.
    fn write(&mut self, at: u64, piece: &[u8]) {
        let page = self.pages.entry(at / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
        let from = (at % PAGE as u64) as usize;
        Arc::make_mut(page)[from..from + piece.len()].copy_from_slice(piece);
        self.len = self.len.max(at + piece.len() as u64);
    }
}

/// Bytes cut where pages end.
fn pieces(mut at: u64, mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let many = (PAGE - (at % PAGE as u64) as usize).min(bytes.len());
        let (piece, rest) = bytes.split_at(many);
        let found = (many > 0).then_some((at, piece));
        (at, bytes) = (at + many as u64, rest);
        found
    })
}

enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// What a name stands for from now on; several names change at once in a rename.
type Names = Vec<(OsString, Option<u64>)>;
type Entries = BTreeMap<OsString, u64>;

fn rename(entries: &mut Entries, names: &Names) {
    for (name, number) in names {
        match number {
            Some(number) => entries.insert(name.clone(), *number),
            None => entries.remove(name),
        };
    }
}

enum Node {
    File { now: Content, durable: Content, unsynced: Vec<Change> },
    Folder { now: Entries, durable: Entries, unsynced: Vec<Names> },
}

impl Node {
    fn file(durable: Content) -> Self {
        Node::File { now: durable.clone(), durable, unsynced: Vec::new() }
    }

    fn folder(durable: Entries) -> Self {
        Node::Folder { now: durable.clone(), durable, unsynced: Vec::new() }
    }

    fn after_cut(&self, luck: Luck, rng: &mut StdRng) -> Node {
        match self {
            Node::File { durable, unsynced, .. } => {
                let mut content = durable.clone();
                match luck {
                    Luck::Lost => {}
                    Luck::Prefix => {
                        let kept = rng.random_range(0..=unsynced.len());
                        unsynced[..kept].iter().for_each(|change| content.apply(change));
                        if let Some(Change::Write(at, bytes)) = unsynced.get(kept) {
                            let end = (at + rng.random_range(0..=bytes.len()) as u64) / SECTOR * SECTOR;
                            let torn = bytes[..end.saturating_sub(*at) as usize].to_vec();
                            content.apply(&Change::Write(*at, torn));
                        }
                    }
                    Luck::Scattered => {
                        for change in unsynced {
                            match change {
                                Change::Write(at, bytes) => pieces(*at, bytes)
                                    .filter(|_| rng.random())
                                    .for_each(|(at, piece)| content.write(at, piece)),
                                Change::Length(_) if rng.random() => content.apply(change),
                                Change::Length(_) => {}
                            }
                        }
                    }
                }
                Node::file(content)
            }
            Node::Folder { durable, unsynced, .. } => {
                let mut entries = durable.clone();
                let kept = if luck == Luck::Lost { 0 } else { rng.random_range(0..=unsynced.len()) };
                unsynced[..kept].iter().for_each(|names| rename(&mut entries, names));
                Node::folder(entries)
            }
        }
    }
}

/// See the module's documentation.
pub(crate) struct Disk {
    /// Files and folders by number. Whatever lost its last name stays, for a cut may bring it back.
    nodes: BTreeMap<u64, Node>,
    changes: u64,
    stops_at: Option<u64>,
    stopped: bool,
}

impl Default for Disk {
    fn default() -> Self {
        let nodes = [(ROOT, Node::folder(Entries::new()))].into();
        Disk { nodes, changes: 0, stops_at: None, stopped: false }
    }
}

type Done<T> = Result<T, Errno>;

impl Disk {
    /// From now on `changes` changes are taken; during the last of them everything stops.
    pub(crate) fn stop_after(&mut self, changes: u64) {
        self.stops_at = Some(self.changes + changes);
    }

    /// It works again, and has forgotten nothing: it was the process that died.
    pub(crate) fn go_on(&mut self) {
        (self.stops_at, self.stopped) = (None, false);
    }

    /// Whether everything stopped.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// What is left when the power comes back.
    pub(crate) fn after_cut(&self, luck: Luck, rng: &mut StdRng) -> Disk {
        let nodes = self.nodes.iter().map(|(number, node)| (*number, node.after_cut(luck, rng))).collect();
        Disk { nodes, ..Disk::default() }
    }

    fn working(&self) -> Done<()> {
        if self.stopped { Err(Errno::EIO) } else { Ok(()) }
    }

    /// One change: carried out even if everything stops during it, but then nobody hears of it.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> Done<T>) -> Done<T> {
        self.working()?;
        self.changes += 1;
        self.stopped = self.stops_at == Some(self.changes);
        let done = change(self)?;
        self.working().map(|()| done)
    }

    fn node(&self, number: u64) -> Done<&Node> {
        self.working()?;
        self.nodes.get(&number).ok_or(Errno::ENOENT)
    }

    /// A file's length, `None` for a folder.
    pub(crate) fn len(&self, number: u64) -> Done<Option<u64>> {
        Ok(match self.node(number)? {
            Node::File { now, .. } => Some(now.len),
            Node::Folder { .. } => None,
        })
    }

    pub(crate) fn entries(&self, folder: u64) -> Done<&Entries> {
        match self.node(folder)? {
            Node::Folder { now, .. } => Ok(now),
            Node::File { .. } => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn find(&self, folder: u64, name: &OsStr) -> Done<u64> {
        self.entries(folder)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    pub(crate) fn read(&self, file: u64, at: u64, most: usize) -> Done<Vec<u8>> {
        match self.node(file)? {
            Node::File { now, .. } => Ok(now.read(at, most)),
            Node::Folder { .. } => Err(Errno::EISDIR),
        }
    }

    pub(crate) fn write(&mut self, file: u64, at: u64, bytes: &[u8]) -> Done<()> {
        self.change_file(file, Change::Write(at, bytes.to_vec()))
    }

    pub(crate) fn set_len(&mut self, file: u64, len: u64) -> Done<()> {
        self.change_file(file, Change::Length(len))
    }

    fn change_file(&mut self, file: u64, change: Change) -> Done<()> {
        self.change(|disk| match disk.nodes.get_mut(&file) {
            Some(Node::File { now, unsynced, .. }) => {
                now.apply(&change);
                unsynced.push(change);
                Ok(())
            }
            _ => Err(Errno::EISDIR),
        })
    }

    fn change_names(&mut self, folder: u64, names: Names) -> Done<()> {
        match self.nodes.get_mut(&folder) {
            Some(Node::Folder { now, unsynced, .. }) => {
                rename(now, &names);
                unsynced.push(names);
                Ok(())
            }
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn create(&mut self, parent: u64, name: &OsStr, folder: bool) -> Done<u64> {
        if self.entries(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.change(|disk| {
            let number = disk.nodes.keys().next_back().map_or(ROOT, |last| last + 1);
            let node = if folder { Node::folder(Entries::new()) } else { Node::file(Content::default()) };
            disk.nodes.insert(number, node);
            disk.change_names(parent, vec![(name.to_owned(), Some(number))])?;
            Ok(number)
        })
    }

    pub(crate) fn remove(&mut self, parent: u64, name: &OsStr) -> Done<()> {
        let number = self.find(parent, name)?;
        if self.entries(number).is_ok_and(|entries| !entries.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.change(|disk| disk.change_names(parent, vec![(name.to_owned(), None)]))
    }

    /// Within one folder; nothing of ours moves files between folders.
    pub(crate) fn rename(&mut self, folder: u64, from: &OsStr, to: &OsStr) -> Done<()> {
        let number = self.find(folder, from)?;
        let names = vec![(from.to_owned(), None), (to.to_owned(), Some(number))];
        self.change(|disk| disk.change_names(folder, names))
    }

    /// Makes a file's bytes or a folder's names durable.
    pub(crate) fn sync(&mut self, number: u64) -> Done<()> {
        self.change(|disk| {
            // Stopped before it was done, so that luck decides.
            disk.working()?;
            match disk.nodes.get_mut(&number).ok_or(Errno::ENOENT)? {
                Node::File { durable, unsynced, .. } => {
                    unsynced.drain(..).for_each(|change| durable.apply(&change));
                }
                Node::Folder { durable, unsynced, .. } => {
                    unsynced.drain(..).for_each(|names| rename(durable, &names));
                }
            }
            Ok(())
        })
    }
}
