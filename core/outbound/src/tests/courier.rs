//! The queue against servers that fail, hang and recover.

use super::server::{Server, answer};
use crate::address::Reach;
use crate::courier::{Courier, Message, QUEUE_MAX, Route};
use crate::destination::Destination;
use crate::guard::{Guard, Trust};
use crate::signed::{Signer, signed_bytes};
use forgelm_artifact::{Clock, UtcTime};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Real time since a start; the date stands still.
#[derive(Debug)]
pub(super) struct TestClock(pub(super) Instant);

impl Clock for TestClock {
    fn utc(&self) -> UtcTime {
        UtcTime(0)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

fn courier(server: &Server, n_retries: u32, seconds: u64) -> Courier {
    let route = Route {
        guard: Guard::new(Reach::PublicAndInside, &Trust::Public, seconds),
        destination: Destination::parse(&server.url("/secret/path")).unwrap(),
        n_retries,
        first_pause: Duration::from_millis(50),
        headers: vec![("DD-API-KEY".to_owned(), "k".to_owned())],
    };
    Courier::start(route, Arc::new(TestClock(Instant::now()))).unwrap()
}

fn message(label: &str) -> Message {
    Message {
        label: label.to_owned(),
        content_type: "application/json",
        body: label.as_bytes().to_vec(),
        signer: None,
    }
}

#[test]
fn messages_arrive_in_their_order() {
    let server = Server::answering(200);
    let courier = courier(&server, 0, 5);
    for i in 0..10 {
        courier.send(message(&i.to_string()));
    }
    assert_eq!(courier.finish(Duration::from_secs(10)), []);
    let bodies: Vec<String> = server
        .requests()
        .iter()
        .map(|request| String::from_utf8(request.body.clone()).unwrap())
        .collect();
    assert_eq!(bodies, (0..10).map(|i| i.to_string()).collect::<Vec<_>>());
    assert_eq!(server.requests()[0].header("DD-API-KEY"), Some("k"));
    assert_eq!(server.requests()[0].header("X-ForgeLM-Signature"), None);
}

#[test]
fn a_server_that_recovers_gets_the_message_after_pauses() {
    let server = Server::start(|n, _, stream| answer(stream, if n < 2 { 503 } else { 200 }, ""));
    let start = Instant::now();
    let courier = courier(&server, 2, 5);
    courier.send(message("a"));
    assert_eq!(courier.finish(Duration::from_secs(10)), []);
    assert_eq!(server.requests().len(), 3);
    assert!(start.elapsed() >= Duration::from_millis(150), "50 ms and 100 ms between the tries");
}

#[test]
fn what_fails_for_good_is_told_with_scheme_and_host_alone() {
    let server = Server::answering(500);
    let failing = courier(&server, 1, 5);
    failing.send(message("training.start"));
    let failed = failing.finish(Duration::from_secs(10));
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].label.as_str(), failed[0].n_tries), ("training.start", 2));
    assert_eq!(
        (failed[0].destination.as_str(), failed[0].reason.as_str()),
        ("http://127.0.0.1", "status 500")
    );
    // What another try cannot mend is tried once.
    let server = Server::answering(404);
    let failing = courier(&server, 5, 5);
    failing.send(message("a"));
    assert_eq!(failing.finish(Duration::from_secs(10))[0].n_tries, 1);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn sending_never_waits_and_the_queue_is_bounded() {
    let server = Server::start(|_, _, _| thread::sleep(Duration::from_secs(5)));
    let courier = courier(&server, 0, 1);
    let start = Instant::now();
    for i in 0..QUEUE_MAX + 10 {
        courier.send(message(&i.to_string()));
    }
    assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
    let refused = courier.failures();
    assert!((9..=10).contains(&refused.len()), "{}", refused.len());
    assert_eq!(refused[0].reason, "64 messages wait before it");
    // The end waits as long as it was told, and tells what is left.
    let start = Instant::now();
    let left = courier.finish(Duration::from_millis(300));
    assert!((250..1000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(left.len() + refused.len(), QUEUE_MAX + 10);
}

#[test]
fn a_signed_message_carries_time_and_signature() {
    let server = Server::answering(200);
    let courier = courier(&server, 0, 5);
    let signer = Signer::new("ab12".to_owned(), |bytes| {
        assert_eq!(bytes, signed_bytes("1970-01-01T00:00:00.000000+00:00", b"a"));
        Ok([7; 64])
    });
    courier.send(Message { signer: Some(Arc::new(signer)), ..message("a") });
    assert_eq!(courier.finish(Duration::from_secs(10)), []);
    let request = &server.requests()[0];
    assert_eq!(request.header("X-ForgeLM-Timestamp"), Some("1970-01-01T00:00:00.000000+00:00"));
    let signature = request.header("X-ForgeLM-Signature").unwrap();
    assert!(signature.starts_with("ed25519=ab12:BwcHBwcH"), "{signature}");
}
