//! `forgelm approve`, `reject` and `approvals`: people decide on a staged model.

use super::Context;
use super::verify::keys_for;
use crate::args::approval::{ApprovalsArgs, DecisionArgs};
use forgelm_evidence::keys::trust::Usage;
use forgelm_run::approval::decide::{Decided, DecisionRequest, approve, reject};
use forgelm_run::approval::list::{Shown, Waiting, pending, show};
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::event::Observer;
use forgelm_run::exit::Exit;
use forgelm_run::outbound::tell_decision;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

type Decide =
    fn(&DecisionRequest<'_>, &Environment, &mut dyn Observer) -> Result<Decided, RunError>;

/// Approves; the model has its final name once enough have.
pub fn approve_run(args: &DecisionArgs, context: &mut Context) -> Exit {
    decide(args, approve, context)
}

/// Rejects.
pub fn reject_run(args: &DecisionArgs, context: &mut Context) -> Exit {
    decide(args, reject, context)
}

fn decide(args: &DecisionArgs, decide: Decide, context: &mut Context) -> Exit {
    let env = context.environment();
    let keys = match keys_for(&args.trust, &env, &[Usage::Run]) {
        Ok(keys) => keys,
        Err(error) => return context.failed(&error),
    };
    let asked = DecisionRequest {
        run_id: &args.run_id,
        output_dir: &args.output_dir,
        comment: args.comment.as_deref(),
        role: args.role.as_deref(),
        approver_key: args.approver_key.as_deref(),
        signing_key: args.signing_key.as_deref(),
        keys,
        allow_unsigned: args.trust.allow_unsigned,
    };
    match decide(&asked, &env, &mut context.progress) {
        Ok(decided) => {
            let exit = decided_on(args, &decided, context);
            let what = (&decided, args.comment.as_deref());
            tell_decision(&args.output_dir, &args.run_id, what, &env, &mut context.progress);
            exit
        }
        Err(error) => context.failed(&error),
    }
}

fn decided_on(args: &DecisionArgs, decided: &Decided, context: &mut Context) -> Exit {
    let run_id = &args.run_id;
    match decided {
        Decided::Promoted { approver, final_model, is_repair } => {
            let how =
                if *is_repair { "a promotion that was cut off is finished" } else { "approved" };
            let text = format!(
                "{run_id}: {how}; last approved by {approver}\nmodel     {}\nverify    forgelm \
                 verify-bundle {}\n",
                final_model.display(),
                args.output_dir.display()
            );
            let json = json!({
                "success": true,
                "run_id": run_id,
                "approver": approver,
                "final_model_path": final_model,
                "promote_strategy": "rename",
                "awaiting_approval": false,
                "repaired": is_repair,
            });
            context.result(&text, &json);
            Exit::Success
        }
        Decided::Counted { approver, staging, approvals, quorum } => {
            let text =
                format!("{run_id}: {approvals} of {quorum} have approved; the model waits\n");
            let json = json!({
                "success": true,
                "run_id": run_id,
                "approver": approver,
                "final_model_path": null,
                "staging_path": staging,
                "awaiting_approval": true,
                "approvals": approvals,
                "quorum": quorum,
            });
            context.result(&text, &json);
            Exit::AwaitingApproval
        }
        Decided::Rejected { approver, staging } => {
            let text = format!("{run_id}: rejected; the model stays in {}\n", staging.display());
            let json = json!({
                "success": true,
                "run_id": run_id,
                "approver": approver,
                "staging_path": staging,
                "comment": args.comment,
            });
            context.result(&text, &json);
            Exit::Success
        }
    }
}

/// Lists what waits, or shows one run.
pub fn approvals(args: &ApprovalsArgs, context: &mut Context) -> Exit {
    let now = context.environment().clock.utc();
    let dir = &args.output_dir;
    let (text, json) = match &args.show {
        Some(run_id) => match show(dir, run_id, now) {
            Ok(shown) => shown_run(&shown),
            Err(error) => return context.failed(&error),
        },
        None => match pending(dir, now) {
            Ok(waiting) => listed(dir, &waiting),
            Err(error) => return context.failed(&error),
        },
    };
    context.result(&text, &json);
    Exit::Success
}

fn listed(dir: &Path, waiting: &[Waiting]) -> (String, Value) {
    let row = |of: &Waiting| {
        let request = &of.request;
        json!({
            "run_id": request.run_id,
            "staging_path": of.staging,
            "staging_exists": of.staging_exists,
            "requested_at": request.requested_at,
            "age_seconds": of.age_seconds,
            "metrics": request.metrics,
            "gate_failures": request.gate_failures,
            "config_hash": request.config_hash,
            "reason": request.reason,
            "approvals": request.approvals.len(),
            "quorum": request.policy.quorum,
            "expires_at": expires_at(of),
            "status": if of.is_approved { "approved" } else { "pending" },
        })
    };
    let rows: Vec<Value> = waiting.iter().map(row).collect();
    let json = json!({"success": true, "pending": rows, "count": rows.len()});
    if waiting.is_empty() {
        return (format!("{}: nothing waits for approval\n", dir.display()), json);
    }
    let mut text = String::new();
    let line = ["RUN_ID", "AGE", "REQUESTED_AT", "STAGING", "APPROVALS"];
    let mut add = |[id, age, at, staging, n]: [&str; 5]| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{id:<16} {age:>8}  {at:<32}  {staging:<8}  {n}");
    };
    add(line);
    for of in waiting {
        let staging = if of.staging_exists { "present" } else { "MISSING" };
        let n = format!("{} of {}", of.request.approvals.len(), of.request.policy.quorum);
        let n = if of.is_approved { format!("{n}, cut off: approve again") } else { n };
        let n = match of.request.gate_failures.is_empty() {
            true => n,
            false => format!("{n}; a gate rejects it"),
        };
        add([&of.request.run_id, &age(of.age_seconds), &of.request.requested_at, staging, &n]);
    }
    (text, json)
}

