//! How a new build comes to lie where the next reload finds it.

mod support;

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use support::{Hello, client::Client, copy_program, eventually, load::Load, text};

#[test]
fn renamed_over_the_old_one() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    for _ in 0..3 {
        hello.restore_binary();
        hello.reload();
    }
    load.finish();
    hello.settles();
    assert_eq!(hello.generation(), 4);
}

#[test]
fn deleted_and_put_back() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    fs::remove_file(hello.binary()).expect("remove");
    let said = hello.reload_fails(1);
    assert!(
        said.contains(&hello.binary().display().to_string()),
        "{said}"
    );
    hello.restore_binary();
    hello.reload();
    load.finish();
    hello.settles();
}

/// A server started by a command line of its own.
struct Started {
    dir: tempfile::TempDir,
    child: Child,
}

impl Started {
    /// Runs `program` in `cwd` below a fresh directory that `prepare` fills.
    fn new(prepare: impl FnOnce(&Path), command: impl FnOnce(&Path) -> Command) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        prepare(dir.path());
        let child = command(dir.path())
            .args(["serve", "--listen", "127.0.0.1:0", "--pidfile"])
            .arg(dir.path().join("hello.pid"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("serve");
        let started = Self { dir, child };
        eventually("it answers", || started.verb(&["status"]).status.success());
        started
    }

    fn verb(&self, args: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_hello"))
            .args(args)
            .arg("--pidfile")
            .arg(self.dir.path().join("hello.pid"))
            .stdin(Stdio::null())
            .output()
            .expect("hello")
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.verb(&["status", "--json"]).stdout).expect("JSON")
    }

    fn exe(&self) -> String {
        let link = fs::read_link(format!("/proc/{}/exe", self.status()["pid"])).expect("exe");
        link.display().to_string()
    }

    fn reload(&self) {
        let output = self.verb(&["reload"]);
        assert!(output.status.success(), "{}", text(&output));
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let stopped = self.verb(&["stop"]);
        let _ = self.child.kill();
        let _ = self.child.wait();
        assert!(
            stopped.status.success() || std::thread::panicking(),
            "{}",
            text(&stopped)
        );
    }
}

fn release(dir: &Path, number: u32) {
    let release = dir.join(format!("releases/{number}"));
    fs::create_dir_all(&release).expect("mkdir");
    copy_program(
        Path::new(env!("CARGO_BIN_EXE_hello")),
        &release.join("hello"),
    );
}

fn switch(dir: &Path, number: u32) {
    let new = dir.join("current.new");
    symlink(format!("releases/{number}"), &new).expect("symlink");
    fs::rename(&new, dir.join("current")).expect("rename");
}

fn two_releases(dir: &Path) {
    release(dir, 1);
    release(dir, 2);
    switch(dir, 1);
}

fn assert_follows_the_link(started: &Started) {
    assert!(
        started.exe().ends_with("releases/1/hello"),
        "{}",
        started.exe()
    );
    switch(started.dir.path(), 2);
    started.reload();
    assert!(
        started.exe().ends_with("releases/2/hello"),
        "{}",
        started.exe()
    );
    switch(started.dir.path(), 1);
    started.reload();
    assert!(
        started.exe().ends_with("releases/1/hello"),
        "{}",
        started.exe()
    );
}

#[test]
fn a_symlink_that_is_switched_is_followed_anew() {
    let started = Started::new(two_releases, |dir| Command::new(dir.join("current/hello")));
    assert_follows_the_link(&started);
}

#[test]
fn also_when_the_server_was_started_by_a_relative_path() {
    let started = Started::new(two_releases, |dir| {
        let mut command = Command::new("current/hello");
        command.current_dir(dir).env("PWD", dir);
        command
    });
    assert_follows_the_link(&started);
}

#[test]
fn also_when_the_working_directory_is_the_link() {
    let started = Started::new(two_releases, |dir| {
        let mut command = Command::new("./hello");
        command
            .current_dir(dir.join("current"))
            .env("PWD", dir.join("current"));
        command
    });
    assert_follows_the_link(&started);
}

#[test]
fn also_when_it_was_found_by_path() {
    let started = Started::new(two_releases, |dir| {
        let mut command = Command::new(dir.join("current/hello"));
        command.arg0("hello").env("PATH", dir.join("current"));
        command
    });
    assert_follows_the_link(&started);
}

#[test]
fn a_working_directory_that_is_gone_refuses_the_reload_by_name() {
    let started = Started::new(
        |dir| {
            release(dir, 1);
            fs::create_dir(dir.join("cwd")).expect("mkdir");
        },
        |dir| {
            let mut command = Command::new(dir.join("releases/1/hello"));
            command
                .current_dir(dir.join("cwd"))
                .env("PWD", dir.join("cwd"));
            command
        },
    );
    let cwd = started.dir.path().join("cwd");
    fs::remove_dir(&cwd).expect("rmdir");
    let output = started.verb(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains(&cwd.display().to_string()),
        "{}",
        text(&output)
    );
    let address = started.status()["listeners"][0]["address"]
        .as_str()
        .expect("address")
        .parse()
        .expect("address");
    assert_eq!(Client::connect(address).get("/hello").status, 200);
    fs::create_dir(&cwd).expect("mkdir");
    started.reload();
}
