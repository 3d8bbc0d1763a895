//! Processes that are killed or frozen at a named place, and tables of such cells.

use std::{
    process::{Child, Output, Stdio},
    sync::Mutex,
};

use super::{Hello, Start, eventually, write_program};

const REAL: &str = env!("CARGO_BIN_EXE_hello");

/// How many cells of a table run at a time: most of them wait for a deadline.
const AT_A_TIME: usize = 5;

/// Runs `check` on every cell, each in a thread that bears its name, and names those that fail.
pub fn each<'a, T: Sync>(
    table: &'a [T],
    name: impl Fn(&T) -> String + Sync,
    check: impl Fn(&'a T) + Sync,
) {
    let cells = Mutex::new(table.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let Some(cell) = cells.lock().expect("cells").next() else {
                        return;
                    };
                    let name = name(cell);
                    let ended = std::thread::scope(|scope| {
                        std::thread::Builder::new()
                            .name(name.clone())
                            .spawn_scoped(scope, || check(cell))
                            .expect("a thread")
                            .join()
                    });
                    if ended.is_err() {
                        failed.lock().expect("failed").push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("failed");
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

/// The next child does `what` at `point`.
pub fn child_does(hello: &Hello, point: &str, what: &str) {
    // Its own children are started from where it was started.
    let next = hello.dir().join("next");
    std::os::unix::fs::symlink(REAL, &next).expect("symlink");
    hello.replace_binary_by_script(&format!(
        "HANDOFF_FAILPOINTS=child/{point}={what} exec {} \"$@\"",
        next.display()
    ));
}

/// The running process does `what` at `point` when it reloads.
pub fn parent_does(start: Start, point: &str, what: &str) -> Hello {
    let hello = start
        .env("HANDOFF_FAILPOINTS", &format!("parent/{point}={what}"))
        .start();
    all_children_are_well(&hello);
    hello
}

pub fn all_children_are_well(hello: &Hello) {
    let script = format!("#!/bin/sh\nunset HANDOFF_FAILPOINTS\nexec {REAL} \"$@\"\n");
    for program in ["hello", "next"] {
        let new = hello.dir().join("new");
        write_program(&new, script.as_bytes());
        std::fs::rename(new, hello.dir().join(program)).expect("rename");
    }
}

/// `hello reload`, under way.
pub fn reloading(hello: &Hello) -> Child {
    let mut verb = hello.verb(&["reload"]);
    verb.stdout(Stdio::piped()).stderr(Stdio::piped());
    verb.spawn().expect("run hello")
}

pub fn end_of(reloading: Child) -> Output {
    reloading.wait_with_output().expect("wait")
}

/// The process that has been started to replace `parent`.
pub fn child_of(hello: &Hello, parent: u32, reloading: &Child) -> u32 {
    let mut child = None;
    eventually("there is a child", || {
        let pids = hello.processes();
        child = pids
            .into_iter()
            .find(|pid| ![parent, reloading.id()].contains(pid));
        child.is_some()
    });
    child.expect("found")
}
