//! The command line of `forgelm reproduce`.

use super::TrustArgs;
use clap::Args;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// `forgelm reproduce`.
#[derive(Debug, Args)]
pub struct ReproduceArgs {
    /// Output folder of the run; it is only read.
    pub run: PathBuf,
    /// Where the reproduction goes: a folder that is empty or not there.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Steps to compare, as 5-8 or 5; without it, all of them and the tuned model.
    #[arg(long, value_name = "FIRST-LAST", value_parser = steps)]
    pub steps: Option<RangeInclusive<u64>>,
    /// The base model, when it is not where the run's config says.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// The data, when it is not where the run's config says.
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,
    /// No network: everything must be local or cached.
    #[arg(long)]
    pub offline: bool,
    /// Whose signature of the run is accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}

fn steps(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let step = text.trim().parse::<u64>().ok().filter(|step| *step > 0);
        step.ok_or_else(|| format!("`{text}` is no step; steps are counted from 1, as in 5-8"))
    };
    let (first, last) = (number(first)?, number(last)?);
    match first <= last {
        true => Ok(first..=last),
        false => Err(format!("{first} is after {last}")),
    }
}
