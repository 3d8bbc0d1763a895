//! The configuration file: a reload reads it anew, and says what it did; one with a mistake changes nothing.

mod support;

use std::{fs, net::SocketAddr, os::unix::net::UnixStream, process::Command};

use serde_json::{Value, json};
use support::{Hello, client::Client, load::Load, text};

const FIRST: &str = r#"
pidfile = "hello.pid"
probation = "0s"

[listeners]
http = "127.0.0.1:0"
changing = "unix:a.sock"
going = "127.0.0.1:0"
"#;

const SECOND: &str = r#"
pidfile = "hello.pid"
probation = "0s"
max-connections = 77

[listeners]
coming = { address = "unix:c.sock", mode = "0600", backlog = 5 }
changing = "unix:b.sock"
http = "127.0.0.1:0"
"#;

fn address(hello: &Hello, listener: &str) -> Option<SocketAddr> {
    hello.listener(listener)?.parse().ok()
}

#[test]
fn a_reload_reads_it_anew_and_says_what_it_did_to_the_listeners() {
    let hello = Hello::with().config(FIRST).start();
    let http = address(&hello, "http").expect("http");
    let load = Load::start(http);
    hello.configure(SECOND);
    let said = hello.reload();
    for line in [
        "\n  listeners kept: http\n",
        "\n  listeners added: coming\n",
        "\n  listeners removed: going\n",
        "\n  listeners changed: changing\n",
    ] {
        assert!(said.contains(line), "{line:?}: {said}");
    }
    load.goes_on();
    load.finish();
    hello.settles();
    let status = hello.status();
    assert_eq!(
        status["last_reload"]["listeners"],
        json!({"kept": ["http"], "added": ["coming", "changing"], "removed": ["changing", "going"],
               "changed": ["changing"]})
    );
    assert_eq!(status["listeners"][0]["backlog"], 5);
    assert_eq!(address(&hello, "http"), Some(http), "the port is the same");
    assert!(UnixStream::connect(hello.dir().join("b.sock")).is_ok());
    assert!(UnixStream::connect(hello.dir().join("c.sock")).is_ok());
    assert!(!hello.dir().join("a.sock").exists(), "the old path is gone");
    assert_eq!(hello.listener("going"), None);
}

#[test]
fn a_file_with_a_mistake_refuses_the_reload_and_the_old_generation_serves_on() {
    let hello = Hello::with().config(FIRST).start();
    let load = Load::start(address(&hello, "http").expect("http"));
    let file = hello.dir().join("hello.toml");
    let at = |place: &str| format!("failed while joining: {}:{place}: ", file.display());
    for (config, expected) in [
        (
            FIRST.replace("probation", "probatoin"),
            at("3:1") + "`probatoin` is not a key: did you mean `probation`?",
        ),
        (
            FIRST.replace("[listeners]", "[listeners"),
            at("5:11") + "this is not TOML: ",
        ),
        (
            FIRST.replace("going", "http"),
            at("8:1") + "`http` is there for the second time",
        ),
        (
            FIRST.replace("hello.pid", "other.pid"),
            "failed while booting: the pidfile would change from ".to_owned(),
        ),
        (
            FIRST.replace("unix:a.sock", "unix:nowhere/a.sock"),
            "failed while booting: listener `changing` on ".to_owned(),
        ),
    ] {
        hello.configure(&config);
        let said = hello.reload_fails(1);
        assert!(said.contains(&expected), "{expected}: {said}");
        assert!(said.contains("serves on"), "{said}");
        load.goes_on();
        assert_eq!(hello.generation(), 1);
    }
    fs::remove_file(&file).expect("remove");
    let said = hello.reload_fails(1);
    assert!(said.contains("cannot be read, it does not exist"), "{said}");
    // By a signal, too; and the reason is kept.
    let last = &hello.status()["last_reload"];
    assert_eq!(last["result"], "failed");
    let reason = last["reason"].as_str().expect("a reason");
    assert!(reason.contains("hello.toml: cannot be read"), "{reason}");
    hello.configure(FIRST);
    hello.reload();
    load.goes_on();
    load.finish();
}

#[test]
fn who_names_the_pidfile_finds_the_server_whatever_is_in_the_file() {
    let hello = Hello::start();
    let broken = hello.dir().join("broken.toml");
    fs::write(&broken, "probe = \"").expect("write");
    let status = |args: &[&str], pidfile: Option<&std::path::Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
        command
            .arg("status")
            .args(args)
            .env("HELLO_CONFIG", &broken);
        command.env_remove("HELLO_PIDFILE");
        command.envs(pidfile.map(|path| ("HELLO_PIDFILE", path)));
        command.output().expect("run hello")
    };
    let pidfile = hello.pidfile();
    let named = status(&["--pidfile", pidfile.to_str().expect("UTF-8")], None);
    assert!(named.status.success(), "{}", text(&named));
    let named = status(&[], Some(&pidfile));
    assert!(named.status.success(), "{}", text(&named));
    let found = status(&[], None);
    assert_eq!(found.status.code(), Some(1), "{}", text(&found));
    let expected = "broken.toml:1:10: this is not TOML: ";
    assert!(text(&found).contains(expected), "{}", text(&found));
    assert!(text(&found).contains("(--pidfile names the server without this file)"));
}

