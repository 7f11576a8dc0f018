//! Where everything came from, what signs it, and how to make it again.

use maud::{Markup, html};

use super::super::annex_iv::Surroundings;
use super::super::evidence::{Evidence, Outcome};
use super::super::inventory::{data_sets, is_sha256, libraries};
use super::number::{bytes, count};
use super::page::{command, pairs, table};
use crate::audit::LOG_FILE;
use crate::bundle::ATTESTATION;
use crate::dsse::SUFFIX;

/// What went in and what came out, by digest.
pub(super) fn lineage(evidence: &Evidence, around: &Surroundings) -> Markup {
    let base = &evidence.model_lineage;
    let mut went_in: Vec<Vec<String>> = Vec::new();
    let revisions = std::iter::once(("base model", &base.base_model_revision)).chain(
        base.component_revisions
            .iter()
            .filter(|component| component.role != "base_model")
            .map(|component| (component.role.as_str(), &component.revision)),
    );
    for (role, revision) in revisions {
        let known = [
            revision.revision_resolved.as_ref().map(|of| format!("revision {of}")),
            revision.sha256.as_ref().map(|of| format!("weights SHA-256 {of}")),
        ];
        let known: Vec<String> = known.into_iter().flatten().collect();
        let known = if known.is_empty() { "not pinned".to_owned() } else { known.join("; ") };
        went_in.push(vec![super::number::words(role), revision.repo_id.clone(), known]);
    }
    for set in data_sets(evidence) {
        let digest = set.print.sha256.as_ref().map(|of| format!("SHA-256 {of}"));
        let digest = digest.unwrap_or_else(|| "not pinned".to_owned());
        went_in.push(vec!["data set".to_owned(), set.name.to_owned(), digest]);
    }
    for library in libraries(evidence) {
        let name = format!("{} {} ({})", library.name, library.version, library.methods.join(", "));
        let digest =
            library.sha256.map_or_else(|| "not recorded".to_owned(), |of| format!("SHA-256 {of}"));
        went_in.push(vec!["plugin".to_owned(), name, digest]);
    }
    went_in.push(vec![
        "config".to_owned(),
        "compliance/config.json".to_owned(),
        evidence.config_hash.clone(),
    ]);
    let came_out: Vec<Vec<String>> = around
        .model_files
        .iter()
        .map(|file| vec![file.name.clone(), bytes(file.size_bytes), file.sha256.clone()])
        .collect();
    html! {
        (table("What went in", &["what", "name", "pinned by"], &[], &went_in))
        @if came_out.is_empty() {
            p { "There is no tuned model: nothing came out." }
        } @else {
            (table("What came out", &["file", "size", "SHA-256"], &[false, true], &came_out))
        }
    }
}

/// What is signed by whom, and how a stranger finds out.
pub(super) fn signatures(evidence: &Evidence, around: &Surroundings) -> Markup {
    let Some(keyid) = &around.keyid else {
        return html! {
            p { b.wait { "Nothing is signed: " } "`signing.enabled` is false, so that nobody can tell whether these \
                 files are as the run wrote them." }
            (command("forgelm verify-bundle . --allow-unsigned"))
        };
    };
    let rows = [
        ("key id of the signer (Ed25519)", keyid.clone()),
        ("the whole run, every file by digest", ATTESTATION.to_owned()),
        ("this page, and each document beside it", format!("compliance/*{SUFFIX}")),
        (
            "the audit log",
            format!("{LOG_FILE}, its head in {}", crate::checkpoint::CHECKPOINT_FILE),
        ),
    ];
    let mut rows: Vec<(String, String)> =
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Some(dir) = &around.model_dir {
        rows.push((
            "the model's folder".to_owned(),
            format!("{dir}/{}", crate::model::MODEL_SIGNATURE),
        ));
    }
    html! {
        p { "A page can claim anything. What counts are the signatures beside it, which this program, or any that \
             knows DSSE and Ed25519, verifies with the signer's public key, obtained another way than with \
             these files." }
        (pairs("What is signed, and where the signature is", &rows))
        p { "In the run's folder, the one that holds " code { "compliance" } ":" }
        (command(&format!("forgelm verify-bundle . --key signer.pub\n{}", match evidence.outcome {
            Outcome::Staged => format!("forgelm approvals --output-dir . --show {}", evidence.run_id),
            Outcome::Promoted | Outcome::Reverted => format!("forgelm verify-audit {LOG_FILE} --key signer.pub"),
        })))
    }
}

/// How to make the run again, and how to name it.
pub(super) fn again(evidence: &Evidence) -> Markup {
    let p = &evidence.training_parameters;
    let kernels = p.more.get("kernels").map(super::number::value);
    let mut rows = vec![
        (
            "program".to_owned(),
            format!("ForgeLM {} ({})", evidence.forgelm_version, evidence.builder.target),
        ),
        ("config".to_owned(), format!("compliance/config.json, {}", evidence.config_hash)),
        ("seed".to_owned(), count(p.seed)),
    ];
    rows.extend(kernels.map(|kernels| ("kernels".to_owned(), kernels)));
    let base = &evidence.model_lineage;
    rows.push(("base model".to_owned(), base.base_model.clone()));
    rows.push(("data set".to_owned(), evidence.data_provenance.primary_dataset.clone()));
    let date = evidence.finished_at.to_text_date();
    html! {
        p {
            "With the same base model, data and kernels every step comes out the same, bit for bit, on any number of \
             threads. Where the run was started, with its folder as RUN; elsewhere "
            code { "--model" } " and " code { "--data" } " say where the two lie:"
        }
        (command("forgelm reproduce RUN --output again --key signer.pub"))
        (pairs("What decides the bits", &rows))
        p { "To name this run elsewhere:" }
        (command(&format!(
            "ForgeLM {}, run {} of {date}, config {}",
            evidence.forgelm_version, evidence.run_id, short(&evidence.config_hash)
        )))
    }
}

/// The first digits of a digest.
fn short(hash: &str) -> String {
    match hash.split_once(':') {
        Some((kind, hex)) if is_sha256(hex) => format!("{kind}:{}", &hex[..16]),
        _ => hash.to_owned(),
    }
}
