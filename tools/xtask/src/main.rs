//! Chores of this repository that take more than one command: `cargo xtask CHORE`.
//!
//! It depends on no other crate of ours, so that it builds soon. A chore is one file and one line in
//! [`CHORES`].
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]
#![expect(clippy::disallowed_methods, reason = "no crate of ForgeLM is there to ask")]

mod abi;
mod bench;
mod cluster;
mod cudnn;
mod install;
mod kernels;

use std::process::ExitCode;

/// Name, summary, and what runs with the arguments that follow the name.
type Chore = (&'static str, &'static str, fn(&[String]) -> Result<(), String>);

const CHORES: [Chore; 6] = [
    ("abi", "the headers against the record of the last release", abi::run),
    ("bench", "every benchmark, and one table of shares of this machine's limits", bench::run),
    ("cluster", "the program on several processes of this machine, by MPI", cluster::run),
    ("cudnn", "cuDNN's plans for attention against the table of the pinned version", cudnn::run),
    ("install", "program, library, plugins and headers below a prefix", install::run),
    ("kernels", "machine code of the kernels of CUDA for every architecture", kernels::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let Some((_, _, run)) = CHORES.iter().find(|(chore, _, _)| *chore == name) else {
        eprintln!("usage: cargo xtask CHORE");
        for (name, summary, _) in CHORES {
            eprintln!("  {name:8} {summary}");
        }
        return ExitCode::from(1);
    };
    match run(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(1)
        }
    }
}
