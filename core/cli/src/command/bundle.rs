//! `forgelm bundle`: the evidence of a run as one file.

use super::Context;
use crate::args::bundle::BundleArgs;
use forgelm_evidence::bundle::archive::pack;
use forgelm_run::exit::Exit;
use serde_json::json;

/// Packs the evidence.
pub fn bundle(args: &BundleArgs, context: &mut Context) -> Exit {
    match pack(&args.output_dir, &args.out, args.with_weights) {
        Ok(packed) => {
            let left_out = match packed.left_out.as_slice() {
                [] => String::new(),
                names => format!("\nleft out  {} (--with-weights takes them in)", names.join(", ")),
            };
            let text = format!(
                "packed    {} files into {}\nsha256    {}{left_out}\nverify    forgelm verify-bundle {} \
                 --key PUB",
                packed.n_files,
                args.out.display(),
                packed.sha256,
                args.out.display(),
            );
            let result = json!({
                "success": true,
                "archive": args.out,
                "sha256": packed.sha256,
                "files": packed.n_files,
                "left_out": packed.left_out,
            });
            context.result(&text, &result);
            Exit::Success
        }
        Err(error) => {
            let exit = super::verify::exit_of(error.class());
            context.refused(exit, &error.to_string())
        }
    }
}
