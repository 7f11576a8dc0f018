//! A finished run's evidence as a whole: written and signed in one order, verified in one call.

pub mod archive;
pub mod verify;
pub mod write;

/// Folder of documents and signatures below the output folder.
pub const COMPLIANCE_DIR: &str = "compliance";
/// The attestation of the run (S2), below the output folder.
pub const ATTESTATION: &str = "compliance/attestation.dsse.json";
/// The public half of the signing key, below the output folder. It lets a reader see that the
/// signatures fit together; whether to trust it is the reader's decision.
pub const PUBLIC_KEY: &str = "compliance/signing_key.pub";

/// While this file is in an output folder, nothing of the folder is purged.
pub const HOLD_FILE: &str = "LEGAL_HOLD";

/// In an attestation's scope: the files of the output folder itself, without its folders.
pub(crate) const ROOT: &str = ".";
