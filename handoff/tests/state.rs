//! State that goes on in the next build: migrated, refused, large, and exact while it changes.

mod support;

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use handoff::{
    control::{Event, Outcome},
    state::{Counter, Section, SectionError},
};
use support::{Line, Service, meanwhile};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Words that were said, in order. Version 1 writes them a line each, version 2 with their length before each.
struct Words {
    /// What this build writes.
    version: u32,
    words: Mutex<(Vec<String>, usize)>,
}

impl Words {
    fn new(version: u32) -> Self {
        let words = Mutex::default();
        Self { version, words }
    }

    fn encode(&self, words: &[String]) -> Vec<u8> {
        let encode = |word: &String| match self.version {
            1 => format!("{word}\n"),
            _ => format!("{} {word}\n", word.len()),
        };
        words.iter().map(encode).collect::<String>().into_bytes()
    }

    fn decode(&self, version: u32, bytes: &[u8]) -> Result<Vec<String>, SectionError> {
        if version > self.version {
            return Err(SectionError::Version {
                supported: 1..=self.version,
            });
        }
        let text = std::str::from_utf8(bytes).map_err(|e| SectionError::Invalid(e.to_string()))?;
        let decode = |line: &str| match version {
            1 => Ok(line.to_owned()),
            _ => match line.split_once(' ') {
                Some((length, word)) if length.parse() == Ok(word.len()) => Ok(word.to_owned()),
                _ => Err(SectionError::Invalid(format!("`{line}` has no length"))),
            },
        };
        text.lines().map(decode).collect()
    }
}

impl Section for Words {
    fn name(&self) -> &str {
        "words"
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut guard = self.words.lock().expect("lock");
        out.write_all(&self.encode(&guard.0))?;
        guard.1 = guard.0.len();
        Ok(())
    }

    fn delta(&self) -> Option<Vec<u8>> {
        let mut guard = self.words.lock().expect("lock");
        let new = self.encode(&guard.0[guard.1..]);
        guard.1 = guard.0.len();
        (!new.is_empty()).then_some(new)
    }

    fn restore(&self, version: u32, input: &mut dyn Read) -> Result<(), SectionError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        let words = self.decode(version, &bytes)?;
        *self.words.lock().expect("lock") = (words.clone(), words.len());
        Ok(())
    }

    fn absorb(&self, version: u32, bytes: &[u8]) -> Result<(), SectionError> {
        let words = self.decode(version, bytes)?;
        self.words.lock().expect("lock").0.extend(words);
        Ok(())
    }
}

/// Many bytes, each of which is checked.
struct Ballast {
    bytes: Mutex<Vec<u8>>,
    restored: AtomicU64,
}

impl Section for Ballast {
    fn name(&self) -> &str {
        "ballast"
    }

    fn version(&self) -> u32 {
        1
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.bytes.lock().expect("lock"))
    }

    fn delta(&self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&self, _version: u32, input: &mut dyn Read) -> Result<(), SectionError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        self.restored
            .store(crc32fast::hash(&bytes).into(), Ordering::Relaxed);
        *self.bytes.lock().expect("lock") = bytes;
        Ok(())
    }

    fn absorb(&self, _version: u32, _bytes: &[u8]) -> Result<(), SectionError> {
        Err(SectionError::Invalid("it does not change".to_owned()))
    }
}

struct App {
    generation: u64,
    counter: Option<Arc<Counter>>,
    words: Option<Arc<Words>>,
    ballast: Option<Arc<Ballast>>,
}

impl App {
    fn answer(&self, question: &str) -> String {
        let generation = self.generation;
        match question.split_once(' ').unwrap_or((question, "")) {
            ("add", n) => {
                let counter = self.counter.as_ref().expect("a counter");
                counter.add(n.parse().expect("a number"));
                format!("{generation} added")
            }
            ("total", _) => self.counter.as_ref().expect("a counter").get().to_string(),
            ("remember", word) => {
                let words = self.words.as_ref().expect("words");
                words.words.lock().expect("lock").0.push(word.to_owned());
                format!("{generation} remembered")
            }
            ("words", _) => {
                let words = self.words.as_ref().expect("words");
                words.words.lock().expect("lock").0.join(" ")
            }
            ("ballast", _) => {
                let ballast = self.ballast.as_ref().expect("ballast");
                let length = ballast.bytes.lock().expect("lock").len();
                format!("{length} {:08x}", ballast.restored.load(Ordering::Relaxed))
            }
            _ => format!("{generation} ?"),
        }
    }
}

