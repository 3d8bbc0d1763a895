//! Whether root may execute a file: only what nobody else may write, or put another file in the place of.
//!
//! The walk is that of sshd's `StrictModes` and sudo's checks: the file, and each directory on the way to it, symlinks
//! followed one by one. What is checked is the path; the file could be another one when it is executed, but only by the
//! hand of somebody who passed the check.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::libc;

/// As the kernel: `MAXSYMLINKS`, path_resolution(7).
const MAX_SYMLINKS: u32 = 40;

const ROOT: u32 = 0;

/// What of it others may change, and who.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Writable {
    pub(super) path: PathBuf,
    pub(super) by: String,
}

/// `Ok(Some)` if somebody other than root can change what `path`, which is absolute, leads to.
///
/// # Errors
/// Those of lstat(2) and readlink(2): then nothing can be executed either.
pub(super) fn writable_by_others(path: &Path) -> io::Result<Option<Writable>> {
    writable_beyond(Path::new("/"), path, ROOT)
}

/// As above, with the rest of the path below a directory that is trusted, and another trusted user: for tests.
fn writable_beyond(trusted: &Path, path: &Path, owner: u32) -> io::Result<Option<Writable>> {
    let mut at = trusted.to_owned();
    let mut links = 0;
    let below = path.strip_prefix(trusted).unwrap_or(path);
    let mut rest: VecDeque<OsString> = parts(below);
    if let Some(by) = writers(&fs::symlink_metadata(&at)?, owner) {
        return Ok(Some(Writable { path: at, by }));
    }
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let found = fs::symlink_metadata(&next)?;
        if found.is_symlink() {
            links += 1;
            if links > MAX_SYMLINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            // Elsewhere only who may write the directory can replace it.
            if is_sticky(&fs::symlink_metadata(&at)?) && found.uid() != owner {
                let by = user(found.uid());
                return Ok(Some(Writable { path: next, by }));
            }
            let target = fs::read_link(&next)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                rest.push_front(part);
            }
            continue;
        }
        if let Some(by) = writers(&found, owner) {
            return Ok(Some(Writable { path: next, by }));
        }
        at = next;
    }
    Ok(None)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// Who else may write it. In a sticky directory nobody can replace what is another's: what is in it must be ours.
fn writers(found: &Metadata, owner: u32) -> Option<String> {
    if found.uid() != owner {
        return Some(user(found.uid()));
    }
    if is_sticky(found) {
        return None;
    }
    if found.mode() & libc::S_IWOTH != 0 {
        return Some("everybody".to_owned());
    }
    // The group's bits are the mask of an ACL, too: acl(5).
    if found.mode() & libc::S_IWGRP != 0 && found.gid() != ROOT {
        return Some(format!("group {}", found.gid()));
    }
    None
}

fn is_sticky(found: &Metadata) -> bool {
    found.is_dir() && found.mode() & libc::S_ISVTX != 0
}

fn user(uid: u32) -> String {
    format!("user {uid}, whose it is")
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory of this user's, with a program in it.
    struct Place {
        dir: tempfile::TempDir,
        uid: u32,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("dir");
            fs::create_dir(dir.path().join("bin")).expect("mkdir");
            fs::write(dir.path().join("bin/x"), "").expect("write");
            let place = Self {
                uid: fs::metadata(dir.path()).expect("stat").uid(),
                dir,
            };
            place.chmod("bin", 0o755);
            place.chmod("bin/x", 0o755);
            place
        }

        fn chmod(&self, name: &str, mode: u32) {
            fs::set_permissions(self.dir.path().join(name), Permissions::from_mode(mode))
                .expect("chmod");
        }

        fn chown(&self, name: &str, uid: u32) -> bool {
            std::os::unix::fs::lchown(self.dir.path().join(name), Some(uid), Some(uid)).is_ok()
        }

        /// Who may write, and what.
        fn asked(&self, name: &str) -> Option<(String, String)> {
            let root = self.dir.path();
            let found = writable_beyond(root, &root.join(name), self.uid).expect("walk");
            found.map(|Writable { path, by }| {
                let path = path.strip_prefix(root).expect("below").to_owned();
                (path.display().to_string(), by)
            })
        }
    }

    fn found(path: &str, by: &str) -> Option<(String, String)> {
        Some((path.to_owned(), by.to_owned()))
    }

    #[test]
    fn what_only_its_owner_may_write_is_trusted() {
        let place = Place::new();
        for mode in [0o755, 0o700, 0o555] {
            place.chmod("bin/x", mode);
            assert_eq!(place.asked("bin/x"), None, "{mode:o}");
        }
    }

    #[test]
    fn a_file_or_directory_for_everybody_is_not() {
        let place = Place::new();
        place.chmod("bin/x", 0o757);
        assert_eq!(place.asked("bin/x"), found("bin/x", "everybody"));
        place.chmod("bin/x", 0o755);
        place.chmod("bin", 0o777);
        assert_eq!(place.asked("bin/x"), found("bin", "everybody"));
        // In a sticky directory others cannot replace it.
        place.chmod("bin", 0o1777);
        assert_eq!(place.asked("bin/x"), None);
    }

    #[test]
    fn symlinks_are_followed_one_by_one() {
        let place = Place::new();
        let root = place.dir.path();
        fs::create_dir(root.join("open")).expect("mkdir");
        symlink("../bin/x", root.join("open/x")).expect("symlink");
        symlink("open/x", root.join("x")).expect("symlink");
        place.chmod("open", 0o755);
        assert_eq!(place.asked("x"), None);
        // The link itself is where others can put another one.
        place.chmod("open", 0o777);
        assert_eq!(place.asked("x"), found("open", "everybody"));
        symlink("loop", root.join("loop")).expect("symlink");
        let error = writable_beyond(root, &root.join("loop"), place.uid).expect_err("loop");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn what_is_another_users_is_not() {
        let place = Place::new();
        let stranger = 65534;
        if !place.chown("bin/x", stranger) {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let theirs = "user 65534, whose it is";
        assert_eq!(place.asked("bin/x"), found("bin/x", theirs));
        assert!(place.chown("bin/x", place.uid) && place.chown("bin", stranger));
        assert_eq!(place.asked("bin/x"), found("bin", theirs));
        assert!(place.chown("bin", place.uid));
        // Group-writable, by a group that is not root's.
        std::os::unix::fs::chown(place.dir.path().join("bin/x"), None, Some(stranger))
            .expect("chgrp");
        place.chmod("bin/x", 0o775);
        assert_eq!(place.asked("bin/x"), found("bin/x", "group 65534"));
        // A stranger's link in a sticky directory.
        place.chmod("bin/x", 0o755);
        place.chmod("bin", 0o1777);
        symlink("x", place.dir.path().join("bin/link")).expect("symlink");
        assert_eq!(place.asked("bin/link"), None);
        assert!(place.chown("bin/link", stranger));
        assert_eq!(place.asked("bin/link"), found("bin/link", theirs));
        // By whatever way one comes to it.
        fs::create_dir(place.dir.path().join("bin/sub")).expect("mkdir");
        place.chmod("bin/sub", 0o755);
        assert_eq!(place.asked("bin/sub/../link"), found("bin/link", theirs));
    }
}
