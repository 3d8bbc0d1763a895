//! The main job: a reload under traffic, and nobody notices.

mod support;

use support::{Hello, client::Client, load::Load};

#[test]
fn a_reload_under_traffic_loses_nothing_and_counts_exactly() {
    reloads("0");
}

#[test]
fn so_it_does_with_a_probation() {
    reloads("150ms");
}

fn reloads(probation: &str) {
    let hello = Hello::with().probation(probation).start();
    let load = Load::start(hello.address());
    for generation in 2..=6 {
        let line = hello.reload();
        assert!(
            line.starts_with(&format!(
                "generation {} → {generation}, pid ",
                generation - 1
            )),
            "{line}"
        );
        load.goes_on();
    }
    let answered = load.finish();
    hello.settles();
    let mut client = Client::connect(hello.address());
    let status: serde_json::Value =
        serde_json::from_slice(&client.get("/status").body).expect("JSON");
    assert_eq!(
        status["requests"].as_u64(),
        Some(answered),
        "the counter is exact"
    );
    assert_eq!(status["generation"].as_u64(), Some(6));
}
