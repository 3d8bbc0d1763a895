//! The hooks, in their order: what only one generation may do is never done by two.

mod support;

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use handoff::{Orphan, control::Outcome, state::Counter};
use support::{Line, Service, eventually, meanwhile};
use tokio::io::AsyncWriteExt;

/// Notes that a hook of this generation was called.
fn note(dir: &Path, generation: u64, hook: &str) {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("hooks"));
    // One write, so that lines of two processes do not mix.
    let line = format!("{generation} {hook}\n");
    file.expect("hooks")
        .write_all(line.as_bytes())
        .expect("note");
}

/// Until a test has written the file.
async fn until_told(dir: &Path) {
    while !dir.join("told").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An embedder's log that fails on one line.
struct PanickyLog;

impl tracing::Subscriber for PanickyLog {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(
            &mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                let words = format!("{value:?}");
                assert!(!words.contains("reload failed"), "the log was told to");
            },
        );
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn program() {
    let Some((dir, config)) = support::playing() else {
        return;
    };
    if config.lines().any(|line| line == "log with a panic") {
        tracing::subscriber::set_global_default(PanickyLog).expect("the first one");
    }
    support::play(async {
        let says = |word: &str| config.lines().any(|line| line == word);
        // Known only later, and noted by the hooks.
        let generation = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let noting = |hook: &'static str, during: Duration, panics: bool| {
            let (dir, generation): (PathBuf, _) = (dir.clone(), generation.clone());
            move || {
                let (dir, generation) = (dir.clone(), generation.clone());
                async move {
                    let generation = generation.load(std::sync::atomic::Ordering::Relaxed);
                    note(&dir, generation, hook);
                    if panics {
                        panic!("{hook} was told to");
                    }
                    if !during.is_zero() {
                        tokio::time::sleep(during).await;
                        note(&dir, generation, &format!("{hook}-returns"));
                    }
                }
            }
        };
        let slow = |is_slow: bool, millis| {
            if is_slow {
                Duration::from_millis(millis)
            } else {
                Duration::ZERO
            }
        };
        let retiring = match (says("retire slowly"), says("retire never")) {
            (_, true) => slow(true, 600_000),
            (is_slow, _) => slow(is_slow, 300),
        };
        let server = support::builder(&dir)
            .listen("main", "127.0.0.1:0".parse().expect("an address"))
            .orphan(if says("exit") {
                Orphan::Exit
            } else {
                Orphan::Promote
            })
            .on_committed({
                let note_it = noting("committed", Duration::ZERO, false);
                let is_slow = says("commit when told");
                let (dir, generation) = (dir.clone(), generation.clone());
                move || {
                    let noted = note_it();
                    let (dir, generation) = (dir.clone(), generation.clone());
                    async move {
                        noted.await;
                        if is_slow {
                            until_told(&dir).await;
                            let generation = generation.load(std::sync::atomic::Ordering::Relaxed);
                            note(&dir, generation, "committed-returns");
                        }
                    }
                }
            })
            .on_retired(noting("retired", retiring, says("retire with a panic")))
            .on_revoked(noting("revoked", Duration::ZERO, false))
            .probation(if says("probation") {
                support::LONG * 10
            } else {
                Duration::ZERO
            })
            .on_health({
                let dir = dir.clone();
                move || {
                    // Whatever a test has written there.
                    let illness = std::fs::read_to_string(dir.join("ill"));
                    async move {
                        match illness.as_deref() {
                            Ok("panic") => panic!("the health hook was told to"),
                            Ok(illness) => Err(illness.to_owned()),
                            Err(_) => Ok(()),
                        }
                    }
                }
            })
            .on_cold_start(noting("cold-start", slow(says("start slowly"), 300), false));
        let Ok(mut starting) = server.start().await else {
            return;
        };
        generation.store(starting.generation(), std::sync::atomic::Ordering::Relaxed);
        let Ok(counter) = starting.state(Counter::new("visits")).await else {
            return;
        };
        note(&dir, starting.generation(), "has-state");
        let Ok(serving) = starting.ready().await else {
            return;
        };
        let generation = serving.identity().generation;
        let mut acceptor = serving.acceptor("main").expect("acceptor");
        while let Some(mut accepted) = acceptor.accept().await {
            let words = format!("{generation} {}\n", counter.add(1));
            tokio::spawn(async move {
                let _ = accepted.stream.write_all(words.as_bytes()).await;
                drop(accepted.guard);
            });
        }
        let _ = serving.finished().await;
    });
}

