//! What the tests of this crate share: a service that is the test executable itself, and clients at the level of bytes
//! and of frames.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its part"
)]

#[path = "../../../tests/support/client.rs"]
pub mod client;
#[path = "../../../tests/support/diag.rs"]
mod diag;
#[path = "../../../handoff/tests/support/mod.rs"]
mod service;
#[path = "../../../tests/support/ws.rs"]
pub mod ws;

pub use service::*;
