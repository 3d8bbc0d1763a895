use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use super::*;

struct Place {
    dir: tempfile::TempDir,
    paths: Paths,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let paths = Paths::of(&dir.path().join("x.pid")).expect("paths");
        Self { dir, paths }
    }

    fn write(&self, pid: u32) {
        Pidfile::write(&self.paths.pidfile, pid).expect("write");
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("read");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("entry").file_name();
        let mut names: Vec<_> = entries
            .map(|e| name(e).into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    fn not_running(&self) -> NotRunning {
        match find(&self.paths).expect_err("not running") {
            FindError::NotRunning { reason, .. } => reason,
            error => panic!("{error}"),
        }
    }
}

fn dup(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().expect("dup")
}

/// A process that lives until it is dropped.
struct Alive(Child);

impl Alive {
    fn new() -> Self {
        Self(
            Command::new("cat")
                .stdin(Stdio::piped())
                .spawn()
                .expect("spawn"),
        )
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// A pid that was a process's and is no more.
fn dead() -> u32 {
    let mut child = Command::new("true").spawn().expect("spawn");
    child.wait().expect("wait");
    child.id()
}

#[test]
fn the_paths_are_side_by_side_and_absolute() {
    let paths = Paths::of(Path::new("/run/x.pid")).expect("paths");
    assert_eq!(paths.lock, Path::new("/run/x.pid.lock"));
    assert_eq!(paths.socket, Path::new("/run/x.pid.sock"));
    assert!(
        Paths::of(Path::new("x.pid"))
            .expect("relative")
            .pidfile
            .is_absolute()
    );
    for path in ["", "/", "..", "x/"] {
        assert!(
            matches!(Paths::of(Path::new(path)), Err(PathsError::NoName(_))),
            "{path}"
        );
    }
    let long = |length| PathBuf::from(format!("/{}", "x".repeat(length)));
    Paths::of(&long(101)).expect("107 with .sock");
    let error = Paths::of(&long(102)).expect_err("108").to_string();
    assert!(
        error.contains("108 bytes") && error.contains("shorter"),
        "{error}"
    );
}

#[test]
fn the_lock_is_held_until_its_last_copy_is_closed() {
    let place = Place::new();
    assert!(!Lock::is_held(&place.paths.lock).expect("no file"));
    let lock = Lock::acquire(&place.paths).expect("free");
    assert!(Lock::is_held(&place.paths.lock).expect("held"));
    let error = Lock::acquire(&place.paths).expect_err("held").to_string();
    assert!(
        error.ends_with("x.pid.lock`: held by another process"),
        "{error}"
    );
    place.write(811);
    let error = Lock::acquire(&place.paths).expect_err("held").to_string();
    assert!(error.starts_with("cannot lock pidfile lock `/"), "{error}");
    assert!(
        error.ends_with("x.pid.lock`: held by process 811"),
        "{error}"
    );

    let child = Lock::from_fd(dup(&lock), &place.paths).expect("the lock");
    drop(lock);
    Lock::acquire(&place.paths).expect_err("the child holds it");
    drop(child);
    assert!(!Lock::is_held(&place.paths.lock).expect("released"));
    let mode = fs::metadata(&place.paths.lock)
        .expect("it stays")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let lock = Lock::acquire(&place.paths).expect("free again");
    let flags = rustix::io::fcntl_getfd(&lock).expect("flags");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn a_descriptor_that_is_not_the_lock_is_refused() {
    let place = Place::new();
    let lock = Lock::acquire(&place.paths).expect("free");
    let other = tempfile::tempfile().expect("file");
    let error = Lock::from_fd(other.into(), &place.paths).expect_err("another file");
    assert!(matches!(error, LockError::OtherFile(_)), "{error}");
    let same = File::open(&place.paths.lock).expect("open");
    let error = Lock::from_fd(dup(&same), &place.paths).expect_err("not the holder");
    assert!(matches!(error, LockError::NotHeld(_)), "{error}");
    drop(lock);
    let error = Lock::from_fd(same.into(), &place.paths).expect_err("nobody holds it");
    assert!(matches!(error, LockError::NotHeld(_)), "{error}");
}

#[test]
fn what_is_no_lock_file_is_refused() {
    let place = Place::new();
    let target = place.dir.path().join("precious");
    symlink(&target, &place.paths.lock).expect("symlink");
    let error = Lock::acquire(&place.paths).expect_err("symlink");
    assert!(matches!(error, LockError::NotAFile(_)), "{error}");
    assert!(!target.exists());
    fs::remove_file(&place.paths.lock).expect("remove");
    nix::unistd::mkfifo(&place.paths.lock, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let error = Lock::acquire(&place.paths).expect_err("FIFO");
    assert!(matches!(error, LockError::NotAFile(_)), "{error}");
    let away = Paths::of(&place.dir.path().join("no/x.pid")).expect("paths");
    let error = Lock::acquire(&away).expect_err("no directory").to_string();
    assert!(error.contains("directory does not exist"), "{error}");
}

#[test]
fn the_pidfile_is_replaced_whole() {
    let place = Place::new();
    place.write(4711);
    let before = File::open(&place.paths.pidfile).expect("open");
    assert_eq!(fs::read(&place.paths.pidfile).expect("read"), b"4711\n");
    // Left by a process that was killed while it wrote.
    fs::write(place.dir.path().join(".x.pid.12.new"), "half").expect("write");
    place.write(12);
    assert_eq!(fs::read(&place.paths.pidfile).expect("read"), b"12\n");
    assert_eq!(io::read_to_string(before).expect("read"), "4711\n");
    let mode = fs::metadata(&place.paths.pidfile)
        .expect("stat")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(place.files(), ["x.pid"]);
}

#[test]
fn a_pidfile_that_cannot_be_written_is_named() {
    let place = Place::new();
    let pidfile = &place.paths.pidfile;
    let fail = |path: &Path, part: &str| {
        let error = Pidfile::write(path, 1).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    fail(
        &place.dir.path().join("no/x.pid"),
        "directory does not exist",
    );
    fail(Path::new("/sys/kernel/x.pid"), "cannot write pidfile");
    fail(place.dir.path(), "not a regular file");
    symlink("elsewhere", pidfile).expect("symlink");
    fail(pidfile, "is a symlink to `elsewhere`: name the file itself");
    assert_eq!(place.files(), ["x.pid"]);
    let full = io::Error::from(io::ErrorKind::StorageFull);
    assert_eq!(advice(&full), ": the disk is full");
}

#[test]
fn only_ones_own_pidfile_is_removed() {
    let place = Place::new();
    assert!(!Pidfile::remove(&place.paths.pidfile, 811).expect("missing"));
    place.write(857);
    assert!(!Pidfile::remove(&place.paths.pidfile, 811).expect("the child's"));
    assert_eq!(place.files(), ["x.pid"]);
    assert!(Pidfile::remove(&place.paths.pidfile, 857).expect("own"));
    assert!(place.files().is_empty());
}

#[test]
fn a_running_server_is_found_and_signalled() {
    let place = Place::new();
    let mut server = Alive::new();
    let _lock = Lock::acquire(&place.paths).expect("free");
    place.write(server.0.id());
    let running = find(&place.paths).expect("found");
    assert_eq!(running.pid(), server.0.id());
    assert!(running.is_alive().expect("poll"));
    running.signal(Signal::Term).expect("signal");
    let status = server.0.wait().expect("wait");
    assert_eq!(
        process::describe_exit(status),
        "was killed by signal 15 (SIGTERM)"
    );
    assert!(!running.is_alive().expect("poll"));
    let error = running.signal(Signal::Term).expect_err("gone");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let error = find(&place.paths).expect_err("lock held, process gone");
    assert!(matches!(error, FindError::Elsewhere { .. }), "{error}");
}

#[test]
fn a_server_that_does_not_run_is_told_from_one_that_does() {
    let place = Place::new();
    assert_eq!(place.not_running(), NotRunning::NoPidfile);
    let pid = dead();
    place.write(pid);
    assert_eq!(place.not_running(), NotRunning::Stale { pid });
    let stranger = Alive::new();
    let pid = stranger.0.id();
    place.write(pid);
    assert_eq!(place.not_running(), NotRunning::Foreign { pid });
    let _lock = Lock::acquire(&place.paths).expect("free");
    fs::remove_file(&place.paths.pidfile).expect("remove");
    let error = find(&place.paths).expect_err("starting");
    assert!(matches!(error, FindError::Transient(_)), "{error}");
}

#[test]
fn what_is_no_pidfile_is_named() {
    let place = Place::new();
    let pidfile = &place.paths.pidfile;
    let fail = |part: &str| {
        let error = find(&place.paths).expect_err(part).to_string();
        assert!(
            error.contains("x.pid` is not a pidfile: ") && error.contains(part),
            "{error}"
        );
    };
    for (content, part) in [
        ("", "empty"),
        (" \n", "empty"),
        ("0", "process id"),
        ("-1", "process id"),
        ("+1", "process id"),
        ("1 2", "process id"),
        ("4294967297", "process id"),
        ("hello\n", "process id"),
        ("1111111111111111111111111111111111111111", "process id"),
    ] {
        fs::write(pidfile, content).expect("write");
        fail(part);
    }
    fs::remove_file(pidfile).expect("remove");
    symlink("elsewhere", pidfile).expect("symlink");
    fail("symlink");
    fs::remove_file(pidfile).expect("remove");
    fs::create_dir(pidfile).expect("mkdir");
    fail("not a regular file");
}

/// Two generations take turns all the time; a reader meets one of them, always.
/// In `/tmp` anybody can make the files of a server that does not run, and have whom he likes signalled by whoever
/// stops "the server": root, perhaps.
#[test]
fn a_pidfile_cannot_make_us_signal_a_process_of_somebody_else() {
    const STRANGER: u32 = 65_533;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a file to somebody else");
        return;
    }
    let place = Place::new();
    let _lock = Lock::acquire(&place.paths).expect("lock");
    // It ends with its stdin, and thus with this test, however that ends.
    let start = |user| {
        let mut command = Command::new("cat");
        std::os::unix::process::CommandExt::uid(&mut command, user);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().expect("cat")
    };
    let give = |path: &Path| std::os::unix::fs::chown(path, Some(STRANGER), None).expect("chown");
    let (mut roots, mut strangers) = (start(0), start(STRANGER));

    place.write(roots.id());
    assert_eq!(find(&place.paths).expect("root's").pid(), roots.id());
    give(&place.paths.pidfile);
    let refused = find(&place.paths).expect_err("a trap");
    assert!(
        matches!(
            refused,
            FindError::Untrusted {
                owner: STRANGER,
                ..
            }
        ),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("it may be a trap"),
        "{refused}"
    );
    // His own process is his to name.
    place.write(strangers.id());
    give(&place.paths.pidfile);
    assert_eq!(find(&place.paths).expect("his").pid(), strangers.id());
    // The lock says that the pid is true: it is trusted likewise.
    place.write(roots.id());
    give(&place.paths.lock);
    let refused = find(&place.paths).expect_err("a trap");
    assert!(
        matches!(&refused, FindError::Untrusted { path, .. } if *path == place.paths.lock),
        "{refused}"
    );

    // wait(2) closes the stdin first.
    for process in [&mut roots, &mut strangers] {
        process.wait().expect("wait");
    }
}

#[test]
fn a_server_is_found_while_it_is_being_replaced() {
    let place = Place::new();
    let _lock = Lock::acquire(&place.paths).expect("free");
    let generations = [Alive::new(), Alive::new()];
    let pids = [generations[0].0.id(), generations[1].0.id()];
    place.write(pids[0]);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..200).for_each(|n| place.write(pids[n % 2])));
        while !writer.is_finished() {
            match find(&place.paths) {
                Ok(running) => assert!(pids.contains(&running.pid())),
                // Ten replacements within one call: no reload is that fast.
                Err(error) => assert!(matches!(error, FindError::Transient(_)), "{error}"),
            }
        }
    });
}

#[test]
fn the_default_place_is_this_users() {
    let dir = tempfile::tempdir().expect("dir");
    let uid = fs::metadata(dir.path()).expect("stat").uid();
    let runtime = |path: &Path| Some(path.to_owned());
    let place = |uid, runtime| default_pidfile_of("hello", uid, runtime);
    assert_eq!(place(0, runtime(dir.path())), Path::new("/run/hello.pid"));
    let other = uid + 1;
    let private = PathBuf::from(format!("/tmp/hello-{other}/hello.pid"));
    assert_eq!(
        place(other, runtime(dir.path())),
        private,
        "not this user's"
    );
    assert_eq!(place(other, runtime(Path::new("relative"))), private);
    assert_eq!(place(other, None), private);
    if uid != 0 {
        assert_eq!(
            place(uid, runtime(dir.path())),
            dir.path().join("hello.pid")
        );
    }
}

#[test]
fn a_private_directory_is_made_and_verified() {
    let dir = tempfile::tempdir().expect("dir");
    let pidfile = dir.path().join("private/hello.pid");
    let directory = dir.path().join("private");
    make_directory(&pidfile).expect("make");
    make_directory(&pidfile).expect("there already");
    verify_directory(&pidfile).expect("private");
    let mode = fs::metadata(&directory).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    fs::set_permissions(&directory, Permissions::from_mode(0o770)).expect("chmod");
    let error = verify_directory(&pidfile)
        .expect_err("writable")
        .to_string();
    assert!(error.contains("chmod 700"), "{error}");
    fs::remove_dir(&directory).expect("remove");
    symlink(dir.path(), &directory).expect("symlink");
    let error = verify_directory(&pidfile).expect_err("symlink").to_string();
    assert!(error.contains("not a directory"), "{error}");
    prepare_directory(&dir.path().join("no/x.pid")).expect("not ours to make");
    assert!(!dir.path().join("no").exists());
}

#[test]
fn a_spare_pidfile_shows_only_when_it_is_placed() {
    let place = Place::new();
    let pidfile = &place.paths.pidfile;
    let spare = Spare::prepare(pidfile, 12).expect("prepare");
    assert_eq!(place.files(), [".x.pid.12.new"]);
    drop(spare);
    assert!(place.files().is_empty(), "{:?}", place.files());
    let spare = Spare::prepare(pidfile, 12).expect("prepare");
    spare.place().expect("place");
    assert_eq!(fs::read(pidfile).expect("read"), b"12\n");
    // Of a process that was killed in the middle of a reload.
    std::mem::forget(Spare::prepare(pidfile, 13).expect("prepare"));
    Spare::forget(pidfile, 13);
    assert_eq!(place.files(), ["x.pid"]);
    std::mem::forget(Spare::prepare(pidfile, 14).expect("prepare"));
    let strangers = [".x.pid.new", ".x.pid.a.new", ".x.pid..new", "x.pid.15.new"];
    for stranger in strangers {
        fs::write(place.dir.path().join(stranger), "").expect("write");
    }
    Spare::sweep(pidfile);
    let mut left = place.files();
    left.retain(|name| !strangers.contains(&name.as_str()));
    assert_eq!(left, ["x.pid"]);
    assert_eq!(place.files().len(), 1 + strangers.len());
}
