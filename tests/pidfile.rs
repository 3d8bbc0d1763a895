//! The pidfile: whatever lies there, nobody is signalled by mistake, and the message says what to do.

mod support;

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
};

use support::{Hello, LONG, client::Client, eventually, text};

fn run(args: &[&str], pidfile: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hello"))
        .args(args)
        .arg("--pidfile")
        .arg(pidfile)
        .stdin(Stdio::null())
        .output()
        .expect("hello")
}

/// All three verbs must say that no server runs there.
fn assert_not_running(pidfile: &Path) -> String {
    let mut said = String::new();
    for verb in ["status", "reload", "stop"] {
        let output = run(&[verb], pidfile);
        assert_eq!(output.status.code(), Some(3), "{verb}: {}", text(&output));
        said.push_str(&text(&output));
    }
    assert!(
        said.contains("hello serve --pidfile"),
        "the remedy is named: {said}"
    );
    said
}

#[test]
fn without_a_server_every_verb_says_so_and_how_to_start_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    assert_not_running(&dir.path().join("hello.pid"));
}

#[test]
fn one_that_is_stale_is_known_as_such_and_does_not_keep_a_server_from_starting() {
    let hello = Hello::start();
    let pid = hello.pid();
    hello.signal(pid, nix::sys::signal::Signal::SIGKILL);
    // Its memory goes first, its descriptors and with them the lock a moment later.
    eventually("it is dead", || {
        hello.hello(&["status"]).status.code() == Some(3)
    });
    assert!(hello.pidfile().exists());
    assert_not_running(&hello.pidfile());
    let mut child = hello
        .verb(&["serve", "--listen", &hello.address().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("serve");
    eventually("it answers", || hello.hello(&["status"]).status.success());
    assert_eq!(hello.pid(), child.id());
    assert!(hello.hello(&["stop"]).status.success());
    assert!(child.wait().expect("wait").success());
}

#[test]
fn one_that_names_a_stranger_signals_nobody() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pidfile = dir.path().join("hello.pid");
    let mut stranger = Command::new("sleep")
        .arg(LONG.as_secs().to_string())
        .spawn()
        .expect("sleep");
    fs::write(&pidfile, format!("{}\n", stranger.id())).expect("write");
    let said = assert_not_running(&pidfile);
    assert!(said.contains(&stranger.id().to_string()), "{said}");
    assert!(
        stranger.try_wait().expect("wait").is_none(),
        "the stranger lives"
    );
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
}

#[test]
fn one_that_is_empty_or_garbage_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pidfile = dir.path().join("hello.pid");
    for content in [
        "",
        "\n",
        "garbage",
        "-5",
        "0",
        "99999999999999999999",
        "12 34",
    ] {
        fs::write(&pidfile, content).expect("write");
        for verb in ["status", "reload", "stop"] {
            let output = run(&[verb], &pidfile);
            assert!(
                matches!(output.status.code(), Some(1 | 3)),
                "{content:?}: {}",
                text(&output)
            );
            assert!(
                text(&output).contains("hello.pid"),
                "{content:?}: {}",
                text(&output)
            );
        }
    }
}

#[test]
fn one_that_is_a_symlink_or_a_directory_is_refused_at_the_start() {
    let dir = tempfile::tempdir().expect("tempdir");
    let target = dir.path().join("target");
    fs::write(&target, "precious").expect("write");
    let link = dir.path().join("link.pid");
    symlink(&target, &link).expect("symlink");
    let directory = dir.path().join("dir.pid");
    fs::create_dir(&directory).expect("mkdir");
    for pidfile in [&link, &directory] {
        let output = run(&["serve", "--listen", "127.0.0.1:0"], pidfile);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(".pid"), "{}", text(&output));
    }
    assert_eq!(fs::read_to_string(&target).expect("read"), "precious");
}

#[test]
fn a_directory_that_is_missing_or_cannot_be_written_is_named() {
    for pidfile in ["/nonexistent/place/hello.pid", "/proc/hello.pid"] {
        let output = run(&["serve", "--listen", "127.0.0.1:0"], Path::new(pidfile));
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let directory = Path::new(pidfile)
            .parent()
            .expect("parent")
            .display()
            .to_string();
        assert!(text(&output).contains(&directory), "{}", text(&output));
    }
}

#[test]
fn a_second_server_on_it_is_refused_and_the_first_serves_on() {
    let hello = Hello::start();
    let output = hello.hello(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains(&hello.pid().to_string()),
        "{}",
        text(&output)
    );
    assert_eq!(Client::connect(hello.address()).get("/hello").status, 200);
    hello.reload();
    hello.settles();
}

#[test]
fn a_second_server_on_the_port_is_refused_with_the_address() {
    let hello = Hello::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let address = hello.address().to_string();
    let output = run(
        &["serve", "--listen", &address],
        &dir.path().join("other.pid"),
    );
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&address), "{}", text(&output));
    assert!(!dir.path().join("other.pid").exists());
    assert_eq!(Client::connect(hello.address()).get("/hello").status, 200);
}

#[test]
fn one_that_was_removed_while_the_server_runs_comes_back_with_the_next_generation() {
    let hello = Hello::start();
    let pid = hello.pid();
    fs::remove_file(hello.pidfile()).expect("remove");
    let output = hello.hello(&["status"]);
    assert!(!text(&output).contains("panicked"), "{}", text(&output));
    hello.signal(pid, nix::sys::signal::Signal::SIGUSR2);
    eventually("the next generation has written it", || {
        hello.pidfile().exists()
    });
    hello.settles();
    assert_eq!(hello.generation(), 2);
}
