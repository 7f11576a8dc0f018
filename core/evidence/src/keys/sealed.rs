//! Private keys under a passphrase: PKCS#8 `EncryptedPrivateKeyInfo` (RFC 5958, PBES2 of RFC 8018).
//!
//! Written with scrypt (RFC 7914) and AES-256-CBC, as `openssl pkcs8 -topk8 -scrypt` does; read with
//! whatever of PBES2 OpenSSL writes by default, too. A file that asks for more work or memory than
//! any sensible one is refused before any of it is done.

use pkcs8::der::asn1::OctetStringRef;
use pkcs8::der::{Decode as _, Encode as _};
use pkcs8::pkcs5::pbes2::{Kdf, Parameters};
use pkcs8::pkcs5::{EncryptionScheme, scrypt};
use pkcs8::{EncryptedPrivateKeyInfo, EncryptedPrivateKeyInfoRef};
use zeroize::Zeroizing;

use super::KeyError;
use super::pem::PrivateProblem;
use crate::secret::Secret;

/// N = 2^14, r = 8, p = 5: 16 MiB. OpenSSL reads nothing above 32 MiB; more of `p` is more work in
/// the same memory.
const SCRYPT_LOG_N: u8 = 14;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 5;
/// What a file may ask for.
const SCRYPT_BYTES_MAX: u64 = 1 << 30;
const SCRYPT_P_MAX: u16 = 64;
const PBKDF2_ITERATIONS_MAX: u32 = 20_000_000;

/// Encrypts a PKCS#8 document.
pub(super) fn seal(der: &[u8], passphrase: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    getrandom::fill(&mut salt)
        .and_then(|()| getrandom::fill(&mut iv))
        .map_err(|_| KeyError::Random)?;
    let cost = scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P).expect("good parameters");
    let parameters =
        Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).expect("good parameters");
    let encrypted = parameters.encrypt(passphrase.expose(), der).expect("a short document");
    let info = EncryptedPrivateKeyInfo {
        encryption_algorithm: EncryptionScheme::from(parameters),
        encrypted_data: OctetStringRef::new(&encrypted).expect("a short document"),
    };
    Ok(Zeroizing::new(info.to_der().expect("a short document")))
}

/// The PKCS#8 document within.
pub(super) fn open(der: &[u8], passphrase: &Secret) -> Result<Zeroizing<Vec<u8>>, PrivateProblem> {
    let info = EncryptedPrivateKeyInfoRef::from_der(der).map_err(|_| {
        PrivateProblem::Malformed("not an encrypted private key in a form that is known")
    })?;
    let parameters = info.encryption_algorithm.pbes2().ok_or(PrivateProblem::Malformed(
        "encrypted with PBES1; expected PBES2, as `openssl pkcs8 -topk8 -v2 aes-256-cbc` writes it",
    ))?;
    let is_costly = match &parameters.kdf {
        Kdf::Pbkdf2(pbkdf2) => pbkdf2.iteration_count > PBKDF2_ITERATIONS_MAX,
        Kdf::Scrypt(scrypt) => {
            let bytes = scrypt.cost_parameter.saturating_mul(128 * u64::from(scrypt.block_size));
            bytes > SCRYPT_BYTES_MAX || scrypt.parallelization > SCRYPT_P_MAX
        }
        _ => return Err(PrivateProblem::Malformed("its key derivation is not known")),
    };
    if is_costly {
        let reason = "its passphrase takes more work to check than any sensible key file";
        return Err(PrivateProblem::Malformed(reason));
    }
    let opened = parameters.decrypt(passphrase.expose(), info.encrypted_data.as_bytes());
    opened.map(Zeroizing::new).map_err(|error| match error {
        pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. }
        | pkcs8::pkcs5::Error::AlgorithmParametersInvalid { .. } => {
            PrivateProblem::Malformed("encrypted with an algorithm that is not known")
        }
        _ => PrivateProblem::PassphraseWrong,
    })
}
