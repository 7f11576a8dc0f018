//! A run on an MLflow server: the exchange that a real server had with these very requests
//! (`tools/golden/mlflow_exchange.py`), and servers that fail.

use super::courier::TestClock;
use super::server::{Request, Server, Stream};
use crate::address::Reach;
use crate::destination::Destination;
use crate::guard::{Guard, Trust};
use crate::mlflow::queue::{QUEUE_MAX, Queue, Told};
use crate::mlflow::{About, Ids, Metric, Server as Mlflow, Status, metric_name};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ENOUGH: Duration = Duration::from_secs(20);

/// The requests and answers of the recorded exchange.
fn recorded() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/golden/mlflow.json");
    let text = std::fs::read_to_string(path).expect("a golden file");
    serde_json::from_str(&text).expect("JSON")
}

fn answer(stream: &mut dyn Stream, status: u64, body: &str) {
    let text = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
}

/// A server that answers these exchanges, one after the other.
fn replay(exchanges: Vec<Value>) -> Server {
    Server::start(move |n, _, stream| match exchanges.get(n) {
        Some(exchange) => {
            let status = exchange["status"].as_u64().unwrap();
            answer(stream, status, &exchange["answer"].to_string());
        }
        None => answer(stream, 500, "{}"),
    })
}

/// What was asked, as the exchange has it.
fn asked(request: &Request) -> Value {
    let mut words = request.head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    json!({"method": method, "path": path, "body": body})
}

fn expected(exchanges: &[Value]) -> Vec<Value> {
    let of = |exchange: &Value| json!({"method": exchange["method"], "path": exchange["path"], "body": exchange["body"]});
    exchanges.iter().map(of).collect()
}

fn queue(url: &str) -> Queue {
    let address = Destination::parse(url).unwrap().with_token("a-secret-token");
    let guard = Guard::new(Reach::PublicAndInside, &Trust::Public, 2);
    Queue::start(Mlflow { guard, address }, Arc::new(TestClock(Instant::now()))).unwrap()
}

fn about() -> About {
    About {
        experiment: "reports & more".to_owned(),
        name: "a run".to_owned(),
        run_id: "fg-0123456789ab".to_owned(),
        tags: vec![("forgelm.version".to_owned(), "0.1.0".to_owned())],
        params: vec![
            ("lora.r".to_owned(), "8".to_owned()),
            ("training.größe".to_owned(), "größer".to_owned()),
        ],
        continues: None,
    }
}

fn metric(name: &str, value: f64, at_ms: i64, step: u64) -> Metric {
    Metric { name: metric_name(name), value, step, at_ms }
}

fn ids() -> Ids {
    Ids { experiment_id: "EXPERIMENT".to_owned(), run_id: "RUN".to_owned() }
}

/// A whole run: its numbers wait while it begins, so that they go together.
fn run(queue: Queue, about: About) -> Told {
    queue.log([
        metric("loss", 2.5, 1_700_000_001_000, 1),
        metric("rewards/margins", f64::NAN, 1_700_000_001_000, 1),
        metric("eval_loss", f64::NEG_INFINITY, 1_700_000_002_000, 1),
    ]);
    queue.end(Status::Finished, 1_700_000_003_000);
    queue.begin(about, 1_700_000_000_000);
    queue.finish(ENOUGH)
}

#[test]
fn a_run_is_told_as_a_real_server_took_it() {
    let exchanges = recorded();
    let server = replay(exchanges[..6].to_vec());
    let told = run(queue(&server.url("/")), about());
    assert_eq!(told, Told { ids: Some(ids()), ..Told::default() });
    let requests = server.requests();
    assert_eq!(requests.iter().map(asked).collect::<Vec<_>>(), expected(&exchanges[..6]));
    for request in requests {
        assert_eq!(request.header("Authorization"), Some("Bearer a-secret-token"));
    }
}

#[test]
fn a_run_that_goes_on_is_the_same_one_there() {
    let exchanges = recorded();
    let server = replay(exchanges[7..10].to_vec());
    let queue = queue(&server.url(""));
    queue.log([metric("loss", 1.5, 1_700_000_004_000, 2)]);
    queue.end(Status::Killed, 1_700_000_005_000);
    queue.begin(About { continues: Some(ids()), ..about() }, 0);
    assert_eq!(queue.finish(ENOUGH), Told { ids: Some(ids()), ..Told::default() });
    let requests: Vec<Value> = server.requests().iter().map(asked).collect();
    assert_eq!(requests, expected(&exchanges[7..10]));
}

