//! Trusted time: RFC 3161 tokens over signatures.
//!
//! A signer says itself when it signed. A token of a time stamp authority over the SHA-256 of the
//! signature's bytes proves to everybody who trusts the authority that the signature was there at a
//! moment, so that it outlives the key: what a key signed before it was compromised, or expired, stays
//! good.
//!
//! Whole responses (`TimeStampResp`, DER) are kept, in `timestamps` beside the members of an
//! [`Envelope`], and in `verificationMaterial.timestampVerificationData` of a model's signature, where
//! Sigstore bundles have them. They are not signed by us: taken out, the signature is what it is without
//! one; changed, they are told and do not count.
//!
//! It refuses to know the network: a caller's [`Authority`] carries the bytes.
//! Source: RFC 3161, RFC 5652, RFC 5816. Start reading at [`token::Token::read`].

pub mod attach;
mod certificate;
pub mod request;
#[cfg(test)]
mod tests;
pub mod token;

pub use certificate::{Authorities, NoCertificate};

use forgelm_artifact::UtcTime;
use sha2::{Digest as _, Sha256};

use crate::dsse::Envelope;
use token::Token;

/// Most tokens beside one envelope.
pub const TOKENS_MAX: usize = 16;
/// A response that is larger is none, in bytes.
pub const RESPONSE_BYTES_MAX: usize = 1 << 16;

/// Who is asked for a token.
pub trait Authority {
    /// Sends a `TimeStampReq`, and returns what came back.
    ///
    /// # Errors
    /// Why nothing did, in words.
    fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String>;
}

/// What the tokens of an envelope prove to somebody who trusts some authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proven {
    /// By the index of a signature: the moment by which it was there for sure.
    moments: Vec<(usize, UtcTime)>,
    /// What is wrong with tokens that do not count.
    pub(crate) notes: Vec<String>,
}

impl Proven {
    /// Judges the tokens of an envelope.
    pub(crate) fn of(envelope: &Envelope, authorities: &Authorities) -> Self {
        let signatures: Vec<&[u8]> = envelope.signatures.iter().map(|s| &s.sig[..]).collect();
        Self::of_signatures(&signatures, &envelope.timestamps, authorities)
    }

    /// [`Proven::of`], of signatures of any length.
    pub(crate) fn of_signatures(
        signatures: &[&[u8]],
        responses: &[Vec<u8>],
        authorities: &Authorities,
    ) -> Self {
        let mut proven = Self::default();
        let imprints: Vec<[u8; 32]> =
            signatures.iter().map(|bytes| Sha256::digest(bytes).into()).collect();
        for (n, response) in responses.iter().enumerate() {
            let judged = Token::read(response).and_then(|token| {
                let of = imprints.iter().position(|imprint| token.is_of(imprint));
                let of = of.ok_or("it is of other bytes than a signature here")?;
                if authorities.is_empty() {
                    return Err(format!(
                        "it says {}, by an authority that was not named (`--tsa-cert`)",
                        token.time
                    ));
                }
                authorities.check(&token)?;
                Ok((of, token.latest))
            });
            match judged {
                Ok(moment) => proven.moments.push(moment),
                Err(reason) => {
                    proven.notes.push(format!("time stamp {} does not count: {reason}", n + 1));
                }
            }
        }
        proven
    }

    /// The earliest moment by which a signature was there.
    pub(crate) fn moment(&self, signature: usize) -> Option<UtcTime> {
        self.moments.iter().filter(|(of, _)| *of == signature).map(|(_, at)| *at).min()
    }
}
