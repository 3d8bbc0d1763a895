//! A server with much state, or with much memory: what `cargo xtask bench state` and `bench parent` reload.
//!
//! ```text
//! heavy ADDRESS PIDFILE STATE_BYTES
//! ```
//!
//! The first generation makes the state. `/grow/BYTES` makes the process that answers so much larger, and nothing of that
//! is passed on.

use std::{
    convert::Infallible,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hello_server::{
    BoxError, RequestBody, Server,
    state::{Section, SectionError},
};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;

const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;

/// Bytes that do not change, in pieces: growing one vector would copy it again and again.
struct Block(Mutex<Vec<Vec<u8>>>);

impl Block {
    fn of(bytes: usize) -> Self {
        let sizes = (0..bytes).step_by(CHUNK).map(|at| CHUNK.min(bytes - at));
        let chunk = |(n, size)| vec![n as u8 | 1; size];
        Self(Mutex::new((0_usize..).zip(sizes).map(chunk).collect()))
    }

    fn chunks(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Section for Block {
    fn name(&self) -> &str {
        "block"
    }

    fn version(&self) -> u32 {
        1
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        self.chunks()
            .iter()
            .try_for_each(|chunk| out.write_all(chunk))
    }

    fn delta(&self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&self, _: u32, input: &mut dyn Read) -> Result<(), SectionError> {
        let mut chunks = self.chunks();
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            if input.take(CHUNK as u64).read_to_end(&mut chunk)? == 0 {
                return Ok(());
            }
            chunks.push(chunk);
        }
    }

    fn absorb(&self, _: u32, _: &[u8]) -> Result<(), SectionError> {
        Ok(())
    }
}

/// Resident, page by page.
fn grown(bytes: usize) -> Vec<u8> {
    let mut block = vec![0; bytes];
    block.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    block
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, pidfile, state] = args.as_slice() else {
        return Err("heavy ADDRESS PIDFILE STATE_BYTES".into());
    };
    let state: usize = state.parse()?;
    let server = Server::build(move |ctx| async move {
        let is_first = ctx.generation() == 1;
        ctx.state(Block::of(if is_first { state } else { 0 }))
            .await?;
        let generation = HeaderValue::from(ctx.generation());
        let ballast = Arc::new(Mutex::new(Vec::new()));
        Ok(service_fn(move |request: Request<RequestBody>| {
            let bytes = request.uri().path().strip_prefix("/grow/");
            if let Some(bytes) = bytes.and_then(|bytes| bytes.parse().ok()) {
                let mut ballast = ballast.lock().unwrap_or_else(PoisonError::into_inner);
                ballast.push(grown(bytes));
            }
            let mut answer = Response::new(Full::new(Bytes::from_static(b"hello\n")));
            let name = HeaderName::from_static("x-generation");
            answer.headers_mut().insert(name, generation.clone());
            async { Ok::<_, Infallible>(answer) }
        }))
    })
    .name("heavy")
    .listen("http", address.parse()?)
    .pidfile(pidfile)
    .probation(Duration::ZERO)
    .ready_timeout(Duration::from_secs(120))
    // Whose the checkout is does not matter.
    .allow_writable_program(true);
    server.run().await?;
    Ok(())
}
