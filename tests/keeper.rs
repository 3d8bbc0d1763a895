//! A first process that stays: `hello serve --keep-pid`, and pid 1.

mod support;

use std::{
    fs,
    io::Write,
    os::unix::net::UnixDatagram,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use support::{
    Hello,
    client::{Client, request},
    eventually,
    load::Load,
    manager::Manager,
    text,
};

fn kept() -> support::Start {
    Hello::with().arg("--keep-pid")
}

/// Waits until two processes are left: the keeper, and the one in the pidfile.
fn settles(hello: &Hello) {
    eventually("one generation is left", || {
        let mut expected = vec![hello.first(), hello.pid()];
        expected.sort_unstable();
        hello.processes() == expected
    });
}

#[test]
fn the_first_process_stays_while_generations_come_and_go() {
    let mut hello = kept().start();
    let keeper = hello.first();
    assert_ne!(hello.pid(), keeper);
    let load = Load::calm(hello.address());
    for generation in 2..=4 {
        hello.reload();
        settles(&hello);
        assert_eq!(hello.generation(), generation);
    }
    load.finish();
    // All that has ended was reaped, by whoever had started it or by the keeper.
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
    assert_eq!(children.expect("children").trim(), hello.pid().to_string());
    assert!(hello.hello(&["stop"]).status.success());
    assert_eq!(hello.wait_for_first().code(), Some(0));
}

#[test]
fn reload_signals_are_passed_on() {
    let hello = kept().start();
    for (generation, signal) in [(2, Signal::SIGHUP), (3, Signal::SIGUSR2)] {
        hello.signal(hello.first(), signal);
        eventually("the next generation serves", || {
            hello.try_status()["generation"] == generation
        });
        settles(&hello);
    }
}

#[test]
fn a_reload_that_is_asked_for_before_it_is_ready_is_made_later() {
    let hello = Hello::with();
    // The signal is there before the first generation.
    let hello = hello.arg("--keep-pid").start();
    hello.signal(hello.first(), Signal::SIGSTOP);
    hello.signal(hello.first(), Signal::SIGHUP);
    hello.signal(hello.first(), Signal::SIGCONT);
    eventually("the next generation serves", || {
        hello.try_status()["generation"] == 2
    });
}

#[test]
fn a_stop_is_passed_on_once_and_its_exit_code_comes_back() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut hello = kept().start();
        hello.reload();
        let mut slow = Client::connect(hello.address());
        slow.send(request("/slow?ms=500"));
        eventually("the request is under way", || {
            hello.try_status()["application"]["connections"] == 1
        });
        hello.signal(hello.first(), signal);
        // Told twice, it would be cut.
        assert_eq!(slow.answer().status, 200);
        drop(slow);
        assert_eq!(hello.wait_for_first().code(), Some(0), "{}", hello.log());
        assert!(hello.processes().is_empty());
    }
    let mut hello = kept().start();
    hello.signal(hello.first(), Signal::SIGQUIT);
    assert_eq!(hello.wait_for_first().code(), Some(0));
}

#[test]
fn ctrl_c_in_a_shell_arrives_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pidfile = dir.path().join("hello.pid");
    let mut shell = Command::new("/bin/sh")
        .arg("-c")
        .arg("trap : INT; \"$0\" serve --keep-pid --listen 127.0.0.1:0 --pidfile \"$1\"; exit $((100 + $?))")
        .arg(env!("CARGO_BIN_EXE_hello"))
        .arg(&pidfile)
        .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("sh");
    let verb = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
        command.args(args).arg("--pidfile").arg(&pidfile);
        command.output().expect("hello")
    };
    eventually("it answers", || verb(&["status"]).status.success());
    assert!(verb(&["reload"]).status.success());
    let status: serde_json::Value =
        serde_json::from_slice(&verb(&["status", "--json"]).stdout).expect("JSON");
    let address = status["listeners"][0]["address"]
        .as_str()
        .expect("an address");
    let mut slow = Client::connect(address.parse().expect("an address"));
    slow.send(request("/slow?ms=500"));
    slow.until_read();
    // What the terminal does.
    killpg(Pid::from_raw(shell.id().cast_signed()), Signal::SIGINT).expect("killpg");
    assert_eq!(slow.answer().status, 200);
    drop(slow);
    assert_eq!(shell.wait().expect("wait").code(), Some(100));
}

