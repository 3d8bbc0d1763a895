use std::future::ready;

use handoff::control::message::{Builds, ConnectionCounts, Generation, ListenerChanges};
use http::Request;
use http_body_util::BodyExt;

use super::*;

/// The pages of generation 2 in this phase, and what changes the phase.
fn pages(phase: Phase) -> (Pages, watch::Sender<Phase>) {
    let (sender, phase) = watch::channel(phase);
    let build = "a \"b\" \\ c".to_owned();
    let pages = Pages::new(Arc::default(), build, 2, phase, Arc::default());
    (pages, sender)
}

async fn ask(pages: &Pages, method: &str, path: &str) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(())
        .unwrap();
    let response = pages.answer(&request.into_parts().0).await;
    assert_eq!(response.headers()[CONNECTION], "close");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_follows_the_phase() {
    let (pages, phase) = pages(Phase::Starting);
    for (now, expected) in [
        (Phase::Starting, Some("starting")),
        (Phase::Serving, None),
        // Another process serves, and whoever asks here asks of the service.
        (Phase::Paused, None),
        (Phase::HandingOver, None),
        (Phase::Returning, None),
        (Phase::Finishing, Some("stopping")),
        (Phase::Stopping, Some("stopping")),
        (Phase::Cut, Some("stopping")),
    ] {
        phase.send_replace(now);
        let expected = match expected {
            None => (200, "ready\n".to_owned()),
            Some(reason) => (503, format!("{reason}\n")),
        };
        assert_eq!(ask(&pages, "GET", "/readyz").await, expected, "{now:?}");
        assert_eq!(ask(&pages, "GET", "/livez").await.0, 200);
    }
}

#[tokio::test]
async fn a_service_that_is_not_well_is_not_ready() {
    let (pages, _phase) = pages(Phase::Serving);
    let ill: probe::Again = Box::new(|| Box::pin(ready(Err("no database".to_owned()))));
    assert!(pages.health.set(ill).is_ok());
    let expected = (503, "no database\n".to_owned());
    assert_eq!(ask(&pages, "GET", "/readyz").await, expected);
    assert_eq!(ask(&pages, "GET", "/livez").await.0, 200, "it lives");
}

#[tokio::test]
async fn what_is_no_page_says_which_are() {
    let (pages, _phase) = pages(Phase::Serving);
    assert_eq!(ask(&pages, "GET", "/").await.0, 404);
    assert_eq!(ask(&pages, "POST", "/metrics").await.0, 405);
    assert_eq!(ask(&pages, "HEAD", "/metrics").await.0, 200);
}

#[tokio::test]
async fn each_end_of_a_reload_is_counted_by_one_process() {
    let (pages, _phase) = pages(Phase::Serving);
    let reloaded = |pid: u32| Event::Reloaded {
        reload: 1,
        outcome: Outcome::Confirmed {
            from: Generation {
                generation: 1,
                pid: 1,
            },
            to: Generation { generation: 2, pid },
            serving_us: 0,
            listeners: ListenerChanges::default(),
        },
    };
    let drained = |at_us| Event::Drained {
        reload: 1,
        at_us,
        connections: ConnectionCounts {
            moved: 3,
            drained: 2,
            cut: 1,
            ..ConnectionCounts::default()
        },
    };
    let (_, before) = ask(&pages, "GET", "/metrics").await;
    assert!(before.contains("\nhandoff_probation 1\n"), "{before}");
    pages.hear(&reloaded(u32::MAX));
    pages.hear(&reloaded(std::process::id()));
    // Its own end, and that of the generation before.
    pages.hear(&drained(1_000));
    pages.hear(&drained(0));
    pages.hear(&Event::DryRun {
        reload: 2,
        outcome: DryRun::Ready {
            ready_us: 1,
            build: Builds::default(),
            listeners: ListenerChanges::default(),
        },
    });
    let (_, text) = ask(&pages, "GET", "/metrics").await;
    for line in [
        "handoff_build_info{build=\"a \\\"b\\\" \\\\ c\"} 1",
        "handoff_probation 0",
        "handoff_reloads_total{outcome=\"confirmed\"} 1",
        "handoff_dry_runs_total{outcome=\"ready\"} 1",
        "handoff_connections_left_total{how=\"moved\"} 3",
        "handoff_connections_left_total{how=\"drained\"} 2",
        "handoff_connections_left_total{how=\"cut\"} 1",
        "# TYPE handoff_reload_phase_seconds histogram",
        "handoff_reload_phase_seconds_bucket{phase=\"booting\",le=\"0.0025\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}
