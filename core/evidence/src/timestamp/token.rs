//! A token as it is read: everything about it is checked but whom it comes from.

use cms::cert::CertificateChoices;
use cms::content_info::ContentInfo;
use cms::signed_data::{SignedData, SignerIdentifier, SignerInfo};
use der::asn1::{BitString, Int, ObjectIdentifier, OctetString};
use der::{Any, Decode as _, Encode as _, Sequence, Tag, Tagged as _};
use forgelm_artifact::UtcTime;
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use x509_cert::Certificate;

use super::RESPONSE_BYTES_MAX;
use super::certificate;
use super::request::{MessageImprint, SHA_256};

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const TST_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.1.4");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const SIGNING_CERTIFICATE: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.12");
const SIGNING_CERTIFICATE_V2: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.47");
const SHA_384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA_512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");

/// `PKIStatusInfo`.
#[derive(Sequence)]
struct StatusInfo {
    status: u8,
    #[asn1(optional = "true")]
    text: Option<Vec<String>>,
    #[asn1(optional = "true")]
    failure: Option<BitString>,
}

/// `TimeStampResp`.
#[derive(Sequence)]
struct TimeStampResp {
    status: StatusInfo,
    #[asn1(optional = "true")]
    token: Option<ContentInfo>,
}

/// `TSTInfo`. The time is kept as it is: it may have fractions of a second, which `der` does not read.
#[derive(Sequence)]
struct TstInfo {
    version: u8,
    policy: ObjectIdentifier,
    imprint: MessageImprint,
    serial: Int,
    time: Any,
    #[asn1(optional = "true")]
    accuracy: Option<Accuracy>,
    #[asn1(default = "Default::default")]
    ordering: bool,
    #[asn1(optional = "true")]
    nonce: Option<Int>,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    authority: Option<Any>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    extensions: Option<Vec<Any>>,
}

/// How far the time may be off.
#[derive(Sequence)]
struct Accuracy {
    #[asn1(optional = "true")]
    seconds: Option<u32>,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    millis: Option<u16>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    micros: Option<u16>,
}

impl Accuracy {
    fn micros(&self) -> i64 {
        i64::from(self.seconds.unwrap_or(0)) * 1_000_000
            + i64::from(self.millis.unwrap_or(0)) * 1000
            + i64::from(self.micros.unwrap_or(0))
    }
}

/// `SigningCertificateV2`, as far as it is looked at: the first is the signer's.
#[derive(Sequence)]
struct SigningCertificate {
    certificates: Vec<Any>,
    #[asn1(optional = "true")]
    policies: Option<Any>,
}

/// A token whose signature holds under the certificate that it carries.
pub struct Token {
    /// When it was made, as the authority says.
    pub time: UtcTime,
    /// The latest moment that this can have been: the time and its accuracy.
    pub latest: UtcTime,
    imprint: Vec<u8>,
    nonce: Option<Vec<u8>>,
    /// The signer's certificate.
    pub(super) signer: Certificate,
    /// All that the token carries, the signer's with them, in DER.
    pub(super) certificates: Vec<Vec<u8>>,
}

