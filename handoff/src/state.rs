//! The application's state on its way to the next generation: sections in a sealed memfd.
//!
//! The parent serves while it [takes](Snapshot::take) a snapshot and while the child
//! [restores](Snapshot::restore) it. What changes meanwhile follows as [`Deltas`]: those since
//! the snapshot with `Commit`, those after it as `Rest`.
//!
//! The contract:
//! - **A snapshot cannot change under its reader.** All four seals are checked before anything
//!   is read, and every checksum before the first section is restored.
//! - **It is refused whole.** A section that is damaged, of an unknown version or not read to
//!   its end refuses the snapshot, and the error names the section and the versions.
//! - **Deltas commute.** The successor changes its own copy while the last deltas are on their
//!   way, so merging must give the same result in any order: counters, appended records, sessions
//!   by key. What does not merge so belongs into a store that both generations share.
//! - **Nothing is held twice.** Sections are streamed in both directions; one of 1 GiB costs
//!   1 GiB of memfd and a buffer.
//!
//! Everything here blocks (one to two seconds a GiB): call it from a blocking thread.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};

/// The most sections of one application. With the longest names the manifest has 24 KiB, and
/// fits into one message.
pub const MAX_SECTIONS: usize = 256;

/// The longest name of a section, in bytes: it is shown in errors and log lines.
pub const MAX_SECTION_NAME: usize = 64;

/// The largest snapshot, in bytes: 8 GiB, which take most of the 30 s that a child has by
/// default to become ready.
pub const MAX_STATE_BYTES: u64 = 8 << 30;

/// The largest sum of deltas with one message, in bytes: 64 MiB. Nobody accepts while the
/// deltas of a commit are absorbed, and these take some 50 ms.
pub const MAX_DELTA_BYTES: u64 = 64 << 20;

/// Between small writes (or reads) of sections and the memfd.
const BUFFER_BYTES: usize = 256 << 10;

/// Without all of these a snapshot could change while it is read.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// One part of the application's state.
///
/// The methods are called while requests are being served, from a blocking thread.
pub trait Section: Send + Sync + 'static {
    /// Identifies the section in the snapshot, from build to build: 1 to
    /// [`MAX_SECTION_NAME`] bytes.
    fn name(&self) -> &str;

    /// Version of what [`snapshot`](Self::snapshot) and [`delta`](Self::delta) write. A format
    /// that changed at all has another version.
    fn version(&self) -> u32;

    /// Writes the whole value. From the same moment on [`delta`](Self::delta) counts, so that
    /// every change is either in here or in the next delta.
    ///
    /// # Errors
    /// Those of `out`, and the section's own: the reload fails, this generation serves on.
    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()>;

    /// What changed since the last snapshot or delta; `None` if nothing did. What it returns
    /// counts as delivered: after a failed reload comes a new snapshot.
    fn delta(&self) -> Option<Vec<u8>>;

    /// Takes over a value of any version that this build knows: older ones are migrated. Reads
    /// `input` to its end. What is restored is known to the parent: it is not part of the next
    /// [`delta`](Self::delta).
    ///
    /// # Errors
    /// [`SectionError::Version`] for a version that this build does not know.
    fn restore(&self, version: u32, input: &mut dyn Read) -> Result<(), SectionError>;

    /// Merges a delta of another generation into the value. It is part of the next
    /// [`delta`](Self::delta), so that it reaches later generations too.
    ///
    /// # Errors
    /// As for [`restore`](Self::restore); the value is then unchanged.
    fn absorb(&self, version: u32, bytes: &[u8]) -> Result<(), SectionError>;
}

/// Why a section does not take what it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// Written by a build whose format this one does not know.
    #[error("this build reads versions {} to {}", supported.start(), supported.end())]
    Version {
        /// What this build knows.
        supported: RangeInclusive<u32>,
    },
    /// Not what that version writes.
    #[error("{0}")]
    Invalid(String),
    /// Ended early, or could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A number that only grows, exact over any number of generations: what was restored, what was
/// absorbed, and what was added here.
#[derive(Debug)]
pub struct Counter {
    name: String,
    total: AtomicU64,
    /// How much of `total` the other side knows. Its lock orders snapshots, deltas and
    /// restores; [`add`](Self::add) never takes it. An addition is exact all the same: it is
    /// one step in the order of changes to `total`, and thus before or after the one load that
    /// a snapshot or delta makes, and in that or in the next delta, never in both.
    delivered: Mutex<u64>,
}

