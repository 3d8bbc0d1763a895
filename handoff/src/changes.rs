//! Changes of the state on their way: inside a message, or in a sealed memfd beside it.

use std::{os::fd::OwnedFd, sync::Arc};

use crate::{
    codec,
    state::{self, Deltas, MAX_DELTA_BYTES},
    wire::{Changes, MAX_INLINE},
};

/// For the encoding of names and lengths around [`MAX_DELTA_BYTES`].
const LIMIT: u64 = MAX_DELTA_BYTES + MAX_INLINE as u64;

/// Makes them fit into a message.
pub(crate) fn pack(deltas: Deltas) -> Result<(Changes, Vec<Arc<OwnedFd>>), String> {
    let bytes = deltas.len_bytes();
    if bytes > MAX_DELTA_BYTES {
        return Err(format!(
            "{bytes} bytes of state have changed, where {MAX_DELTA_BYTES} are the most"
        ));
    }
    if codec::size_of(&deltas) <= MAX_INLINE {
        return Ok((Changes::Inline(deltas), Vec::new()));
    }
    let encoded = codec::encode_bounded(&deltas, LIMIT).map_err(|e| e.to_string())?;
    let memfd = state::sealed(&encoded).map_err(|e| format!("cannot seal changed state: {e}"))?;
    Ok((
        Changes::Sealed {
            length: encoded.len() as u64,
        },
        vec![Arc::new(memfd)],
    ))
}

/// Takes them out of a message.
pub(crate) fn unpack(changes: Changes, fds: Vec<OwnedFd>) -> Result<Deltas, String> {
    let mut fds = fds.into_iter();
    match (changes, fds.next(), fds.next()) {
        (Changes::Inline(deltas), None, None) => Ok(deltas),
        (Changes::Sealed { length }, Some(memfd), None) => {
            let bytes = state::read_sealed(memfd, length, LIMIT)
                .map_err(|e| format!("changed state: {e}"))?;
            codec::decode_bounded(&bytes, LIMIT).map_err(|e| format!("changed state: {e}"))
        }
        _ => Err("changed state with the wrong number of descriptors".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::state::Delta;

    fn of_size(length: usize) -> Deltas {
        Deltas {
            sections: vec![Delta {
                name: "log".to_owned(),
                version: 1,
                bytes: vec![9; length],
            }],
        }
    }

    #[test]
    fn small_and_large_changes_arrive() {
        for length in [0, 100, MAX_INLINE, 1 << 20] {
            let (changes, fds) = pack(of_size(length)).unwrap();
            assert_eq!(fds.len(), usize::from(length >= MAX_INLINE));
            let fds = fds
                .iter()
                .map(|fd| fd.as_fd().try_clone_to_owned().unwrap())
                .collect();
            assert_eq!(unpack(changes, fds).unwrap(), of_size(length));
        }
    }

    #[test]
    fn a_missing_descriptor_is_refused() {
        assert!(unpack(Changes::Sealed { length: 3 }, vec![]).is_err());
    }
}