fn expires_at(of: &Waiting) -> Option<String> {
    let limit = of.request.requested().and_then(|at| of.request.policy.expires_at(at));
    limit.map(|limit| limit.to_string())
}

/// A text of the log, whole, that cannot leave its line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A span of time in its largest units.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn shown_run(shown: &Shown) -> (String, Value) {
    let request = &shown.request;
    let mut json = json!({
        "success": true,
        "run_id": request.run_id,
        "status": shown.status.as_str(),
        "chain": request.chain,
        "staging_contents": shown.contents,
        "approvals": request.approvals.len(),
        "policy": request.policy.to_json(),
    });
    let mut text = format!("{}: {}\n", request.run_id, shown.status.as_str());
    for reason in &request.gate_failures {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  a gate rejects it: {}", plain(reason));
    }
    for line in &request.chain {
        let member = |key: &str| line[key].as_str().unwrap_or_default();
        let said = ["approver", "role", "comment", "reason"].iter().filter_map(|key| {
            let value = line[*key].as_str().filter(|value| !value.is_empty())?;
            Some(format!("{key} {}", plain(value)))
        });
        let said: Vec<String> = said.collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {}  {:<24}  {}",
            member("timestamp"),
            member("event"),
            said.join(", ")
        );
    }
    let _ = writeln!(text, "  files: {}", shown.contents.join(", "));
    if let Some(detail) = &shown.corrupted {
        json["corrupted"] = json!(true);
        json["corruption_detail"] = json!(detail);
        let _ = writeln!(text, "  the log is not whole: {detail}");
    }
    (text, json)
}

#[cfg(test)]
mod tests {
    use super::age;

    #[test]
    fn ages_are_shown_in_their_largest_units() {
        let shown = [0, 59, 60, 3599, 3600, 7_260, 86_399, 86_400, 900_000].map(age);
        assert_eq!(shown, ["0s", "59s", "1m", "59m", "1h 0m", "2h 1m", "23h 59m", "1d", "10d"]);
    }
}
