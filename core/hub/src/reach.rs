//! What of the way to models can be tried without fetching one: whether the hub answers, and which
//! `pip` there is.

use crate::pip;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{TlsConfig, TlsProvider};

/// Where the hub is, unless another address is named.
pub const HUB: &str = "https://huggingface.co";

/// Asks a hub whether it is there, as fetching does: with the proxy of the environment, and without
/// any token. The status that it answered with; some hubs refuse the question and are there.
///
/// # Errors
/// If nothing answered within `seconds`. The text does not repeat the address.
pub fn ask(endpoint: Option<&str>, seconds: u64) -> Result<u16, String> {
    let address = format!("{}/api/models", endpoint.unwrap_or(HUB).trim_end_matches('/'));
    let config = Agent::config_builder()
        .tls_config(TlsConfig::builder().provider(TlsProvider::Rustls).build())
        .timeout_global(Some(Duration::from_secs(seconds)))
        .http_status_as_error(false)
        .max_redirects(0)
        .build();
    let agent = Agent::new_with_config(config);
    let unreached = |error: ureq::Error| match error {
        ureq::Error::Timeout(_) => format!("no answer within {seconds} seconds"),
        ureq::Error::HostNotFound => "its name is not known".to_owned(),
        ureq::Error::Io(error) => format!("no connection ({error})"),
        ureq::Error::Rustls(error) => format!("no connection ({error})"),
        // Texts of the others may repeat the address, which may have a password.
        _ => "the question could not be sent".to_owned(),
    };
    let status = agent.head(&address).call().map_err(unreached)?.status().as_u16();
    if status != METHOD_NOT_ALLOWED {
        return Ok(status);
    }
    let answer = agent.get(format!("{address}?limit=1")).call().map_err(unreached)?;
    Ok(answer.status().as_u16())
}

const METHOD_NOT_ALLOWED: u16 = 405;

/// The `pip` that fetches wheels, and the line in which it says its version; `None` without one.
#[must_use]
pub fn pip_version() -> Option<(String, String)> {
    pip::version()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    /// A server that answers each request with the next of these, and the requests that it got.
    fn served(answers: &'static [&'static str]) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let answer = |answer: &&str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 2048];
                let n = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                let line = String::from_utf8_lossy(&request[..n]).into_owned();
                line.lines().next().unwrap_or_default().to_owned()
            };
            answers.iter().map(answer).collect()
        });
        (address, served)
    }

    #[test]
    fn the_status_is_the_hubs_and_a_hub_that_knows_no_head_is_asked_again() {
        let (address, requests) = served(&[
            "HTTP/1.1 405 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]",
        ]);
        assert_eq!(ask(Some(&format!("{address}/")), 5), Ok(200));
        let expected = ["HEAD /api/models HTTP/1.1", "GET /api/models?limit=1 HTTP/1.1"];
        assert_eq!(requests.join().unwrap(), expected);
        let (address, requests) =
            served(&["HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]);
        assert_eq!(ask(Some(&address), 5), Ok(503));
        assert_eq!(requests.join().unwrap(), expected[..1]);
    }

    #[test]
    fn a_hub_that_is_not_there_is_told_without_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://user:pass-word@{}", listener.local_addr().unwrap());
        drop(listener);
        let error = ask(Some(&address), 5).unwrap_err();
        assert!(error.starts_with("no connection"), "{error}");
        assert!(!error.contains("pass-word"), "{error}");
        let error = ask(Some("no address"), 5).unwrap_err();
        assert_eq!(error, "the question could not be sent");
    }
}
