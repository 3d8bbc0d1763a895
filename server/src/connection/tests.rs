//! Connections over real sockets, moved between hyper instances within one process.

mod closing;
mod moves;
mod smuggling;
mod states;
mod support;
mod timeouts;
mod upgrades;
