//! Server-sent events end when the process drains; their connection moves at once, and the client goes on in it, after the
//! last event that it has seen.

mod support;

use support::{
    Hello,
    client::{Client, request},
    load::Load,
};

/// One connection that asks for events, and what it has seen.
struct Events {
    client: Client,
    last: u64,
}

impl Events {
    fn ask(&mut self, ms: u64) {
        let last = match self.last {
            0 => String::new(),
            last => format!("last-event-id: {last}\r\n"),
        };
        let path = format!("/events?ms={ms}");
        self.client
            .send(request(&path).replace("\r\n\r\n", &format!("\r\n{last}\r\n")));
        let answer = self.client.head();
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        assert!(!answer.closes(), "{answer:?}");
        assert_eq!(self.chunk().as_deref(), Some("retry: 100\n\n"));
    }

    /// The next chunk; `None` at the end of the answer.
    fn chunk(&mut self) -> Option<String> {
        let mut line = || self.client.line().expect("a line").expect("a line");
        let size = usize::from_str_radix(&line(), 16).expect("a size");
        let mut text = String::new();
        while text.len() < size {
            text = text + &line() + "\n";
        }
        line();
        (size > 0).then_some(text)
    }

    /// The generation that the next event comes from; `None` at the end.
    fn event(&mut self) -> Option<u64> {
        let text = self.chunk()?;
        let (id, data) = text
            .strip_prefix("id: ")
            .and_then(|rest| rest.split_once("\ndata: "))
            .expect("an event");
        self.last += 1;
        assert_eq!(
            id,
            self.last.to_string(),
            "none is missing, none comes twice"
        );
        Some(data.trim_end().parse().expect("a generation"))
    }
}

#[test]
fn events_end_with_the_generation_and_go_on_in_the_same_connection() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let client = Client::connect(hello.address());
    let mut events = Events { client, last: 0 };
    for generation in 1..=10 {
        events.ask(5);
        for _ in 0..3 {
            assert_eq!(events.event(), Some(generation));
        }
        hello.begin_reload();
        while let Some(from) = events.event() {
            assert_eq!(from, generation);
        }
        hello.settles();
    }
    load.finish();
}

/// It does not wait for the next event.
#[test]
fn the_end_comes_at_once() {
    let hello = Hello::start();
    let client = Client::connect(hello.address());
    let mut events = Events { client, last: 0 };
    events.ask(60_000);
    assert_eq!(events.event(), Some(1));
    let said = hello.reload();
    assert!(said.contains("1 connection moved"), "{said}");
    assert_eq!(events.event(), None);
    events.ask(60_000);
    assert_eq!((events.event(), events.last), (Some(2), 2));
}
