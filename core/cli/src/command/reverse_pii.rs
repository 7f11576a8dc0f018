//! `forgelm reverse-pii`.

use super::Context;
use crate::args::reverse_pii::{QuerySalt, QueryType, ReversePiiArgs};
use forgelm_evidence::identifier::SaltSource;
use forgelm_run::exit::Exit;
use forgelm_run::reverse_pii::{IdentifierKind, ReversePiiRequest, reverse_pii as search};

/// Looks for someone in data files.
pub fn reverse_pii(args: &ReversePiiArgs, context: &mut Context) -> Exit {
    let request = ReversePiiRequest {
        files: args.files.clone(),
        query: args.query.clone(),
        kind: match args.kind {
            QueryType::Literal => IdentifierKind::Literal,
            QueryType::Email => IdentifierKind::Email,
            QueryType::Phone => IdentifierKind::Phone,
            QueryType::TrId => IdentifierKind::TrId,
            QueryType::UsSsn => IdentifierKind::UsSsn,
            QueryType::Iban => IdentifierKind::Iban,
            QueryType::CreditCard => IdentifierKind::CreditCard,
            QueryType::Custom => IdentifierKind::Custom,
        },
        salt_source: args.salt_source.map(|salt| match salt {
            QuerySalt::PerDir => SaltSource::PerDir,
            QuerySalt::EnvVar => SaltSource::EnvVar,
        }),
        output_dir: args.output_dir.clone(),
        audit_dir: args.audit_dir.clone(),
        has_snippets: !args.no_snippets,
    };
    let env = context.environment();
    match search(&request, &env, &mut context.progress) {
        Ok(found) => {
            context.result(&found.to_text(), &found.to_json());
            Exit::Success
        }
        Err(error) => context.failed(&error),
    }
}
