//! `forgelm purge`.

use super::Context;
use crate::args::purge::{PurgeArgs, PurgeKind, RowMatches};
use forgelm_run::erasure::ErasureError;
use forgelm_run::erasure::artefacts::{ArtefactKind, RunRequest, purge_run};
use forgelm_run::erasure::row::{RowRequest, purge_row};
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
    if let Some(id) = &args.row_id {
        let request = RowRequest {
            id: id.clone(),
            corpus: args.corpus.clone().unwrap_or_default(),
            all_matches: args.row_matches == RowMatches::All,
            output_dir: args.output_dir.clone(),
            config: args.config.clone(),
            search: args.search.clone(),
            justification: args.justification.clone(),
            dry_run: args.dry_run,
            erase_caches: args.erase_caches,
            signing_key: args.signing_key.clone(),
        };
        let erased = purge_row(&request, &env, &mut context.progress)?;
        return Ok((erased.to_text(), erased.to_json()));
    }
    if let Some(run_id) = &args.run_id {
        let Some(kind) = args.kind else {
            let problem = "missing; expected `staging` or `artefacts`".to_owned();
            return Err(ErasureError::Flag { flag: "--kind", problem }.into());
        };
        let request = RunRequest {
            run_id: run_id.clone(),
            kind: match kind {
                PurgeKind::Staging => ArtefactKind::Staging,
                PurgeKind::Artefacts => ArtefactKind::Artefacts,
            },
            output_dir: dir,
            config: args.config.clone(),
            justification: args.justification.clone(),
            dry_run: args.dry_run,
            signing_key: args.signing_key.clone(),
        };
        let erased = purge_run(&request, &env, &mut context.progress)?;
        return Ok((erased.to_text(), erased.to_json()));
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