/// Has the sections that the configuration names, and answers a question for each connection.
#[test]
fn program() {
    let Some((dir, config)) = support::playing() else {
        return;
    };
    support::play(async {
        let main = "127.0.0.1:0".parse().expect("an address");
        let server = support::builder(&dir).listen("main", main);
        let Ok(mut starting) = server.start().await else {
            return;
        };
        let mut app = App {
            generation: starting.generation(),
            counter: None,
            words: None,
            ballast: None,
        };
        for line in config.lines() {
            let (name, value) = line.split_once(' ').expect("name value");
            let number = || value.parse::<u64>().expect("a number");
            // A refusal is told by the parent.
            match name {
                "counter" => match starting.state(Counter::new(value)).await {
                    Ok(counter) => app.counter = Some(counter),
                    Err(_) => return,
                },
                "words" => match starting.state(Words::new(number() as u32)).await {
                    Ok(words) => app.words = Some(words),
                    Err(_) => return,
                },
                "ballast" => {
                    let bytes = (0..number()).map(|n| (n % 251) as u8).collect();
                    let fresh = Ballast {
                        bytes: Mutex::new(if starting.generation() == 1 {
                            bytes
                        } else {
                            Vec::new()
                        }),
                        restored: AtomicU64::new(0),
                    };
                    match starting.state(fresh).await {
                        Ok(ballast) => app.ballast = Some(ballast),
                        Err(_) => return,
                    }
                }
                other => panic!("{other}"),
            }
        }
        let serving = starting.ready().await.expect("ready");
        let app = Arc::new(app);
        let mut acceptor = serving.acceptor("main").expect("acceptor");
        while let Some(accepted) = acceptor.accept().await {
            let app = app.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(accepted.stream);
                let mut line = String::new();
                if stream.read_line(&mut line).await.is_ok_and(|n| n > 0) {
                    let answer = app.answer(line.trim_end()) + "\n";
                    let _ = stream.get_mut().write_all(answer.as_bytes()).await;
                }
                drop(accepted.guard);
            });
        }
        let _ = serving.finished().await;
    });
}

fn ask(service: &Service, question: &str) -> String {
    service.connect("main").ask(question)
}

/// Asks this again and again; says how often it was answered.
fn under_traffic(service: &Service, question: &str, act: impl FnOnce(&dyn Fn())) -> u64 {
    let address = service.address("main");
    let ask = || {
        let answer = Line::connect(&address).expect("connect").ask(question);
        assert!(!answer.is_empty(), "no answer");
    };
    meanwhile(ask, act)
}

#[test]
fn a_counter_that_never_rests_is_exact() {
    let service = Service::start("counter hits\n");
    let mut more = 0;
    let threes = under_traffic(&service, "add 3", |goes_on| {
        more = under_traffic(&service, "add 5", |_| {
            for _ in 0..15 {
                service.reload();
                goes_on();
            }
        });
    });
    // What the last but one has counted since is its last word.
    service.reload();
    assert_eq!(ask(&service, "total"), (threes * 3 + more * 5).to_string());
}

#[test]
fn words_said_while_the_state_moves_arrive_in_the_next_generation() {
    let service = Service::start("words 1\n");
    let number = AtomicU64::new(0);
    let address = service.address("main");
    let say = || {
        let word = number.fetch_add(1, Ordering::Relaxed);
        let answer = Line::connect(&address)
            .expect("connect")
            .ask(&format!("remember {word}"));
        assert!(answer.ends_with("remembered"));
    };
    let said = meanwhile(say, |goes_on| {
        for _ in 0..10 {
            service.reload();
            goes_on();
        }
    });
    service.reload();
    let answer = ask(&service, "words");
    let mut words: Vec<u64> = answer
        .split(' ')
        .map(|word| word.parse().expect("a number"))
        .collect();
    // Absorbed late, some are out of order; none is missing, and none there twice.
    words.sort_unstable();
    assert_eq!(words, (0..said).collect::<Vec<_>>());
}

#[test]
fn an_older_version_is_migrated_and_a_newer_one_refused() {
    let service = Service::start("words 1\n");
    for word in ["a", "b"] {
        ask(&service, &format!("remember {word}"));
    }
    under_traffic(&service, "nothing", |goes_on| {
        service.configure("words 2\n");
        service.reload();
        assert_eq!(ask(&service, "words"), "a b");
        ask(&service, "remember c");
        // Back to the old build, which does not know the format.
        service.configure("words 1\n");
        let reason = service.reload_fails();
        for expected in ["`words`", "version 2", "versions 1 to 1"] {
            assert!(reason.contains(expected), "no {expected} in: {reason}");
        }
        goes_on();
        service.configure("words 2\n");
        service.reload();
        assert_eq!(ask(&service, "words"), "a b c");
    });
}

#[test]
fn words_said_to_the_old_version_during_the_migration_are_migrated_too() {
    let service = Service::start("words 1\n");
    service.configure("words 2\n");
    let number = AtomicU64::new(0);
    let address = service.address("main");
    let say = || {
        let word = number.fetch_add(1, Ordering::Relaxed);
        Line::connect(&address)
            .expect("connect")
            .ask(&format!("remember {word}"));
    };
    let said = meanwhile(say, |_| drop(service.reload()));
    service.reload();
    assert_eq!(ask(&service, "words").split(' ').count() as u64, said);
}

