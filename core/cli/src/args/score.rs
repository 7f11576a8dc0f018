//! `forgelm score`.

use clap::Args;
use forgelm_config::Device;
use std::path::PathBuf;

/// `forgelm score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// A model: folder, `.gguf` file, adapter folder, hub id or `pypi:NAME==VERSION`.
    #[arg(long)]
    pub model: String,
    /// An adapter folder on top of it.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Rows with `text`, `input_ids` or `messages`.
    #[arg(long, value_name = "FILE.jsonl")]
    pub input: PathBuf,
    /// One row out for each row in.
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: PathBuf,
    /// Number format of products with frozen weights.
    #[arg(long, default_value = "auto", value_parser = ["auto", "float32", "bfloat16"])]
    pub compute_dtype: String,
    /// Where it is computed: `auto` (the first NVIDIA device, where there is one), `cpu`, `cuda:N`.
    #[arg(long, default_value = "auto", value_parser = super::device)]
    pub device: Device,
    /// No network.
    #[arg(long)]
    pub offline: bool,
}
