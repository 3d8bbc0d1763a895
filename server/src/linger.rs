//! Closing a connection so that its last answer arrives.
//!
//! `close()` on a TCP socket whose receive queue holds unread bytes sends RST, and a client that
//! gets RST throws away what it has received but not yet read: perhaps our answer. So the writing
//! side is shut down first, and what the client still sends is read until its end of stream
//! (RFC 9112, section 9.6).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::io::Stream;

/// How long a client may take to close its side.
///
/// A round trip and a client's scheduling delay fit in; a client that has lost interest costs us
/// no more than this.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(2);

/// How many bytes a client may still send: what is under way in large socket buffers.
pub(crate) const LINGER_BYTES: usize = 8 * 1024 * 1024;

/// How much of them is read at a time, in bytes.
const CHUNK_BYTES: usize = 16 * 1024;

/// Sends `farewell`, if it is not empty, shuts down the writing side, and reads until the client
/// closes, [`LINGER_TIME`] has passed or [`LINGER_BYTES`] have come; then closes.
pub(crate) async fn linger(mut stream: Stream, farewell: Vec<u8>) {
    let work = async {
        if !farewell.is_empty() {
            stream.write_all(&farewell).await?;
        }
        // A second shutdown after hyper's is harmless.
        stream.shutdown().await?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut total = 0;
        while total < LINGER_BYTES {
            match stream.read(&mut chunk).await? {
                0 => break,
                length => total += length,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // An error or a timeout changes nothing: the socket is closed now.
    let _ = timeout(LINGER_TIME, work).await;
}

/// The answer to a client that took too long over the head of its request.
pub(crate) fn request_timeout() -> Vec<u8> {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    format!(
        "HTTP/1.1 408 Request Timeout\r\n\
         connection: close\r\n\
         content-length: 0\r\n\
         date: {date}\r\n\r\n"
    )
    .into_bytes()
}
