//! Whose tokens are believed: certificates of authorities, and of those who certify them.

use std::time::Duration;

use der::asn1::ObjectIdentifier;
use der::{Decode as _, Encode as _, EncodePem as _};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring};
use x509_cert::Certificate;
use x509_cert::ext::pkix::ExtendedKeyUsage;

use super::token::Token;

/// `id-kp-timeStamping`, whole and as the value bytes of its DER.
const TIME_STAMPING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.8");
const TIME_STAMPING_DER: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08];

/// Certificates in DER that a verifier was given. Empty: no token counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities {
    certificates: Vec<Vec<u8>>,
}

/// A text without a certificate, or with one that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "has no certificate that can be read; expected PEM with `-----BEGIN CERTIFICATE-----`{detail}"
)]
pub struct NoCertificate {
    detail: String,
}

impl Authorities {
    /// Believes these certificates too; one that is there already is there once.
    ///
    /// # Errors
    /// If there is none, or one cannot be read.
    pub fn add_pem(&mut self, pem: &[u8]) -> Result<(), NoCertificate> {
        let refused = |detail: String| NoCertificate { detail };
        let found = Certificate::load_pem_chain(pem).map_err(|e| refused(format!(": {e}")))?;
        if found.is_empty() {
            return Err(refused(String::new()));
        }
        for certificate in found {
            let der = certificate.to_der().map_err(|error| refused(format!(": {error}")))?;
            anchor_from_trusted_cert(&CertificateDer::from(der.as_slice()))
                .map_err(|error| refused(format!(": {error:?}")))?;
            if !self.certificates.contains(&der) {
                self.certificates.push(der);
            }
        }
        Ok(())
    }

    /// The certificates as PEM, one text each.
    pub fn to_pem(&self) -> impl Iterator<Item = String> {
        self.certificates.iter().filter_map(|der| {
            Certificate::from_der(der).ok()?.to_pem(der::pem::LineEnding::LF).ok()
        })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// Whether a token comes from one of these authorities, or one that they certify.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn check(&self, token: &Token) -> Result<(), String> {
        check_purpose(&token.signer)?;
        let der = token.signer.to_der().map_err(|error| error.to_string())?;
        let seconds = u64::try_from(token.time.0 / 1_000_000)
            .map_err(|_| "its time is before 1970".to_owned())?;
        let at = Duration::from_secs(seconds);
        if self.certificates.contains(&der) {
            let validity = token.signer.tbs_certificate().validity();
            let [from, to] = [validity.not_before, validity.not_after];
            return if from.to_unix_duration() <= at && at <= to.to_unix_duration() {
                Ok(())
            } else {
                Err(invalid_at(token, "its certificate is not valid then"))
            };
        }
        let trusted: Vec<CertificateDer<'_>> =
            self.certificates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let anchors: Vec<_> =
            trusted.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
        let between: Vec<CertificateDer<'_>> = token
            .certificates
            .iter()
            .filter(|other| **other != der)
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let end = CertificateDer::from(der.as_slice());
        let end = EndEntityCert::try_from(&end)
            .map_err(|error| format!("its certificate cannot be read: {error:?}"))?;
        let usage = KeyUsage::required_if_present(TIME_STAMPING_DER);
        let time = UnixTime::since_unix_epoch(at);
        end.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &between, time, usage, None, None)
            .map(|_| ())
            .map_err(|error| match error {
                webpki::Error::UnknownIssuer => {
                    invalid_at(token, "no named authority certifies the one that made it")
                }
                webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
                    invalid_at(token, "a certificate of its chain is not valid then")
                }
                other => invalid_at(token, &format!("its chain is not good ({other:?})")),
            })
    }
}

fn invalid_at(token: &Token, reason: &str) -> String {
    format!("it says {}, and {reason}", token.time)
}

/// RFC 3161, 2.3: the one purpose of the signer's key is time stamping, and that is critical.
fn check_purpose(signer: &Certificate) -> Result<(), String> {
    let found = signer.tbs_certificate().get_extension::<ExtendedKeyUsage>();
    match found {
        Ok(Some((true, purposes))) if purposes.0 == [TIME_STAMPING] => Ok(()),
        Ok(_) => Err("its certificate is not for time stamping alone".to_owned()),
        Err(error) => Err(format!("its certificate cannot be read: {error}")),
    }
}

/// Whether a signature holds under the key of a certificate.
///
/// # Errors
/// That it does not, or that nothing here knows its algorithm.
pub(super) fn check_signature(
    certificate: &[u8],
    (algorithm, digest): (ObjectIdentifier, ObjectIdentifier),
    message: &[u8],
    signature: &[u8],
) -> Result<(), String> {
    let candidates = candidates(&algorithm.to_string(), &digest.to_string());
    if candidates.is_empty() {
        return Err(format!("signatures of the kind {algorithm} with {digest} are not believed"));
    }
    let der = CertificateDer::from(certificate);
    let signer = EndEntityCert::try_from(&der)
        .map_err(|error| format!("its certificate cannot be read: {error:?}"))?;
    let holds = |candidate: &&dyn SignatureVerificationAlgorithm| {
        signer.verify_signature(*candidate, message, signature).is_ok()
    };
    match candidates.iter().any(holds) {
        true => Ok(()),
        false => Err("the token's signature does not hold".to_owned()),
    }
}

/// Verifiers for a signature algorithm of CMS with a digest: of each curve, or none.
fn candidates(algorithm: &str, digest: &str) -> Vec<&'static dyn SignatureVerificationAlgorithm> {
    const RSA: &str = "1.2.840.113549.1.1.1";
    const RSA_PSS: &str = "1.2.840.113549.1.1.10";
    let digest = match digest {
        "2.16.840.1.101.3.4.2.1" => 256,
        "2.16.840.1.101.3.4.2.2" => 384,
        "2.16.840.1.101.3.4.2.3" => 512,
        _ => return Vec::new(),
    };
    match (algorithm, digest) {
        (RSA | "1.2.840.113549.1.1.11", 256) => vec![ring::RSA_PKCS1_2048_8192_SHA256],
        (RSA | "1.2.840.113549.1.1.12", 384) => vec![ring::RSA_PKCS1_2048_8192_SHA384],
        (RSA | "1.2.840.113549.1.1.13", 512) => vec![ring::RSA_PKCS1_2048_8192_SHA512],
        (RSA_PSS, 256) => vec![ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY],
        (RSA_PSS, 384) => vec![ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY],
        (RSA_PSS, 512) => vec![ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY],
        ("1.2.840.10045.4.3.2", 256) => vec![ring::ECDSA_P256_SHA256, ring::ECDSA_P384_SHA256],
        ("1.2.840.10045.4.3.3", 384) => vec![ring::ECDSA_P384_SHA384, ring::ECDSA_P256_SHA384],
        // Ed25519 signs the attributes themselves; RFC 8419 has SHA-512 over the content.
        ("1.3.101.112", 512) => vec![ring::ED25519],
        _ => Vec::new(),
    }
}
