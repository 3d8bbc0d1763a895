use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use handoff::listeners::Address;

use super::Place;
use crate::args::{LogFormat, Orphan, Serve, Verb};
use crate::parse::{self, Problem, Source};

/// A file of its own, in a directory of its own.
struct File(tempfile::TempDir);

impl File {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("hello.toml"), text).unwrap();
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("hello.toml")
    }

    fn serve(&self, args: &[&str]) -> Result<Serve, String> {
        let mut words: Vec<OsString> = ["hello", "serve", "--config"].map(Into::into).to_vec();
        words.push(self.path().into());
        words.extend(args.iter().map(OsString::from));
        match parse::words(&words) {
            Ok(args) => match args.verb {
                Verb::Serve(serve) => Ok(*serve),
                other => panic!("{other:?}"),
            },
            Err(Problem::Usage(error)) => Err(error.to_string()),
            Err(Problem::Config(error)) => Err(error.to_string()),
        }
    }

    /// Each line of what is wrong, without the file's path.
    fn mistakes(&self) -> Vec<String> {
        let path = self.path().display().to_string();
        let mistakes = self.serve(&[]).unwrap_err();
        let lines = mistakes.lines().map(|line| {
            let rest = line
                .strip_prefix(&*path)
                .unwrap_or_else(|| panic!("{line}"));
            rest.trim_start_matches(':').trim_start().to_owned()
        });
        lines.collect()
    }
}

fn specs(serve: &Serve) -> Vec<(String, String, u32, Option<u32>)> {
    let specs = crate::serve::listeners(serve).unwrap().into_iter();
    specs
        .map(|spec| (spec.name, spec.address.to_string(), spec.backlog, spec.mode))
        .collect()
}

#[test]
fn every_option_can_stand_in_it() {
    let file = File::new(
        r#"
        pidfile = "run/hello.pid"
        admin = "unix:admin.sock"
        ready-timeout = "20s"
        drain-timeout = "0"
        probation = "1m30s"
        allow-writable-binary = true
        orphan = "exit"
        keep-pid = true
        header-timeout = "5s"
        idle-timeout = "6s"
        max-connections = 5_000
        backlog = 0x10
        probe = "/well"
        log-format = "json"
        log-filter = "info,handoff=debug"
        "#,
    );
    let serve = file.serve(&[]).unwrap();
    assert_eq!(
        serve.which.paths().unwrap().pidfile,
        file.0.path().join("run/hello.pid")
    );
    assert_eq!(serve.ready_timeout, Duration::from_secs(20));
    assert_eq!(serve.drain_timeout, Duration::ZERO);
    assert_eq!(serve.probation, Duration::from_secs(90));
    assert!(serve.allow_writable_binary);
    assert_eq!(serve.orphan, Some(Orphan::Exit));
    assert!(serve.keep_pid);
    assert_eq!(serve.header_timeout, Duration::from_secs(5));
    assert_eq!(serve.idle_timeout, Duration::from_secs(6));
    assert_eq!(serve.max_connections, 5_000);
    assert_eq!(serve.backlog, 16);
    let admin = Address::Unix(file.0.path().join("admin.sock"));
    assert_eq!(serve.admin, Some(admin));
    assert_eq!(serve.probe, "/well");
    assert_eq!(serve.log_format, LogFormat::Json);
    // Were there an option that the file cannot have, this would name it.
    let left: Vec<&str> = serve
        .options
        .iter()
        .filter(|option| option.source == Source::Default)
        .map(|option| &*option.name)
        .collect();
    assert_eq!(left, ["listen"]);
    let probe = serve.options.iter().find(|option| option.name == "probe");
    let place = Place {
        line: 14,
        column: 9,
    };
    assert_eq!(probe.unwrap().source, Source::File(place));
}

#[test]
fn the_command_line_beats_the_file() {
    let file =
        File::new("drain-timeout = \"20s\"\nprobe = \"/a\"\n[listeners]\nx = \"127.0.0.1:1\"\n");
    let serve = file.serve(&["--drain-timeout", "3s"]).unwrap();
    assert_eq!(serve.drain_timeout, Duration::from_secs(3));
    assert_eq!(serve.probe, "/a");
    assert_eq!(
        specs(&serve),
        [("x".into(), "127.0.0.1:1".into(), 4096, None)]
    );
    let serve = file.serve(&["--listen", "127.0.0.1:2"]).unwrap();
    assert_eq!(
        specs(&serve),
        [("http".into(), "127.0.0.1:2".into(), 4096, None)]
    );
}

#[test]
fn without_listeners_there_is_the_default() {
    let serve = File::new("backlog = 7").serve(&[]).unwrap();
    assert_eq!(
        specs(&serve),
        [("http".into(), "127.0.0.1:8321".into(), 7, None)]
    );
}

