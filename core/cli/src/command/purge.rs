//! `forgelm purge`.

use super::Context;
use crate::args::purge::PurgeArgs;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::retention::hold::{self, Held};
use forgelm_run::retention::{PolicyRequest, check_policy};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Removes, holds, or says what is too old.
pub fn purge(args: &PurgeArgs, context: &mut Context) -> Exit {
    match run(args, context) {
        Ok((text, document)) => {
            context.result(&text, &document);
            Exit::Success
        }
        Err(error) => context.failed(&error),
    }
}

fn run(args: &PurgeArgs, context: &mut Context) -> Result<(String, Value), RunError> {
    let env = context.environment();
    let dir = args.output_dir.clone().unwrap_or_else(|| PathBuf::from("."));
    if let Some(reason) = &args.hold {
        return hold::place(&dir, reason, &env).map(|held| shown(&held, &dir));
    }
    if let Some(reason) = &args.release {
        return hold::release(&dir, reason, &env).map(|held| shown(&held, &dir));
    }
    let request =
        PolicyRequest { config: args.config.clone(), output_dir: args.output_dir.clone() };
    let report = check_policy(&request, &env)?;
    Ok((report.to_text(), report.to_json()))
}

fn shown(held: &Held, dir: &Path) -> (String, Value) {
    let state = match held.is_held {
        true => "is held: nothing of it is purged until the hold is released",
        false => "is no longer held",
    };
    (format!("{} {state}\n  {}", dir.display(), held.path.display()), held.to_json())
}
