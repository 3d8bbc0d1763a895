//! An axum application that is replaced by its next build while it serves.
//!
//! ```text
//! cargo run -p hello-server --example axum &
//! while curl -s http://127.0.0.1:8322/; do sleep 0.2; done &
//! kill -USR2 $(cat /run/axum-example.pid)     # root; else $XDG_RUNTIME_DIR/axum-example.pid
//! ```

use axum::{Extension, Router, routing::get};
use hello_server::{BoxError, ConnectionInfo, Server, state::Counter};

#[tokio::main]
pub(crate) async fn main() -> Result<(), BoxError> {
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8322".to_owned());
    let mut server = Server::build(|ctx| async move {
        // Whatever takes long and may fail comes here: the old build serves meanwhile.
        let generation = ctx.generation();
        let hits = ctx.state(Counter::new("hits")).await?;
        let hit =
            move || async move { format!("hit {} in generation {generation}\n", hits.add(1)) };
        Ok(Router::new().route("/", get(hit)).route("/peer", get(peer)))
    })
    .name("axum-example")
    .listen("http", listen.parse()?)
    .probe("/peer")
    .committed(|| async { eprintln!("cron starts") })
    .retired(|| async { eprintln!("cron stops, before the next build starts it") })
    .revoked(|| async { eprintln!("cron starts again: the next build has failed") });
    if let Some(pidfile) = std::env::var_os("PIDFILE") {
        server = server.pidfile(pidfile);
    }
    server.run().await?;
    Ok(())
}

async fn peer(Extension(info): Extension<ConnectionInfo>) -> String {
    format!("{:?} on {}\n", info.peer, info.listener)
}
