//! `forgelm data preview | lint`.

use super::Context;
use crate::args::{DataArgs, DataCommand};
use crate::progress::count;
use crate::terminal;
use forgelm_run::data::{
    self, ControlFilter, LintReport, Piece, PreviewRow, PreviewSequence, Role,
};
use forgelm_run::exit::Exit;
use forgelm_run::plan::Plan;
use forgelm_run::training::template_now;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Runs one of the commands.
pub fn data(command: &DataCommand, context: &mut Context) -> Exit {
    match command {
        DataCommand::Preview { run, n } => preview(run, *n, context),
        DataCommand::Lint { run, strict } => lint(run, *strict, context),
    }
}

fn preview(args: &DataArgs, n: usize, context: &mut Context) -> Exit {
    let env = context.environment();
    let rows = Plan::read(&args.config).and_then(|plan| {
        let now = template_now(&plan, env.clock.utc());
        data::preview(&plan, n, args.offline, now, &env, &mut context.progress)
    });
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) => return context.failed(&error),
    };
    let mark = if terminal::stdout_has_color() { Mark::Color } else { Mark::Brackets };
    let mut text = String::new();
    let mut documents = Vec::new();
    for row in &rows {
        match row {
            Ok(row) => {
                text.push_str(&row_text(row, mark));
                documents.push(row_json(row));
            }
            Err(problem) => {
                let _ = writeln!(text, "{problem}\n");
                documents.push(json!({
                    "file": problem.file,
                    "line": problem.line,
                    "code": problem.code.name(),
                    "error": problem.to_string(),
                }));
            }
        }
    }
    text.push_str(match mark {
        Mark::Color => "\x1b[32mgreen\x1b[0m is trained, \x1b[2mgray\x1b[0m are special tokens\n",
        Mark::Brackets => "{+this+} is trained\n",
    });
    context.result(&text, &json!({"success": true, "rows": documents}));
    Exit::Success
}

/// How trained tokens are told from the others.
#[derive(Clone, Copy)]
enum Mark {
    Color,
    Brackets,
}

fn row_text(row: &PreviewRow, mark: Mark) -> String {
    let mut text = String::new();
    for sequence in &row.sequences {
        let cut = if row.is_truncated { ", cut at `model.max_length`" } else { "" };
        let role = role_name(sequence.role).map_or(String::new(), |role| format!(", {role}"));
        let _ = writeln!(
            text,
            "{}:{}{role}: {} tokens, {} trained{cut}",
            row.file.display(),
            row.line,
            sequence.tokens.len(),
            sequence.n_trained
        );
        for piece in &sequence.pieces {
            text.push_str(&marked(piece, mark));
        }
        text.push_str("\n\n");
    }
    text
}

fn marked(piece: &Piece, mark: Mark) -> String {
    // Rows may hold what would steer a terminal.
    let shown = ControlFilter::new().push(&piece.text);
    match (mark, piece.is_trained, piece.is_special) {
        (Mark::Brackets, true, _) => format!("{{+{shown}+}}"),
        (Mark::Brackets, false, _) | (Mark::Color, false, false) => shown,
        (Mark::Color, true, false) => format!("\x1b[32m{shown}\x1b[0m"),
        (Mark::Color, true, true) => format!("\x1b[2;32m{shown}\x1b[0m"),
        (Mark::Color, false, true) => format!("\x1b[2m{shown}\x1b[0m"),
    }
}

fn role_name(role: Role) -> Option<&'static str> {
    match role {
        Role::Sole => None,
        Role::Chosen => Some("chosen"),
        Role::Rejected => Some("rejected"),
        Role::Kl => Some("kl"),
        Role::Rollout => Some("prompt"),
    }
}

fn row_json(row: &PreviewRow) -> Value {
    let sequence = |sequence: &PreviewSequence| {
        let pieces = sequence.pieces.iter().map(|piece| {
            json!({"text": piece.text, "trained": piece.is_trained, "special": piece.is_special})
        });
        json!({
            "role": role_name(sequence.role).unwrap_or("sole"),
            "n_tokens": sequence.tokens.len(),
            "n_trained": sequence.n_trained,
            "tokens": sequence.tokens,
            "pieces": pieces.collect::<Vec<_>>(),
        })
    };
    json!({
        "file": row.file,
        "line": row.line,
        "truncated": row.is_truncated,
        "sequences": row.sequences.iter().map(sequence).collect::<Vec<_>>(),
    })
}

fn lint(args: &DataArgs, strict: bool, context: &mut Context) -> Exit {
    let env = context.environment();
    let report = Plan::read(&args.config).and_then(|plan| {
        let now = template_now(&plan, env.clock.utc());
        data::lint(&plan, args.offline, now, &env, &mut context.progress)
    });
    let report = match report {
        Ok(report) => report,
        Err(error) => return context.failed(&error),
    };
    let n_found: u64 = report.counts.values().sum();
    let is_good = report.n_errors == 0 && !(strict && n_found > 0);
    context.result(&lint_text(&report), &lint_json(&report, is_good));
    if is_good { Exit::Success } else { Exit::Config }
}

fn lint_text(report: &LintReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let line = finding.line.map_or(String::new(), |line| format!(":{line}"));
        let kind = if finding.is_error { "error" } else { "warning" };
        let (file, message) = (finding.file.display(), &finding.message);
        let _ = writeln!(text, "{file}{line}: {kind}: {message} [{}]", finding.code);
    }
    for (code, n) in &report.counts {
        let of_code = report.findings.iter().filter(|finding| finding.code == *code);
        let n_shown = of_code.clone().count() as u64;
        let more = if *n > n_shown { format!(", {n_shown} of them shown") } else { String::new() };
        let _ = writeln!(text, "{code}: {}{more}", count(*n));
        if let Some(finding) = of_code.clone().next().filter(|finding| !finding.hint.is_empty()) {
            let _ = writeln!(text, "  hint: {}", finding.hint);
        }
    }
    let n_found: u64 = report.counts.values().sum();
    let _ = writeln!(
        text,
        "{} rows; {} findings, {} of them errors",
        count(report.n_rows),
        count(n_found),
        count(report.n_errors)
    );
    text
}

fn lint_json(report: &LintReport, is_good: bool) -> Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "code": finding.code,
            "severity": if finding.is_error { "error" } else { "warning" },
            "file": finding.file,
            "line": finding.line,
            "message": finding.message,
            "hint": finding.hint,
        })
    });
    json!({
        "success": is_good,
        "rows": report.n_rows,
        "errors": report.n_errors,
        "counts": report.counts,
        "findings": findings.collect::<Vec<_>>(),
    })
}
