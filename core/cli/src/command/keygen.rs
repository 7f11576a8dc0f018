//! `forgelm keygen`.

use super::Context;
use crate::args::KeygenArgs;
use forgelm_evidence::keys::file::{generate_key_file, public_key_path};
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use serde_json::json;

/// Makes a key pair; nothing is ever overwritten.
pub fn keygen(args: &KeygenArgs, context: &mut Context) -> Exit {
    match generate_key_file(&args.out) {
        Err(error) => context.failed(&RunError::from(error)),
        Ok(key) => {
            let public = public_key_path(&args.out);
            let keyid = key.id().as_str().to_owned();
            let text = format!(
                "key id       {keyid}\nprivate key  {} (keep it to yourself)\npublic key   {}\n{}",
                args.out.display(),
                public.display(),
                key.public().to_pem(),
            );
            context.result(
                &text,
                &json!({
                    "success": true,
                    "keyid": keyid,
                    "private_key": args.out,
                    "public_key": public,
                    "public_key_pem": key.public().to_pem(),
                }),
            );
            Exit::Success
        }
    }
}
