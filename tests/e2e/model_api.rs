//! A server on this machine that speaks the API of chat completions, well or badly.

use crate::receiver::{Received, received};
use serde_json::json;
use std::io::Write;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the server does with a question.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The model says this.
    Says(String),
    /// It says this after a while.
    Late(Duration, String),
    /// A status, header lines that end in `\r\n`, and a body.
    Raw(u16, &'static str, String),
    /// Success, and a body that never ends.
    Endlessly,
    /// Nothing, ever.
    Nothing,
}

impl Reply {
    pub fn says(text: &str) -> Self {
        Self::Says(text.to_owned())
    }

    pub fn status(status: u16) -> Self {
        Self::Raw(status, "", "{\"error\": {\"message\": \"no\", \"type\": \"t\"}}".to_owned())
    }

    /// A judge that gives this score.
    pub fn score(score: f64) -> Self {
        Self::Says(json!({"score": score, "reason": "as it deserves"}).to_string())
    }
}

/// A question as it came.
#[derive(Clone, Debug)]
pub struct Question {
    /// How-manieth request it is, from 0.
    pub n: usize,
    /// What the user of the API says.
    pub user: String,
}

pub struct ModelApi {
    port: u16,
    received: Arc<Mutex<Vec<Received>>>,
}

impl ModelApi {
    pub fn start(behavior: impl Fn(&Question) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (behavior, server) = (Arc::new(behavior), Self { port, received: Arc::clone(&kept) });
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (behavior, kept) = (Arc::clone(&behavior), Arc::clone(&kept));
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let Some(request) = received(&mut stream) else { return };
                    let body = request.json();
                    let n = {
                        let mut kept = kept.lock().unwrap();
                        kept.push(request);
                        kept.len() - 1
                    };
                    let turns = body["messages"].as_array().unwrap();
                    let user = turns.last().unwrap()["content"].as_str().unwrap().to_owned();
                    answer(&mut stream, behavior(&Question { n, user }));
                });
            }
        });
        server
    }

    /// The base of the API.
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn n_asked(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// What the user of the API said in each question.
    pub fn users(&self) -> Vec<String> {
        let user = |request: &Received| {
            let turns = request.json()["messages"].as_array().unwrap().clone();
            turns.last().unwrap()["content"].as_str().unwrap().to_owned()
        };
        self.received().iter().map(user).collect()
    }
}

/// The body of an answer.
pub fn completion(text: &str) -> String {
    let message = json!({"role": "assistant", "content": text});
    json!({"choices": [{"message": message, "finish_reason": "stop"}]}).to_string()
}

fn answer(stream: &mut impl Write, reply: Reply) {
    let (status, headers, body) = match reply {
        Reply::Says(text) => (200, "", completion(&text)),
        Reply::Late(how_long, text) => {
            thread::sleep(how_long);
            (200, "", completion(&text))
        }
        Reply::Raw(status, headers, body) => (status, headers, body),
        Reply::Endlessly => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
            return;
        }
        Reply::Nothing => {
            thread::sleep(Duration::from_secs(600));
            return;
        }
    };
    let n = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {n}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all((head + &body).as_bytes()).and_then(|()| stream.flush());
}
