//! What root does not execute, and who may not command. The rest is beside what it tests: docs/security.md has a list.

mod support;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
};

use support::{Hello, load::Load, text};

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root refuses");
    }
    is_root
}

/// A server whose next build is a script that starts the same program.
fn with_script(hello: &Hello, mode: u32) {
    let real = env!("CARGO_BIN_EXE_hello");
    hello.replace_binary_by_script(&format!("exec {real} \"$@\""));
    let binary = hello.binary();
    fs::set_permissions(&binary, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn root_does_not_execute_what_others_may_write() {
    if !is_root() {
        return;
    }
    let hello = Hello::with()
        .env("HELLO_ALLOW_WRITABLE_BINARY", "false")
        .start();
    let load = Load::start(hello.address());
    let refused = |what: &str| {
        load.goes_on();
        let output = hello.hello(&["reload"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("failed while starting: root does not execute `"),
            "{said}"
        );
        assert!(said.contains(what), "{said}");
        assert!(said.contains("`chown root` and `chmod go-w` it"), "{said}");
        assert!(said.contains("serves on"), "{said}");
        assert_eq!(hello.generation(), 1);
    };
    with_script(&hello, 0o777);
    refused("may be written by everybody");
    with_script(&hello, 0o755);
    chown(hello.binary(), Some(65534), None).expect("chown");
    refused("may be written by user 65534, whose it is");
    chown(hello.binary(), Some(0), None).expect("chown");
    fs::set_permissions(hello.dir(), fs::Permissions::from_mode(0o777)).expect("chmod");
    refused(&format!(
        "`{}` may be written by everybody",
        hello.dir().display()
    ));
    // In a sticky directory nobody can replace what is root's.
    fs::set_permissions(hello.dir(), fs::Permissions::from_mode(0o1777)).expect("chmod");
    hello.reload();
    assert_eq!(hello.generation(), 2);
    load.finish();
}

#[test]
fn root_executes_it_if_it_was_told_to() {
    if !is_root() {
        return;
    }
    let hello = Hello::with()
        .env("HELLO_ALLOW_WRITABLE_BINARY", "false")
        .arg("--allow-writable-binary")
        .start();
    let load = Load::start(hello.address());
    with_script(&hello, 0o777);
    hello.reload();
    assert_eq!(hello.generation(), 2);
    load.finish();
}

#[test]
fn another_user_does_as_it_may() {
    if !is_root() {
        return;
    }
    let hello = Hello::with()
        .env("HELLO_ALLOW_WRITABLE_BINARY", "false")
        .user(65534)
        .start();
    with_script(&hello, 0o777);
    hello.reload();
    assert_eq!(hello.generation(), 2);
}
