//! From a base address to the one that is asked.

use super::dialect::Dialect;
use crate::destination::{Destination, DestinationError};

/// The base where none is configured.
pub const DEFAULT_BASE: &str = "https://api.openai.com/v1";
/// What Azure is told where the address does not say it.
const AZURE_VERSION: &str = "2024-10-21";
const COMPLETIONS: &str = "/chat/completions";
const MESSAGES: &str = "/v1/messages";

/// The endpoint of a base, and how it is spoken to. What is there already is not added again.
pub(super) fn of(base: &str, model: &str) -> Result<(Destination, Dialect), DestinationError> {
    let base = Destination::parse(base)?;
    let host = base.uri().host().unwrap_or_default().to_ascii_lowercase();
    let path = base.uri().path().trim_end_matches('/').to_owned();
    let query = base.uri().query().unwrap_or_default().to_owned();
    let is_azure = host.ends_with(".openai.azure.com") || path.contains("/openai/deployments/");
    if host == "api.anthropic.com" || path.ends_with(MESSAGES) {
        let path = match path.strip_suffix(MESSAGES).or_else(|| path.strip_suffix("/v1")) {
            Some(front) => format!("{front}{MESSAGES}"),
            None => path + MESSAGES,
        };
        return Ok((base.with_path(&joined(&path, &query))?, Dialect::Anthropic));
    }
    if !is_azure {
        let path = completed(path);
        return Ok((base.with_path(&joined(&path, &query))?, Dialect::OpenAi));
    }
    // The newer form of Azure's addresses is OpenAI's own, without a version.
    let is_versioned = !path.contains("/openai/v1");
    let path = match path.is_empty() || path == "/openai" {
        true => format!("/openai/deployments/{}", escaped(model)),
        false => path,
    };
    let has_version = query.split('&').any(|pair| pair.starts_with("api-version="));
    let query = match (is_versioned && !has_version, query.is_empty()) {
        (false, _) => query,
        (true, true) => format!("api-version={AZURE_VERSION}"),
        (true, false) => format!("{query}&api-version={AZURE_VERSION}"),
    };
    Ok((base.with_path(&joined(&completed(path), &query))?, Dialect::Azure))
}

fn completed(path: String) -> String {
    if path.ends_with(COMPLETIONS) { path } else { path + COMPLETIONS }
}

fn joined(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A name as one part of a path.
fn escaped(name: &str) -> String {
    let part = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::{Dialect, of};

    #[test]
    fn every_form_of_base_has_its_endpoint() {
        let azure = "https://x.openai.azure.com";
        let cases = [
            ("https://api.together.xyz/v1", "/v1/chat/completions", Dialect::OpenAi),
            ("https://api.together.xyz/v1/", "/v1/chat/completions", Dialect::OpenAi),
            ("http://127.0.0.1:8000", "/chat/completions", Dialect::OpenAi),
            ("https://h/v1/chat/completions", "/v1/chat/completions", Dialect::OpenAi),
            ("https://h/v1?a=b", "/v1/chat/completions?a=b", Dialect::OpenAi),
            (
                azure,
                "/openai/deployments/gpt%204o/chat/completions?api-version=2024-10-21",
                Dialect::Azure,
            ),
            (
                &format!("{azure}/openai/deployments/mine?api-version=2025-01-01"),
                "/openai/deployments/mine/chat/completions?api-version=2025-01-01",
                Dialect::Azure,
            ),
            (
                "https://gateway.corp/openai/deployments/mine/chat/completions?t=1",
                "/openai/deployments/mine/chat/completions?t=1&api-version=2024-10-21",
                Dialect::Azure,
            ),
            (&format!("{azure}/openai/v1"), "/openai/v1/chat/completions", Dialect::Azure),
            ("https://api.anthropic.com", "/v1/messages", Dialect::Anthropic),
            ("https://api.anthropic.com/v1/", "/v1/messages", Dialect::Anthropic),
            ("http://localhost:1/proxy/v1/messages", "/proxy/v1/messages", Dialect::Anthropic),
        ];
        for (base, expected, dialect) in cases {
            let (found, spoken) = of(base, "gpt 4o").unwrap();
            let found = found.uri().path_and_query().map(ToString::to_string);
            assert_eq!((found.as_deref(), spoken), (Some(expected), dialect), "{base}");
        }
        assert!(of("api.openai.com/v1", "m").is_err());
        assert!(of("ftp://h/v1", "m").is_err());
    }
}
