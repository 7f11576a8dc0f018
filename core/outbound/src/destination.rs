//! Where a request goes: an address as it was configured, which is never shown.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::net::IpAddr;
use ureq::http::Uri;

/// An `http://` or `https://` address. Its text holds tokens often enough: Debug and Display show
/// its scheme and host alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination {
    uri: Uri,
    /// Of the address's user and password.
    authorization: Option<String>,
}

/// A text that is no address for requests. The text itself is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// It cannot be read.
    #[error("is not an address; expected `https://HOST/PATH`")]
    NotAnAddress,
    /// Another scheme.
    #[error("has another scheme; expected `https://` or `http://`")]
    Scheme,
}

impl Destination {
    /// Reads an address.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn parse(text: &str) -> Result<Self, DestinationError> {
        let text = text.trim();
        let uri: Uri = text.parse().map_err(|_| DestinationError::NotAnAddress)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(DestinationError::NotAnAddress);
        };
        if !matches!(scheme, "http" | "https") {
            return Err(DestinationError::Scheme);
        }
        if uri.host().is_none_or(|host| host.is_empty() || host == "[]") {
            return Err(DestinationError::NotAnAddress);
        }
        let (user, host) = match authority.as_str().rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority.as_str()),
        };
        let mut parts = uri.clone().into_parts();
        parts.authority = host.parse().ok();
        let authorization = user.map(|user| format!("Basic {}", STANDARD.encode(decoded(user))));
        let uri = Uri::from_parts(parts).map_err(|_| DestinationError::NotAnAddress)?;
        Ok(Self { uri, authorization })
    }

    /// Whether what is sent can be read on the way.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.uri.scheme_str() == Some("http")
    }

    /// Whether it names this very machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.uri.host().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The same with user and password, in the place of those in the address.
    #[must_use]
    pub fn with_password(self, user: &str, password: &str) -> Self {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        Self { authorization: Some(format!("Basic {pair}")), ..self }
    }

    /// The same with a token, in the place of user and password.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        Self { authorization: Some(format!("Bearer {token}")), ..self }
    }

    /// What lies below this address; a query of its own is left out.
    pub(crate) fn below(&self, path: &str, query: &[(&str, &str)]) -> Self {
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let base = self.uri.path().trim_end_matches('/');
        self.with_path(&format!("{base}/{path}{query}")).unwrap_or_else(|_| self.clone())
    }

    /// Whether the address has a user in it.
    #[must_use]
    pub fn has_user(&self) -> bool {
        self.authorization.is_some()
    }

    /// The same host with another path, query included.
    pub(crate) fn with_path(&self, path: &str) -> Result<Self, DestinationError> {
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = path.parse().ok();
        let uri = match parts.path_and_query {
            None => None,
            Some(_) => Uri::from_parts(parts).ok(),
        };
        let uri = uri.ok_or(DestinationError::NotAnAddress)?;
        Ok(Self { uri, authorization: self.authorization.clone() })
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }
}

/// A value as a part of a query.
fn encoded(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    value
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// User and password with `%40` as `@`.
fn decoded(user: &str) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = user.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let pair = bytes.get(i + 1..i + 3).and_then(|pair| Some((hex(pair[0])?, hex(pair[1])?)));
        match (bytes[i], pair) {
            (b'%', Some((high, low))) => {
                out.push(high * 16 + low);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    out
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host) = (self.uri.scheme_str(), self.uri.host());
        write!(f, "{}://{}", scheme.unwrap_or_default(), host.unwrap_or_default())
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Destination, DestinationError};

    #[test]
    fn only_scheme_and_host_are_shown() {
        let text = "https://user:p%40ss@hooks.example.com:8443/services/T0/B0/secret?token=abc";
        let destination = Destination::parse(text).unwrap();
        assert_eq!(destination.to_string(), "https://hooks.example.com");
        assert_eq!(format!("{destination:?}"), "https://hooks.example.com");
        assert_eq!(destination.authorization(), Some("Basic dXNlcjpwQHNz"));
        assert_eq!(destination.uri().authority().unwrap(), "hooks.example.com:8443");
        assert_eq!(destination.uri().path(), "/services/T0/B0/secret");
        assert!(!destination.is_plain());
    }

    #[test]
    fn what_lies_below_keeps_host_path_and_who_asks() {
        let base = Destination::parse("https://a:b@h.example:8443/team/?x=1").unwrap();
        let below = base.below("api/runs", &[("name", "a b&c=d/ü")]);
        assert_eq!(
            below.uri().to_string(),
            "https://h.example:8443/team/api/runs?name=a%20b%26c%3Dd%2F%C3%BC"
        );
        assert_eq!(below.authorization(), Some("Basic YTpi"));
        assert_eq!(base.clone().with_token("t").below("x", &[]).authorization(), Some("Bearer t"));
        assert_eq!(base.clone().with_password("a", "c").authorization(), Some("Basic YTpj"));
        assert_eq!(base.with_token("t").to_string(), "https://h.example");
        for (text, expected) in [
            ("http://localhost:5000", true),
            ("http://127.0.0.1", true),
            ("http://[::1]:5000", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example.org", false),
        ] {
            assert_eq!(Destination::parse(text).unwrap().is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        let cases = [
            ("", DestinationError::NotAnAddress),
            ("hooks.example.com/x", DestinationError::NotAnAddress),
            ("https://", DestinationError::NotAnAddress),
            ("https:///path", DestinationError::NotAnAddress),
            ("https://user@/path", DestinationError::NotAnAddress),
            ("https://a b/", DestinationError::NotAnAddress),
            ("ftp://example.com/secret", DestinationError::Scheme),
            ("file:///etc/passwd", DestinationError::NotAnAddress),
            ("gopher://127.0.0.1:6379/x", DestinationError::Scheme),
        ];
        for (text, expected) in cases {
            assert_eq!(Destination::parse(text).unwrap_err(), expected, "{text}");
            assert!(!expected.to_string().contains("secret"));
        }
    }
}