#[test]
fn listeners_are_a_table_by_name_in_the_order_of_the_file() {
    let file = File::new(
        r#"
        backlog = 9
        [listeners]
        http = "[::1]:8321"
        "a.b" = { address = "unix:x.sock", mode = "0660", backlog = 3 }
        [listeners.abs]
        address = "/run/y.sock"
        mode = 0o600
        "#,
    );
    let serve = file.serve(&[]).unwrap();
    let inside = format!("unix:{}", file.0.path().join("x.sock").display());
    assert_eq!(
        specs(&serve),
        [
            ("http".into(), "[::1]:8321".into(), 9, None),
            ("a.b".into(), inside, 3, Some(0o660)),
            ("abs".into(), "unix:/run/y.sock".into(), 9, Some(0o600)),
        ]
    );
}

#[test]
fn what_is_wrong_has_a_place_and_a_remedy() {
    let long = format!("[listeners]\na = \"unix:/{}\"", "x".repeat(120));
    for (text, expected) in [
        (
            "drain_timeout = \"1s\"",
            "1:1: `drain_timeout` is not a key: did you mean `drain-timeout`?",
        ),
        (
            "\n\n  nonsense = 1",
            "3:3: `nonsense` is not a key: there are admin, pidfile, ",
        ),
        (
            "ready-timeout = 10",
            "1:17: `ready-timeout`: the unit is missing: is it 10s or 10ms?",
        ),
        (
            "ready-timeout = \"0s\"",
            "1:17: `ready-timeout`: nothing can be done in no time",
        ),
        (
            "log-format = \"xml\"",
            "1:14: `log-format`: `xml` is none of text, json",
        ),
        (
            "max-connections = 0",
            "1:19: `max-connections`: 0 is not in 1..=",
        ),
        (
            "max-connections = true",
            "1:19: `max-connections` is a text in quotes or a number",
        ),
        (
            "allow-writable-binary = \"yes\"",
            "1:25: `allow-writable-binary` is true or false",
        ),
        (
            "listen = []",
            "1:1: `listen` is not a key: listeners are a table",
        ),
        (
            "config = \"x\"",
            "1:1: `config` is not a key: it belongs on the command line",
        ),
        (
            "check = true",
            "1:1: `check` is not a key: it belongs on the command line",
        ),
        ("é = 1", "1:1: this is not TOML: "),
        (
            "probe = \"/a\"\nprobe = \"/b\"",
            "2:1: `probe` is there for the second time",
        ),
        ("probe = \"é\" x", "1:13: this is not TOML: "),
        ("listeners = []", "1:13: `listeners` is a table"),
        ("[listeners]", "1:1: `listeners` is empty"),
        (
            "[listeners]\nA = \"127.0.0.1:1\"",
            "2:1: `A` is not a name for a listener",
        ),
        (
            "[listeners]\na = 5",
            "2:5: listener `a` is an address in quotes",
        ),
        (
            "[listeners]\na = \"localhost:80\"",
            "2:5: listener `a`: `localhost:80` is not an address",
        ),
        (&long, "2:5: listener `a`: `unix:/"),
        ("[listeners]\na = {}", "2:1: listener `a` has no address"),
        (
            "[listeners]\na = { adress = \"x\" }",
            "2:7: `adress` is not an option of a listener: did you mean `address`?",
        ),
        (
            "[listeners]\na = { address = \"127.0.0.1:1\", backlog = 0 }",
            "2:42: the backlog of listener `a` is a number from 1",
        ),
        (
            "[listeners]\na = { address = \"/x\", mode = 660 }",
            "2:30: the mode of listener `a` is octal",
        ),
        (
            "[listeners]\na = \"127.0.0.1:1\"\na = \"127.0.0.1:2\"",
            "3:1: `a` is there for the second time",
        ),
    ] {
        let mistakes = File::new(text).mistakes();
        assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
        assert!(mistakes[0].starts_with(expected), "{text}: {mistakes:?}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once_and_in_order() {
    let text = "probe = \"x\"\nbakclog = 1\n[listeners]\na = \"1\"\nb = \"2\"\n";
    let places: Vec<String> = File::new(text)
        .mistakes()
        .iter()
        .map(|line| line.split(": ").next().unwrap().to_owned())
        .collect();
    assert_eq!(places, ["1:9", "2:1", "4:5", "5:5"]);
}

#[test]
fn listeners_that_go_together_badly_have_a_place() {
    let text = "[listeners]\na = \"127.0.0.1:80\"\nb = \"0.0.0.0:80\"\n";
    let serve = File::new(text).serve(&[]).unwrap();
    let failure = crate::serve::listeners(&serve).unwrap_err();
    let words = failure.error.to_string();
    assert!(
        words.contains("hello.toml:3:1: listener `b` on 0.0.0.0:80 overlaps"),
        "{words}"
    );
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let read = |path: &std::path::Path| super::text_of(path).unwrap_err().to_string();
    let missing = read(&directory.path().join("x.toml"));
    assert!(
        missing.contains("x.toml: cannot be read, it does not exist"),
        "{missing}"
    );
    let itself = read(directory.path());
    assert!(itself.contains("it is a directory"), "{itself}");
    std::fs::write(directory.path().join("y.toml"), [b'a', 0xff]).unwrap();
    let binary = read(&directory.path().join("y.toml"));
    assert!(
        binary.contains("is not UTF-8, as TOML must be: see byte 1"),
        "{binary}"
    );
}
