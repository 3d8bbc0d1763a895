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
    let mut writer = SectionWriter::new(&file, 0, 10);
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

/// 256 MiB, or as many as `HANDOFF_TEST_STATE_MIB` says.
#[test]
fn a_large_state_passes_without_a_second_copy() {
    // In a process of its own: what other tests use is not measured.
    const ALONE: &str = "HANDOFF_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let exe = std::env::current_exe().expect("this executable");
        let name = "state::tests::a_large_state_passes_without_a_second_copy";
        let output = std::process::Command::new(exe)
            .args(["--exact", "--nocapture", name])
            .env(ALONE, "1")
            .output()
            .expect("run");
        let words = String::from_utf8_lossy(&output.stdout);
        assert!(words.contains("anonymous memory"), "{words}");
        print!("{words}");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    struct Big(u32);
    impl Section for Big {
        fn name(&self) -> &str {
            "big"
        }
        fn version(&self) -> u32 {
            1
        }
        fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
            (0..self.0).try_for_each(|n| out.write_all(&vec![n.to_le_bytes()[0]; 1 << 20]))
        }
        fn delta(&self) -> Option<Vec<u8>> {
            None
        }
        fn restore(&self, _: u32, input: &mut dyn Read) -> Result<(), SectionError> {
            assert_eq!(io::copy(input, &mut io::sink())?, u64::from(self.0) << 20);
            Ok(())
        }
        fn absorb(&self, _: u32, _: &[u8]) -> Result<(), SectionError> {
            Ok(())
        }
    }
    let mib = std::env::var("HANDOFF_TEST_STATE_MIB");
    let mib = mib.map_or(256, |mib| mib.parse().expect("a number of MiB"));
    let sections: Sections = vec![Arc::new(Big(mib))];
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
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"))
        .map(|kib| kib.parse::<u64>().expect("a number"));
    let anonymous = anonymous.expect("RssAnon");
    println!("{mib} MiB of state, {anonymous} KiB of anonymous memory");
    // The memfd is not anonymous: a copy of it would be.
    assert!(anonymous < 128 << 10, "{anonymous} KiB");
}
