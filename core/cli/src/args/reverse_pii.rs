//! The command line of `forgelm reverse-pii`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `forgelm reverse-pii`.
#[derive(Debug, Args)]
pub struct ReversePiiArgs {
    /// Files, or patterns of them (`**` goes through folders).
    #[arg(required = true, value_name = "JSONL_GLOB")]
    pub files: Vec<String>,
    /// Who is looked for. Other programs of this machine can see it while it runs.
    #[arg(long, value_name = "TEXT")]
    pub query: String,
    /// What the query is.
    #[arg(long = "type", value_enum, default_value_t = QueryType::Literal)]
    pub kind: QueryType,
    /// Look for the query's digest instead, as tools leave it that mask by digest: with the folder's salt
    /// alone, or with the audit secret too.
    #[arg(long, value_enum)]
    pub salt_source: Option<QuerySalt>,
    /// The folder with the salt; without it that of the first file.
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// The folder whose audit log has the record; without it that of the salt.
    #[arg(long, value_name = "DIR")]
    pub audit_dir: Option<PathBuf>,
    /// Only files and lines, without the text around a match.
    #[arg(long)]
    pub no_snippets: bool,
}

/// What a query is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum QueryType {
    /// The text as it is.
    Literal,
    /// An address of mail.
    Email,
    /// A telephone number.
    Phone,
    /// A Turkish identity number.
    TrId,
    /// A social security number of the United States.
    UsSsn,
    /// The number of a bank account.
    Iban,
    /// The number of a payment card.
    CreditCard,
    /// A regular expression.
    Custom,
}

/// What the key of a digest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum QuerySalt {
    /// The folder's salt.
    PerDir,
    /// The folder's salt and `FORGELM_AUDIT_SECRET`.
    EnvVar,
}
