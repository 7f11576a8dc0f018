//! What the client does with servers that mean no good, and with those that do.

use super::server::{Server, Stream, answer, private_authority};
use crate::address::{Blocked, Kind, Reach};
use crate::destination::Destination;
use crate::guard::{Guard, GuardError, Post, Trust};
use crate::resolve::Lookup;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const POST: Post<'static> =
    Post { headers: &[("Content-Type", "application/json")], body: b"{}", answer_bytes_max: 0 };

fn inside(seconds: u64) -> Guard {
    Guard::new(Reach::PublicAndInside, &Trust::Public, seconds)
}

fn to(url: &str) -> Destination {
    Destination::parse(url).unwrap()
}

/// Names that stand for these addresses, one list for each look-up; and how many there were.
fn lookup(answers: Vec<Vec<SocketAddr>>) -> (Lookup, Arc<AtomicUsize>) {
    let n = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n);
    let lookup = move |_: &str, _: u16| -> io::Result<Vec<SocketAddr>> {
        let i = count.fetch_add(1, Ordering::SeqCst);
        Ok(answers[i.min(answers.len() - 1)].clone())
    };
    (Arc::new(lookup), n)
}

#[track_caller]
fn blocked(result: Result<crate::guard::Answer, GuardError>) -> Blocked {
    match result {
        Err(GuardError::Blocked(blocked)) => blocked,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_arrives_as_it_was_sent() {
    let server = Server::answering(204);
    let url = format!("http://me:pw@{}/hook?x=1", server.address);
    let sent = inside(5).post(&to(&url), Post { body: b"{\"a\":1}", ..POST }).unwrap();
    assert_eq!(sent.status, 204);
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].head.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{}", requests[0].head);
    assert_eq!(requests[0].body, b"{\"a\":1}");
    assert_eq!(requests[0].header("Content-Type"), Some("application/json"));
    assert_eq!(requests[0].header("Host"), Some(server.address.to_string().as_str()));
    assert_eq!(requests[0].header("Authorization"), Some("Basic bWU6cHc="));
}

#[test]
fn fault_105_addresses_that_are_not_public_are_refused_with_the_address() {
    let server = Server::answering(200);
    let port = server.address.port();
    let guard = Guard::new(Reach::Public, &Trust::Public, 5);
    let mapped = format!("http://[::ffff:127.0.0.1]:{port}/");
    for (url, address) in [
        (server.url("/"), "127.0.0.1"),
        (mapped, "::ffff:127.0.0.1"),
        ("http://169.254.169.254/latest/meta-data".to_owned(), "169.254.169.254"),
        // the system reads these as 127.0.0.1
        (format!("http://2130706433:{port}/"), "127.0.0.1"),
        (format!("http://0x7f.1:{port}/"), "127.0.0.1"),
        (format!("http://127.1:{port}/"), "127.0.0.1"),
    ] {
        let blocked = blocked(guard.post(&to(&url), POST));
        assert_eq!(blocked.address, address.parse::<std::net::IpAddr>().unwrap(), "{url}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn one_bad_address_among_good_ones_refuses_the_name() {
    let addresses = vec!["8.8.8.8:80".parse().unwrap(), "10.0.0.7:80".parse().unwrap()];
    let (lookup, _) = lookup(vec![addresses]);
    let guard = Guard::with_lookup(Reach::Public, &Trust::Public, 5, lookup);
    let blocked = blocked(guard.post(&to("http://hooks.example.com/"), POST));
    assert_eq!(blocked.kind, Some(Kind::Private));
    assert_eq!(blocked.to_string(), "10.0.0.7 is a private address");
}

#[test]
fn what_is_connected_to_is_what_was_looked_at() {
    // The second answer of the name is another server: it must never be asked for.
    let (good, bad) = (Server::answering(200), Server::answering(200));
    let (lookup, n) = lookup(vec![vec![good.address], vec![bad.address]]);
    let guard = Guard::with_lookup(Reach::PublicAndInside, &Trust::Public, 5, lookup);
    guard.post(&to("http://hooks.example.com/x"), POST).unwrap();
    assert_eq!(n.load(Ordering::SeqCst), 1, "one look-up for one request");
    assert_eq!(good.requests()[0].header("Host"), Some("hooks.example.com"));
    assert!(bad.requests().is_empty());
}

#[test]
fn the_next_address_is_tried_when_one_refuses() {
    let server = Server::answering(200);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (lookup, _) = lookup(vec![vec![closed, server.address]]);
    let guard = Guard::with_lookup(Reach::PublicAndInside, &Trust::Public, 5, lookup);
    guard.post(&to("http://hooks.example.com/x"), POST).unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn offline_only_what_is_inside_is_reached() {
    let server = Server::answering(200);
    let guard = Guard::new(Reach::Inside, &Trust::Public, 5);
    guard.post(&to(&server.url("/")), POST).unwrap();
    let blocked = blocked(guard.post(&to("http://8.8.8.8/"), POST));
    assert_eq!(blocked.to_string(), "8.8.8.8 is a public address, and this run is offline");
}

#[test]
fn link_local_stays_shut_where_private_networks_are_open() {
    let blocked = blocked(inside(5).post(&to("http://169.254.169.254/"), POST));
    assert_eq!(blocked.kind, Some(Kind::LinkLocal));
}

#[test]
fn a_redirect_is_told_and_not_followed() {
    let target = Server::answering(200);
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}\r\n", target.url("/stolen"));
        let server =
            Server::start(move |_, _, stream: &mut dyn Stream| answer(stream, status, &location));
        let error = inside(5).post(&to(&server.url("/")), POST).unwrap_err();
        assert_eq!(error, GuardError::Redirect(status));
        assert!(!error.is_passing());
    }
    assert!(target.requests().is_empty());
}

#[test]
fn another_status_is_an_error_that_may_pass_or_not() {
    for (status, is_passing) in [(400, false), (404, false), (429, true), (500, true), (503, true)]
    {
        let server = Server::answering(status);
        let error = inside(5).post(&to(&server.url("/")), POST).unwrap_err();
        assert_eq!((error.clone(), error.is_passing()), (GuardError::Status(status), is_passing));
    }
}

/// How long a request took, which must fail for lack of time.
fn timed_out(guard: &Guard, url: &str, post: Post<'_>) -> Duration {
    let start = Instant::now();
    let error = guard.post(&to(url), post).unwrap_err();
    assert_eq!(error, GuardError::Deadline(1));
    assert!(error.is_passing());
    start.elapsed()
}

#[test]
fn fault_106_a_server_that_never_answers_costs_the_deadline() {
    let server = Server::start(|_, _, _| thread::sleep(Duration::from_secs(5)));
    let took = timed_out(&inside(1), &server.url("/"), POST);
    assert!((900..2000).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn fault_106_a_server_that_drips_costs_the_deadline() {
    // A byte every 0.2 s: no single read is slow.
    let server = Server::start(|_, _, stream| {
        let text = "HTTP/1.1 200 OK\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n";
        for byte in text.bytes() {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(200));
        }
    });
    let took = timed_out(&inside(1), &server.url("/"), POST);
    assert!((900..2000).contains(&took.as_millis()), "{took:?}");
}

/// Answers 200 and a body that never ends, a piece every `pause`.
fn endless(pause: Duration) -> Server {
    Server::start(move |_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 1024]).is_ok() {
            thread::sleep(pause);
        }
    })
}