#[test]
fn sections_come_and_go_with_the_builds() {
    let service = Service::start("counter a\n");
    ask(&service, "add 7");
    service.configure("words 1\ncounter a\n");
    service.reload();
    assert_eq!(ask(&service, "total"), "7");
    assert_eq!(ask(&service, "words"), "");
    ask(&service, "remember x");
    service.configure("words 1\n");
    service.reload();
    assert_eq!(ask(&service, "words"), "x");
    service.configure("words 1\ncounter a\n");
    service.reload();
    assert_eq!(ask(&service, "total"), "0", "it had ended");
}

#[test]
fn a_name_with_another_meaning_is_refused_and_the_parent_serves_on() {
    // A counter is called what was a list of words before.
    let service = Service::start("words 1\n");
    ask(&service, "remember much-more-than-eight-bytes");
    under_traffic(&service, "nothing", |goes_on| {
        service.configure("counter words\n");
        let reason = service.reload_fails();
        assert!(
            reason.contains("`words`") && reason.contains("version 1"),
            "{reason}"
        );
        goes_on();
    });
    assert_eq!(ask(&service, "words"), "much-more-than-eight-bytes");
    service.configure("words 1\n");
    service.reload();
    assert_eq!(ask(&service, "words"), "much-more-than-eight-bytes");
}

/// The parent answers while the state moves, and after that the child has all of it.
fn large_state(bytes: u64) {
    let service = Service::start(&format!("ballast {bytes}\ncounter hits\n"));
    let address = service.address("main");
    let answered = AtomicU64::new(0);
    let add = || {
        let answer = Line::connect(&address).expect("connect").ask("add 1");
        assert!(answer.ends_with("added"), "{answer}");
        answered.fetch_add(1, Ordering::Relaxed);
    };
    let mut marks = Vec::new();
    let total = meanwhile(add, |_| {
        let report = service.try_reload(true, |event| {
            if let Event::Phase { phase, .. } = event {
                marks.push((phase.clone(), answered.load(Ordering::Relaxed)));
            }
        });
        let report = report.expect("an outcome");
        assert!(
            matches!(report.outcome, Outcome::Confirmed { .. }),
            "{report:?}"
        );
    });
    let at = |phase: &str| {
        let mark = marks.iter().find(|(name, _)| name == phase);
        mark.expect("a phase").1
    };
    assert!(
        at("committing") > at("restoring") + 10,
        "nobody was served while the state moved: {marks:?}"
    );
    service.settles();
    assert_eq!(ask(&service, "total"), total.to_string());
    let mut crc32 = crc32fast::Hasher::new();
    let piece: Vec<u8> = (0..251 * 4096_u64).map(|n| (n % 251) as u8).collect();
    let mut left = bytes as usize;
    while left > 0 {
        let length = left.min(piece.len());
        crc32.update(&piece[..length]);
        left -= length;
    }
    assert_eq!(
        ask(&service, "ballast"),
        format!("{bytes} {:08x}", crc32.finalize())
    );
}

/// 256 MiB, or as many as `HANDOFF_TEST_STATE_MIB` says; three times as much memory is needed.
#[test]
fn the_parent_serves_while_a_large_state_moves() {
    let mib = std::env::var("HANDOFF_TEST_STATE_MIB");
    let mib: u64 = mib.map_or(256, |mib| mib.parse().expect("a number of MiB"));
    large_state(mib << 20);
}

/// A cgroup with a limit of 100 MiB, where this user may make one.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        let name = format!("handoff-test-{}", std::process::id());
        let roots = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        roots.into_iter().find_map(|(root, limit)| {
            let cgroup = Path::new(root).join(&name);
            fs::create_dir(&cgroup).ok()?;
            let cgroup = Self(cgroup);
            fs::write(cgroup.0.join(limit), (100 << 20).to_string()).ok()?;
            Some(cgroup)
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes must have ended.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_state_that_does_not_fit_into_the_cgroup_twice_is_refused_and_the_parent_serves_on() {
    let Some(cgroup) = Cgroup::new() else {
        eprintln!("skipped: no cgroup can be made here");
        return;
    };
    let service = Service::start(&format!("ballast {}\ncounter hits\n", 80 << 20));
    ask(&service, "add 3");
    // What it has is charged elsewhere: the snapshot and the child are not.
    fs::write(cgroup.0.join("cgroup.procs"), service.pid().to_string()).expect("enter");
    under_traffic(&service, "nothing", |goes_on| {
        let reason = service.reload_fails();
        assert!(reason.contains("are left of `"), "{reason}");
        assert!(reason.contains("raise that limit"), "{reason}");
        goes_on();
    });
    assert_eq!(ask(&service, "total"), "3");
    service.stop();
}