impl Counter {
    const VERSION: u32 = 1;

    /// At 0.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            total: AtomicU64::new(0),
            delivered: Mutex::new(0),
        }
    }

    /// Adds `n` and returns the new total.
    pub fn add(&self, n: u64) -> u64 {
        self.total.fetch_add(n, Ordering::Relaxed).wrapping_add(n)
    }

    /// The total over all generations, as far as they have arrived here.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn delivered(&self) -> std::sync::MutexGuard<'_, u64> {
        // A number is valid whatever panicked.
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn decode(version: u32, bytes: &[u8]) -> Result<u64, SectionError> {
        if version != Self::VERSION {
            return Err(SectionError::Version {
                supported: Self::VERSION..=Self::VERSION,
            });
        }
        let bytes = bytes.try_into().map_err(|_| {
            SectionError::Invalid(format!("a counter has 8 bytes, not {}", bytes.len()))
        })?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Section for Counter {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        Self::VERSION
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut delivered = self.delivered();
        let total = self.get();
        out.write_all(&total.to_le_bytes())?;
        *delivered = total;
        Ok(())
    }

    fn delta(&self) -> Option<Vec<u8>> {
        let mut delivered = self.delivered();
        let total = self.get();
        let new = total.wrapping_sub(*delivered);
        *delivered = total;
        (new != 0).then(|| new.to_le_bytes().to_vec())
    }

    fn restore(&self, version: u32, input: &mut dyn Read) -> Result<(), SectionError> {
        let mut bytes = Vec::new();
        input.take(9).read_to_end(&mut bytes)?;
        let restored = Self::decode(version, &bytes)?;
        // Added rather than set: what was counted here before stays, and stays undelivered.
        let mut delivered = self.delivered();
        *delivered = delivered.wrapping_add(restored);
        self.add(restored);
        Ok(())
    }

    fn absorb(&self, version: u32, bytes: &[u8]) -> Result<(), SectionError> {
        self.add(Self::decode(version, bytes)?);
        Ok(())
    }
}

/// A section in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The version that it was written in.
    pub version: u32,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// CRC-32 (IEEE) of its bytes.
    pub crc32: u32,
}

/// What is where in a snapshot. Travels in the message that carries the memfd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The sections, in no order that matters.
    pub sections: Vec<Entry>,
    /// Size of the memfd, in bytes.
    pub total: u64,
}

