//! The unit files of `deploy/`, under the real systemd: as pid 1 of namespaces of its own.
//!
//! Needs root, and the package `systemd`. Without, a test says that it is skipped, unless `REQUIRE_SYSTEMD=1`.

mod support;

use std::fs;

use support::{
    client::{Client, request},
    eventually,
    load::Load,
    systemd::{Systemd, free_address},
};

const HELLO: &str = "hello.service";

#[test]
fn a_reload_under_load_changes_the_main_process_and_loses_nothing() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let address = free_address();
    systemd.install_service(address, "");
    systemd.run(&["start", HELLO]);
    let mut pids = vec![systemd.property(HELLO, "MainPID")];
    let load = Load::calm(address);
    for generation in 2..=3 {
        systemd.run(&["reload", HELLO]);
        load.goes_on();
        assert_eq!(systemd.property(HELLO, "ActiveState"), "active");
        let pid = systemd.property(HELLO, "MainPID");
        assert!(!pids.contains(&pid), "{pid} again: {pids:?}");
        pids.push(pid);
        assert_eq!(
            Client::connect(address).get("/hello").generation(),
            generation
        );
        let status = systemd.property(HELLO, "StatusText");
        assert!(
            status.starts_with(&format!("generation {generation} serves")),
            "{status}"
        );
    }
    // A reload by hand is none that systemd has asked for: it follows all the same.
    systemd.hello(&["reload"]);
    load.goes_on();
    eventually("systemd knows the new main process", || {
        systemd
            .property(HELLO, "StatusText")
            .starts_with("generation 4 serves")
    });
    assert_eq!(systemd.property(HELLO, "SubState"), "running");
    load.finish();
    assert_eq!(systemd.property(HELLO, "NRestarts"), "0");
}

#[test]
fn a_reload_that_fails_is_a_failure_of_systemctl_and_nothing_else() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let address = free_address();
    systemd.install_service(address, "");
    systemd.run(&["start", HELLO]);
    let main = systemd.property(HELLO, "MainPID");
    let load = Load::calm(address);
    systemd.break_program();
    assert!(!systemd.systemctl(&["reload", HELLO]).status.success());
    assert_eq!(systemd.property(HELLO, "ActiveState"), "active");
    assert_eq!(systemd.property(HELLO, "MainPID"), main);
    let status = systemd.property(HELLO, "StatusText");
    assert!(status.contains("exited with status 7"), "{status}");
    systemd.mend_program();
    systemd.run(&["reload", HELLO]);
    assert_ne!(systemd.property(HELLO, "MainPID"), main);
    load.goes_on();
    load.finish();
}

#[test]
fn a_crash_of_the_only_process_refuses_no_connection() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let address = free_address();
    // Long enough to see that nobody is there.
    systemd.install_service(address, "RestartSec=300ms\n");
    systemd.run(&["start", HELLO]);
    // What is stored by a child is the same.
    systemd.run(&["reload", HELLO]);
    for crash in 1..=2 {
        let main = systemd.property(HELLO, "MainPID");
        systemd.run(&["kill", "--signal=KILL", "--kill-who=main", HELLO]);
        eventually("it is dead", || systemd.property(HELLO, "MainPID") != main);
        // Nobody is there to accept, and nobody is turned away.
        let mut client = Client::connect(address);
        client.send(request("/hello"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.generation()), (200, 1));
        eventually("systemd has counted it", || {
            systemd.property(HELLO, "NRestarts") == crash.to_string()
        });
    }
}

#[test]
fn a_kept_socket_that_is_not_wanted_any_more_does_not_stand_in_the_way() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let (address, other) = (free_address(), free_address());
    systemd.install_service(address, "");
    systemd.run(&["start", HELLO]);
    // Another address for `http`, and its old one for another name.
    systemd.install_service(other, "");
    systemd.change_service("serve ", &format!("serve --listen again={address} "));
    let main = systemd.property(HELLO, "MainPID");
    systemd.run(&["kill", "--signal=KILL", "--kill-who=main", HELLO]);
    eventually("it was started anew", || {
        !["0", &main].contains(&systemd.property(HELLO, "MainPID").as_str())
            && systemd.property(HELLO, "ActiveState") == "active"
    });
    for address in [address, other] {
        assert_eq!(Client::connect(address).get("/hello").generation(), 1);
    }
    systemd.run(&["kill", "--signal=KILL", "--kill-who=main", HELLO]);
    for address in [address, other] {
        assert_eq!(Client::connect(address).get("/hello").status, 200);
    }
}

