//! `forgelm monitor`: one comparison, or one after the other until a signal.

use super::Context;
use super::verify::keys_for;
use crate::args::MonitorArgs;
use crate::terminal;
use forgelm_evidence::keys::trust::Usage;
use forgelm_run::environment::Environment;
use forgelm_run::exit::Exit;
use forgelm_run::monitor::{Checked, MonitorRequest, Verdict, Watch};

/// Watches a model.
pub fn monitor(args: &MonitorArgs, context: &mut Context) -> Exit {
    let env = context.environment();
    let keys = match keys_for(&args.trust, &env, &[Usage::Run]) {
        Ok(keys) => keys,
        Err(error) => return context.failed(&error),
    };
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        context.warning(&format!("signals will end this at once: {error}"));
    }
    let request = MonitorRequest {
        run: args.run.clone(),
        data: args.data.clone(),
        config: args.config.clone(),
        keys,
        allow_unsigned: args.trust.allow_unsigned,
        offline: args.offline,
    };
    let watch = match Watch::open(&request, &env, &mut context.progress) {
        Ok(watch) => watch,
        Err(error) => return context.failed(&error),
    };
    if args.once {
        return match watch.check(&mut context.progress) {
            Ok(checked) => {
                show(&checked, context);
                checked.exit()
            }
            Err(error) => context.failed(&error),
        };
    }
    watch_on(&watch, &env, context)
}

/// Checks until a signal. What hinders one check, such as rows that are just being written, does not
/// hinder the next.
fn watch_on(watch: &Watch<'_>, env: &Environment, context: &mut Context) -> Exit {
    loop {
        match watch.check(&mut context.progress) {
            Ok(checked) => show(&checked, context),
            Err(_) if env.stop_requested() => return Exit::Success,
            Err(error) => context.warning(&format!("no check this time: {}", error.chain())),
        }
        if !watch.wait() {
            return Exit::Success;
        }
    }
}

fn show(checked: &Checked, context: &mut Context) {
    let verdict = match checked.comparison.verdict() {
        Verdict::Drift => "drift",
        Verdict::NoDrift => "no drift",
        Verdict::TooFewRows => "too few rows",
    };
    let text = format!("{verdict}: {}", checked.sentence());
    context.result(&text, &checked.to_json());
}