#[test]
fn an_option_that_the_new_build_does_not_have_is_named() {
    let hello = Hello::start();
    hello.replace_binary_by_script(&format!(
        "exec '{}' serve --no-such-option",
        env!("CARGO_BIN_EXE_hello")
    ));
    let said = hello.reload_fails(1);
    assert!(
        said.contains("failed while joining: error: unexpected argument '--no-such-option' found"),
        "{said}"
    );
}

#[test]
fn a_file_behind_a_symlink_is_that_of_the_release_that_it_points_to_by_then() {
    let hello = Hello::with().config(FIRST).start();
    let dir = hello.dir();
    let verb = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_hello"))
            .args(args)
            .args(["--config", "hello.toml"])
            .env_remove("HELLO_PIDFILE")
            .current_dir(dir)
            .output()
            .expect("run hello")
    };
    let release = dir.join("release-2");
    fs::create_dir(&release).expect("mkdir");
    // Relative paths are relative to the file's name, not to what it leads to.
    fs::write(release.join("hello.toml"), SECOND).expect("write");
    fs::remove_file(dir.join("hello.toml")).expect("remove");
    std::os::unix::fs::symlink("release-2/hello.toml", dir.join("hello.toml")).expect("symlink");
    let reloaded = verb(&["reload"]);
    assert!(reloaded.status.success(), "{}", text(&reloaded));
    let status = verb(&["status", "--json"]);
    assert!(status.status.success(), "{}", text(&status));
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["generation"], 2);
    assert!(dir.join("c.sock").exists());
    let stopped = verb(&["stop"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
}

#[test]
fn a_check_says_what_would_be_served_and_touches_nothing() {
    let hello = Hello::with().config(FIRST).start();
    hello.configure(SECOND);
    let check = |variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
        command
            .args([
                "serve",
                "--check",
                "--config",
                "hello.toml",
                "--idle-timeout",
                "9s",
            ])
            .env("HELLO_PROBE", variable)
            .current_dir(hello.dir());
        command.output().expect("run hello")
    };
    let checked = check("/well");
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    let said = text(&checked);
    for line in [
        "/hello.toml is well\n",
        "\n  http      127.0.0.1:0  backlog 4096\n",
        "/c.sock  backlog 5  mode 0600\n",
        "  max-connections        77  (line 4)\n",
        "  probe                  /well  (HELLO_PROBE)\n",
        "  idle-timeout           9s  (command line)\n",
        "  drain-timeout          10s\n",
    ] {
        assert!(said.contains(line), "{line:?}: {said}");
    }
    assert!(!hello.dir().join("c.sock").exists(), "nothing was bound");
    assert_eq!(hello.generation(), 1);
    Client::connect(hello.address()).get("/hello");

    hello.configure("[listeners]\nx = \"unix:/nowhere/x.sock\"\n");
    let checked = check("/well");
    assert_eq!(checked.status.code(), Some(1), "{}", text(&checked));
    let expected = "hello.toml:2:1: listener `x` on unix:/nowhere/x.sock: the directory /nowhere does not exist: create it";
    assert!(text(&checked).contains(expected), "{}", text(&checked));
}

#[test]
fn a_port_that_needs_root_is_found_by_a_check() {
    // Root has what it takes to change its user; others are the case already, if the kernel reserves ports at all.
    let start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let reserves = start.is_ok_and(|start| start.trim().parse::<u16>().is_ok_and(|port| port > 80));
    let dir = tempfile::tempdir().expect("tempdir");
    let binary = dir.path().join("hello");
    support::copy_program(std::path::Path::new(env!("CARGO_BIN_EXE_hello")), &binary);
    fs::write(
        dir.path().join("hello.toml"),
        "[listeners]\nx = \"127.0.0.1:80\"\n",
    )
    .expect("write");
    let mut command = Command::new(&binary);
    command
        .args(["serve", "--check", "--config", "hello.toml"])
        .current_dir(dir.path());
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::{fs::PermissionsExt, process::CommandExt};
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        command.uid(65534).gid(65534);
    }
    let checked = command.output().expect("run hello");
    let expected =
        "hello.toml:2:1: listener `x` on 127.0.0.1:80: port 80 needs root or CAP_NET_BIND_SERVICE";
    assert_eq!(
        text(&checked).contains(expected),
        reserves,
        "{}",
        text(&checked)
    );
    assert_eq!(
        checked.status.code(),
        Some(i32::from(reserves)),
        "{}",
        text(&checked)
    );
}