#[test]
fn what_kills_the_service_is_its_exit_code() {
    let mut hello = kept().start();
    hello.signal(hello.pid(), Signal::SIGKILL);
    assert_eq!(hello.wait_for_first().code(), Some(137));
    // Also of a generation that it has not started.
    let mut hello = kept().start();
    hello.reload();
    settles(&hello);
    hello.signal(hello.pid(), Signal::SIGABRT);
    assert_eq!(hello.wait_for_first().code(), Some(134));
}

#[test]
fn a_service_that_dies_while_its_parent_drains_has_failed() {
    let mut hello = kept().start();
    let mut slow = Client::connect(hello.address());
    slow.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\na");
    slow.until_read();
    hello.begin_reload();
    let child = hello.pid();
    hello.signal(child, Signal::SIGKILL);
    eventually("the child is dead", || !hello.processes().contains(&child));
    slow.send("b");
    // What was under way is finished, and only then is it over.
    assert_eq!(slow.answer().status, 200);
    drop(slow);
    assert_eq!(hello.wait_for_first().code(), Some(1));
}

#[test]
fn a_stop_while_the_parent_drains_is_none() {
    let mut hello = kept().start();
    let mut slow = Client::connect(hello.address());
    slow.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\na");
    slow.until_read();
    hello.begin_reload();
    hello.signal(hello.first(), Signal::SIGTERM);
    eventually("it is told to stop", || hello.log().contains(" stopping "));
    slow.send("b");
    assert_eq!(slow.answer().status, 200);
    drop(slow);
    assert_eq!(hello.wait_for_first().code(), Some(0), "{}", hello.log());
}