fn hooks(service: &Service) -> Vec<String> {
    let all = service.read("hooks");
    let lines = all.lines().filter(|line| !line.ends_with("has-state"));
    lines.map(str::to_owned).collect()
}

/// Waits until these, and no others, have been called.
fn expect(service: &Service, expected: &[&str]) {
    eventually("the hooks are called", || {
        let seen = hooks(service);
        assert!(
            expected.starts_with(&seen.iter().map(String::as_str).collect::<Vec<_>>()),
            "{seen:?}"
        );
        seen.len() == expected.len()
    });
}

fn under_traffic(service: &Service, act: impl FnOnce(&dyn Fn())) -> u64 {
    let address = service.address("main");
    let visit = || {
        let line = Line::connect(&address).expect("connect").hear();
        assert!(!line.is_empty(), "no answer");
    };
    meanwhile(visit, act)
}

#[test]
fn the_old_generation_is_retired_before_the_new_one_is_committed() {
    let service = Service::start("");
    expect(&service, &["1 committed"]);
    under_traffic(&service, |_| {
        service.reload();
        service.reload();
    });
    expect(
        &service,
        &[
            "1 committed",
            "1 retired",
            "2 committed",
            "2 retired",
            "3 committed",
        ],
    );
    service.stop();
    assert_eq!(hooks(&service).len(), 5, "a stop is no succession");
}

#[test]
fn a_dry_run_calls_none_of_the_running_generation_and_none_of_the_other() {
    let service = Service::start("");
    under_traffic(&service, |goes_on| {
        for _ in 0..3 {
            service.dry_run();
            goes_on();
        }
    });
    expect(&service, &["1 committed"]);
    under_traffic(&service, |_| {
        service.reload();
    });
    expect(&service, &["1 committed", "1 retired", "2 committed"]);
}

#[test]
fn a_reload_waits_for_retired() {
    let service = Service::start("retire slowly\n");
    under_traffic(&service, |_| {
        service.configure("");
        service.reload();
    });
    expect(
        &service,
        &[
            "1 committed",
            "1 retired",
            "1 retired-returns",
            "2 committed",
        ],
    );
}

#[test]
fn a_hook_that_does_not_return_fails_the_reload_and_is_revoked() {
    let service = Service::start("retire never\n");
    under_traffic(&service, |goes_on| {
        let reason = service.reload_fails();
        assert!(reason.contains("retired"), "{reason}");
        expect(&service, &["1 committed", "1 retired", "1 revoked"]);
        goes_on();
    });
    assert_eq!(service.processes().len(), 1);
}

#[test]
fn a_hook_that_panics_has_returned() {
    let service = Service::start("retire with a panic\n");
    under_traffic(&service, |_| {
        service.reload();
    });
    expect(&service, &["1 committed", "1 retired", "2 committed"]);
}

/// What is cut short is `retired` alone: what it waits for goes on, and `revoked` waits for that, too.
#[test]
fn hooks_never_overlap() {
    let service = Service::start("commit when told\n");
    under_traffic(&service, |goes_on| {
        let reason = service.reload_fails();
        assert!(reason.contains("retired"), "{reason}");
        goes_on();
        expect(&service, &["1 committed"]);
        std::fs::write(service.dir().join("told"), "").expect("told");
        expect(
            &service,
            &["1 committed", "1 committed-returns", "1 revoked"],
        );
    });
}

#[test]
fn a_panic_as_a_failed_reload_is_undone_costs_nothing_else() {
    let service = Service::start("log with a panic\nretire never\n");
    let pid = service.pid();
    under_traffic(&service, |goes_on| {
        for _ in 0..2 {
            let reason = service.reload_fails();
            assert!(reason.contains("retired"), "{reason}");
            goes_on();
        }
        assert_eq!(service.pid(), pid);
    });
    assert_eq!(service.processes().len(), 1);
    service.stop();
}

/// A reload whose child is committed, and falls ill then: why it failed.
fn falls_ill(service: &Service, committed: &[&str], illness: &str) -> String {
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| service.try_reload(true, |_| {}));
        expect(service, committed);
        std::fs::write(service.dir().join("ill"), illness).expect("ill");
        let report = reload.join().expect("a reload").expect("an outcome");
        let Outcome::Failed { phase, reason, .. } = report.outcome else {
            panic!("it succeeded: {}", service.log());
        };
        assert_eq!(phase, "probation");
        std::fs::remove_file(service.dir().join("ill")).expect("well");
        reason
    })
}