#[test]
fn fault_106_a_body_without_end_is_not_read_or_read_to_a_bound() {
    let server = endless(Duration::ZERO);
    let start = Instant::now();
    inside(5).post(&to(&server.url("/")), POST).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "the body was waited for");
    let post = Post { answer_bytes_max: 100_000, ..POST };
    let error = inside(5).post(&to(&server.url("/")), post).unwrap_err();
    assert_eq!(error, GuardError::TooLarge(100_000));
    // A slow one costs the deadline.
    let server = endless(Duration::from_millis(100));
    let took = timed_out(&inside(1), &server.url("/"), post);
    assert!((900..2000).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_body_that_is_asked_for_comes_whole() {
    let server = Server::answering(200);
    let post = Post { answer_bytes_max: 2, ..POST };
    assert_eq!(inside(5).post(&to(&server.url("/")), post).unwrap().body, b"ok");
    let post = Post { answer_bytes_max: 1, ..POST };
    let error = inside(5).post(&to(&server.url("/")), post).unwrap_err();
    assert_eq!(error, GuardError::TooLarge(1));
}

#[test]
fn a_look_up_that_hangs_costs_the_deadline() {
    let lookup: Lookup = Arc::new(|_: &str, _: u16| {
        thread::sleep(Duration::from_secs(5));
        Ok(Vec::new())
    });
    let guard = Guard::with_lookup(Reach::Public, &Trust::Public, 1, lookup);
    let took = timed_out(&guard, "http://hooks.example.com/", POST);
    assert!((900..2000).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn names_without_an_address_are_told() {
    let (nothing, _) = lookup(vec![Vec::new()]);
    let guard = Guard::with_lookup(Reach::Public, &Trust::Public, 5, nothing);
    let error = guard.post(&to("http://hooks.example.com/secret"), POST).unwrap_err();
    assert_eq!(error.to_string(), "the name cannot be resolved: it has no address");
    let broken: Lookup = Arc::new(|_: &str, _: u16| Err(io::Error::other("no server answers")));
    let guard = Guard::with_lookup(Reach::Public, &Trust::Public, 5, broken);
    let error = guard.post(&to("http://hooks.example.com/secret"), POST).unwrap_err();
    assert_eq!(error.to_string(), "the name cannot be resolved: no server answers");
    assert!(error.is_passing());
}

#[test]
fn a_private_authority_is_trusted_where_it_is_named_and_nowhere_else() {
    let (pem, config) = private_authority("hooks.example.com");
    let server = Server::tls(config, 200);
    let url = to(&format!("https://hooks.example.com:{}/x", server.address.port()));
    let post = |trust: &Trust| {
        let (lookup, _) = lookup(vec![vec![server.address]]);
        Guard::with_lookup(Reach::PublicAndInside, trust, 5, lookup).post(&url, POST)
    };
    post(&Trust::only(pem.as_bytes()).unwrap()).unwrap();
    let host = format!("hooks.example.com:{}", server.address.port());
    assert_eq!(server.requests()[0].header("Host"), Some(host.as_str()));
    let (other, _) = private_authority("hooks.example.com");
    for trust in [Trust::Public, Trust::only(other.as_bytes()).unwrap()] {
        let error = post(&trust).unwrap_err();
        assert!(matches!(&error, GuardError::Tls(text) if text.contains("certificate")), "{error}");
        assert!(!error.is_passing());
    }
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let (pem, config) = private_authority("other.example.com");
    let server = Server::tls(config, 200);
    let (lookup, _) = lookup(vec![vec![server.address]]);
    let trust = Trust::only(pem.as_bytes()).unwrap();
    let guard = Guard::with_lookup(Reach::PublicAndInside, &trust, 5, lookup);
    let url = format!("https://hooks.example.com:{}/x", server.address.port());
    let error = guard.post(&to(&url), POST).unwrap_err();
    assert!(matches!(error, GuardError::Tls(_)), "{error}");
    assert!(Trust::only(b"no certificate").is_err());
}

#[test]
fn what_does_not_speak_http_or_is_not_there_is_told_without_the_address() {
    let server = Server::start(|_, _, stream| {
        let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n");
    });
    let error = inside(5).post(&to(&server.url("/secret")), POST).unwrap_err();
    assert!(matches!(error, GuardError::Connection(_)), "{error}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = inside(5).post(&to(&format!("http://{closed}/secret")), POST).unwrap_err();
    assert!(error.is_passing() && error.to_string().contains("refused"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}
