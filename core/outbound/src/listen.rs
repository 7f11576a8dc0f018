//! A page of numbers that a monitor reads while a run works: `GET /metrics`, and nothing else.
//!
//! One connection after the other, each with a bounded head and a bounded time: what reads here can
//! slow down nothing but others that read here.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of a request, at most.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// A read or a write that takes longer ends the connection.
const PATIENCE: Duration = Duration::from_millis(500);
/// Reads of one connection, at most: a client that drips has no more than these.
const READS_MAX: usize = 16;
/// How often it is seen whether somebody knocks, or the end has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The page, until it is dropped.
pub struct Page {
    address: SocketAddr,
    text: Arc<Mutex<String>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Page {
    /// Begins to listen. The page is empty at first.
    ///
    /// # Errors
    /// If the address is not free.
    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let text = Arc::new(Mutex::new(String::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (page, end) = (Arc::clone(&text), Arc::clone(&is_over));
        let work = move || {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A reader that went away is nobody's loss.
                    Ok((stream, _)) => drop(serve(stream, &page)),
                    Err(_) => thread::sleep(LOOK_EVERY),
                }
            }
        };
        let thread = thread::Builder::new().name("metrics page".to_owned()).spawn(work)?;
        Ok(Self { address, text, is_over, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces what is shown.
    pub fn show(&self, text: String) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; and if it did, the run is over.
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, page: &Mutex<String>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream)?;
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => {
            ("200 OK", page.lock().unwrap_or_else(PoisonError::into_inner).clone())
        }
        ("GET" | "HEAD", _) => ("404 Not Found", "the numbers are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let body = if method == "HEAD" { "" } else { body.as_str() };
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.flush()
}

/// Everything to the empty line.
fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    for _ in 0..READS_MAX {
        let n = stream.read(&mut piece)?;
        head.extend_from_slice(&piece[..n]);
        let is_whole = head.windows(4).any(|four| four == b"\r\n\r\n");
        if is_whole {
            return Ok(String::from_utf8_lossy(&head).into_owned());
        }
        if n == 0 || head.len() > HEAD_BYTES_MAX {
            break;
        }
    }
    Err(ErrorKind::InvalidData.into())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test measures time")]
mod tests {
    use super::Page;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    fn ask(page: &Page, request: &str) -> String {
        let mut stream = TcpStream::connect(page.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // A server that refuses goes away before it has read everything.
        let mut answer = Vec::new();
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn page() -> Page {
        Page::listen("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    #[test]
    fn the_page_shows_what_was_last_set() {
        let page = page();
        for text in ["a 1\n", "a 2\n"] {
            page.show(text.to_owned());
            let answer = ask(&page, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("Content-Type: text/plain; version=0.0.4"), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{text}")), "{answer}");
        }
        let head = ask(&page, "HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\n"), "{head}");
    }

    #[test]
    fn everything_else_is_refused() {
        let page = page();
        assert!(ask(&page, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(&page, "GET /../etc/passwd HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(&page, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000));
        assert!(!ask(&page, &long).contains("200"), "a head without an end");
    }

    #[test]
    fn a_silent_reader_holds_others_up_for_a_moment_and_the_end_comes() {
        let page = page();
        let silent = TcpStream::connect(page.address()).unwrap();
        let start = Instant::now();
        assert!(ask(&page, "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        let address = page.address();
        drop(page);
        drop(silent);
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
        // The port in use is an error.
        let first = self::page();
        assert!(Page::listen(first.address()).is_err());
    }
}
