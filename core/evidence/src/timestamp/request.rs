//! What an authority is asked, and whether its answer is one to that.

use der::asn1::{Null, ObjectIdentifier, OctetString, Uint};
use der::{Any, Encode as _, Sequence};
use sha2::{Digest as _, Sha256};

use super::token::Token;
use super::{Authority, RESPONSE_BYTES_MAX};

/// `id-sha256`.
pub(super) const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// An algorithm's name, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Sequence)]
pub(super) struct Algorithm {
    pub(super) oid: ObjectIdentifier,
    #[asn1(optional = "true")]
    pub(super) parameters: Option<Any>,
}

/// `MessageImprint`: the digest of what is stamped.
#[derive(Clone, Debug, PartialEq, Eq, Sequence)]
pub(super) struct MessageImprint {
    pub(super) algorithm: Algorithm,
    pub(super) digest: OctetString,
}

/// `TimeStampReq`, without what we never ask for.
#[derive(Clone, Debug, PartialEq, Eq, Sequence)]
struct TimeStampReq {
    version: u8,
    imprint: MessageImprint,
    nonce: Uint,
    cert_req: bool,
}

/// Bytes of the number that an answer must repeat.
const NONCE_BYTES: usize = 16;

/// Asks for a token over the SHA-256 of a signature; the response, which is one to this request and
/// whose token holds under the certificate within it. Whether that is trusted is the verifier's matter.
///
/// # Errors
/// Why there is none, in words.
pub fn stamp(signature: &[u8], authority: &dyn Authority) -> Result<Vec<u8>, String> {
    let imprint: [u8; 32] = Sha256::digest(signature).into();
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| format!("no random number: {error}"))?;
    let request = request(&imprint, &nonce).map_err(|error| error.to_string())?;
    let response = authority.ask(&request)?;
    if response.len() > RESPONSE_BYTES_MAX {
        return Err(format!("the answer is larger than {RESPONSE_BYTES_MAX} bytes"));
    }
    let token = Token::read(&response)?;
    if !token.is_of(&imprint) {
        return Err("the token is of other bytes than were sent".to_owned());
    }
    if !token.repeats(&nonce) {
        return Err("the token does not repeat the request's nonce".to_owned());
    }
    Ok(response)
}

/// The request in DER.
fn request(imprint: &[u8; 32], nonce: &[u8]) -> der::Result<Vec<u8>> {
    let imprint = MessageImprint {
        algorithm: Algorithm { oid: SHA_256, parameters: Some(Any::encode_from(&Null)?) },
        digest: OctetString::new(&imprint[..])?,
    };
    TimeStampReq { version: 1, imprint, nonce: Uint::new(nonce)?, cert_req: true }.to_der()
}