/// Why no snapshot could be taken. The generation serves on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The sections break a rule.
    #[error(transparent)]
    Sections(#[from] SectionsError),
    /// More than [`MAX_STATE_BYTES`].
    #[error("section `{name}`: the state exceeds {MAX_STATE_BYTES} bytes")]
    TooLarge {
        /// The section that went beyond.
        name: String,
    },
    /// A section could not be written.
    #[error("section `{name}`: cannot write its state")]
    Section {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The memfd could not be made or sealed.
    #[error("cannot {step} the memfd of the state")]
    Memfd {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// The names or the number of sections break a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SectionsError {
    /// More than [`MAX_SECTIONS`].
    #[error("{0} sections of state: at most {MAX_SECTIONS} are possible")]
    TooMany(usize),
    /// Empty or too long.
    #[error("`{0}` cannot name a section: use 1 to {MAX_SECTION_NAME} bytes")]
    Name(String),
    /// Two have one name.
    #[error("two sections are named `{0}`")]
    Duplicate(String),
}

/// Why a received snapshot is refused before any section is looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The names or the number of sections break a rule.
    #[error(transparent)]
    Sections(#[from] SectionsError),
    /// Not a memfd with all four seals.
    #[error("the state could still be changed: it is not in a sealed memfd")]
    NotSealed,
    /// The memfd has another size.
    #[error("the state has {found} bytes instead of {expected}")]
    Size {
        /// As announced.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// More than [`MAX_STATE_BYTES`].
    #[error("the state exceeds {MAX_STATE_BYTES} bytes: {0}")]
    TooLarge(u64),
    /// A section is not within the memfd, or overlaps another.
    #[error("section `{name}` is not where a section can be")]
    Bounds {
        /// Its name.
        name: String,
    },
    /// It could not be examined.
    #[error("cannot examine the memfd of the state")]
    Io(#[from] io::Error),
}

/// Why a snapshot could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The registered sections break a rule.
    #[error(transparent)]
    Sections(#[from] SectionsError),
    /// The bytes are not those that were written.
    #[error("section `{name}`, version {version}: checksum mismatch, the state is damaged")]
    Checksum {
        /// Its name.
        name: String,
        /// The version that it was written in.
        version: u32,
    },
    /// The section refused it.
    #[error("section `{name}`, version {version}: cannot be restored")]
    Section {
        /// Its name.
        name: String,
        /// The version that it was written in.
        version: u32,
        /// Why.
        source: SectionError,
    },
    /// The section did not read all of it: it would silently lose the rest.
    #[error("section `{name}`, version {version}: {unread} bytes left unread")]
    Unread {
        /// Its name.
        name: String,
        /// The version that it was written in.
        version: u32,
        /// How many.
        unread: u64,
    },
    /// The memfd could not be read.
    #[error("section `{name}`: cannot read the state")]
    Io {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// What [`Snapshot::restore`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Sections that took over their value.
    pub restored: Vec<String>,
    /// In the snapshot, but not of this build (a downgrade): their state ends here. To be logged.
    pub dropped: Vec<String>,
    /// Of this build, but not in the snapshot: they start empty.
    pub fresh: Vec<String>,
}

/// A received snapshot whose seals, size and layout are right.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Manifest,
    file: File,
}

impl Snapshot {
    /// What it holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes all sections into a new memfd and seals it.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn take(sections: &[Arc<dyn Section>]) -> Result<(Manifest, OwnedFd), TakeError> {
        check_names(sections.iter().map(|section| section.name()))?;
        let memfd = |step| move |source| TakeError::Memfd { step, source };
        let file = new_memfd("handoff-state").map_err(memfd("make"))?;
        let mut entries = Vec::with_capacity(sections.len());
        let mut offset = 0;
        for section in sections {
            let name = section.name().to_owned();
            let version = section.version();
            let mut out = SectionWriter::new(&file, MAX_STATE_BYTES - offset);
            let written = section.snapshot(&mut out).and_then(|()| out.file.flush());
            if out.overflowed {
                return Err(TakeError::TooLarge { name });
            }
            if let Err(source) = written {
                return Err(TakeError::Section { name, source });
            }
            let (length, crc32) = (out.length, out.crc.clone().finalize());
            entries.push(Entry {
                name,
                version,
                offset,
                length,
                crc32,
            });
            offset += length;
        }
        seal(&file).map_err(memfd("seal"))?;
        let manifest = Manifest {
            sections: entries,
            total: offset,
        };
        Ok((manifest, file.into()))
    }

    /// Checks seals, size and layout.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(manifest: Manifest, fd: OwnedFd) -> Result<Self, OpenError> {
        check_names(manifest.sections.iter().map(|entry| entry.name.as_str()))?;
        if manifest.total > MAX_STATE_BYTES {
            return Err(OpenError::TooLarge(manifest.total));
        }
        if !is_sealed(&fd) {
            return Err(OpenError::NotSealed);
        }
        let file = File::from(fd);
        let (expected, found) = (manifest.total, file.metadata()?.len());
        if found != expected {
            return Err(OpenError::Size { expected, found });
        }
        let mut entries: Vec<_> = manifest.sections.iter().collect();
        entries.sort_by_key(|entry| (entry.offset, entry.length));
        let mut free_from = 0;
        for entry in entries {
            let end = entry.offset.checked_add(entry.length);
            match end {
                Some(end) if entry.offset >= free_from && end <= expected => free_from = end,
                _ => {
                    let name = entry.name.clone();
                    return Err(OpenError::Bounds { name });
                }
            }
        }
        Ok(Self { manifest, file })
    }

    /// Gives each section its value: all checksums first, then one section after the other, in
    /// the order of `sections`.
    ///
    /// # Errors
    /// [`RestoreError`]. Sections that come before the one it names have been restored: a child
    /// that gets an error here ends.
    pub fn restore(&self, sections: &[Arc<dyn Section>]) -> Result<Restored, RestoreError> {
        check_names(sections.iter().map(|section| section.name()))?;
        let mut done = Restored::default();
        let mut found = Vec::new();
        for section in sections {
            let name = section.name();
            match self.manifest.sections.iter().find(|e| e.name == name) {
                Some(entry) => found.push((section, entry)),
                None => done.fresh.push(name.to_owned()),
            }
        }
        for (_, entry) in &found {
            self.verify(entry)?;
        }
        for (section, entry) in found {
            self.restore_section(section.as_ref(), entry)?;
            done.restored.push(entry.name.clone());
        }
        let is_dropped = |name: &&String| !done.restored.contains(name);
        let names = self.manifest.sections.iter().map(|entry| &entry.name);
        done.dropped = names.filter(is_dropped).cloned().collect();
        Ok(done)
    }

    fn verify(&self, entry: &Entry) -> Result<(), RestoreError> {
        let mut crc = crc32fast::Hasher::new();
        let mut reader = self.reader(entry);
        loop {
            let chunk = reader.fill_buf().map_err(|source| RestoreError::Io {
                name: entry.name.clone(),
                source,
            })?;
            if chunk.is_empty() {
                break;
            }
            crc.update(chunk);
            let length = chunk.len();
            reader.consume(length);
        }
        if crc.finalize() == entry.crc32 {
            return Ok(());
        }
        Err(RestoreError::Checksum {
            name: entry.name.clone(),
            version: entry.version,
        })
    }

    fn restore_section(&self, section: &dyn Section, entry: &Entry) -> Result<(), RestoreError> {
        let (name, version) = (entry.name.clone(), entry.version);
        let mut reader = self.reader(entry);
        if let Err(source) = section.restore(version, &mut reader) {
            return Err(RestoreError::Section {
                name,
                version,
                source,
            });
        }
        match reader.buffer().len() as u64 + reader.get_ref().left {
            0 => Ok(()),
            unread => Err(RestoreError::Unread {
                name,
                version,
                unread,
            }),
        }
    }

    fn reader(&self, entry: &Entry) -> BufReader<SectionReader<'_>> {
        let reader = SectionReader {
            file: &self.file,
            offset: entry.offset,
            left: entry.length,
        };
        BufReader::with_capacity(BUFFER_BYTES, reader)
    }
}

/// What one section changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The section's name.
    pub name: String,
    /// The version that it was written in.
    pub version: u32,
    /// As [`Section::delta`] gave it.
    pub bytes: Vec<u8>,
}

