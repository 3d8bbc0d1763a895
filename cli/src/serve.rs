//! `hello serve`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use handoff::listeners::{self, Spec};
use handoff::state::Counter;
use hello_server::{Limits, RequestBody, Server};
use http::Request;

use crate::args::{Orphan, Serve};
use crate::demo::{Demo, GREETING, Numbered};
use crate::exit::{Exit, Failure};
use crate::parse::Source;
use crate::{listen, log};

/// The name of the listener that `--admin` makes.
const ADMIN: &str = "admin";

/// How long work that cannot be cancelled may delay the exit.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);

/// How much longer than their drain deadline a keeper waits for generations that drain.
const KEEPER_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(args: Serve) -> Result<Exit, Failure> {
    let patience = args.drain_timeout + KEEPER_PATIENCE;
    if let Some(code) = handoff::keeper::keep(args.keep_pid, patience).context("--keep-pid")? {
        return Ok(Exit::Kept(code));
    }
    let listeners = listeners(&args)?;
    let pidfile = args.which.paths()?.pidfile;
    let _log = log::start(args.log_format, &args.log_filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("hello")
        .build()
        .context("failed to start the runtime")?;
    let result = runtime.block_on(serve(args, pidfile, listeners));
    // Its drop would wait for blocking work without a bound; all that matters has ended.
    runtime.shutdown_timeout(SHUTDOWN_PATIENCE);
    result?;
    Ok(Exit::Done)
}

/// What to listen on: the command line's word, or the environment's, or the file's, or the default.
pub(crate) fn listeners(args: &Serve) -> Result<Vec<Spec>, Failure> {
    let of_the_file = args.file.as_ref().filter(|_| {
        let listen = args.options.iter().find(|option| option.name == "listen");
        listen.is_none_or(|listen| listen.source == Source::Default)
    });
    let specs = of_the_file.map(|file| file.specs(args.backlog));
    let mut specs = match specs.filter(|specs| !specs.is_empty()) {
        Some(specs) => specs,
        None => {
            listen::specs(&args.listen, args.backlog).map_err(|error| Exit::Usage.because(error))?
        }
    };
    if let Some(address) = &args.admin {
        specs.push(Spec::new(ADMIN, address.clone()));
    }
    listeners::check(&specs).map_err(|error| match &args.file {
        Some(file) => file.listener_error(&error).into(),
        None => Exit::Usage.because(error),
    })?;
    Ok(specs)
}

async fn serve(args: Serve, pidfile: PathBuf, listeners: Vec<Spec>) -> anyhow::Result<()> {
    let mut limits = Limits::default();
    limits.connections = args.max_connections as usize;
    limits.header_timeout = args.header_timeout;
    limits.idle_timeout = args.idle_timeout;
    let mut server = Server::build(|ctx| async move {
        let hits = ctx.state(Counter::new("requests")).await?;
        let generation = ctx.generation();
        let sessions = ctx.upgrade(Numbered {
            generation,
            hits: hits.clone(),
        })?;
        let demo = Demo::new(generation, hits, Some(sessions));
        Ok(hyper::service::service_fn(
            move |request: Request<RequestBody>| {
                let answer = demo.clone().answer(request);
                // An async block would hold it twice.
                answer.map(Ok::<_, Infallible>)
            },
        ))
    })
    .name("hello")
    .build_id(format!("{} {GREETING}", env!("CARGO_PKG_VERSION")))
    .pidfile(pidfile)
    .limits(limits)
    .probe(args.probe)
    .ready_timeout(args.ready_timeout)
    .drain_timeout(args.drain_timeout)
    .probation(args.probation)
    .allow_writable_program(args.allow_writable_binary);
    if let Some(orphan) = args.orphan {
        server = server.orphan(match orphan {
            Orphan::Promote => handoff::Orphan::Promote,
            Orphan::Exit => handoff::Orphan::Exit,
        });
    }
    let is_admin = args.admin.is_some();
    for listener in listeners {
        server = if is_admin && listener.name == ADMIN {
            server.admin(listener.address)
        } else {
            server.listener(listener)
        };
    }
    server.run().await?;
    Ok(())
}
