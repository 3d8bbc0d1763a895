//! What is printed: results to stdout, all else to stderr.
//!
//! Not by `println!`, which panics when nobody reads (`hello status | head -1`).

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// One line of the result. A reader that has gone wants no more, which is no error.
pub(crate) fn result(text: impl Display) -> io::Result<()> {
    match line(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// One line of many: that nobody reads it is the end of them.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    let text = text.to_string();
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", printable(&text)).and_then(|()| stdout.flush())
}

/// One line for the person who watches. What cannot be shown changes nothing.
pub(crate) fn note(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr().lock(), "{}", printable(&text));
}

/// With control characters, but for tabs and ends of lines, written as Rust would: what a process said, or a client,
/// does not command the terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(commands) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if commands(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(printable("a\tb\nä"), "a\tb\nä");
        assert_eq!(
            printable("\x1b[2J\u{9b}1m\x07\r"),
            "\\u{1b}[2J\\u{9b}1m\\u{7}\\r"
        );
    }
}
