//! Listeners that a service manager has opened, or kept.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::sockopt;

use super::{
    Address, CheckError, FileId, Kind, Listener, Spec, address_of, kind_of, make_nonblocking,
};

impl Listener {
    /// Takes a socket that the service manager calls the one of `spec`. Where it listens is for the caller to compare.
    ///
    /// `is_ours`: the path of a Unix socket was made by this service, which removes it at its end. That of a socket
    /// unit is the manager's.
    ///
    /// # Errors
    /// [`CheckError`] if it is no listening socket of the kind that is wanted.
    pub(crate) fn passed(fd: OwnedFd, spec: &Spec, is_ours: bool) -> Result<Self, CheckError> {
        let name = spec.name.clone();
        let kind = match spec.address {
            Address::Tcp(_) => Kind::Tcp,
            Address::Unix(_) => Kind::Unix,
        };
        if kind_of(fd.as_fd()) != Some(kind) {
            let expected = kind;
            return Err(CheckError::Kind { name, expected });
        }
        let failed = |source: io::Error| CheckError::Io {
            name: name.clone(),
            source,
        };
        if !sockopt::socket_acceptconn(&fd).map_err(|e| failed(e.into()))? {
            return Err(CheckError::NotListening { name });
        }
        let Some(address) = address_of(fd.as_fd()).map_err(failed)? else {
            return Err(CheckError::Address {
                name,
                expected: spec.address.to_string(),
                found: "no path".to_owned(),
            });
        };
        make_nonblocking(fd.as_fd()).map_err(failed)?;
        let file = match &address {
            Address::Unix(path) if is_ours => FileId::of(path).ok(),
            _ => None,
        };
        Ok(Self {
            name,
            kind,
            fd,
            address,
            // Whatever it is: the right one is set as for one that was inherited.
            backlog: 0,
            file,
        })
    }
}
