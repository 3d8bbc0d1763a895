//! The only file that knows bincode: message bodies to bytes and back.
//!
//! bincode 1 is not self-describing: the protocol version in the header says which
//! structs the bytes are. Integers are fixed-width little-endian, lengths are `u64`,
//! bytes left over after a value are an error, and no value may claim more
//! than the message limit, so that a length field cannot make the reader allocate.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

use crate::wire::MAX_MESSAGE;

/// Bytes that are not the value they should be, or a value too large to send.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CodecError(String);

fn options(limit: u64) -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .reject_trailing_bytes()
        .with_limit(limit)
}

/// Encodes `value`, appending to `out`.
///
/// # Errors
/// If the encoding is longer than [`MAX_MESSAGE`].
pub(crate) fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    options(MAX_MESSAGE as u64)
        .serialize_into(out, value)
        .map_err(|e| CodecError(e.to_string()))
}

/// Decodes a whole value from a slice.
///
/// # Errors
/// If the bytes are too few, too many, or not of this type.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_bounded(bytes, MAX_MESSAGE as u64)
}

/// Decodes a value that did not travel in a message.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_bounded<T: DeserializeOwned>(
    bytes: &[u8],
    limit: u64,
) -> Result<T, CodecError> {
    options(limit)
        .deserialize(bytes)
        .map_err(|e| CodecError(e.to_string()))
}

/// Encodes a value that does not travel in a message.
///
/// # Errors
/// If the encoding is longer than `limit`.
pub(crate) fn encode_bounded<T: Serialize>(value: &T, limit: u64) -> Result<Vec<u8>, CodecError> {
    options(limit)
        .serialize(value)
        .map_err(|e| CodecError(e.to_string()))
}

/// How many bytes `value` encodes to.
pub(crate) fn size_of<T: Serialize>(value: &T) -> usize {
    options(MAX_MESSAGE as u64)
        .serialized_size(value)
        .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = Vec::new();
        encode_into(&7_u32, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0]);
        assert_eq!(decode::<u32>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert!(decode::<u32>(&bytes).is_err());
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_allocating() {
        let mut bytes = Vec::new();
        encode_into(&u64::MAX, &mut bytes).unwrap();
        assert!(decode::<Vec<u8>>(&bytes).is_err());
    }
}
