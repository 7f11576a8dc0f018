//! The program: arguments in, exit code out. The only crate that prints.
//!
//! It decides nothing about a run: [`args`] is the command line as data, [`terminal`] what only a
//! program asks of the system, [`progress`] what a person watches, and `command/` has a file for each command.

mod args;
mod command;
mod progress;
mod terminal;

use args::{Cli, Command};
use clap::Parser;
use command::Context;
use forgelm_run::exit::Exit;
use forgelm_run::kernels::caught;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; anything else is a usage error.
            let exit = if error.use_stderr() { Exit::Runtime } else { Exit::Success };
            // Nothing sensible can be done when the stream is closed.
            let _ = error.print();
            return ExitCode::from(exit.code());
        }
    };
    let mut context = Context::new(&cli.output);
    if let Some(Command::Launch(args)) = &cli.command {
        return ExitCode::from(command::launch::launch(args, &mut context));
    }
    let exit =
        caught(|| Ok(run(&cli, &mut context))).unwrap_or_else(|error| context.failed(&error));
    context.ended(exit);
    ExitCode::from(exit.code())
}

fn run(cli: &Cli, context: &mut Context) -> Exit {
    match &cli.command {
        None => command::run::run(&cli.run, context),
        Some(Command::Config(config)) => command::config::config(config, context),
        Some(Command::Data(data)) => command::data::data(data, context),
        Some(Command::Doctor(args)) => command::doctor::doctor(args, context),
        Some(Command::Audit(audit)) => command::audit::audit(audit, context),
        Some(Command::Chat(chat)) => command::chat::chat(chat, context),
        Some(Command::Score(score)) => command::score::score(score, context),
        Some(Command::SafetyEval(args)) => command::safety_eval::safety_eval(args, context),
        Some(Command::Monitor(args)) => command::monitor::monitor(args, context),
        Some(Command::Quantize(args)) => command::quantize::quantize(args, context),
        Some(Command::PluginWorker { threads, device }) => {
            command::plugin::worker(*threads, *device, context)
        }
        // It ends with the code of another program.
        Some(Command::Launch(_)) => unreachable!("done before"),
        Some(Command::Comm(comm)) => command::comm::comm(comm, context),
        Some(Command::Checkpoint(args)) => command::checkpoint::checkpoint(args, context),
        Some(Command::Plugin(plugin)) => command::plugin::plugin(plugin, context),
        Some(Command::Approvals(args)) => command::approval::approvals(args, context),
        Some(Command::Approve(args)) => command::approval::approve_run(args, context),
        Some(Command::Reject(args)) => command::approval::reject_run(args, context),
        Some(Command::Keygen(keygen)) => command::keygen::keygen(keygen, context),
        Some(Command::Keys(keys)) => command::keys::keys(keys, context),
        Some(Command::Sign(sign)) => command::sign::sign(sign, context),
        Some(Command::VerifyAudit(args)) => command::verify::audit(args, context),
        Some(Command::VerifyIntegrity(args)) => command::verify::integrity(args, context),
        Some(Command::VerifySignature(args)) => command::verify::signature(args, context),
        Some(Command::VerifyBundle(args)) => command::verify::bundle(args, context),
        Some(Command::Bundle(args)) => command::bundle::bundle(args, context),
        Some(Command::Reproduce(args)) => command::reproduce::reproduce(args, context),
        Some(Command::VerifyGguf(args)) => command::gguf::verify(args, context),
        Some(Command::VerifyAnnexIv(args)) => command::compliance::verify(args, context),
        Some(Command::ReversePii(args)) => command::reverse_pii::reverse_pii(args, context),
        Some(Command::Purge(args)) => command::purge::purge(args, context),
    }
}
