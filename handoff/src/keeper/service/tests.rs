use std::process::{Command, Stdio};

use super::*;

fn pid(number: i32) -> Pid {
    Pid::from_raw(number).unwrap()
}

#[test]
fn the_main_process_is_named_by_a_line_of_its_own() {
    for (text, expected) in [
        ("MAINPID=42", Some(42)),
        ("READY=1\nMAINPID=42\nSTATUS=x", Some(42)),
        ("STATUS=MAINPID=42", None),
        ("MAINPID=", None),
        ("MAINPID=0", None),
        ("MAINPID=99999999999", None),
        ("MAINPID=4 2", None),
    ] {
        assert_eq!(main_pid(text), expected.map(pid), "{text}");
    }
}

/// A child of this process that ends when its stdin does.
fn child() -> std::process::Child {
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).spawn().unwrap()
}

#[test]
fn only_the_main_process_is_believed_as_long_as_it_lives() {
    let (mut main, mut other) = (child(), child());
    let (first, second) = (Pid::from_child(&main), Pid::from_child(&other));
    let mut service = Service::new(first).unwrap();
    let claim = format!("MAINPID={second}\nREADY=1");
    assert!(service.believes(first, "READY=1"));
    assert!(!service.believes(second, &claim));
    assert!(!service.believes(pid(1), "MAINPID=1"));
    main.kill().unwrap();
    main.wait().unwrap();
    // What it said before counts; and whoever names itself, but nobody who names another one.
    assert!(service.believes(first, "STATUS=x"));
    assert!(service.believes(second, &claim));
    assert!(!service.believes(second, "READY=1"));
    assert!(!service.believes(second, &format!("MAINPID={first}")));
    assert!(!service.believes(pid(1), "MAINPID=1"));
    assert!(service.hear(second, &claim));
    assert!(service.lives() && service.is_ready());
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(!service.lives());
    // Somebody else has reaped it.
    assert_eq!(service.exit_code(), 1);
}

#[test]
fn a_successor_that_is_gone_is_the_end_of_the_service() {
    let main = child();
    let mut gone = child();
    let (first, second) = (Pid::from_child(&main), Pid::from_child(&gone));
    gone.kill().unwrap();
    gone.wait().unwrap();
    let mut service = Service::new(first).unwrap();
    assert!(service.hear(first, &format!("MAINPID={second}\nREADY=1")));
    assert!(!service.lives());
    assert_eq!(service.exit_code(), 1);
    let _ = main.wait_with_output();
}

#[test]
fn an_end_that_was_announced_is_no_failure() {
    let main = child();
    let mut service = Service::new(Pid::from_child(&main)).unwrap();
    service.hear(Pid::from_child(&main), "STOPPING=1\nSTATUS=x");
    assert_eq!(service.exit_code(), 0);
    let _ = main.wait_with_output();
}