#[test]
fn a_stop_lets_every_generation_finish() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let address = free_address();
    systemd.install_service(address, "");
    systemd.run(&["start", HELLO]);
    let mut slow = Client::connect(address);
    slow.send(request("/slow?ms=2000"));
    slow.until_read();
    systemd.run(&["reload", HELLO]);
    let mut slow_too = Client::connect(address);
    slow_too.send(request("/slow?ms=1000"));
    slow_too.until_read();
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| systemd.run(&["stop", HELLO]));
        for mut client in [slow, slow_too] {
            assert_eq!(client.answer().status, 200);
        }
        stopped.join().expect("systemctl stop");
    });
    assert_eq!(systemd.property(HELLO, "ActiveState"), "inactive");
    assert_eq!(systemd.property(HELLO, "Result"), "success");
    assert!(
        Client::try_connect(address).is_err(),
        "the socket is still there"
    );
    systemd.run(&["start", HELLO]);
    assert_eq!(Client::connect(address).get("/hello").generation(), 1);
}

#[test]
fn a_socket_unit_is_there_before_the_service_and_after_it() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let address = free_address();
    systemd.install_service(address, "");
    systemd.install_socket(address, "http");
    systemd.run(&["start", "hello.socket"]);
    assert_eq!(systemd.property(HELLO, "ActiveState"), "inactive");
    // The first client starts it.
    assert_eq!(Client::connect(address).get("/hello").generation(), 1);
    systemd.run(&["reload", HELLO]);
    assert_eq!(Client::connect(address).get("/hello").generation(), 2);
    let main = systemd.property(HELLO, "MainPID");
    systemd.run(&["kill", "--signal=KILL", "--kill-who=main", HELLO]);
    eventually("it is dead", || systemd.property(HELLO, "MainPID") != main);
    assert_eq!(Client::connect(address).get("/hello").generation(), 1);
    systemd.run(&["stop", HELLO]);
    assert_eq!(Client::connect(address).get("/hello").generation(), 1);
}

#[test]
fn a_socket_of_another_name_or_address_is_refused_with_the_remedy() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let (address, other) = (free_address(), free_address());
    systemd.install_service(address, "Restart=no\n");
    for (address, name, expected) in [
        (address, "web", "FileDescriptorName= is one of http"),
        (other, "http", "make the two the same"),
    ] {
        systemd.install_socket(address, name);
        systemd.run(&["start", "hello.socket"]);
        assert!(!systemd.systemctl(&["start", HELLO]).status.success());
        assert_eq!(systemd.property(HELLO, "Result"), "exit-code");
        let log = systemd.log();
        assert!(log.contains(expected), "{log}");
        systemd.run(&["stop", "hello.socket"]);
        systemd.run(&["reset-failed", HELLO]);
    }
}

#[test]
fn a_frozen_process_is_found_by_the_watchdog() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let address = free_address();
    systemd.install_service(address, "WatchdogSec=2s\nWatchdogSignal=KILL\n");
    systemd.run(&["start", HELLO]);
    // The one that systemd did not start is watched, too.
    systemd.run(&["reload", HELLO]);
    systemd.run(&["kill", "--signal=STOP", "--kill-who=main", HELLO]);
    eventually("it was started anew", || {
        systemd.property(HELLO, "NRestarts") != "0"
    });
    assert_eq!(Client::connect(address).get("/hello").generation(), 1);
}

#[test]
fn the_unit_files_are_well_formed() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    for file in ["hello.service", "hello-notify.service", "hello.socket"] {
        let path = systemd.unit_path(file);
        fs::copy(support::systemd::deploy(file), &path).expect("copy");
        let words = systemd.verify(&path);
        // Of what this systemd is too old for, it says so.
        let complaints: Vec<&str> = words
            .lines()
            .filter(|line| !line.contains("notify-reload") && !line.contains("/usr/bin/hello"))
            .collect();
        assert!(complaints.is_empty(), "{file}: {words}");
    }
}

#[test]
fn with_a_keeper_the_main_process_stays() {
    let Some(systemd) = Systemd::boot() else {
        return;
    };
    let address = free_address();
    systemd.install_service(address, "");
    systemd.change_service("serve ", "serve --keep-pid ");
    systemd.install_socket(address, "http");
    systemd.run(&["start", "hello.socket", HELLO]);
    let main = systemd.property(HELLO, "MainPID");
    let load = Load::calm(address);
    for generation in 2..=3 {
        systemd.run(&["reload", HELLO]);
        load.goes_on();
        assert_eq!(systemd.property(HELLO, "MainPID"), main);
        let status = systemd.property(HELLO, "StatusText");
        assert!(
            status.starts_with(&format!("generation {generation} serves")),
            "{status}"
        );
    }
    load.finish();
    assert_eq!(systemd.property(HELLO, "NRestarts"), "0");
    // The service dies, the keeper with it, and systemd has both sockets: its own, and what it was given to keep.
    let service = systemd.pidfile();
    systemd.kill(&service, "KILL");
    eventually("it was started anew", || {
        systemd.property(HELLO, "NRestarts") == "1"
            && systemd.property(HELLO, "ActiveState") == "active"
    });
    assert_eq!(Client::connect(address).get("/hello").generation(), 1);
    systemd.run(&["stop", HELLO]);
    assert_eq!(systemd.property(HELLO, "Result"), "success");
}