/// What all sections changed since the last snapshot or deltas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deltas {
    /// Only the sections that changed.
    pub sections: Vec<Delta>,
}

/// Why one section's delta was not absorbed. It is lost: counted and logged, never fatal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AbsorbError {
    /// This build has no such section.
    #[error("section `{name}`, version {version}: not known here, {bytes} bytes lost")]
    Unknown {
        /// Its name.
        name: String,
        /// The version that it was written in.
        version: u32,
        /// How much is lost.
        bytes: usize,
    },
    /// The section refused it.
    #[error("section `{name}`, version {version}: cannot absorb {bytes} bytes")]
    Section {
        /// Its name.
        name: String,
        /// The version that it was written in.
        version: u32,
        /// How much is lost.
        bytes: usize,
        /// Why.
        source: SectionError,
    },
}

impl Deltas {
    /// Asks every section. What is returned counts as delivered; a child drops the result of a
    /// call right after it absorbed `Commit`, so that a later delta of its own does not hold
    /// what came from the parent.
    #[must_use]
    pub fn collect(sections: &[Arc<dyn Section>]) -> Self {
        let delta = |section: &Arc<dyn Section>| {
            section.delta().map(|bytes| Delta {
                name: section.name().to_owned(),
                version: section.version(),
                bytes,
            })
        };
        Self {
            sections: sections.iter().filter_map(delta).collect(),
        }
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Sum of the deltas, in bytes: to be compared with [`MAX_DELTA_BYTES`].
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        let length = |delta: &Delta| (delta.bytes.len() + delta.name.len()) as u64;
        self.sections.iter().map(length).sum()
    }

