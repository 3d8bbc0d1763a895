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
/// The methods are called while requests are being served. `snapshot` and `restore` run on a blocking
/// thread; `delta` and `absorb` must be quick, for the reload waits for them.
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
    /// There is no memory for it and the copy that the new process makes of it.
    #[error(
        "the state and the copy that the new process makes of it need {bytes} bytes more, or even more, but \
         {room}: raise that limit, or keep less in memory"
    )]
    Memory {
        /// What is needed at least, in bytes.
        bytes: u64,
        /// The limit, and what it leaves, in words.
        room: String,
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
    #[error("too many sections of state: {MAX_SECTIONS} are the most")]
    TooMany,
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
            let mut out = SectionWriter::new(&file, offset, MAX_STATE_BYTES - offset);
            let written = section.snapshot(&mut out).and_then(|()| out.file.flush());
            if out.overflowed {
                return Err(TakeError::TooLarge { name });
            }
            if let Some(error) = out.no_memory {
                return Err(error);
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
        check_memory(offset)?;
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
    /// Asks every section. What is returned counts as delivered.
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

pub(crate) fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), SectionsError> {
    let mut seen = HashSet::new();
    for name in names {
        if seen.len() == MAX_SECTIONS {
            return Err(SectionsError::TooMany);
        }
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

/// How much is written between two looks at the memory that is left.
const CHECK_BYTES: u64 = 16 * 1024 * 1024;

/// Appends one section to the memfd: counts, bounds and sums up what passes.
struct SectionWriter<'a> {
    file: BufWriter<&'a File>,
    crc: crc32fast::Hasher,
    length: u64,
    /// Where it begins.
    offset: u64,
    room: u64,
    overflowed: bool,
    no_memory: Option<TakeError>,
}

impl<'a> SectionWriter<'a> {
    fn new(file: &'a File, offset: u64, room: u64) -> Self {
        Self {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            crc: crc32fast::Hasher::new(),
            length: 0,
            offset,
            room,
            overflowed: false,
            no_memory: None,
        }
    }
}

impl Write for SectionWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.offset + self.length;
        if bytes.len() as u64 > self.room - self.length {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let (bytes, _) = bytes.split_at(bytes.len().min(CHECK_BYTES as usize));
        let length = bytes.len() as u64;
        let is_due = end == 0 || (end + length) / CHECK_BYTES > end / CHECK_BYTES;
        // The piece itself is not counted as used yet.
        if is_due && let Err(error) = check_memory(end + 2 * length) {
            self.no_memory = Some(error);
            return Err(io::ErrorKind::OutOfMemory.into());
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

/// Whether there is memory for so much more; what the memfd holds is counted as used already.
fn check_memory(bytes: u64) -> Result<(), TakeError> {
    match crate::memory::room() {
        Some(room) if room.left < bytes => Err(TakeError::Memory {
            bytes,
            room: room.to_string(),
        }),
        _ => Ok(()),
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
mod tests;
