//! Whether memory is left in this process's cgroup for a second copy of the state: to be known before the OOM killer
//! ends the service.
//!
//! Both versions of cgroups are read (cgroups(7)): of version 2 `memory.max` and `memory.high` against
//! `memory.current`, of version 1 `memory.limit_in_bytes` against `memory.usage_in_bytes`. Page cache that the
//! kernel would give up at once (`inactive_file`) is not counted. The limits of all ancestors hold, up to the root as
//! it is seen from here.
//!
//! What cannot be read limits nothing: a check that does not know must not refuse a reload.

use std::{
    fmt, fs,
    path::{Component, Path, PathBuf},
};

/// Where the cgroups are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// The files of one version.
struct Files {
    limits: &'static [&'static str],
    usage: &'static str,
    inactive: &'static str,
}

const VERSION_2: Files = Files {
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    inactive: "inactive_file",
};

const VERSION_1: Files = Files {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    inactive: "total_inactive_file",
};

/// What a limit leaves, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) left: u64,
    limit: u64,
    file: PathBuf,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { left, limit, file } = self;
        let file = file.display();
        write!(f, "{left} of {limit} bytes are left of `{file}`")
    }
}

/// The room of this process, where it is least; `None` without a limit.
pub(crate) fn room() -> Option<Room> {
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    room_in(Path::new(CGROUPS), &membership)
}

/// The same for a process of this `/proc/<pid>/cgroup`.
fn room_in(root: &Path, membership: &str) -> Option<Room> {
    let rooms = membership.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        // Beside version 1, version 2 is mounted one level down and has no memory controller.
        let (base, files) = match controllers {
            "" => (root.to_owned(), &VERSION_2),
            _ if controllers.split(',').any(|c| c == "memory") => (root.join("memory"), &VERSION_1),
            _ => return None,
        };
        least(&base, path.trim_start_matches('/'), files)
    });
    rooms.min_by_key(|room| room.left)
}

fn least(base: &Path, path: &str, files: &Files) -> Option<Room> {
    let own = Path::new(path);
    // Of a cgroup outside of this namespace (`/../x`) nothing can be seen.
    let is_within = own.components().all(|c| matches!(c, Component::Normal(_)));
    let own = if is_within { own } else { Path::new("") };
    own.ancestors()
        .flat_map(|cgroup| rooms_of(&base.join(cgroup), files))
        .min_by_key(|room| room.left)
}

fn rooms_of(cgroup: &Path, files: &Files) -> Vec<Room> {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).ok();
    let Some(usage) = read(files.usage).and_then(|usage| number(&usage)) else {
        return Vec::new();
    };
    let inactive = read("memory.stat").and_then(|stat| field(&stat, files.inactive));
    let used = usage.saturating_sub(inactive.unwrap_or(0));
    let of = |file: &&str| {
        let limit = number(&read(file)?)?;
        Some(Room {
            left: limit.saturating_sub(used),
            limit,
            file: cgroup.join(file),
        })
    };
    files.limits.iter().filter_map(of).collect()
}

/// `None` for `max`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(root: &Path, path: &str, files: &[(&str, &str)]) {
        let cgroup = root.join(path);
        fs::create_dir_all(&cgroup).unwrap();
        for (name, text) in files {
            fs::write(cgroup.join(name), text).unwrap();
        }
    }

    fn left(root: &Path, membership: &str) -> Option<u64> {
        room_in(root, membership).map(|room| room.left)
    }

    #[test]
    fn the_least_of_all_ancestors_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let stat = "anon 100\nfile 300\ninactive_file 200\nactive_file 100\n";
        cgroup(
            root,
            "system.slice/hello.service",
            &[
                ("memory.max", "max\n"),
                ("memory.high", "1000\n"),
                ("memory.current", "500\n"),
                ("memory.stat", stat),
            ],
        );
        let own = "0::/system.slice/hello.service\n";
        assert_eq!(left(root, own), Some(700));
        let slice = [("memory.max", "900\n"), ("memory.current", "850\n")];
        cgroup(root, "system.slice", &slice);
        assert_eq!(left(root, own), Some(50));
        let words = room_in(root, own).unwrap().to_string();
        assert!(
            words.starts_with("50 of 900 bytes are left of `"),
            "{words}"
        );
        assert!(words.ends_with("/system.slice/memory.max`"), "{words}");
        // Beyond the limit already.
        cgroup(root, "system.slice", &[("memory.current", "2000\n")]);
        assert_eq!(left(root, own), Some(0));
    }

    #[test]
    fn version_1_has_a_hierarchy_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        cgroup(
            root,
            "memory/docker/x",
            &[
                ("memory.limit_in_bytes", "4096\n"),
                ("memory.usage_in_bytes", "3000\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n"),
            ],
        );
        let own = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n";
        assert_eq!(left(root, own), Some(2096));
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        cgroup(
            root,
            "",
            &[("memory.max", "many\n"), ("memory.current", "1\n")],
        );
        for own in ["", "0::/\n", "0::/../other\n", "nonsense", "0::/not/there"] {
            assert_eq!(left(root, own), None, "{own}");
        }
    }
}