#[test]
fn a_service_that_does_not_start_is_said_with_its_code() {
    let hello = Hello::start();
    let output = hello
        .verb(&["serve", "--keep-pid", "--listen", "127.0.0.1:0"])
        .output()
        .expect("serve");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("held by process"),
        "{}",
        text(&output)
    );
    let output = hello
        .verb(&["serve", "--keep-pid", "--listen", "nonsense"])
        .output()
        .expect("serve");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn a_child_whose_parent_crashes_on_probation_is_the_service() {
    let mut hello = kept().probation("1h").start();
    let parent = hello.pid();
    let mut reload = hello
        .verb(&["reload", "--no-wait"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("reload");
    eventually("the child is on probation", || {
        hello.try_status()["probation"]["left_ms"].is_u64()
    });
    hello.signal(parent, Signal::SIGKILL);
    let _ = reload.wait();
    settles(&hello);
    assert_ne!(hello.pid(), parent);
    assert_eq!(
        Client::connect(hello.address()).get("/hello").generation(),
        2
    );
    eventually("the keeper passes signals on to it", || {
        hello.signal(hello.first(), Signal::SIGHUP);
        hello.try_status()["generation"] == 3
            || !hello.try_status()["reload"].is_null()
            || hello.try_status()["probation"]["left_ms"].is_u64()
    });
    hello.signal(hello.first(), Signal::SIGTERM);
    assert_eq!(hello.wait_for_first().code(), Some(0), "{}", hello.log());
    assert!(hello.processes().is_empty());
}

#[test]
fn a_child_whose_parent_crashes_before_is_not() {
    let mut hello = kept().start();
    let parent = hello.pid();
    let gate = hello.replace_binary_by_gate();
    let mut reload = hello
        .verb(&["reload"])
        .stderr(Stdio::null())
        .spawn()
        .expect("reload");
    let mut gate = gate.reached();
    hello.signal(parent, Signal::SIGKILL);
    let _ = reload.wait();
    gate.write_all(b"go\n").expect("write");
    // It leaves it to whoever watches the keeper.
    assert_eq!(hello.wait_for_first().code(), Some(137), "{}", hello.log());
    assert!(hello.processes().is_empty());
}

#[test]
fn strangers_do_not_name_the_service() {
    let mut hello = kept().start();
    let environment = fs::read(format!("/proc/{}/environ", hello.pid())).expect("environ");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let socket = environment
        .split('\0')
        .find_map(|variable| variable.strip_prefix("NOTIFY_SOCKET="))
        .expect("NOTIFY_SOCKET");
    let mode = fs::metadata(Path::new(socket).parent().expect("a directory")).expect("stat");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o700
    );
    let stranger = UnixDatagram::unbound().expect("a socket");
    for lie in [
        format!("MAINPID={}", std::process::id()),
        "MAINPID=1\nREADY=1".to_owned(),
        "X".repeat(10_000),
        String::new(),
    ] {
        stranger.send_to(lie.as_bytes(), socket).expect("send");
    }
    hello.signal(hello.first(), Signal::SIGHUP);
    eventually("the service hears of it", || {
        hello.try_status()["generation"] == 2
    });
    let log = hello.log();
    assert!(log.contains("is not the service: not heeded"), "{log}");
    let directory = Path::new(socket).parent().expect("a directory").to_owned();
    hello.signal(hello.first(), Signal::SIGTERM);
    assert_eq!(hello.wait_for_first().code(), Some(0));
    assert!(!directory.exists(), "{} is left", directory.display());
}

#[test]
fn an_outer_manager_hears_all_but_the_main_pid() {
    let mut manager = Manager::new();
    let mut hello = manager.start(kept().env("WATCHDOG_USEC", "500000"));
    let keeper = hello.first();
    manager.until(|note| note.says("READY=1"));
    manager.until(|note| note.says("FDSTORE=1") && note.sockets() == [hello.address()]);
    hello.reload();
    manager.until(|note| note.says("RELOADING=1"));
    manager.until(|note| note.says("READY=1"));
    manager.until(|note| note.text.contains("STATUS=generation 2 serves"));
    manager.until(|note| note.says("WATCHDOG=1"));
    hello.signal(keeper, Signal::SIGTERM);
    manager.until(|note| note.says("STOPPING=1"));
    assert_eq!(hello.wait_for_first().code(), Some(0));
    manager.take();
    for note in manager.heard() {
        assert_eq!(note.from, keeper, "{note:?}");
        assert_eq!(note.value("MAINPID"), None, "{note:?}");
    }
}

/// With all that is below it (`--kill-child`).
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As the first process of a container.
#[test]
fn pid_1_keeps_without_being_told() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped pid_1_keeps_without_being_told: a pid namespace needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let pidfile = dir.path().join("hello.pid");
    let log = fs::File::create(dir.path().join("log")).expect("log");
    let unshare = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(env!("CARGO_BIN_EXE_hello"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--probation",
            "0s",
            "--pidfile",
        ])
        .arg(&pidfile)
        .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("unshare");
    let mut unshare = Killed(unshare);
    let children = format!("/proc/{0}/task/{0}/children", unshare.0.id());
    let mut first = String::new();
    eventually("it has been started", || {
        first = fs::read_to_string(&children)
            .unwrap_or_default()
            .trim()
            .to_owned();
        !first.is_empty()
    });
    let verb = |args: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["-t", &first, "-p", "-m", env!("CARGO_BIN_EXE_hello")]);
        command.args(args).arg("--pidfile").arg(&pidfile);
        command.output().expect("nsenter")
    };
    eventually("it answers", || verb(&["status"]).status.success());
    for generation in 2..=4 {
        let output = verb(&["reload"]);
        let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        assert!(output.status.success(), "{}\n{}", text(&output), log());
        let status = verb(&["status", "--json"]).stdout;
        let status: serde_json::Value = serde_json::from_slice(&status).expect("JSON");
        assert_eq!(status["generation"], generation);
        assert_ne!(status["pid"], 1);
    }
    // No zombie is left: pid 1 has one child, which is the service.
    eventually("what has ended is reaped", || {
        let own = fs::read_to_string(format!("/proc/{first}/task/{first}/children"));
        own.is_ok_and(|own| own.split_whitespace().count() == 1)
    });
    let pid: i32 = first.parse().expect("a pid");
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    let status = unshare.0.wait().expect("wait");
    assert_eq!((status.code(), status.signal()), (Some(0), None));
}
