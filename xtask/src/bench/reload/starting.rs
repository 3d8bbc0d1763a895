//! A first start of the binary, with nobody before it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::first_answer;
use crate::soak::Place;

/// From the start of `hello serve`, with a pidfile and a port of its own, to its first answer.
pub(super) fn first_start(place: &Place, serve_args: &[String], turn: u32) -> Result<Duration> {
    // Whoever else takes the port in between makes this measurement an error.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let began = Instant::now();
    let child = Command::new(place.hello())
        // Whose the checkout is does not matter.
        .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
        .args(["serve", "--listen", &format!("http={address}"), "--pidfile"])
        .arg(place.path().join(format!("first-{turn}.pid")))
        .args(serve_args)
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start `hello serve`")?;
    let _started = Started(child);
    let answered = first_answer::of_anybody(address)?;
    Ok(answered.duration_since(began))
}

/// Killed and reaped: how it ends is not measured.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It has ended already, if it could not start.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
