//! The command line: what is not understood is named, with the remedy; the exit codes are a promise.

use assert_cmd::Command;
use predicates::prelude::*;

fn hello() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
    command
        .env_remove("HELLO_PIDFILE")
        .env_remove("HELLO_LISTEN");
    command
}

#[test]
fn an_address_that_does_not_parse_is_named() {
    for address in [
        "localhost",
        "127.0.0.1",
        "127.0.0.1:99999",
        "unix:",
        "http=",
        "=127.0.0.1:1",
        "::1:80",
        ":8321",
    ] {
        hello()
            .args(["serve", "--listen", address])
            .assert()
            .code(2)
            .stderr(predicate::str::contains(address).and(predicate::str::contains("--listen")));
    }
}

#[test]
fn the_same_name_or_address_twice_is_refused() {
    for second in ["a=127.0.0.1:8322", "b=127.0.0.1:8321"] {
        hello()
            .args(["serve", "--listen", "a=127.0.0.1:8321", "--listen", second])
            .assert()
            .code(predicate::in_iter([1, 2]));
    }
}

#[test]
fn durations_and_numbers_that_do_not_parse_are_refused() {
    for (flag, value) in [
        ("--ready-timeout", "0s"),
        ("--ready-timeout", "soon"),
        ("--drain-timeout", "10"),
        ("--max-connections", "0"),
        ("--backlog", "0"),
        ("--probe", "healthz"),
        ("--log-format", "xml"),
        ("--log-filter", "a=b=c"),
    ] {
        let assert = hello().args(["serve", flag, value]).assert().code(2);
        assert.stderr(predicate::str::contains(flag));
    }
}

#[test]
fn unknown_flags_and_verbs_are_refused() {
    hello()
        .args(["reload", "--frobnicate"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("--frobnicate"));
    hello()
        .arg("restart")
        .assert()
        .code(2)
        .stderr(predicate::str::contains("restart"));
    hello().assert().code(2);
}

#[test]
fn help_teaches_the_exit_codes() {
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["reload", "--help"],
        &["stop", "--help"],
        &["status", "--help"],
    ] {
        hello()
            .args(args)
            .assert()
            .success()
            .stdout(predicate::str::contains("Exit codes:"));
    }
}

#[test]
fn the_version_names_the_greeting() {
    hello()
        .arg("--version")
        .assert()
        .success()
        .stdout(predicate::str::contains("(eee)"));
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let line = format!("'{}' --help | true", env!("CARGO_BIN_EXE_hello"));
    Command::new("/bin/sh")
        .args(["-c", &line])
        .assert()
        .success()
        .stderr(predicate::str::contains("panicked").not());
}