    /// Merges all of them, each by itself: one that is refused does not stop the others.
    #[must_use]
    pub fn absorb(&self, sections: &[Arc<dyn Section>]) -> Vec<AbsorbError> {
        let absorb_one = |delta: &Delta| {
            let (name, version, bytes) = (delta.name.clone(), delta.version, delta.bytes.len());
            match sections.iter().find(|section| section.name() == name) {
                None => Some(AbsorbError::Unknown {
                    name,
                    version,
                    bytes,
                }),
                Some(section) => {
                    let source = section.absorb(version, &delta.bytes).err()?;
                    Some(AbsorbError::Section {
                        name,
                        version,
                        bytes,
                        source,
                    })
                }
            }
        };
        self.sections.iter().filter_map(absorb_one).collect()
    }
}

/// A sealed memfd that holds `bytes`: for what is too large for a message.
///
/// # Errors
/// Those of memfd_create(2) and write(2).
pub fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = new_memfd("handoff-bytes")?;
    file.write_all_at(bytes, 0)?;
    seal(&file)?;
    Ok(file.into())
}

/// Reads a sealed memfd of exactly `expected` bytes, of which there must not be more than `max`.
///
/// # Errors
/// `InvalidData` if it is not sealed, of another size or larger; those of pread(2).
pub fn read_sealed(fd: OwnedFd, expected: u64, max: u64) -> io::Result<Vec<u8>> {
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    if expected > max {
        return Err(invalid(format!(
            "{expected} bytes announced, at most {max} possible"
        )));
    }
    if !is_sealed(&fd) {
        return Err(invalid("not a sealed memfd".to_owned()));
    }
    let file = File::from(fd);
    let found = file.metadata()?.len();
    if found != expected {
        return Err(invalid(format!("{found} bytes instead of {expected}")));
    }
    let length = usize::try_from(expected).map_err(|_| invalid("too large".to_owned()))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn check_names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> Result<(), SectionsError> {
    if names.len() > MAX_SECTIONS {
        return Err(SectionsError::TooMany(names.len()));
    }
    let mut seen = HashSet::new();
    for name in names {
        if !(1..=MAX_SECTION_NAME).contains(&name.len()) {
            return Err(SectionsError::Name(name.to_owned()));
        }
        if !seen.insert(name) {
            return Err(SectionsError::Duplicate(name.to_owned()));
        }
    }
    Ok(())
}

fn new_memfd(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // With vm.memfd_noexec=2 only such memfds are allowed; before Linux 6.3 they are unknown.
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::memfd_create(name, flags)?.into()),
        made => Ok(made?.into()),
    }
}

fn seal(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(file, SEALS)?)
}

/// Anything but a memfd has no seals at all (`EINVAL`).
fn is_sealed(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SEALS))
}

/// Appends one section to the memfd: counts, bounds and sums up what passes.
struct SectionWriter<'a> {
    file: BufWriter<&'a File>,
    crc: crc32fast::Hasher,
    length: u64,
    room: u64,
    overflowed: bool,
}

impl<'a> SectionWriter<'a> {
    fn new(file: &'a File, room: u64) -> Self {
        Self {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            crc: crc32fast::Hasher::new(),
            length: 0,
            room,
            overflowed: false,
        }
    }
}

