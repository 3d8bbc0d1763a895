//! The parts of a reload that are computing: `cargo bench -p hello-handoff --features measuring`.
//!
//! Messages are those of `tests/golden`, one of each kind, so what is measured is what is sent.

#![expect(missing_docs, reason = "of what criterion_group! makes")]

use std::{
    fs,
    hint::black_box,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::{Arc, Mutex},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use handoff::{
    measuring::{Said, Waiting},
    state::{Section, SectionError, Snapshot},
};

const STATE: usize = 16 << 20;
/// As many as one message takes.
const BATCH: usize = 252;

fn golden() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    let mut all = Vec::new();
    for file in fs::read_dir(folder).expect("golden files") {
        let path = file.expect("a file").path();
        let name = path.file_stem().expect("a name").to_string_lossy();
        // Those are no messages.
        if !name.ends_with("memfd") {
            let text = fs::read_to_string(&path).expect("read");
            let digits = text.split_ascii_whitespace();
            let bytes = digits.map(|byte| u8::from_str_radix(byte, 16).expect("two digits"));
            all.push((name.into_owned(), bytes.collect()));
        }
    }
    all.sort();
    all
}

fn messages(criterion: &mut Criterion) {
    let all = golden();
    let mut group = criterion.benchmark_group("encode");
    for (name, record) in &all {
        let said = Said::decode(record).expect("a message");
        group.bench_function(name, |b| b.iter(|| black_box(&said).encode()));
    }
    group.finish();
    let mut group = criterion.benchmark_group("decode");
    for (name, record) in &all {
        group.bench_function(name, |b| b.iter(|| Said::decode(black_box(record))));
    }
    group.finish();
}

fn batches(criterion: &mut Criterion) {
    let sockets = || -> Vec<OwnedFd> {
        let pair = || UnixStream::pair().expect("a pair");
        (0..BATCH).map(|_| pair().0.into()).collect()
    };
    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut waiting = Waiting::of(sockets());
    group.bench_function("pack", |b| b.iter(|| waiting.batch()));
    let record = waiting.batch().expect("a record");
    group.bench_function("decode", |b| b.iter(|| Said::decode(black_box(&record))));
    group.finish();
}

struct Block(Mutex<Vec<u8>>);

impl Section for Block {
    fn name(&self) -> &str {
        "block"
    }

    fn version(&self) -> u32 {
        1
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.0.lock().expect("lock"))
    }

    fn delta(&self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&self, _: u32, input: &mut dyn Read) -> Result<(), SectionError> {
        let mut block = self.0.lock().expect("lock");
        block.clear();
        input.read_to_end(&mut block)?;
        Ok(())
    }

    fn absorb(&self, _: u32, _: &[u8]) -> Result<(), SectionError> {
        Ok(())
    }
}

fn state(criterion: &mut Criterion) {
    let sections: Vec<Arc<dyn Section>> = vec![Arc::new(Block(Mutex::new(vec![7; STATE])))];
    let mut group = criterion.benchmark_group("state");
    group
        .throughput(Throughput::Bytes(STATE as u64))
        .sample_size(20);
    group.bench_function("take", |b| b.iter(|| Snapshot::take(&sections)));
    let opened = || {
        let (manifest, memfd) = Snapshot::take(&sections).expect("a snapshot");
        Snapshot::open(manifest, memfd).expect("what was taken")
    };
    let snapshot = opened();
    group.bench_function("verify and restore", |b| {
        b.iter(|| snapshot.restore(&sections));
    });
    group.bench_function("free", |b| {
        b.iter_batched(opened, drop, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, messages, batches, state);
criterion_main!(benches);
