use std::path::PathBuf;

use forgelm_artifact::Disk;
use forgelm_artifact::gguf::build::Builder;
use forgelm_artifact::gguf::{Array, GgufFile, Value};
use forgelm_tokenize::{Message, RenderOptions, TokenizeError, Tokenizer};
use serde_json::Value as Json;

use crate::golden;

/// The metadata that converters write for a tokenizer folder.
fn builder(folder: &str, pre: &str) -> Builder {
    let dir = golden().join("models").join(folder);
    let json: Json =
        serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocabulary.len()];
    for (token, id) in vocabulary {
        tokens[usize::try_from(id.as_u64().unwrap()).unwrap()] = token.clone();
    }
    let mut types = vec![1_i32; tokens.len()];
    for added in json["added_tokens"].as_array().unwrap() {
        types[usize::try_from(added["id"].as_u64().unwrap()).unwrap()] = 3;
    }
    let merge = |m: &Json| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap());
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    Builder::new()
        .text("general.architecture", "llama")
        .metadata("llama.context_length", Value::U32(8192))
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .metadata("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)))
        .metadata("tokenizer.ggml.token_type", Value::Array(Array::I32(types)))
        .metadata("tokenizer.ggml.merges", Value::Array(Array::String(merges)))
}

fn write(builder: &Builder, dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("model.gguf");
    builder.write(&Disk::real(), &path).unwrap();
    path
}

fn open(builder: &Builder) -> Result<Tokenizer, TokenizeError> {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::from_gguf(&GgufFile::open(&write(builder, &dir)).unwrap())
}

fn check_golden(tokenizer: &Tokenizer, key: &str) {
    let strings: Json =
        serde_json::from_slice(&std::fs::read(golden().join("tok/strings.json")).unwrap()).unwrap();
    let rows = strings["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 67);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let encoding = tokenizer.encode_with_specials(text).unwrap();
        let ids: Vec<u64> = encoding.ids.iter().map(|&id| id.into()).collect();
        assert_eq!(serde_json::json!(ids), row[key], "{text:?}");
        let in_chars = |byte: usize| text[..byte].chars().count();
        let offsets: Vec<_> =
            encoding.offsets.iter().map(|&(s, e)| [in_chars(s), in_chars(e)]).collect();
        assert_eq!(serde_json::json!(offsets), row[format!("{key}_offsets")], "{text:?}");
        assert_eq!(
            tokenizer.decode(&encoding.ids).unwrap(),
            row[format!("{key}_decoded")].as_str().unwrap()
        );
    }
}

#[test]
fn a_tokenizer_from_gguf_metadata_gives_the_reference_ids_and_offsets() {
    check_golden(&open(&builder("tokenizer", "gpt-2")).unwrap(), "tiny");
    check_golden(&open(&builder("smollm2-tokenizer", "smollm")).unwrap(), "smollm2");
}

/// The file has 98 MB and is not part of the repository; the test above has its metadata.
#[test]
#[ignore = "needs the published file: build with FORGELM_TEST_SMOLLM2_GGUF set to its path"]
fn the_published_smollm2_file_gives_the_reference_ids() {
    let Some(path) = option_env!("FORGELM_TEST_SMOLLM2_GGUF") else {
        panic!("FORGELM_TEST_SMOLLM2_GGUF was not set when this test was built");
    };
    let tokenizer =
        Tokenizer::from_gguf(&GgufFile::open(std::path::Path::new(path)).unwrap()).unwrap();
    check_golden(&tokenizer, "smollm2");
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    let template = tokenizer.chat_template(None).unwrap();
    let folder = crate::smollm2().chat_template(None).unwrap();
    let messages = [Message::new("user", "Hi")];
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    assert_eq!(
        template.render(&messages, &options).unwrap(),
        folder.render(&messages, &options).unwrap()
    );
    assert_eq!(tokenizer.model_max_length(), Some(8192));
}

