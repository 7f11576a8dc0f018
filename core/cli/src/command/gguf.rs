//! `forgelm verify-gguf`.

use super::Context;
use super::verify::{every_usage, keys_for, names_keys, verdict};
use crate::args::gguf::VerifyGgufArgs;
use forgelm_evidence::gguf::{GgufOptions, verify_gguf};
use forgelm_run::exit::Exit;

/// Checks one GGUF file.
pub fn verify(args: &VerifyGgufArgs, context: &mut Context) -> Exit {
    let keys = match keys_for(&args.trust, &context.environment(), &every_usage()) {
        Ok(keys) => keys,
        Err(error) => return context.failed(&error),
    };
    let allow_unsigned = args.trust.allow_unsigned;
    let options = GgufOptions {
        keys,
        require_signature: args.require_signature || (names_keys(&args.trust) && !allow_unsigned),
        allow_unsigned,
    };
    let report = verify_gguf(&args.path, &options);
    verdict(report.class, &report.to_lines(), &report.to_json(), context)
}
