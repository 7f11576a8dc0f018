//! `forgelm plugin list | check | sign | new`: what is loaded and from where, whether it conforms, a
//! signature for it, and a folder for one.

mod new;
mod sdk;

use super::Context;
use crate::args::{LogLevel, PluginCommand};
use forgelm_run::exit::Exit;
use forgelm_run::plan::Plan;
use forgelm_run::plugins::{self, Checked, Finding, LibraryRecord, Outcome};
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Runs one of the commands.
pub fn plugin(command: &PluginCommand, context: &mut Context) -> Exit {
    match command {
        PluginCommand::List { config, libraries } => list(config.as_deref(), libraries, context),
        PluginCommand::Check { library } => check(library, context),
        PluginCommand::Sign { library, key } => sign(library, key.as_deref(), context),
        PluginCommand::New { kind, lang, name } => new::new(*kind, *lang, name, context),
    }
}

/// Serves the program that started this process, until it is done.
pub fn worker(n_threads: usize, is_on_device: bool, context: &mut Context) -> Exit {
    let environment = is_on_device.then(|| context.environment());
    match plugins::serve(n_threads, environment.as_ref()) {
        Ok(()) => Exit::Success,
        Err(error) => {
            let text = format!("error: plugin-worker is for the program itself: {error}");
            context.progress.line(LogLevel::Error, &text);
            Exit::Config
        }
    }
}

fn list(config: Option<&Path>, libraries: &[PathBuf], context: &mut Context) -> Exit {
    let plan = match config.map(Plan::read).transpose() {
        Ok(plan) => plan,
        Err(error) => return context.failed(&error),
    };
    let paths: Vec<String> = libraries.iter().map(|path| path.display().to_string()).collect();
    let env = context.environment();
    let listed =
        plugins::list(plan.as_ref(), &paths, &env).and_then(|(mut plugins, mut broken)| {
            broken.extend(plugins.add_collectives(plan.as_ref(), &env)?);
            Ok((plugins, broken))
        });
    let (mut plugins, broken) = match listed {
        Ok(found) => found,
        Err(error) => return context.failed(&error),
    };
    plugins.tell(&mut context.progress);
    let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
    let shown = json!({
        "success": broken.is_empty(),
        "libraries": plugins.libraries().iter().map(LibraryRecord::to_json).collect::<Vec<_>>(),
        "broken": broken,
    });
    context.result(&text(plugins.libraries()), &shown);
    for error in &broken {
        context.progress.line(LogLevel::Error, &format!("error: {error}"));
    }
    if broken.is_empty() { Exit::Success } else { Exit::Config }
}

fn check(library: &Path, context: &mut Context) -> Exit {
    let checked = match plugins::check(library, &context.environment()) {
        Ok(checked) => checked,
        Err(error) => return context.failed(&error),
    };
    let Checked { mut plugins, findings, device } = checked;
    plugins.tell(&mut context.progress);
    let is_failed = |finding: &Finding| matches!(finding.outcome, Outcome::Fails(_));
    let n_failed = findings.iter().filter(|finding| is_failed(finding)).count();
    let tried = |finding: &Finding| {
        let (outcome, why) = match &finding.outcome {
            Outcome::Holds => ("holds", None),
            Outcome::Fails(why) => ("fails", Some(why)),
            Outcome::Untried(why) => ("untried", Some(why)),
        };
        json!({
            "kind": finding.kind,
            "plugin": finding.plugin,
            "property": finding.property,
            "outcome": outcome,
            "why": why,
        })
    };
    let shown = json!({
        "success": n_failed == 0,
        "libraries": plugins.libraries().iter().map(LibraryRecord::to_json).collect::<Vec<_>>(),
        "findings": findings.iter().map(tried).collect::<Vec<_>>(),
        "device": device.as_ref().and_then(|device| device.as_ref().ok()),
        "why_no_device": device.as_ref().and_then(|device| device.as_ref().err()),
    });
    let lines = findings.iter().map(|finding| format!("{finding}\n")).collect::<String>();
    let untried = device.and_then(Result::err).map(|why| {
        let why = why.lines().next().unwrap_or_default().to_owned();
        format!("untried tensors of a device: {why}\n")
    });
    let text = format!("{}{lines}{}", text(plugins.libraries()), untried.unwrap_or_default());
    context.result(&text, &shown);
    if n_failed == 0 {
        return Exit::Success;
    }
    let error = format!(
        "error: {}: {n_failed} of {} properties do not hold",
        library.display(),
        findings.len()
    );
    context.progress.line(LogLevel::Error, &error);
    Exit::Config
}

fn sign(library: &Path, key: Option<&Path>, context: &mut Context) -> Exit {
    let signed = match plugins::sign(library, key, &context.environment()) {
        Ok(signed) => signed,
        Err(error) => return context.failed(&error),
    };
    if let Some(path) = &signed.new_key {
        let path = path.display();
        let text =
            format!("made a signing key: `{path}`; keep it private, and hand out `{path}.pub`");
        context.progress.line(LogLevel::Info, &text);
    }
    let text = format!(
        "{} {}\n  sha256 {}\n  signed by {}\n  {}",
        signed.name,
        signed.version,
        signed.sha256,
        signed.keyid,
        signed.signature.display(),
    );
    let shown = json!({
        "success": true,
        "name": signed.name,
        "version": signed.version,
        "path": library,
        "sha256": signed.sha256,
        "keyid": signed.keyid,
        "signature": signed.signature,
    });
    context.result(&text, &shown);
    Exit::Success
}

fn text(libraries: &[LibraryRecord]) -> String {
    if libraries.is_empty() {
        return "no plugins were found".to_owned();
    }
    let mut text = String::new();
    for library in libraries {
        let place = match (&library.origin.signature, library.is_bundled) {
            (Some(signature), _) => {
                let label = signature.label.as_ref().map(|label| format!(" ({label})"));
                format!("signed by {}{}", signature.keyid, label.unwrap_or_default())
            }
            (None, true) => "ships with the program".to_owned(),
            (None, false) => "unsigned".to_owned(),
        };
        // Writing to a string cannot fail.
        let apart = if library.origin.is_isolated { ", in a process of its own" } else { "" };
        let _ = writeln!(text, "{}\n  ABI {}, {place}{apart}", library.origin, library.abi);
        let _ = writeln!(text, "  sha256 {}", library.origin.sha256);
        for (kind, name, summary) in &library.plugins {
            let _ = writeln!(text, "  {kind:<13} {name:<10} {summary}");
        }
    }
    text
}
