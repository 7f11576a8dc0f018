//! Why the safety of a model cannot be evaluated, found out before the work.

use crate::error::RunError;
use crate::exit::Exit;
use std::path::PathBuf;

/// Why nothing is evaluated.
#[derive(Debug, thiserror::Error)]
pub enum SafetyError {
    /// The classifier is missing, or is none.
    #[error("safety classifier `{name}`: {reason}\n  hint: {HINT}")]
    Classifier {
        /// As configured.
        name: String,
        /// What is wrong.
        reason: String,
        /// How the program ends.
        exit: Exit,
    },
    /// Neither a file of prompts nor the built-in ones are asked for, or both.
    #[error(
        "`--probes` and `--default-probes`: found {found}; expected one of them\n  hint: \
         `--default-probes` takes the prompts that ship with ForgeLM"
    )]
    Probes {
        /// How many are given.
        found: &'static str,
    },
    /// A model whose format this command does not take.
    #[error(
        "`{}` is a GGUF file; expected a folder in the layout of the hub, an adapter or a hub id\n  \
         hint: evaluate the model that it was made from", .path.display()
    )]
    Gguf {
        /// As given.
        path: PathBuf,
    },
    /// The results would go among the evidence of a run.
    #[error(
        "{}: is the folder of a run, whose evidence covers its results\n  hint: `--output-dir` \
         names another folder", .dir.display()
    )]
    FolderOfARun {
        /// As given.
        dir: PathBuf,
    },
    /// The model to evaluate cannot be found or loaded.
    #[error("{}", .0.chain())]
    Model(Box<RunError>),
    /// A number that is no share.
    #[error("`{flag}` is {found}; expected from 0 to 1")]
    Share {
        /// The flag.
        flag: &'static str,
        /// As given.
        found: f64,
    },
}

const HINT: &str = "`evaluation.safety.classifier` (or `--classifier`) names a folder or a hub id: a causal \
                    model that writes `safe` or `unsafe` with a chat template of its own, or a \
                    classification head with such labels";

impl SafetyError {
    /// The exit code that it leads to.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Classifier { exit, .. } => *exit,
            Self::Probes { .. }
            | Self::Gguf { .. }
            | Self::FolderOfARun { .. }
            | Self::Share { .. } => Exit::Config,
            Self::Model(error) => match error.exit() {
                // What was to be evaluated is not there: nothing was decided.
                Exit::Config => Exit::Runtime,
                other => other,
            },
        }
    }
}
