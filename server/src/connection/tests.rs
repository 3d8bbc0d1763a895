//! Connections over real sockets, moved between hyper instances within one process.

mod app;
mod client;
mod closing;
mod moves;
mod smuggling;
mod states;
mod support;
mod timeouts;
mod upgrades;
