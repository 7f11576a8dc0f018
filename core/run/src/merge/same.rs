//! Whether models can be merged: the same base, architecture and tokenizer.

use crate::derived::found::FoundModel;
use crate::error::RunError;
use crate::event::{Event, Observer};
use forgelm_hub::ResolvedModel;
use forgelm_model::{ModelConfig, PeftInfo};
use forgelm_tokenize::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// Refuses an adapter that was trained on another base. Names that end alike are taken for the same
/// model, with a warning: folders move.
pub fn check_base(
    path: &str,
    info: &PeftInfo,
    (base, resolved): (&str, &ResolvedModel),
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let named = info.base_model_name_or_path.as_str();
    if named.is_empty() {
        let text = format!("`{path}` does not say which model it belongs to");
        observer.observe(&Event::Warning(text));
        return Ok(());
    }
    let real = |name: &str| Path::new(name).canonicalize().ok();
    let is_same_folder = real(named).is_some_and(|folder| Some(folder) == real(base));
    if named != base && !is_same_folder {
        if tail(named) != tail(base) {
            return Err(RunError::MergeInput {
                path: path.to_owned(),
                problem: format!("is an adapter for `{named}`; expected one for `{base}`"),
                hint: "an adapter means something only on the model that it was trained on; if \
                       the two are one model, correct `base_model_name_or_path` in \
                       `adapter_config.json`",
            });
        }
        let text = format!("`{path}` is an adapter for `{named}`, which is taken for `{base}`");
        observer.observe(&Event::Warning(text));
    }
    let resolved = resolved.revision.revision_resolved.as_deref();
    if let (Some(named), Some(found)) = (info.revision.as_deref(), resolved)
        && named != found
    {
        let text = format!("`{path}` was trained on revision `{named}` of its base, not `{found}`");
        observer.observe(&Event::Warning(text));
    }
    Ok(())
}

/// The last part of a model's name.
fn tail(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}

/// Refuses a model whose tensors are not those of the base.
pub fn check_architecture(
    path: &str,
    model: &FoundModel,
    base: &FoundModel,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let (own, base) = (model.open.config(), base.open.config());
    let differences: Vec<String> = sizes(own)
        .into_iter()
        .zip(sizes(base))
        .filter(|((_, own), (_, base))| own != base)
        .map(|((key, own), (_, base))| format!("`{key}` is {own}, of the base {base}"))
        .collect();
    if !differences.is_empty() {
        return Err(RunError::MergeInput {
            path: path.to_owned(),
            problem: format!("is of another architecture: {}", differences.join("; ")),
            hint: "only models with the same tensors can be merged",
        });
    }
    let mut rest = own.clone();
    rest.place.clone_from(&base.place);
    rest.bos_token_id = base.bos_token_id;
    rest.eos_token_ids.clone_from(&base.eos_token_ids);
    rest.max_position_embeddings = base.max_position_embeddings;
    if rest != *base {
        let text = format!(
            "`{path}` runs its tensors with other settings than the base (rotary embedding, norms \
             or caps); the result has those of the base"
        );
        observer.observe(&Event::Warning(text));
    }
    Ok(())
}

/// What the tensors of a model follow from, as `config.json` has it.
fn sizes(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let dims = config.dims();
    vec![
        ("model_type", config.model_type.clone()),
        ("hidden_size", dims.c.to_string()),
        ("num_hidden_layers", dims.l.to_string()),
        ("num_attention_heads", dims.h.to_string()),
        ("num_key_value_heads", dims.h_kv.to_string()),
        ("head_dim", dims.d.to_string()),
        ("intermediate_size", dims.f.to_string()),
        ("vocab_size", dims.v.to_string()),
        ("num_experts", dims.e.to_string()),
        ("moe_intermediate_size", dims.f_expert.to_string()),
        ("shared_expert_intermediate_size", dims.f_shared.to_string()),
        ("tie_word_embeddings", config.tie_word_embeddings.to_string()),
        ("attention_bias", format!("{:?}", biases(config))),
    ]
}

/// Linear layers of the first layer that have a bias.
fn biases(config: &ModelConfig) -> Vec<String> {
    let linears = config.linears(0).into_iter().filter(|linear| config.has_bias(*linear));
    linears.map(|linear| linear.module(config.module_names())).collect()
}

/// Refuses a tokenizer that gives other ids than the base's: the rows of the embedding would mean
/// different tokens.
///
/// `is_serialized_alike` says whether the two come from the same kind of file, so that the rest of
/// them can be compared too.
pub fn check_tokenizer(
    path: &str,
    own: &Tokenizer,
    base: &Tokenizer,
    is_serialized_alike: bool,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let mut difference = vocabulary_difference(own, base);
    if difference.is_none() && is_serialized_alike {
        difference = algorithm_difference(own, base)?;
    }
    if let Some(difference) = difference {
        return Err(RunError::MergeInput {
            path: path.to_owned(),
            problem: format!("has another tokenizer than the base: {difference}"),
            hint: "the rows of an embedding can be merged only where they stand for the same tokens",
        });
    }
    let templates = |t: &Tokenizer| {
        t.templates().iter().map(|template| template.source.clone()).collect::<Vec<_>>()
    };
    if !own.templates().is_empty() && templates(own) != templates(base) {
        let text = format!("`{path}` has another chat template; the result has the base's");
        observer.observe(&Event::Warning(text));
    }
    Ok(())
}

fn vocabulary_difference(own: &Tokenizer, base: &Tokenizer) -> Option<String> {
    let (n_own, n_base) = (own.vocab_size(), base.vocab_size());
    if n_own != n_base {
        return Some(format!("it has {n_own} tokens, the base {n_base}"));
    }
    let ids = 0..u32::try_from(n_base).unwrap_or(u32::MAX);
    ids.map(|id| (id, own.token_text(id), base.token_text(id))).find(|(_, a, b)| a != b).map(
        |(id, own, base)| {
            let shown = |text: Option<String>| {
                text.map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"))
            };
            format!("token {id} is {}, of the base {}", shown(own), shown(base))
        },
    )
}

/// The first part of the two algorithms that differs; how batches are cut and padded is not of
/// the algorithm.
fn algorithm_difference(own: &Tokenizer, base: &Tokenizer) -> Result<Option<String>, RunError> {
    let parts = |tokenizer: &Tokenizer| -> Result<Value, RunError> {
        let files = tokenizer.files()?;
        let text = files.iter().find(|(name, _)| name == "tokenizer.json");
        Ok(text.and_then(|(_, text)| serde_json::from_str(text).ok()).unwrap_or_default())
    };
    let (own, base) = (parts(own)?, parts(base)?);
    let names = ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model"];
    let differs = |name: &&&str| own[**name] != base[**name];
    Ok(names.iter().find(differs).map(|name| format!("its part `{name}` differs")))
}