#[test]
fn special_ids_templates_and_length_come_from_the_metadata() {
    let file = builder("tokenizer", "gpt-2")
        .metadata("tokenizer.ggml.bos_token_id", Value::U32(0))
        .metadata("tokenizer.ggml.eos_token_id", Value::U32(2))
        .metadata("tokenizer.ggml.padding_token_id", Value::U32(3))
        .metadata("tokenizer.ggml.unknown_token_id", Value::U32(4))
        .metadata("tokenizer.ggml.add_bos_token", Value::Bool(true))
        .metadata(
            "tokenizer.chat_templates",
            Value::Array(Array::String(vec!["tool_use".to_owned()])),
        )
        .text("tokenizer.chat_template", "d")
        .text("tokenizer.chat_template.tool_use", "t");
    let tokenizer = open(&file).unwrap();
    let ids = tokenizer.special_ids();
    assert_eq!((ids.bos, ids.eos, ids.pad, ids.unk), (Some(0), Some(2), Some(3), Some(4)));
    assert_eq!(tokenizer.prefix_ids(), [0]);
    assert_eq!(tokenizer.model_max_length(), Some(8192));
    assert_eq!(tokenizer.chat_template(None).unwrap().source(), "d");
    assert_eq!(tokenizer.chat_template(Some("tool_use")).unwrap().source(), "t");
    // Saved as a folder it begins texts with BOS too.
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!(again.prefix_ids(), [0]);
    assert_eq!(again.special_ids(), ids);
    assert_eq!(open(&builder("tokenizer", "gpt-2")).unwrap().prefix_ids(), [0_u32; 0]);
}

#[test]
fn words_are_cut_as_the_named_tokenizers_do() {
    // Numbers of words by the rules: digits in threes for Llama 3, one by one for Qwen 2 and SmolLM.
    let pieces = |pre: &str, text: &str| {
        let tokenizer = open(&builder("tokenizer", pre)).unwrap();
        let encoding = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&encoding.ids).unwrap(), text);
        encoding.ids.iter().map(|&id| tokenizer.token_text(id).unwrap()).collect::<Vec<_>>()
    };
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2", "default"] {
        assert!(!pieces(pre, "don't 12345 x\n\n  y!").is_empty());
    }
    // " t" merges into one token for GPT-2's rule, with the space before the word.
    assert_eq!(pieces("gpt-2", " the")[0], "Ġthe");
    assert_eq!(pieces("llama-bpe", " the")[0], "Ġthe");
}

#[test]
fn unknown_algorithms_and_rules_are_refused_by_name() {
    let sentence_piece = Builder::new().text("tokenizer.ggml.model", "llama");
    let error = open(&sentence_piece).unwrap_err();
    assert!(error.to_string().contains("tokenizer `llama` is not available yet"), "{error}");
    let error = open(&builder("tokenizer", "tekken")).unwrap_err();
    assert!(
        error.to_string().contains("`tekken` is not available yet; expected one of `gpt-2`"),
        "{error}"
    );
}

#[test]
fn fault_053_wrong_metadata_is_refused_with_its_key() {
    let base =
        || Builder::new().text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "gpt-2");
    let strings =
        |list: &[&str]| Value::Array(Array::String(list.iter().map(|&s| s.to_owned()).collect()));
    let tokens = |list: &[&str]| base().metadata("tokenizer.ggml.tokens", strings(list));
    for (file, part) in [
        (Builder::new(), "tokenizer.ggml.model"),
        (base(), "tokenizer.ggml.tokens"),
        (tokens(&["a", "b"]), "tokenizer.ggml.merges"),
        (tokens(&["a", "a"]).metadata("tokenizer.ggml.merges", strings(&[])), "each token once"),
        (tokens(&["a", "b"]).metadata("tokenizer.ggml.merges", strings(&["a"])), "two tokens"),
        (tokens(&["a", "b"]).metadata("tokenizer.ggml.merges", strings(&["a c"])), "merges"),
        (
            tokens(&["a", "b"])
                .metadata("tokenizer.ggml.merges", strings(&[]))
                .metadata("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1]))),
            "one for each token",
        ),
        (
            tokens(&["a", "b"])
                .metadata("tokenizer.ggml.merges", strings(&[]))
                .metadata("tokenizer.ggml.eos_token_id", Value::U32(2)),
            "tokenizer.ggml.eos_token_id",
        ),
    ] {
        let error = open(&file).unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}
