//! A plain TCP server that is replaced by its next build without losing a client.
//!
//! ```text
//! cargo run --example tcp_echo &
//! kill -USR2 $(cat /run/tcp-echo.pid)     # root; else $XDG_RUNTIME_DIR/tcp-echo.pid
//! ```

use anyhow::{Error, Result};
use handoff::{Builder, Serving, state::Counter};

#[tokio::main]
async fn main() -> Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7007".to_owned());
    let pidfile = std::env::args_os().nth(2);
    let mut server = Builder::new("tcp-echo").listen("echo", address.parse()?);
    if let Some(pidfile) = pidfile {
        server = server.pidfile(pidfile);
    }
    let mut starting = server.start().await?;
    let connections = starting.state(Counter::new("connections")).await?;
    let serving: Serving = starting.ready().await?;
    eprintln!("generation {} serves", serving.identity().generation);

    let mut acceptor = serving.acceptor("echo").expect("a listener named echo");
    while let Some(accepted) = acceptor.accept().await {
        let number = connections.add(1);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(accepted.stream);
            let copied = tokio::io::copy(&mut from, &mut to).await;
            eprintln!("connection {number}: {copied:?}");
            drop(accepted.guard);
        });
    }
    // Another process accepts now, or nobody is to: this one finishes what it has begun.
    serving.finished().await.map_err(Error::msg)?;
    Ok(())
}
