//! `forgelm keygen`.

use super::Context;
use crate::args::KeygenArgs;
use forgelm_evidence::Secret;
use forgelm_evidence::keys::file::{NewKey, generate_key_file, public_key_path};
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use serde_json::json;

/// Makes a key pair; nothing is ever overwritten.
pub fn keygen(args: &KeygenArgs, context: &mut Context) -> Exit {
    let passphrase = match &args.passphrase_env {
        None => None,
        Some(name) => match forgelm_world::variable(name).and_then(Secret::new) {
            Some(passphrase) => Some(passphrase),
            None => {
                let text = format!(
                    "--passphrase-env: the variable `{name}` is not set, or empty; no key was made"
                );
                return context.refused(Exit::Config, &text);
            }
        },
    };
    if passphrase.as_ref().is_some_and(Secret::is_short) {
        context.warning("the passphrase has fewer than 16 characters: it can be guessed");
    }
    let new = NewKey { label: args.label.as_deref(), passphrase: passphrase.as_ref() };
    match generate_key_file(&args.out, &new) {
        Err(error) => context.failed(&RunError::from(error)),
        Ok(key) => {
            let public = public_key_path(&args.out);
            let keyid = key.id().as_str().to_owned();
            let kept = if passphrase.is_some() { "encrypted" } else { "keep it to yourself" };
            let text = format!(
                "key id       {keyid}\nprivate key  {} ({kept})\npublic key   {}\n{}",
                args.out.display(),
                public.display(),
                key.public().to_pem(),
            );
            context.result(
                &text,
                &json!({
                    "success": true,
                    "keyid": keyid,
                    "label": args.label,
                    "is_encrypted": passphrase.is_some(),
                    "private_key": args.out,
                    "public_key": public,
                    "public_key_pem": key.public().to_pem(),
                }),
            );
            Exit::Success
        }
    }
}
