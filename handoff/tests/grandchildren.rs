//! No descriptor reaches a process that should not have it: neither a program that a generation starts, whenever it
//! starts it, nor, by `exec`, anything at all.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::signal::Signal;
use support::{Service, eventually, meanwhile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Starts a program that says which descriptors it has, and notes what it says.
fn grandchild(dir: &Path, when: &str) {
    let listed = Command::new("ls")
        .args(["-l", "/proc/self/fd"])
        .stderr(Stdio::null())
        .output()
        .expect("ls");
    let text = String::from_utf8(listed.stdout).expect("text");
    let given = std::env::var("GIVEN").unwrap_or_default();
    let held: Vec<&str> = text
        .lines()
        .filter_map(|line| line.rsplit_once(" -> "))
        .filter(|(entry, target)| {
            let number = entry.rsplit_once(' ').map_or(*entry, |(_, number)| number);
            // Its own directory, our end of its output, and what the test was started with.
            let is_its_own = target.starts_with("/proc/") || number == "1" || number == "2";
            !is_its_own && !given.split(',').any(|given| given == number)
        })
        .map(|(_, target)| target)
        .collect();
    let line = format!("{when}: {}\n", held.join(" "));
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("held"));
    file.expect("held")
        .write_all(line.as_bytes())
        .expect("note");
}

#[test]
fn program() {
    let Some((dir, _)) = support::playing() else {
        return;
    };
    static ENDS: AtomicBool = AtomicBool::new(false);
    support::play(async {
        let noting = |when: &'static str| {
            let dir = dir.clone();
            move || {
                let dir = dir.clone();
                async move { grandchild(&dir, when) }
            }
        };
        let server = support::builder(&dir)
            .listen("main", "127.0.0.1:0".parse().expect("an address"))
            .on_committed(noting("committed"))
            .on_retired(noting("retired"));
        let Ok(starting) = server.start().await else {
            return;
        };
        // While descriptors come and go.
        let busy = std::thread::spawn({
            let dir = dir.clone();
            move || {
                while !ENDS.load(Ordering::Relaxed) {
                    grandchild(&dir, "any time");
                }
            }
        });
        let Ok(serving) = starting.ready().await else {
            return;
        };
        let mut acceptor = serving.acceptor("main").expect("acceptor");
        while let Some(mut accepted) = acceptor.accept().await {
            // Held until the other side has closed it.
            tokio::spawn(async move {
                let _ = accepted.stream.write_all(b"hello\n").await;
                let _ = accepted.stream.read_u8().await;
            });
        }
        ENDS.store(true, Ordering::Relaxed);
        busy.join().expect("the busy thread");
        serving.finished().await.expect("finished");
    });
}

/// Those above 2, with whether `exec` closes them; without what this test was itself started with.
fn descriptors(pid: u32) -> BTreeMap<u32, bool> {
    let mut held = all_descriptors(pid);
    let given = all_descriptors(std::process::id());
    let is_given = |number: &u32| given.get(number) == Some(&false);
    held.retain(|number, closed| *closed || !is_given(number));
    held
}

fn all_descriptors(pid: u32) -> BTreeMap<u32, bool> {
    // The process, or a descriptor, may be gone since.
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let numbers = entries.into_iter().flatten().flatten();
    numbers
        .map(|entry| entry.file_name())
        .filter_map(|name| name.to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .filter_map(|number: u32| {
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
            Some((number, flags & nix::libc::O_CLOEXEC != 0))
        })
        .collect()
}

fn all_are_closed_by_exec(service: &Service, when: &str) {
    for pid in service.processes() {
        let held = descriptors(pid);
        if !service.processes().contains(&pid) {
            continue;
        }
        assert!(held.len() > 4, "{when}: {pid} has {held:?}");
        assert!(
            held.values().all(|closed| *closed),
            "{when}: {pid} has {held:?}"
        );
    }
}

#[test]
fn a_program_that_a_generation_starts_has_no_descriptor_of_it() {
    let given = all_descriptors(std::process::id());
    let given: Vec<String> = given
        .iter()
        .filter(|(_, closed)| !**closed)
        .map(|(number, _)| number.to_string())
        .collect();
    let service = Service::start_in("", |_, command| {
        command.env("GIVEN", given.join(","));
    });
    let visit = || assert_eq!(service.connect("main").hear(), "hello");
    meanwhile(visit, |goes_on| {
        for _ in 0..3 {
            goes_on();
            all_are_closed_by_exec(&service, "serving");
            service.reload();
        }
    });
    service.stop();
    let held = service.read("held");
    for when in ["any time", "committed", "retired"] {
        assert!(held.contains(when), "none was started: {when}");
    }
    let stdin = ": /dev/null";
    let wrong: Vec<&str> = held.lines().filter(|line| !line.ends_with(stdin)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_child_that_boots_has_none_that_exec_leaves_open() {
    for point in ["after-say/Hello", "heard/Offer", "after-say/Ready"] {
        let service = Service::start_with("", &format!("child/{point}=stop"));
        let parent = service.pid();
        let child = || service.processes().into_iter().find(|pid| *pid != parent);
        let is_frozen = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| stat.contains(") T "))
        };
        std::thread::scope(|scope| {
            let reload = scope.spawn(|| service.reload_fails());
            eventually("the child is frozen", || child().is_some_and(is_frozen));
            all_are_closed_by_exec(&service, point);
            service.signal(child().expect("a child"), Signal::SIGKILL);
            let reason = reload.join().expect("a reason");
            assert!(reason.contains("SIGKILL"), "{reason}");
        });
    }
}
