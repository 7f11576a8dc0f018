//! The client of a model behind an API, against servers that speak it well, badly, or not at all.

use super::server::{Request, Server, Stream};
use crate::address::Reach;
use crate::chat_api::{
    ChatApi, ChatApiOptions, ChatError, Dialect, OpenError, Pace, Question, Said, Unanswered,
};
use crate::guard::{Guard, GuardError, Trust};
use forgelm_artifact::{Clock, UtcTime};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const KEY: &str = "sk-very-secret";
const GOES_ON: &dyn Fn() -> bool = &|| false;
const PACE: Pace = Pace {
    delay: Duration::ZERO,
    first_pause: Duration::from_millis(10),
    patience: Duration::from_secs(5),
};

/// Real time since a start; the date stands still.
#[derive(Debug)]
struct TestClock(Instant);

impl Clock for TestClock {
    fn utc(&self) -> UtcTime {
        UtcTime(0)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

fn opened(base: &str, reach: Reach, pace: Pace) -> Result<ChatApi, OpenError> {
    let options = ChatApiOptions { base, model: "m", key: Some(KEY), pace };
    ChatApi::open(
        &options,
        Guard::new(reach, &Trust::Public, 2),
        Arc::new(TestClock(Instant::now())),
    )
}

fn api(server: &Server, path: &str) -> ChatApi {
    opened(&server.url(path), Reach::Inside, PACE).unwrap()
}

fn ask(api: &mut ChatApi) -> Result<Said, Unanswered> {
    let question = Question { system: Some("s"), user: "u", max_tokens: 9, temperature: 0.5 };
    let answer = api.ask(&question, GOES_ON);
    if let Err(unanswered) = &answer {
        let text = unanswered.to_string();
        assert!(!text.contains("sk-") && !text.contains("/v1"), "{text}");
    }
    answer
}

fn respond(stream: &mut dyn Stream, status: u16, more: &str, body: &str) {
    let n = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\n{more}Content-Length: {n}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all((head + body).as_bytes()).and_then(|()| stream.flush());
}

fn said(text: &str) -> String {
    json!({"choices": [{"message": {"role": "assistant", "content": text}}]}).to_string()
}

/// Answers `yes` once `n` requests got this status.
fn recovering(n: usize, status: u16, more: &'static str, body: &'static str) -> Server {
    Server::start(move |i, _: &Request, stream| match i < n {
        true => respond(stream, status, more, body),
        false => respond(stream, 200, "", &said("yes")),
    })
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[test]
fn a_question_is_put_in_the_words_of_each_dialect() {
    let server = Server::start(|_, request, stream| {
        let anthropic = json!({"content": [{"type": "text", "text": "yes"}]}).to_string();
        let is_anthropic = request.head.contains("/v1/messages");
        respond(stream, 200, "", &if is_anthropic { anthropic } else { said("yes") });
    });
    let cases = [
        ("/v1", Dialect::OpenAi, "Authorization", "Bearer sk-very-secret"),
        ("/openai/deployments/d", Dialect::Azure, "api-key", KEY),
        ("/v1/messages", Dialect::Anthropic, "x-api-key", KEY),
    ];
    for (path, dialect, header, value) in cases {
        let mut api = api(&server, path);
        assert_eq!(api.dialect(), dialect);
        let answer = ask(&mut api).unwrap();
        assert_eq!(answer, Said { text: "yes".to_owned(), is_cut: false, n_tries: 1 });
        let request = server.requests().pop().unwrap();
        assert_eq!(request.header(header), Some(value), "{path}");
        assert_eq!(request.header("Content-Type"), Some("application/json"));
    }
    let requests = server.requests();
    assert!(requests[0].head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
    let asked = json!({"model": "m", "messages": messages, "max_tokens": 9, "temperature": 0.5});
    assert_eq!(body(&requests[0]), asked);
    assert!(requests[1].head.starts_with(
        "POST /openai/deployments/d/chat/completions?api-version=2024-10-21 HTTP/1.1\r\n"
    ));
    assert_eq!(requests[1].header("Authorization"), None);
    assert_eq!(body(&requests[2])["system"], "s");
    assert_eq!(body(&requests[2])["messages"].as_array().unwrap().len(), 1);
    assert_eq!(requests[2].header("anthropic-version"), Some("2023-06-01"));
}

#[test]
fn what_passes_is_asked_again_and_what_does_not_is_not() {
    for status in [408, 425, 429, 500, 503, 529] {
        let server = recovering(2, status, "", "{}");
        assert_eq!(ask(&mut api(&server, "/v1")).map(|said| said.n_tries), Ok(3), "{status}");
    }
    for (status, is_final) in [(400, false), (401, true), (403, true), (404, true), (422, false)] {
        let server = recovering(9, status, "", "{\"error\": {\"code\": \"a_word\"}}");
        let unanswered = ask(&mut api(&server, "/v1")).unwrap_err();
        let code = Some("a_word".to_owned());
        let error = ChatError::Status { status, code };
        assert_eq!(unanswered, Unanswered { error, is_final, n_tries: 1 });
        assert_eq!(server.requests().len(), 1);
    }
    // An account without money does not get any by waiting.
    let quota = "{\"error\": {\"code\": \"insufficient_quota\"}}";
    let server = recovering(9, 429, "", quota);
    let unanswered = ask(&mut api(&server, "/v1")).unwrap_err();
    assert!(unanswered.is_final && unanswered.n_tries == 1, "{unanswered}");
    let server = Server::start(|_, _, stream| {
        respond(stream, 307, "Location: http://127.0.0.1:1/\r\n", "");
    });
    let unanswered = ask(&mut api(&server, "/v1")).unwrap_err();
    assert_eq!(unanswered.error, ChatError::Guard(GuardError::Redirect(307)));
    assert!(unanswered.is_final);
}

#[test]
fn a_server_that_says_when_to_come_back_is_believed_within_the_patience() {
    let server = recovering(1, 429, "Retry-After: 1\r\n", "");
    let start = Instant::now();
    assert_eq!(ask(&mut api(&server, "/v1")).map(|said| said.n_tries), Ok(2));
    assert!(start.elapsed() >= Duration::from_secs(1));
    let server = recovering(1, 429, "Retry-After: 3600\r\n", "");
    let start = Instant::now();
    let unanswered = ask(&mut api(&server, "/v1")).unwrap_err();
    assert!(!unanswered.is_final && start.elapsed() < Duration::from_secs(1));
}

#[test]
fn tries_end_and_a_server_that_stays_down_ends_it_all() {
    let server = recovering(usize::MAX, 500, "", "");
    let patience = Duration::from_millis(100);
    let mut api = opened(&server.url("/v1"), Reach::Inside, Pace { patience, ..PACE }).unwrap();
    let finals = [(); 3].map(|()| {
        let start = Instant::now();
        let unanswered = ask(&mut api).unwrap_err();
        assert!(unanswered.n_tries >= 2, "{unanswered}");
        assert!(start.elapsed() < Duration::from_secs(2));
        unanswered.is_final
    });
    assert_eq!(finals, [false, false, true]);
}

#[test]
fn a_question_that_ran_out_of_time_may_have_been_paid_for_and_is_not_asked_again() {
    let server = Server::start(|_, _, _| thread::sleep(Duration::from_secs(4)));
    let unanswered = ask(&mut api(&server, "/v1")).unwrap_err();
    assert_eq!(unanswered.error, ChatError::Guard(GuardError::Deadline(2)));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn huge_and_misshapen_answers_are_refused() {
    let server = Server::start(|i, _, stream| match i {
        0 => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
        }
        1 => respond(stream, 200, "", "<html>"),
        2 => respond(stream, 200, "", "{\"choices\": \"none\"}"),
        _ => respond(stream, 200, "", "{\"choices\": [{\"message\": {\"content\": null}}]}"),
    });
    let mut api = api(&server, "/v1");
    assert!(matches!(
        ask(&mut api).unwrap_err().error,
        ChatError::Guard(GuardError::TooLarge(_) | GuardError::Deadline(_))
    ));
    for _ in 0..3 {
        let unanswered = ask(&mut api).unwrap_err();
        assert!(matches!(unanswered.error, ChatError::Shape(_)), "{unanswered}");
        assert!(!unanswered.is_final);
    }
}

#[test]
fn a_newer_model_gets_the_name_that_it_knows_the_bound_by() {
    let wants = "{\"error\": {\"code\": \"unsupported_parameter\", \"param\": \"max_tokens\"}}";
    let server = recovering(1, 400, "", wants);
    let mut api = api(&server, "/v1");
    ask(&mut api).unwrap();
    ask(&mut api).unwrap();
    let bodies: Vec<Value> = server.requests().iter().map(body).collect();
    assert_eq!(bodies.len(), 3, "known from then on");
    assert_eq!((&bodies[0]["max_tokens"], &bodies[1]["max_tokens"]), (&json!(9), &Value::Null));
    assert_eq!(bodies[1]["max_completion_tokens"], 9);
}

#[test]
fn addresses_and_keys_that_cannot_be_used_are_refused_before_anything_is_sent() {
    let server = Server::answering(200);
    let open = |base: &str, key| {
        let options = ChatApiOptions { base, model: "m", key: Some(key), pace: PACE };
        let guard = Guard::new(Reach::Inside, &Trust::Public, 2);
        ChatApi::open(&options, guard, Arc::new(TestClock(Instant::now()))).err()
    };
    let user = server.url("/v1").replace("http://", "http://me:pw@");
    assert_eq!(open(&user, KEY), Some(OpenError::User));
    assert_eq!(open(&server.url("/v1"), "a\nb"), Some(OpenError::Key));
    assert_eq!(
        open(&server.url("/v1"), " sk \n"),
        None,
        "what a file ends with is no part of a key"
    );
    assert!(matches!(open("somewhere", KEY), Some(OpenError::Address(_))));
    // Allowed addresses are the guard's business.
    let mut outside = opened(&server.url("/v1"), Reach::Public, PACE).unwrap();
    let unanswered = ask(&mut outside).unwrap_err();
    assert!(matches!(unanswered.error, ChatError::Guard(GuardError::Blocked(_))));
    assert!(unanswered.is_final);
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn questions_keep_their_distance_and_stop_when_asked() {
    let server = recovering(0, 200, "", "");
    let delay = Duration::from_millis(300);
    let mut api = opened(&server.url("/v1"), Reach::Inside, Pace { delay, ..PACE }).unwrap();
    let start = Instant::now();
    ask(&mut api).unwrap();
    assert!(start.elapsed() < delay, "the first does not wait");
    ask(&mut api).unwrap();
    assert!(start.elapsed() >= delay);

    let server = recovering(usize::MAX, 500, "Retry-After: 4\r\n", "");
    let mut api = opened(&server.url("/v1"), Reach::Inside, PACE).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    let start = Instant::now();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        raised.store(true, Ordering::SeqCst);
    });
    let question = Question { system: None, user: "u", max_tokens: 9, temperature: 0.0 };
    let unanswered = api.ask(&question, &|| stop.load(Ordering::SeqCst)).unwrap_err();
    assert_eq!(unanswered.error, ChatError::Stopped);
    assert!(start.elapsed() < Duration::from_secs(2));
}