#[test]
fn a_run_that_was_deleted_there_is_begun_anew() {
    let mut exchanges = vec![json!({"status": 404, "answer": {}})];
    exchanges.extend_from_slice(&recorded()[..6]);
    let server = replay(exchanges);
    let gone = Ids { experiment_id: "1".to_owned(), run_id: "gone".to_owned() };
    let told = run(queue(&server.url("")), About { continues: Some(gone), ..about() });
    assert_eq!(told, Told { ids: Some(ids()), ..Told::default() });
    assert_eq!(server.requests().len(), 7);
}

/// A server made the run, and its answer was lost: there must not be two.
#[test]
fn a_run_whose_creation_got_no_answer_is_found_again() {
    let all = recorded();
    let exchanges = [&all[6], &all[2], &all[10], &all[3], &all[4], &all[5]].map(Clone::clone);
    let answers = exchanges.clone();
    let server = Server::start(move |n, _, stream| {
        // The second one, runs/create, is cut off.
        if n != 1 {
            answer(stream, 200, &answers[n]["answer"].to_string());
        }
    });
    let told = run(queue(&server.url("")), about());
    assert_eq!(told, Told { ids: Some(ids()), ..Told::default() });
    assert_eq!(server.requests().iter().map(asked).collect::<Vec<_>>(), expected(&exchanges));
}

#[test]
fn a_server_that_fails_for_a_moment_gets_everything_in_the_end() {
    let exchanges = recorded();
    let answers = exchanges[..6].to_vec();
    let server = Server::start(move |n, _, stream| match n {
        0 => answer(stream, 503, "busy"),
        n => answer(
            stream,
            answers[n - 1]["status"].as_u64().unwrap(),
            &answers[n - 1]["answer"].to_string(),
        ),
    });
    let told = run(queue(&server.url("")), about());
    assert_eq!(told, Told { ids: Some(ids()), ..Told::default() });
    let requests: Vec<Value> = server.requests().iter().skip(1).map(asked).collect();
    assert_eq!(requests, expected(&exchanges[..6]));
}

#[test]
fn what_is_no_server_of_this_kind_is_told_without_a_secret() {
    let cases = [
        (401, "{}", "status 401"),
        (200, "<html>a portal</html>", "is this an MLflow server?"),
        (200, "", "the answer has no `experiment.experiment_id`"),
        (302, "{}", "redirects are not followed"),
    ];
    for (status, body, expected) in cases {
        let server = Server::start(move |_, _, stream| answer(stream, status, body));
        let queue = queue(&server.url("/secret-path"));
        // A passing failure of the answer is tried again; the test need not wait for it.
        let start = Instant::now();
        queue.begin(about(), 0);
        queue.log([metric("loss", 1.0, 0, 1)]);
        queue.end(Status::Finished, 0);
        let told = queue.finish(ENOUGH);
        assert_eq!((told.n_lost, told.ids), (1, None), "{expected}");
        let text = told.problems.join("; ");
        assert!(
            text.contains(expected) && text.contains("there is no run on the server"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
        assert!(start.elapsed() < ENOUGH);
    }
}

#[test]
fn a_server_that_hangs_holds_up_nothing_and_what_does_not_fit_is_counted() {
    let server = Server::start(|_, _, _| std::thread::sleep(Duration::from_secs(30)));
    let queue = queue(&server.url(""));
    queue.begin(about(), 0);
    let start = Instant::now();
    let some = metric("loss", 1.0, 0, 1);
    queue.log(std::iter::repeat_n(some, QUEUE_MAX + 7));
    queue.end(Status::Failed, 0);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let told = queue.finish(Duration::from_millis(300));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(told.n_lost, QUEUE_MAX as u64 + 7);
    assert!(told.problems.concat().contains("not told 0 s after the end"), "{:?}", told.problems);
}

#[test]
fn names_that_a_server_refuses_are_changed() {
    assert_eq!(metric_name("rewards/margins: a-b_c.d"), "rewards/margins: a-b_c.d");
    assert_eq!(metric_name("größe\n<x>"), "gr__e__x_");
    assert_eq!(metric_name(&"x".repeat(300)).len(), 250);
}