impl Token {
    /// Reads a `TimeStampResp`: granted, one signer, whose signed attributes name the content's type and
    /// digest and the signer's certificate, and whose signature holds.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(response: &[u8]) -> Result<Self, String> {
        if response.len() > RESPONSE_BYTES_MAX {
            return Err(format!("larger than {RESPONSE_BYTES_MAX} bytes"));
        }
        let response = TimeStampResp::from_der(response)
            .map_err(|error| format!("not a response of a time stamp authority: {error}"))?;
        // Granted, or granted with changes.
        if response.status.status > 1 {
            let said = response.status.text.iter().flatten().next().cloned();
            let said = said.map(|text| format!(": {}", forgelm_artifact::Quoted(&text)));
            let status = response.status.status;
            let bits = response.status.failure.map(|bits| bits.raw_bytes().to_vec());
            let why = bits.map(|bits| format!(", failure {bits:02x?}")).unwrap_or_default();
            let said = said.unwrap_or_default();
            return Err(format!("the authority refused (status {status}{why}){said}"));
        }
        let content = response.token.ok_or("the response has no token")?;
        Self::of_content(&content)
    }

    fn of_content(content: &ContentInfo) -> Result<Self, String> {
        if content.content_type != SIGNED_DATA {
            return Err("the token is not signed data".to_owned());
        }
        let malformed = |error: der::Error| format!("the token cannot be read: {error}");
        let signed: SignedData = content.content.decode_as().map_err(malformed)?;
        if signed.encap_content_info.econtent_type != TST_INFO {
            return Err("the token's content is not a time stamp".to_owned());
        }
        let content = signed.encap_content_info.econtent.ok_or("the token has no content")?;
        let content: OctetString = content.decode_as().map_err(malformed)?;
        let info = TstInfo::from_der(content.as_bytes()).map_err(malformed)?;
        if info.version != 1 || info.imprint.algorithm.oid != SHA_256 {
            return Err("the token is not of version 1 over SHA-256".to_owned());
        }
        let [signer_info] = signed.signer_infos.0.as_slice() else {
            return Err("the token does not have one signer".to_owned());
        };
        let found: Vec<Certificate> = signed
            .certificates
            .iter()
            .flat_map(|set| set.0.iter())
            .filter_map(|choice| match choice {
                CertificateChoices::Certificate(certificate) => Some(certificate.clone()),
                CertificateChoices::Other(_) => None,
            })
            .collect();
        let signer = found.iter().find(|certificate| is_of(certificate, &signer_info.sid));
        let signer = signer.ok_or("the token does not carry its signer's certificate")?.clone();
        check_signature(signer_info, &signer, content.as_bytes())?;
        let time = read_time(&info.time)?;
        let accuracy = info.accuracy.map_or(0, |accuracy| accuracy.micros());
        let certificates: Vec<Vec<u8>> =
            found.iter().map(|c| c.to_der()).collect::<Result<_, _>>().map_err(malformed)?;
        Ok(Self {
            time,
            latest: UtcTime(time.0.saturating_add(accuracy)),
            imprint: info.imprint.digest.as_bytes().to_vec(),
            nonce: info.nonce.map(|nonce| nonce.as_bytes().to_vec()),
            signer,
            certificates,
        })
    }

    /// Whether it is over this SHA-256.
    #[must_use]
    pub fn is_of(&self, sha256: &[u8; 32]) -> bool {
        self.imprint == sha256
    }

    /// Whether its nonce is this number.
    pub(super) fn repeats(&self, nonce: &[u8]) -> bool {
        let significant = |bytes: &[u8]| -> Vec<u8> {
            bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
        };
        self.nonce.as_deref().is_some_and(|found| significant(found) == significant(nonce))
    }
}

fn is_of(certificate: &Certificate, signer: &SignerIdentifier) -> bool {
    let tbs = certificate.tbs_certificate();
    match signer {
        SignerIdentifier::IssuerAndSerialNumber(named) => {
            *tbs.issuer() == named.issuer && *tbs.serial_number() == named.serial_number
        }
        SignerIdentifier::SubjectKeyIdentifier(named) => matches!(
            tbs.get_extension::<x509_cert::ext::pkix::SubjectKeyIdentifier>(),
            Ok(Some((_, found))) if found == *named
        ),
    }
}

