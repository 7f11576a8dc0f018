//! Servers of one behavior each, on a port of their own.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1);
        lines.find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A server that runs until the test ends.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// What it does with the n-th request.
type Behavior = dyn Fn(usize, &Request, &mut dyn Stream) + Send + Sync;

impl Server {
    pub(crate) fn start(
        behavior: impl Fn(usize, &Request, &mut dyn Stream) + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, Arc::new(behavior))
    }

    /// Answers everything with this status and nothing more.
    pub(crate) fn answering(status: u16) -> Self {
        Self::start(move |_, _, stream| answer(stream, status, ""))
    }

    pub(crate) fn tls(config: Arc<ServerConfig>, status: u16) -> Self {
        let behavior = move |_: usize, _: &Request, stream: &mut dyn Stream| {
            answer(stream, status, "");
        };
        Self::serve(Some(config), Arc::new(behavior))
    }

    fn serve(tls: Option<Arc<ServerConfig>>, behavior: Arc<Behavior>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, tls) = (Arc::clone(&seen), tls.clone());
                let behavior = Arc::clone(&behavior);
                thread::spawn(move || connection(stream.unwrap(), tls, &seen, behavior.as_ref()));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn connection(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    seen: &Mutex<Vec<Request>>,
    behavior: &Behavior,
) {
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
    };
    // A client that trusts nobody here goes away before its request.
    let Some(request) = read_request(stream.as_mut()) else { return };
    let n = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    behavior(n, &request, stream.as_mut());
}

fn read_request(stream: &mut dyn Stream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let mut request = Request { head: String::from_utf8(bytes).ok()?, body: Vec::new() };
    let length = request.header("Content-Length").and_then(|n| n.parse().ok()).unwrap_or(0);
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// A whole answer.
pub(crate) fn answer(stream: &mut dyn Stream, status: u16, more: &str) {
    let head =
        format!("HTTP/1.1 {status} X\r\n{more}Content-Length: 2\r\nConnection: close\r\n\r\nok");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.flush());
}

/// The authority that signs, as PEM, and the settings of a server whose certificate is for `name`.
pub(crate) fn private_authority(name: &str) -> (String, Arc<ServerConfig>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (authority.pem(), Arc::new(config))
}
