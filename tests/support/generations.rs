//! What a test says of several generations that live at a time.

use super::{
    Hello,
    client::{Answer, Client},
    eventually,
};

pub fn is_plain(answer: &Answer, generation: u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.closes(), "{answer:?}");
    assert_eq!(answer.generation(), generation);
}

/// A connection whose request ends when the test says so.
pub struct Upload(pub Client);

impl Upload {
    pub fn begin(hello: &Hello) -> Self {
        let mut client = Client::connect(hello.address());
        client.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345");
        client.until_read();
        Self(client)
    }

    pub fn end(&mut self) -> Answer {
        self.0.send("67890");
        self.0.answer()
    }
}

/// Asks until the connection has moved, and says how often.
pub fn until_moved(client: &mut Client, generation: u64) -> u64 {
    let mut asked = 0;
    eventually("the connection has moved", || {
        asked += 1;
        let answer = client.get("/hello");
        assert!(!answer.closes(), "{answer:?}");
        answer.generation() == generation
    });
    asked
}

/// The generations that drain, the youngest first.
pub fn draining(hello: &Hello) -> Vec<u64> {
    let status = hello.status();
    let draining = status["draining"].as_array().expect("a list");
    let generation = |older: &serde_json::Value| older["generation"].as_u64().expect("a number");
    draining.iter().map(generation).collect()
}

/// Waits until only these processes are left.
pub fn are_left(hello: &Hello, pids: &[u32]) {
    let mut pids = pids.to_vec();
    pids.sort_unstable();
    eventually("the generations between have left", || {
        hello.processes() == pids
    });
}
