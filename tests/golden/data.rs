//! Packing and the trainer's batches as the Python stack (TRL 1.16.0) makes them, exact.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, in a temporary folder"
)]

use std::path::{Path, PathBuf};

use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_config::TrainerType;
use forgelm_data::{RenderSettings, Renderer, Sequence, best_fit_decreasing, open, pack};
use forgelm_sdk::trainer::Role;
use forgelm_tokenize::Tokenizer;
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden().join(name)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| u32::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

/// The inputs of the packing file, truncated, every token trained.
fn inputs(packing: &Value) -> (Vec<Sequence>, usize) {
    let capacity = usize::try_from(packing["seq_length"].as_u64().unwrap()).unwrap();
    let sequence = |(record, input): (usize, &Value)| {
        let mut tokens = numbers(input);
        tokens.truncate(capacity);
        let trained = vec![true; tokens.len()];
        Sequence { record: record as u64, role: Role::Sole, tokens, trained }
    };
    (packing["inputs"].as_array().unwrap().iter().enumerate().map(sequence).collect(), capacity)
}

#[test]
fn bins_are_those_of_the_reference() {
    let packing = json("misc/packing.json");
    let (sequences, capacity) = inputs(&packing);
    let lengths: Vec<usize> = packing["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input.as_array().unwrap().len())
        .collect();
    let expected = &packing["strategies"]["bfd"];
    let bins = best_fit_decreasing(&lengths, capacity);
    assert_eq!(bins.len(), expected["input_ids"].as_array().unwrap().len());
    for (i, bin) in bins.iter().enumerate() {
        let parts: Vec<&Sequence> = bin.iter().map(|&s| &sequences[s]).collect();
        let batch = pack(&parts);
        assert_eq!(batch.tokens, numbers(&expected["input_ids"][i]), "bin {i}");
        let lengths: Vec<u32> =
            batch.segments.iter().map(|s| u32::try_from(s.len).unwrap()).collect();
        assert_eq!(lengths, numbers(&expected["seq_lengths"][i]), "bin {i}");
    }
}

#[test]
fn a_packed_batch_is_that_of_the_reference_collator() {
    let packing = json("misc/packing.json");
    let (sequences, capacity) = inputs(&packing);
    let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
    let first_three: Vec<&Sequence> = best_fit_decreasing(&lengths, capacity)
        .iter()
        .take(3)
        .flatten()
        .map(|&s| &sequences[s])
        .collect();
    let batch = pack(&first_three);
    let expected = &packing["collated_first_three_bfd"];
    assert_eq!(batch.tokens, numbers(&expected["input_ids"][0]));
    assert_eq!(batch.positions, numbers(&expected["position_ids"][0]));
    let ends: Vec<u32> =
        batch.segments.iter().map(|s| u32::try_from(s.start + s.len).unwrap()).collect();
    assert_eq!(ends, numbers(&expected["cu_seq_lens_q"])[1..]);
    // The reference's labels stand on the row of the token itself; ours on the row that predicts it.
    let labels = expected["labels"][0].as_array().unwrap();
    let scored: Vec<(u32, u32)> = (1..labels.len())
        .filter_map(|t| {
            Some((u32::try_from(t - 1).ok()?, u32::try_from(labels[t].as_i64()?).ok()?))
        })
        .collect();
    assert_eq!(
        batch.scored_rows.iter().copied().zip(batch.labels.iter().copied()).collect::<Vec<_>>(),
        scored
    );
}

#[test]
fn a_data_file_becomes_the_reference_trainers_batch() {
    let golden_loss = json("misc/sft_loss.json");
    let tokenizer = Tokenizer::from_folder(&golden().join("models/tokenizer")).unwrap();
    let template = tokenizer.chat_template(None).unwrap();
    for (case, train_on_all) in [("assistant_only", false), ("conversation-all", true)] {
        let case = &golden_loss[case];
        let rows = case["data"].as_array().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let section = forgelm_config::Data {
            dataset_name_or_path: path.to_str().unwrap().to_owned(),
            ..forgelm_config::Data::default()
        };
        let dataset = open(&section, forgelm_config::TrainerType::Sft).unwrap();
        let settings = RenderSettings {
            max_length: 512,
            train_on_all,
            add_eos: true,
            template_now: None,
            bos_before_prompt: false,
            threads: 2,
        };
        let rendered = Renderer::new(&tokenizer, Some(&template), settings)
            .render(&dataset.records, &[0, 1])
            .unwrap();
        for (i, sequence) in rendered.sequences.iter().enumerate() {
            let n = sequence.tokens.len();
            assert_eq!(sequence.tokens, numbers(&case["batch"]["input_ids"][i])[..n]);
            let labels = case["batch"]["labels"][i].as_array().unwrap();
            let trained: Vec<bool> =
                labels.iter().map(|label| label.as_i64().unwrap() >= 0).collect();
            assert_eq!(sequence.trained, trained[..n]);
        }
    }
}

/// The trainers' batches are padded; these are the tokens of each row that its mask keeps.
fn unpadded(batch: &SafetensorsFile, prefix: &str, mask: &str) -> Vec<Vec<u32>> {
    let ids = integers(batch, &format!("{prefix}input_ids"));
    let mask = integers(batch, &format!("{prefix}{mask}"));
    let keep = |(ids, mask): (&Vec<i64>, &Vec<i64>)| {
        ids.iter()
            .zip(mask)
            .filter(|(_, m)| **m != 0)
            .map(|(id, _)| u32::try_from(*id).unwrap())
            .collect()
    };
    ids.iter().zip(&mask).map(keep).collect()
}

fn integers(batch: &SafetensorsFile, name: &str) -> Vec<Vec<i64>> {
    let view = batch.tensor(name).unwrap_or_else(|| panic!("{name}"));
    let values: Vec<i64> =
        view.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks(view.shape[1]).map(<[i64]>::to_vec).collect()
}

fn batch(case: &str) -> SafetensorsFile {
    SafetensorsFile::open(&golden().join(format!("pref/{case}/batch.safetensors"))).unwrap()
}

/// The rows of the preference data as a trainer's sequences.
fn sequences_of(rows: &str, trainer: TrainerType, bos_before_prompt: bool) -> Vec<Sequence> {
    let data = json("pref/data.json");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.json");
    std::fs::write(&path, data[rows].to_string()).unwrap();
    let section = forgelm_config::Data {
        dataset_name_or_path: path.to_str().unwrap().to_owned(),
        ..forgelm_config::Data::default()
    };
    let dataset = open(&section, trainer).unwrap();
    let tokenizer = Tokenizer::from_folder(&golden().join("models/tokenizer")).unwrap();
    let settings = RenderSettings {
        max_length: 512,
        train_on_all: false,
        add_eos: false,
        template_now: None,
        bos_before_prompt,
        threads: 1,
    };
    let numbers: Vec<usize> = (0..dataset.records.len()).collect();
    Renderer::new(&tokenizer, None, settings).render(&dataset.records, &numbers).unwrap().sequences
}

/// The tokens that are trained: those under the completion mask.
fn completion(sequence: &Sequence) -> Vec<u32> {
    let both = sequence.tokens.iter().zip(&sequence.trained);
    both.filter(|(_, trained)| **trained).map(|(token, _)| *token).collect()
}

#[test]
fn preference_pairs_are_those_of_the_reference_collator() {
    let dpo = batch("dpo");
    let sequences = sequences_of("pairs", TrainerType::Dpo, false);
    let whole = unpadded(&dpo, "", "attention_mask");
    let completions = unpadded(&dpo, "", "completion_mask");
    assert_eq!(sequences.len(), 8);
    for (i, sequence) in sequences.iter().enumerate() {
        // The reference has four chosen rows, then four rejected; ours come in pairs.
        let row = i / 2 + 4 * (i % 2);
        assert_eq!(sequence.role, if i % 2 == 0 { Role::Chosen } else { Role::Rejected });
        assert_eq!(sequence.record, i as u64 / 2);
        assert_eq!(sequence.tokens, whole[row], "row {row}");
        assert_eq!(completion(sequence), completions[row], "row {row}");
    }
}

#[test]
fn orpo_and_simpo_pairs_begin_with_bos_as_the_references_do() {
    let orpo = batch("orpo");
    let sequences = sequences_of("pairs", TrainerType::Orpo, true);
    for (side, name) in ["chosen", "rejected"].into_iter().enumerate() {
        let whole = unpadded(&orpo, &format!("{name}_"), "attention_mask");
        let labels = integers(&orpo, &format!("{name}_labels"));
        for row in 0..4 {
            let sequence = &sequences[2 * row + side];
            assert_eq!(sequence.tokens, whole[row], "{name} {row}");
            let trained: Vec<bool> =
                labels[row][..whole[row].len()].iter().map(|label| *label >= 0).collect();
            assert_eq!(sequence.trained, trained, "{name} {row}");
        }
    }
}

#[test]
fn labelled_answers_and_mismatched_pairs_are_those_of_the_reference_collator() {
    let kto = batch("kto");
    let sequences = sequences_of("unpaired", TrainerType::Kto, false);
    let whole = unpadded(&kto, "", "attention_mask");
    let completions = unpadded(&kto, "", "completion_mask");
    let kl_whole = unpadded(&kto, "KL_", "attention_mask");
    let kl_completions = unpadded(&kto, "KL_", "completion_mask");
    let view = kto.tensor("label").unwrap();
    for row in 0..4 {
        let is_desirable = view.bytes[8 * row] == 1;
        let role = if is_desirable { Role::Chosen } else { Role::Rejected };
        assert_eq!(sequences[row].role, role);
        assert_eq!(sequences[row].tokens, whole[row]);
        assert_eq!(completion(&sequences[row]), completions[row]);
        // Each prompt with the answer before it, the first with the last.
        let kl = sequences[row].mismatched(&sequences[(row + 3) % 4], 512);
        assert_eq!((kl.role, kl.record), (Role::Kl, row as u64));
        assert_eq!(kl.tokens, kl_whole[row], "row {row}");
        assert_eq!(completion(&kl), kl_completions[row], "row {row}");
    }
}

#[test]
fn a_prompt_alone_is_that_of_the_reference_collator() {
    let grpo = batch("grpo");
    let (ids, mask) = (integers(&grpo, "prompt_ids"), integers(&grpo, "prompt_mask"));
    let kept = ids[0].iter().zip(&mask[0]).filter(|(_, mask)| **mask != 0);
    let expected: Vec<u32> = kept.map(|(id, _)| u32::try_from(*id).unwrap()).collect();
    let sequences = sequences_of("pairs", TrainerType::Grpo, false);
    assert_eq!((sequences[0].role, &sequences[0].tokens), (Role::Rollout, &expected));
    assert!(sequences[0].trained.iter().all(|&trained| !trained));
}
