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
    let exit = match &cli.command {
        None => command::run::run(&cli.run, &mut context),
        Some(Command::Config(config)) => command::config::config(config, &mut context),
        Some(Command::Data(data)) => command::data::data(data, &mut context),
        Some(Command::Audit(audit)) => command::audit::audit(audit, &mut context),
        Some(Command::Chat(chat)) => command::chat::chat(chat, &mut context),
        Some(Command::Score(score)) => command::score::score(score, &mut context),
        Some(Command::Monitor(args)) => command::monitor::monitor(args, &mut context),
        Some(Command::Quantize(args)) => command::quantize::quantize(args, &mut context),
        Some(Command::PluginWorker { threads }) => command::plugin::worker(*threads, &mut context),
        Some(Command::Plugin(plugin)) => command::plugin::plugin(plugin, &mut context),
        Some(Command::Approvals(args)) => command::approval::approvals(args, &mut context),
        Some(Command::Approve(args)) => command::approval::approve_run(args, &mut context),
        Some(Command::Reject(args)) => command::approval::reject_run(args, &mut context),
        Some(Command::Keygen(keygen)) => command::keygen::keygen(keygen, &mut context),
        Some(Command::Keys(keys)) => command::keys::keys(keys, &mut context),
        Some(Command::Sign(sign)) => command::sign::sign(sign, &mut context),
        Some(Command::VerifyAudit(args)) => command::verify::audit(args, &mut context),
        Some(Command::VerifyIntegrity(args)) => command::verify::integrity(args, &mut context),
        Some(Command::VerifySignature(args)) => command::verify::signature(args, &mut context),
        Some(Command::VerifyBundle(args)) => command::verify::bundle(args, &mut context),
        Some(Command::Bundle(args)) => command::bundle::bundle(args, &mut context),
        Some(Command::Reproduce(args)) => command::reproduce::reproduce(args, &mut context),
        Some(Command::VerifyGguf(args)) => command::gguf::verify(args, &mut context),
        Some(Command::VerifyAnnexIv(args)) => command::compliance::verify(args, &mut context),
        Some(Command::ReversePii(args)) => command::reverse_pii::reverse_pii(args, &mut context),
        Some(Command::Purge(args)) => command::purge::purge(args, &mut context),
    };
    ExitCode::from(exit.code())
}