#[test]
fn a_revoked_generation_is_retired_before_its_parent_is_revoked() {
    let service = Service::start("probation\n");
    let pid = service.pid();
    service.configure("probation\nretire slowly\n");
    under_traffic(&service, |goes_on| {
        let committed = ["1 committed", "1 retired", "2 committed"];
        let reason = falls_ill(&service, &committed, "there is no database");
        assert_eq!(reason, "the child is not healthy: there is no database");
        let seen = [
            "1 committed",
            "1 retired",
            "2 committed",
            "2 retired",
            "2 retired-returns",
            "1 revoked",
        ];
        expect(&service, &seen);
        goes_on();
        // And again.
        let mut seen = seen.to_vec();
        seen.extend(["1 retired", "2 committed"]);
        let reason = falls_ill(&service, &seen, "panic");
        assert!(reason.contains("the health hook has panicked"), "{reason}");
    });
    assert_eq!(service.pid(), pid);
    assert_eq!(service.processes().len(), 1);
}

#[test]
fn a_revoked_generation_whose_hook_does_not_return_ends_before_its_parent_is_revoked() {
    let service = Service::start("probation\n");
    service.configure("probation\nretire never\n");
    under_traffic(&service, |goes_on| {
        let committed = ["1 committed", "1 retired", "2 committed"];
        falls_ill(&service, &committed, "there is no database");
        goes_on();
    });
    let seen = [
        "1 committed",
        "1 retired",
        "2 committed",
        "2 retired",
        "1 revoked",
    ];
    expect(&service, &seen);
    assert_eq!(service.processes().len(), 1);
}

#[cfg(feature = "failpoints")]
mod failing {
    use super::*;

    #[test]
    fn a_failure_before_the_hook_calls_none() {
        let service = Service::start_with("", "child/before-say/Ready=exit");
        under_traffic(&service, |_| {
            service.reload_fails();
            service.reload_fails();
        });
        expect(&service, &["1 committed"]);
    }

    #[test]
    fn a_failure_after_retired_is_revoked() {
        let service = Service::start_with("", "child/heard/Commit=kill");
        under_traffic(&service, |goes_on| {
            service.reload_fails();
            expect(&service, &["1 committed", "1 retired", "1 revoked"]);
            goes_on();
            service.reload_fails();
        });
        expect(
            &service,
            &[
                "1 committed",
                "1 retired",
                "1 revoked",
                "1 retired",
                "1 revoked",
            ],
        );
    }

    /// The parent dies in the middle: whether its child has the state, and what it answers then.
    fn parent_dies(config: &str, point: &str) -> Service {
        let service = Service::start_with(config, point);
        for visit in 1..=7 {
            assert_eq!(service.connect("main").hear(), format!("1 {visit}"));
        }
        let _ = service.try_reload(false, |_| {});
        service
    }

    #[test]
    fn a_child_whose_parent_died_with_the_state_starts_cold() {
        let service = parent_dies("start slowly\n", "parent/heard/Prepared=kill");
        expect(
            &service,
            &[
                "1 committed",
                "2 cold-start",
                "2 cold-start-returns",
                "2 committed",
            ],
        );
        let order = service.read("hooks");
        assert!(
            order.contains("2 cold-start-returns\n2 has-state\n2 committed\n"),
            "{order}"
        );
        eventually("the child serves", || {
            service.pid() == service.processes()[0]
        });
        assert_eq!(service.connect("main").hear(), "2 1");
        service.settles();
    }

    #[test]
    fn a_child_that_has_the_state_when_its_parent_dies_goes_on_with_it() {
        let service = parent_dies("", "parent/heard/Ready=kill");
        expect(&service, &["1 committed", "2 committed"]);
        assert_eq!(service.connect("main").hear(), "2 8");
    }

    #[test]
    fn a_child_that_was_told_to_exit_does_when_its_parent_dies() {
        let service = parent_dies("exit\n", "parent/heard/Prepared=kill");
        eventually("all have ended", || service.processes().is_empty());
        assert_eq!(hooks(&service), ["1 committed"]);
    }

    #[test]
    fn a_parent_that_dies_after_retired_leaves_a_child_that_is_committed_once() {
        let service = parent_dies("", "parent/after-say/Commit=kill");
        expect(&service, &["1 committed", "1 retired", "2 committed"]);
        assert!(service.connect("main").hear().starts_with("2 8"));
    }
}
