//! `forgelm verify-annex-iv`, and `--compliance-export`.

use super::Context;
use super::verify::{every_usage, keys_for, names_keys, verdict};
use crate::args::{LogLevel, RunFlags, VerifyAnnexIvArgs};
use forgelm_evidence::annex_iv::{AnnexIvOptions, verify_annex_iv};
use forgelm_evidence::documents::annex_iv::OpenPoint;
use forgelm_evidence::dsse::verify::SignatureState;
use forgelm_evidence::pipeline::{PipelineOptions, verify_pipeline};
use forgelm_run::compliance::{self, export::export};
use forgelm_run::dossier::to_evidence;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::plan::Plan;
use serde_json::{Value, json};
use std::path::Path;

/// Checks one technical documentation.
pub fn verify(args: &VerifyAnnexIvArgs, context: &mut Context) -> Exit {
    if args.pipeline {
        return verify_stages(args, context);
    }
    let env = context.environment();
    let keys = match keys_for(&args.trust, &env, &every_usage()) {
        Ok(keys) => keys,
        Err(error) => return context.failed(&error),
    };
    let options = AnnexIvOptions {
        keys,
        allow_unsigned: args.trust.allow_unsigned,
        allow_unhashed: args.allow_unhashed,
        strict: args.strict,
    };
    let report = verify_annex_iv(&args.path, &options);
    let state = report.signature.as_ref().map(|signature| signature.state);
    if state == Some(SignatureState::Absent) && args.trust.allow_unsigned {
        let text = format!("warning: {}: there is no signature", args.path.display());
        context.progress.line(LogLevel::Warning, &text);
    }
    verdict(report.class, &report.to_lines(), &report.to_json(), context)
}

/// Checks a pipeline as a whole.
fn verify_stages(args: &VerifyAnnexIvArgs, context: &mut Context) -> Exit {
    let env = context.environment();
    let keys = match keys_for(&args.trust, &env, &[]) {
        Ok(keys) => keys,
        Err(error) => return context.failed(&error),
    };
    let secret = env.audit_secret.as_ref().and_then(to_evidence);
    let options = PipelineOptions {
        keys,
        require_signature: names_keys(&args.trust) && !args.trust.allow_unsigned,
        secret: secret.as_ref(),
        require_corroboration: args.require_corroboration,
    };
    let report = verify_pipeline(&args.path, &options);
    verdict(report.class(), &report.to_lines(), &report.to_json(), context)
}

/// Prints why a run was refused; with JSON, open points are members of their own.
pub fn failed(error: &RunError, context: &mut Context) -> Exit {
    let RunError::OpenPoints { points, .. } = error else { return context.failed(error) };
    let row = |open: &OpenPoint| json!({"point": open.point, "requirement": open.requirement, "keys": open.keys});
    let points: Vec<Value> = points.iter().map(row).collect();
    context.refused_with(error.exit(), &error.chain(), &json!({"open_points": points}))
}

/// Writes the documents of a config that was not run.
pub fn export_documents(plan: &Plan, flags: &RunFlags, dir: &Path, context: &mut Context) -> Exit {
    let env = context.environment();
    let exported =
        compliance::check(plan, flags.strict_compliance).and_then(|_| export(plan, dir, &env));
    match exported {
        Ok(files) => {
            let shown = dir.display();
            let lines: Vec<String> = files.iter().map(|file| format!("  {file}\n")).collect();
            let text = format!(
                "{} documents of a config, not of a run, in {shown}:\n{}",
                files.len(),
                lines.concat()
            );
            let paths: Vec<_> = files.iter().map(|file| dir.join(file)).collect();
            context.result(&text, &json!({"success": true, "files": paths, "output_dir": dir}));
            Exit::Success
        }
        Err(error) => failed(&error, context),
    }
}
