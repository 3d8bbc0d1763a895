//! The real systemd, as pid 1 of pid, mount, cgroup, IPC and UTS namespaces: it sees only the units of its test.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

use super::{copy_program, eventually, text, write_program};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// Where the test's directory is in the namespace.
const INSIDE: &str = "/run/test";

/// What a unit refers to if it does not say otherwise; the real ones would start half an operating system.
const TARGETS: [&str; 8] = [
    "test.target",
    "sysinit.target",
    "basic.target",
    "sockets.target",
    "network.target",
    "shutdown.target",
    "system.slice",
    "-.slice",
];

/// Private mounts; nothing of the machine's can be written but the test's directory.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/test
mount --bind "$1" /run/test
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -o remount,bind,ro /
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH=/run/test/units SYSTEMD_LOG_TARGET=console \
    /lib/systemd/systemd --system --unit=test.target --show-status=0
"#;

/// See the module. Dropped, it is killed with all that it has started.
pub struct Systemd {
    dir: TempDir,
    unshare: Child,
    /// Systemd, as this process sees it.
    pid: u32,
    cgroup: PathBuf,
}

impl Systemd {
    /// `None` where there is no systemd, or this user is not root: the test is skipped.
    pub fn boot() -> Option<Self> {
        let is_root = nix::unistd::geteuid().is_root();
        let hierarchy = cgroup2().filter(|_| is_root && Path::new(SYSTEMD).exists());
        let Some(hierarchy) = hierarchy else {
            let test = std::thread::current().name().unwrap_or("?").to_owned();
            assert!(
                std::env::var_os("REQUIRE_SYSTEMD").is_none(),
                "{test}: no systemd, no cgroup2, or not root"
            );
            eprintln!("skipped {test}: it needs root, cgroup2 and the package systemd");
            return None;
        };
        let dir = tempfile::Builder::new()
            .prefix("hello-systemd-")
            .tempdir()
            .expect("tempdir");
        // Seen by users that systemd makes up.
        fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .expect("chmod");
        copy_program(
            Path::new(env!("CARGO_BIN_EXE_hello")),
            &dir.path().join("hello"),
        );
        fs::create_dir(dir.path().join("units")).expect("mkdir");
        for target in TARGETS {
            let unit = format!("[Unit]\nDescription={target}\nDefaultDependencies=no\n");
            fs::write(dir.path().join("units").join(target), unit).expect("write");
        }
        // What it sees as the root of its cgroups holds nobody else.
        let name = dir.path().file_name().expect("a name");
        let cgroup = hierarchy.join(name);
        fs::create_dir(&cgroup).expect("a cgroup");
        let log = fs::File::create(dir.path().join("log")).expect("log");
        let unshare = Command::new("/bin/sh")
            .args([
                "-c",
                "echo $$ >\"$1/cgroup.procs\"; shift; exec \"$@\"",
                "sh",
            ])
            .arg(&cgroup)
            .args([
                "unshare",
                "--fork",
                "--kill-child",
                "-pmCiu",
                "--mount-proc",
            ])
            .args(["/bin/sh", "-c", BOOT, "sh"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("unshare");
        let mut systemd = Self {
            dir,
            pid: 0,
            unshare,
            cgroup,
        };
        systemd.wait_for_boot();
        Some(systemd)
    }

    fn wait_for_boot(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.unshare.id());
        eventually("systemd has been started", || {
            let child = fs::read_to_string(&children).unwrap_or_default();
            self.pid = child.trim().parse().unwrap_or(0);
            self.pid != 0
        });
        eventually("systemd answers", || {
            let ended = self.unshare.try_wait().expect("wait");
            assert!(ended.is_none(), "systemd has ended: {}", self.log());
            let output = self.systemctl(&["is-system-running"]);
            output.stdout.starts_with(b"running")
        });
    }

    /// A command in its namespaces.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid.to_string(), "-m", "-p", "-C", "-i", "-u"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    pub fn systemctl(&self, args: &[&str]) -> Output {
        self.inside("systemctl")
            .args(args)
            .output()
            .expect("systemctl")
    }

