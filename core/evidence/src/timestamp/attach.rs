//! Tokens into files that are signed already: an envelope, or the signature of a model folder.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forgelm_artifact::write;
use serde_json::{Value, json};

use super::request::stamp;
use super::{Authority, RESPONSE_BYTES_MAX, TOKENS_MAX};
use crate::bundle::write::BundleError;
use crate::dsse::Envelope;
use crate::files;
use crate::strict_json::{DOCUMENT_LIMITS, parse};
use crate::text::pretty_json;

/// What a run asks for time stamps.
#[derive(Clone, Copy)]
pub struct Stamping<'a> {
    /// Who is asked.
    pub authority: &'a dyn Authority,
    /// Whether a run without its tokens fails.
    pub is_required: bool,
}

/// A signature that got no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstamped {
    /// Its file, below the output folder.
    pub file: String,
    /// Why.
    pub reason: String,
}

impl Stamping<'_> {
    /// Puts a token over its first signature into the file `name` below `dir`; what the run does
    /// without one.
    ///
    /// # Errors
    /// If there is no token and it is required, or the file cannot be read or written.
    pub(crate) fn attach(
        &self,
        dir: &Path,
        name: &str,
        kind: Kind,
    ) -> Result<Option<Unstamped>, BundleError> {
        let path = dir.join(name);
        let file = |reason: String| BundleError::File { path: path.clone(), reason };
        let bytes = files::read_bounded(&path, DOCUMENT_LIMITS.size_bytes)
            .map_err(|problem| file(problem.reason()))?
            .ok_or_else(|| file("larger than 16 MiB".to_owned()))?;
        // It was written a moment ago.
        let stamped = match kind {
            Kind::Envelope => stamped_envelope(&bytes, self.authority),
            Kind::Model => stamped_model(&bytes, self.authority),
        };
        match stamped {
            Ok(bytes) => {
                write::atomic(&path, &bytes)?;
                Ok(None)
            }
            Err(reason) if self.is_required => {
                Err(BundleError::TimeStamp { file: name.to_owned(), reason })
            }
            Err(reason) => Ok(Some(Unstamped { file: name.to_owned(), reason })),
        }
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A DSSE envelope.
    Envelope,
    /// The bundle in a model folder.
    Model,
}

fn stamped_envelope(bytes: &[u8], authority: &dyn Authority) -> Result<Vec<u8>, String> {
    let mut envelope = Envelope::parse(bytes).map_err(|error| error.to_string())?;
    let signature = envelope.signatures.first().ok_or("it has no signature")?;
    envelope.timestamps.push(stamp(&signature.sig, authority)?);
    Ok(envelope.to_bytes())
}

fn stamped_model(bytes: &[u8], authority: &dyn Authority) -> Result<Vec<u8>, String> {
    let mut document = parse(bytes, DOCUMENT_LIMITS).map_err(|error| error.to_string())?;
    let signature = document.pointer("/dsseEnvelope/signatures/0/sig").and_then(Value::as_str);
    let signature = signature.and_then(|text| STANDARD.decode(text).ok());
    let response = stamp(&signature.ok_or("it has no signature")?, authority)?;
    let mut all = of_bundle(&document);
    all.push(response);
    put_into_bundle(&mut document, &all);
    Ok(pretty_json(&document))
}

/// The `timestamps` member of an envelope.
pub(crate) fn to_json(responses: &[Vec<u8>]) -> Value {
    responses.iter().map(|bytes| json!({"rfc3161": STANDARD.encode(bytes)})).collect()
}

/// The responses of a list; none where it is no list of them: other members of an envelope are passed
/// over, and what ForgeLM wrote must be in its exact form anyway.
fn read(list: Option<&Value>, key: &str) -> Vec<Vec<u8>> {
    let Some(entries) = list.and_then(Value::as_array).filter(|list| list.len() <= TOKENS_MAX)
    else {
        return Vec::new();
    };
    let bytes = |entry: &Value| {
        let bytes = STANDARD.decode(entry.get(key)?.as_str()?).ok()?;
        (bytes.len() <= RESPONSE_BYTES_MAX).then_some(bytes)
    };
    entries.iter().map(bytes).collect::<Option<_>>().unwrap_or_default()
}

/// The responses of an envelope's document.
pub(crate) fn of_envelope(document: &Value) -> Vec<Vec<u8>> {
    read(document.get("timestamps"), "rfc3161")
}

/// The responses of a Sigstore bundle.
pub(crate) fn of_bundle(document: &Value) -> Vec<Vec<u8>> {
    let place = "/verificationMaterial/timestampVerificationData/rfc3161Timestamps";
    read(document.pointer(place), "signedTimestamp")
}

/// Puts responses where a Sigstore bundle has them.
pub(crate) fn put_into_bundle(document: &mut Value, responses: &[Vec<u8>]) {
    if responses.is_empty() {
        return;
    }
    let entries: Value =
        responses.iter().map(|bytes| json!({"signedTimestamp": STANDARD.encode(bytes)})).collect();
    document["verificationMaterial"]["timestampVerificationData"] =
        json!({"rfc3161Timestamps": entries});
}
