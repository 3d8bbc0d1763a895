//! Making the socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait to be accepted. While a reload changes the socket's owner nobody
/// accepts for some milliseconds.
const BACKLOG: i32 = 128;

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process answers on it.
    #[error(
        "a server answers on the control socket `{path}` already; stop it, or use another pidfile"
    )]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// Something else bears that name; it is not removed.
    #[error(
        "`{path}`, where the control socket belongs, is not a socket; move it away, or use another pidfile"
    )]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
    /// `sockaddr_un` has room for 107 bytes (unix(7)).
    #[error(
        "the control socket's path `{path}` is longer than 107 bytes; use a pidfile with a shorter path"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Anything else that the system refuses.
    #[error("failed to bind the control socket `{path}`")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Makes the control socket at `path`: a listening, non-blocking Unix stream socket of mode 0600.
///
/// A socket file that a dead server left behind is replaced. The caller holds the pidfile's lock, so
/// that no two starters do this at once. Whoever ends the succession removes the file.
///
/// # Errors
///
/// See [`BindError`]; nothing is left behind.
pub fn bind(path: &Path) -> Result<OwnedFd, BindError> {
    let io_error = |errno: Errno| BindError::Io {
        path: path.to_owned(),
        source: errno.into(),
    };
    let address = SocketAddrUnix::new(path).map_err(|errno| match errno {
        Errno::NAMETOOLONG => BindError::TooLong {
            path: path.to_owned(),
        },
        other => io_error(other),
    })?;
    let socket = unix_socket().map_err(io_error)?;
    // On Linux bind(2) gives the file the mode of the socket's own inode, less the umask: so it is
    // never wider than this, not even for a moment, which a chmod after the bind could not say.
    // Setting the umask instead would change it for every thread.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io_error)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, &address)?;
            rustix::net::bind(&socket, &address)
        }
        result => result,
    }
    .map_err(io_error)?;
    if let Err(errno) = rustix::net::listen(&socket, BACKLOG) {
        let _ = std::fs::remove_file(path);
        return Err(io_error(errno));
    }
    Ok(socket)
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let io_error = |source: io::Error| BindError::Io {
        path: path.to_owned(),
        source,
    };
    // First, because connect(2) answers ECONNREFUSED for a regular file too, and that is not ours
    // to remove. A symlink is not followed, for the same reason.
    let kind = std::fs::symlink_metadata(path)
        .map_err(io_error)?
        .file_type();
    if !kind.is_socket() {
        return Err(BindError::NotASocket {
            path: path.to_owned(),
        });
    }
    let probe = unix_socket().map_err(|errno| io_error(errno.into()))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(io_error),
        // EAGAIN: its backlog is full, but it is somebody's.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::Live {
            path: path.to_owned(),
        }),
        Err(errno) => Err(io_error(errno.into())),
    }
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_socket_is_private_and_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let _listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        drop(UnixListener::bind(&path).unwrap());
        let live = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Live { .. })));
        drop(live);
        bind(&path).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file), Err(BindError::NotASocket { .. })));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(matches!(bind(&link), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_does_not_fit_or_exist_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(bind(&long), Err(BindError::TooLong { .. })));
        let missing = dir.path().join("no/p.sock");
        let error = bind(&missing).unwrap_err();
        assert!(error.to_string().contains("no/p.sock"), "{error}");
    }
}