impl Write for SectionWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.room - self.length {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(bytes)?;
        self.crc.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// One section of the memfd, from its start to its end.
struct SectionReader<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for SectionReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..length], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    type Sections = Vec<Arc<dyn Section>>;

    /// A value of bytes, with what the tests want to go wrong.
    struct Blob {
        name: &'static str,
        version: u32,
        value: Mutex<Vec<u8>>,
        reads: usize,
    }

    impl Blob {
        fn new(name: &'static str, version: u32, value: &[u8]) -> Arc<Self> {
            Arc::new(Self {
                name,
                version,
                value: Mutex::new(value.to_vec()),
                reads: usize::MAX,
            })
        }

        fn value(&self) -> Vec<u8> {
            self.value.lock().expect("lock").clone()
        }
    }

    impl Section for Blob {
        fn name(&self) -> &str {
            self.name
        }

        fn version(&self) -> u32 {
            self.version
        }

        fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
            // Piecemeal, so that the buffer matters.
            self.value()
                .chunks(7)
                .try_for_each(|piece| out.write_all(piece))
        }

        fn delta(&self) -> Option<Vec<u8>> {
            None
        }

        fn restore(&self, version: u32, input: &mut dyn Read) -> Result<(), SectionError> {
            let mut value = Vec::new();
            input.take(self.reads as u64).read_to_end(&mut value)?;
            match version {
                // A migration: version 1 was in upper case.
                1 if self.version == 2 => value.make_ascii_lowercase(),
                version if version == self.version => {}
                _ => {
                    let supported = 1..=self.version;
                    return Err(SectionError::Version { supported });
                }
            }
            *self.value.lock().expect("lock") = value;
            Ok(())
        }

        fn absorb(&self, _: u32, bytes: &[u8]) -> Result<(), SectionError> {
            Err(SectionError::Invalid(format!("not {bytes:?}")))
        }
    }

    fn counter(name: &str, value: u64) -> Arc<Counter> {
        let counter = Arc::new(Counter::new(name));
        counter.add(value);
        counter
    }

    fn transfer(from: &Sections, to: &Sections) -> Result<Restored, RestoreError> {
        let (manifest, fd) = Snapshot::take(from).expect("take");
        Snapshot::open(manifest, fd).expect("open").restore(to)
    }

    /// The error with its causes, as it is printed.
    fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
        format!("{:#}", anyhow::Error::new(error))
    }

    #[test]
    fn state_passes_to_the_next_generation() {
        let long: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let from: Sections = vec![
            Blob::new("long", 2, &long),
            Blob::new("empty", 2, b""),
            counter("hits", 41),
            Blob::new("gone", 2, b"x"),
        ];
        let (blob, hits) = (Blob::new("long", 2, b""), counter("hits", 0));
        let to: Sections = vec![
            hits.clone(),
            Blob::new("new", 2, b""),
            blob.clone(),
            Blob::new("empty", 2, b"not for long"),
        ];
        let done = transfer(&from, &to).expect("restore");
        assert_eq!(done.restored, ["hits", "long", "empty"]);
        assert_eq!(done.dropped, ["gone"]);
        assert_eq!(done.fresh, ["new"]);
        assert_eq!(hits.get(), 41);
        assert_eq!(blob.value(), long);
    }

    #[test]
    fn no_sections_are_a_snapshot_too() {
        let done = transfer(&Vec::new(), &Vec::new()).expect("restore");
        assert_eq!(done, Restored::default());
    }

    #[test]
    fn an_older_version_is_migrated_and_an_unknown_one_named() {
        let old: Sections = vec![Blob::new("greeting", 1, b"EEE")];
        let new = Blob::new("greeting", 2, b"");
        transfer(&old, &vec![new.clone() as Arc<dyn Section>]).expect("migrate");
        assert_eq!(new.value(), b"eee");

        let newer: Sections = vec![Blob::new("greeting", 3, b"x")];
        let error = transfer(&newer, &vec![new as Arc<dyn Section>]).expect_err("unknown");
        assert_eq!(
            chain(error),
            "section `greeting`, version 3: cannot be restored: this build reads versions 1 to 2"
        );
    }

    #[test]
    fn what_a_section_leaves_unread_is_an_error() {
        let from: Sections = vec![Blob::new("a", 2, &[0; 600_000])];
        let lazy = Blob {
            reads: 10,
            ..Arc::into_inner(Blob::new("a", 2, b"")).expect("sole")
        };
        let error = transfer(&from, &vec![Arc::new(lazy) as Arc<dyn Section>]).expect_err("unread");
        assert_eq!(
            chain(error),
            "section `a`, version 2: 599990 bytes left unread"
        );
    }

    #[test]
    fn a_damaged_section_is_found_before_any_is_restored() {
        let from: Sections = vec![counter("hits", 5), Blob::new("b", 2, b"value")];
        let (mut manifest, fd) = Snapshot::take(&from).expect("take");
        manifest.sections[1].crc32 ^= 1;
        let hits = counter("hits", 0);
        let to: Sections = vec![hits.clone(), Blob::new("b", 2, b"")];
        let error = Snapshot::open(manifest, fd)
            .expect("open")
            .restore(&to)
            .expect_err("damaged");
        assert!(chain(error).starts_with("section `b`, version 2: checksum mismatch"));
        assert_eq!(hits.get(), 0);
    }

    #[test]
    fn a_snapshot_is_sealed_and_cloexec() {
        let (manifest, fd) = Snapshot::take(&[counter("hits", 5)]).expect("take");
        let flags = rustix::io::fcntl_getfd(&fd).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let file = File::from(fd);
        file.write_all_at(b"x", 0).expect_err("cannot be written");
        file.set_len(0).expect_err("cannot be cut");
        file.set_len(100).expect_err("cannot grow");
        assert_eq!(manifest.total, 8);
    }

    #[test]
    fn what_is_not_a_snapshot_is_refused() {
        let sections: Sections = vec![counter("a", 5), counter("b", 6)];
        let open = |change: &dyn Fn(&mut Manifest)| {
            let (mut manifest, fd) = Snapshot::take(&sections).expect("take");
            change(&mut manifest);
            Snapshot::open(manifest, fd).map(drop)
        };
        open(&|_| {}).expect("unchanged");
        let changes: [&dyn Fn(&mut Manifest); 8] = [
            &|m| m.total += 1,
            &|m| m.total = u64::MAX,
            &|m| m.sections[1].length += 1,
            &|m| m.sections[1].offset = u64::MAX,
            &|m| m.sections[1].offset = 7,
            &|m| m.sections[1].name = "a".to_owned(),
            &|m| m.sections[1].name = String::new(),
            &|m| m.sections = vec![m.sections[0].clone(); MAX_SECTIONS + 1],
        ];
        for (index, change) in changes.iter().enumerate() {
            assert!(open(change).is_err(), "change {index}");
        }
        let (manifest, _) = Snapshot::take(&sections).expect("take");
        let unsealed = new_memfd("test").expect("memfd");
        unsealed.set_len(manifest.total).expect("size");
        rustix::fs::fcntl_add_seals(&unsealed, SealFlags::WRITE).expect("one seal");
        let plain = tempfile::tempfile().expect("file");
        for file in [unsealed, plain] {
            let error = Snapshot::open(manifest.clone(), file.into()).expect_err("not sealed");
            assert!(matches!(error, OpenError::NotSealed));
        }
    }

    #[test]
    fn registered_sections_must_differ() {
        let twice: Sections = vec![counter("a", 0), counter("a", 0)];
        let error = Snapshot::take(&twice).expect_err("twice");
        assert_eq!(chain(error), "two sections are named `a`");
        let long: Sections = vec![counter(&"x".repeat(MAX_SECTION_NAME + 1), 0)];
        Snapshot::take(&long).expect_err("long name");
    }

    #[test]
    fn the_writer_keeps_to_its_room() {
        let file = new_memfd("test").expect("memfd");
        let mut writer = SectionWriter::new(&file, 10);
        writer.write_all(&[0; 10]).expect("fits");
        writer.write_all(&[0]).expect_err("does not fit");
        assert!(writer.overflowed);
    }

    #[test]
    fn sealed_bytes_are_read_back_within_bounds() {
        let bytes = vec![7; 100_000];
        let fd = || sealed(&bytes).expect("sealed");
        assert_eq!(read_sealed(fd(), 100_000, 100_000).expect("read"), bytes);
        read_sealed(fd(), 100_000, 99_999).expect_err("more than possible");
        read_sealed(fd(), 99_999, 100_000).expect_err("another size");
        let plain = tempfile::tempfile().expect("file");
        read_sealed(plain.into(), 0, 1).expect_err("not sealed");
    }

    #[test]
    fn deltas_are_absorbed_each_by_itself() {
        let hits = counter("hits", 0);
        let to: Sections = vec![Blob::new("blob", 2, b""), hits.clone()];
        let delta = |name: &str, version, bytes: &[u8]| Delta {
            name: name.to_owned(),
            version,
            bytes: bytes.to_vec(),
        };
        let deltas = Deltas {
            sections: vec![
                delta("blob", 2, b"x"),
                delta("gone", 4, b"yz"),
                delta("hits", 9, &[0; 8]),
                delta("hits", 1, &[0; 7]),
                delta("hits", 1, &3_u64.to_le_bytes()),
            ],
        };
        let errors: Vec<_> = deltas.absorb(&to).into_iter().map(chain).collect();
        assert_eq!(
            errors,
            [
                "section `blob`, version 2: cannot absorb 1 bytes: not [120]",
                "section `gone`, version 4: not known here, 2 bytes lost",
                "section `hits`, version 9: cannot absorb 8 bytes: this build reads versions 1 to 1",
                "section `hits`, version 1: cannot absorb 7 bytes: a counter has 8 bytes, not 7",
            ]
        );
        assert_eq!(hits.get(), 3);
        assert_eq!(deltas.len_bytes(), 1 + 2 + 8 + 7 + 8 + 20);
        assert!(Deltas::collect(&[Blob::new("blob", 2, b"") as Arc<dyn Section>]).is_empty());
    }

    /// Every generation counts while it hands over: in the snapshot, the commit's delta or the
    /// rest, each addition arrives once.
    #[test]
    fn a_counter_is_exact_while_it_is_counted() {
        const GENERATIONS: u64 = 20;
        let added = AtomicU64::new(0);
        let mut parent = Arc::new(Counter::new("hits"));
        for _ in 0..GENERATIONS {
            let child = Arc::new(Counter::new("hits"));
            let (from, to): (Sections, Sections) = (vec![parent.clone()], vec![child.clone()]);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            parent.add(1);
                            added.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                transfer(&from, &to).expect("restore");
                for _ in 0..100 {
                    assert!(Deltas::collect(&from).absorb(&to).is_empty());
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert!(Deltas::collect(&from).absorb(&to).is_empty(), "the rest");
            assert_eq!(child.get(), added.load(Ordering::Relaxed));
            assert_eq!(child.get(), parent.get());
            parent = child;
        }
    }

    /// A child that is revoked returns what it counted itself, and only that.
    #[test]
    fn a_revoked_child_returns_its_own_additions() {
        let (parent, child) = (counter("hits", 10), counter("hits", 0));
        let (from, to): (Sections, Sections) = (vec![parent.clone()], vec![child.clone()]);
        child.add(1); // before the restore: a probe, say
        let (manifest, fd) = Snapshot::take(&from).expect("take");
        Snapshot::open(manifest, fd)
            .expect("open")
            .restore(&to)
            .expect("restore");
        assert_eq!(child.get(), 11);
        let own = Deltas::collect(&to);
        parent.add(5);
        assert!(Deltas::collect(&from).absorb(&to).is_empty(), "commit");
        let _known_to_the_parent = Deltas::collect(&to);
        child.add(100);
        assert!(own.absorb(&from).is_empty());
        assert!(Deltas::collect(&to).absorb(&from).is_empty(), "return");
        assert_eq!((parent.get(), child.get()), (116, 116));
    }

    /// The rest of a grandparent goes through the parent to the child.
    #[test]
    fn what_was_absorbed_is_passed_on() {
        let (parent, child) = (counter("hits", 1), counter("hits", 0));
        let (from, to): (Sections, Sections) = (vec![parent.clone()], vec![child.clone()]);
        transfer(&from, &to).expect("restore");
        parent
            .absorb(1, &7_u64.to_le_bytes())
            .expect("rest of the grandparent");
        assert!(Deltas::collect(&from).absorb(&to).is_empty());
        assert_eq!(child.get(), 8);
    }

    /// `cargo test --release -- --ignored --nocapture gibibyte`
    #[test]
    #[ignore = "takes 1 GiB of memory"]
    fn a_gibibyte_passes_without_a_second_copy() {
        struct Big;
        impl Section for Big {
            fn name(&self) -> &str {
                "big"
            }
            fn version(&self) -> u32 {
                1
            }
            fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
                (0..1024_u32).try_for_each(|n| out.write_all(&vec![n.to_le_bytes()[0]; 1 << 20]))
            }
            fn delta(&self) -> Option<Vec<u8>> {
                None
            }
            fn restore(&self, _: u32, input: &mut dyn Read) -> Result<(), SectionError> {
                assert_eq!(io::copy(input, &mut io::sink())?, 1 << 30);
                Ok(())
            }
            fn absorb(&self, _: u32, _: &[u8]) -> Result<(), SectionError> {
                Ok(())
            }
        }
        let sections: Sections = vec![Arc::new(Big)];
        let start = std::time::Instant::now();
        let (manifest, fd) = Snapshot::take(&sections).expect("take");
        let taken = start.elapsed();
        Snapshot::open(manifest, fd)
            .expect("open")
            .restore(&sections)
            .expect("restore");
        println!(
            "taken after {taken:?}, restored after {:?}",
            start.elapsed()
        );
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        println!(
            "anonymous memory: {}",
            anonymous.unwrap_or("unknown").trim()
        );
    }
}
