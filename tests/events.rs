//! Server-sent events end when the process drains; the connection moves, and the client goes on in it.

mod support;