/// The signed attributes are about this content and this certificate, and the signature is over them.
fn check_signature(info: &SignerInfo, signer: &Certificate, content: &[u8]) -> Result<(), String> {
    let attributes = info.signed_attrs.as_ref().ok_or("the token has no signed attributes")?;
    let value = |oid: ObjectIdentifier| {
        let mut found = attributes.iter().filter(|attribute| attribute.oid == oid);
        match (found.next().map(|attribute| attribute.values.as_slice()), found.next()) {
            (Some([value]), None) => Some(value),
            _ => None,
        }
    };
    let content_type = value(CONTENT_TYPE).and_then(|v| v.decode_as::<ObjectIdentifier>().ok());
    if content_type != Some(TST_INFO) {
        return Err("the token's signed attributes are of another content".to_owned());
    }
    let digest: Vec<u8> = match info.digest_alg.oid {
        SHA_256 => Sha256::digest(content).to_vec(),
        SHA_384 => Sha384::digest(content).to_vec(),
        SHA_512 => Sha512::digest(content).to_vec(),
        other => return Err(format!("digests of the kind {other} are not believed")),
    };
    let stated = value(MESSAGE_DIGEST).and_then(|v| v.decode_as::<OctetString>().ok());
    if stated.is_none_or(|stated| stated.as_bytes() != digest) {
        return Err("the token's content was changed after signing".to_owned());
    }
    let der = signer.to_der().map_err(|error| error.to_string())?;
    let names_signer = match (value(SIGNING_CERTIFICATE_V2), value(SIGNING_CERTIFICATE)) {
        (Some(v2), _) => names(v2, &der, true),
        (None, Some(v1)) => names(v1, &der, false),
        (None, None) => None,
    };
    if names_signer != Some(true) {
        return Err("the token's signed attributes do not name its signer's certificate".to_owned());
    }
    let message = attributes.to_der().map_err(|error| error.to_string())?;
    certificate::check_signature(
        &der,
        (info.signature_algorithm.oid, info.digest_alg.oid),
        &message,
        info.signature.as_bytes(),
    )
}

/// Whether the first certificate of the attribute is this one, by its digest.
fn names(value: &Any, certificate: &[u8], is_v2: bool) -> Option<bool> {
    let list: SigningCertificate = value.decode_as().ok()?;
    let first = list.certificates.first()?;
    // ESSCertID is a digest and more; ESSCertIDv2 has an algorithm before it, SHA-256 where it is left out.
    let parts: Vec<Any> = first.decode_as().ok()?;
    let (algorithm, digest) = match parts.first()? {
        part if part.tag() == Tag::OctetString => (SHA_256, part),
        part if is_v2 => (part.decode_as::<super::request::Algorithm>().ok()?.oid, parts.get(1)?),
        _ => return None,
    };
    let digest: OctetString = digest.decode_as().ok()?;
    let expected = match (is_v2, algorithm) {
        // What an old authority has; the signature itself is of a newer digest.
        (false, _) => {
            let sha1 = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
            ring::digest::digest(sha1, certificate).as_ref().to_vec()
        }
        (true, SHA_256) => Sha256::digest(certificate).to_vec(),
        (true, SHA_384) => Sha384::digest(certificate).to_vec(),
        (true, SHA_512) => Sha512::digest(certificate).to_vec(),
        (true, _) => return None,
    };
    Some(digest.as_bytes() == expected)
}

/// `20260102030405Z`, with a fraction of a second or without.
fn read_time(value: &Any) -> Result<UtcTime, String> {
    let refused = || "the token's time cannot be read".to_owned();
    let text = std::str::from_utf8(value.value()).map_err(|_| refused())?;
    let whole = text.strip_suffix('Z').filter(|_| value.tag() == Tag::GeneralizedTime);
    let (date, fraction) = match whole.ok_or_else(refused)?.split_once('.') {
        Some((date, fraction)) => (date, Some(fraction)),
        None => (whole.unwrap_or_default(), None),
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if date.len() != "20260102030405".len()
        || !is_number(date)
        || !fraction.is_none_or(|f| is_number(f) && f.len() <= 9)
    {
        return Err(refused());
    }
    let part = |from: usize, to: usize| &date[from..to];
    let fraction = fraction.map(|f| format!(".{f}")).unwrap_or_default();
    let text = format!(
        "{}-{}-{}T{}:{}:{}{fraction}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    );
    text.parse().map_err(|_| refused())
}
