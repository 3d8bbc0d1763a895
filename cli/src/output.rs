//! What is printed: results to stdout, all else to stderr.
//!
//! Not by `println!`, which panics when nobody reads (`hello status | head -1`).

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// One line of the result. A reader that has gone wants no more, which is no error.
pub(crate) fn result(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// One line for the person who watches. What cannot be shown changes nothing.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