    /// `systemctl`, which must succeed.
    pub fn run(&self, args: &[&str]) {
        let output = self.systemctl(args);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}",
            text(&output),
            self.log()
        );
    }

    pub fn property(&self, unit: &str, name: &str) -> String {
        let output = self.systemctl(&["show", "--value", "--property", name, unit]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A verb of `hello`, which must succeed.
    pub fn hello(&self, args: &[&str]) {
        let mut command = self.inside(&format!("{INSIDE}/hello"));
        command
            .args(args)
            .args(["--pidfile", "/run/hello/hello.pid"]);
        let output = command.output().expect("hello");
        assert!(output.status.success(), "{}\n{}", text(&output), self.log());
    }

    /// The pid of the process that serves, as the namespace numbers it.
    pub fn pidfile(&self) -> String {
        let output = self.inside("cat").arg("/run/hello/hello.pid").output();
        String::from_utf8_lossy(&output.expect("cat").stdout)
            .trim()
            .to_owned()
    }

    pub fn kill(&self, pid: &str, signal: &str) {
        let output = self.inside("kill").args(["-s", signal, pid]).output();
        assert!(output.expect("kill").status.success(), "kill {pid}");
    }

    /// What `systemd-analyze` finds wrong with a unit.
    pub fn verify(&self, path: &Path) -> String {
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let mut command = self.inside("systemd-analyze");
        command
            .env("SYSTEMD_UNIT_PATH", format!("{INSIDE}/units"))
            .args(["verify", "--man=no"])
            .arg(format!("{INSIDE}/units/{name}"));
        text(&command.output().expect("systemd-analyze"))
            .lines()
            .filter(|line| !line.starts_with("exit status") && !line.is_empty())
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// What the boot and the services have written.
    pub fn log(&self) -> String {
        ["log", "service.log"]
            .map(|name| fs::read(self.dir.path().join(name)).unwrap_or_default())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat()
    }

    pub fn unit_path(&self, name: &str) -> PathBuf {
        self.dir.path().join("units").join(name)
    }

    /// `deploy/hello-notify.service` as it is, but for the address and the place of the program, and with what is
    /// added at the end of its section.
    pub fn install_service(&self, address: SocketAddr, more: &str) {
        let unit = fs::read_to_string(deploy("hello-notify.service")).expect("the unit");
        let unit = unit
            .replace("127.0.0.1:8321", &address.to_string())
            .replace("/usr/bin/hello", &format!("{INSIDE}/hello"))
            .replace(
                "\n[Install]",
                &format!(
                    "StandardOutput=inherit\nStandardError=append:{INSIDE}/service.log\n\
                     Environment=HELLO_ALLOW_WRITABLE_BINARY=true HELLO_PROBATION=100ms\n{more}\n[Install]"
                ),
            );
        fs::write(self.unit_path("hello.service"), unit).expect("write");
        self.run(&["daemon-reload"]);
    }

    pub fn change_service(&self, from: &str, to: &str) {
        let unit = fs::read_to_string(self.unit_path("hello.service")).expect("the unit");
        fs::write(self.unit_path("hello.service"), unit.replacen(from, to, 1)).expect("write");
        self.run(&["daemon-reload"]);
    }

    pub fn install_socket(&self, address: SocketAddr, name: &str) {
        let unit = fs::read_to_string(deploy("hello.socket")).expect("the unit");
        let unit = unit
            .replace("127.0.0.1:8321", &address.to_string())
            .replace(
                "FileDescriptorName=http",
                &format!("FileDescriptorName={name}"),
            );
        fs::write(self.unit_path("hello.socket"), unit).expect("write");
        self.run(&["daemon-reload"]);
    }

    /// As a deploy does: a new file, renamed over. This one cannot serve.
    pub fn break_program(&self) {
        let path = |name| self.dir.path().join(name);
        fs::rename(path("hello"), path("hello.good")).expect("rename");
        let script =
            format!("#!/bin/sh\n[ \"$1\" = serve ] || exec {INSIDE}/hello.good \"$@\"\nexit 7\n");
        write_program(&path("hello.new"), script.as_bytes());
        fs::rename(path("hello.new"), path("hello")).expect("rename");
    }

    /// And back.
    pub fn mend_program(&self) {
        let path = |name| self.dir.path().join(name);
        fs::rename(path("hello.good"), path("hello")).expect("rename");
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- systemd and its services\n{}", self.log());
        }
        // `--kill-child`: systemd dies with it, and all others in the namespace with systemd.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let events = self.cgroup.join("cgroup.events");
        eventually("all its processes are gone", || {
            !fs::read_to_string(&events).is_ok_and(|text| text.contains("populated 1"))
        });
        remove_cgroup(&self.cgroup);
    }
}

fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// Where the cgroups of version 2 are.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let is_it = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
    let line = mounts.lines().find(is_it)?;
    line.split(' ').nth(1).map(PathBuf::from)
}

/// A file of `deploy/`.
pub fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name)
}

/// A port that nobody has now.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("an address")
}
