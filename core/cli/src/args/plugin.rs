//! `forgelm plugin`.

use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;

/// `forgelm plugin …`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// What is loaded from where: beside the program, from FORGELM_PLUGIN_PATH, and from a config
    List {
        /// The libraries of this config too.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// These libraries, or folders of them, too.
        libraries: Vec<PathBuf>,
    },
    /// Try what every plugin of a kind must have: a trainer's gradient against its loss, a quantizer
    /// there and back, a model merged with itself. The library runs in a process of its own
    Check {
        /// The library.
        library: PathBuf,
    },
    /// Sign a library: its envelope is written beside it, as LIBRARY.dsse.json
    Sign {
        /// The library.
        library: PathBuf,
        /// The private key (PEM); when not given, the one that runs sign with.
        #[arg(long, value_name = "KEY")]
        key: Option<PathBuf>,
    },
    /// Make a folder with a plugin of your own, which builds and passes the check as it is
    New {
        /// What it is to be.
        #[arg(long, value_enum)]
        kind: PluginKind,
        /// What it is written in.
        #[arg(long, value_enum)]
        lang: PluginLanguage,
        /// Its name, and the folder's.
        name: String,
    },
}

/// A kind of plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum PluginKind {
    /// An objective.
    Trainer,
    /// A format of numbers.
    Quantizer,
    /// A judge of models.
    Evaluator,
    /// A way to make one model of several.
    MergeMethod,
    /// A judge of answers.
    Reward,
}

impl PluginKind {
    /// As a sentence has it.
    #[must_use]
    pub fn with_article(self) -> &'static str {
        match self {
            Self::Trainer => "a trainer",
            Self::Quantizer => "a quantizer",
            Self::Evaluator => "an evaluator",
            Self::MergeMethod => "a merge method",
            Self::Reward => "a reward",
        }
    }
}

/// A language of plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PluginLanguage {
    /// With ForgeLM's SDK, without `unsafe`.
    Rust,
    /// C11.
    C,
    /// C++17.
    Cpp,
}

impl PluginLanguage {
    /// As a sentence has it.
    #[must_use]
    pub fn shown(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::C => "C",
            Self::Cpp => "C++",
        }
    }

    /// The command that builds a new folder.
    #[must_use]
    pub fn build(self) -> &'static str {
        match self {
            Self::Rust => "cargo build --release",
            Self::C | Self::Cpp => "make",
        }
    }

    /// The source of a new folder.
    #[must_use]
    pub fn source(self, name: &str) -> String {
        match self {
            Self::Rust => "src/lib.rs".to_owned(),
            Self::C => format!("{name}.c"),
            Self::Cpp => format!("{name}.cpp"),
        }
    }

    /// What the build makes.
    #[must_use]
    pub fn library(self, name: &str) -> String {
        match self {
            Self::Rust => format!("target/release/lib{name}.so"),
            Self::C | Self::Cpp => format!("{name}.so"),
        }
    }
}
