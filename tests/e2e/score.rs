//! `forgelm score`: per-token log-probabilities against values that nobody here computed.

use crate::support::{Workplace, data_dir};
use serde_json::{Value, json};

fn golden() -> Value {
    let path = data_dir().join("golden/forward/tiny-llama/golden.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The two rows of `forward/tiny-llama/inputs.safetensors`; the second is padded from token 16 on.
fn golden_rows() -> [Vec<i64>; 2] {
    let path = data_dir().join("golden/forward/tiny-llama/inputs.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let header_len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let start = header["input_ids"]["data_offsets"][0].as_u64().unwrap();
    let data = &bytes[8 + header_len + usize::try_from(start).unwrap()..][..2 * 24 * 8];
    let ids: Vec<i64> =
        data.chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap())).collect();
    [ids[..24].to_vec(), ids[24..24 + 16].to_vec()]
}

fn logprobs(row: &Value) -> Vec<f64> {
    let all = row["logprobs"].as_array().unwrap();
    assert!(all[0].is_null(), "the first token has nothing before it");
    all[1..].iter().map(|logp| logp.as_f64().unwrap()).collect()
}

/// The golden loss is the mean of `-log p` over tokens 4.. of both rows.
#[test]
fn scores_give_the_golden_loss() {
    let workplace = Workplace::new();
    let rows = golden_rows().map(|ids| json!({"input_ids": ids}).to_string());
    workplace.write("in.jsonl", &rows.join("\n"));
    workplace
        .forgelm(&[
            "score",
            "--model",
            "model",
            "--input",
            "in.jsonl",
            "--output",
            "out.jsonl",
            "--compute-dtype",
            "float32",
        ])
        .expect_code(0);
    let scored = workplace.json_lines("out.jsonl");
    assert_eq!(scored.len(), 2);
    let trained: Vec<f64> = scored.iter().flat_map(|row| logprobs(row)[3..].to_vec()).collect();
    assert_eq!(trained.len(), 20 + 12);
    let loss = -trained.iter().sum::<f64>() / 32.0;
    let expected = golden()["loss"].as_f64().unwrap();
    assert!((loss - expected).abs() < 1e-5 * expected, "{loss} is not {expected}");
}

#[test]
fn text_and_messages_are_scored_as_tokens() {
    let workplace = Workplace::new();
    let rows = [
        json!({"text": "A stone is not a river."}),
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}),
    ];
    workplace.write("in.jsonl", &rows.map(|row| row.to_string()).join("\n"));
    let args = ["score", "--model", "model", "--input", "in.jsonl", "--output", "out.jsonl"];
    workplace.forgelm(&args).expect_code(0);
    let scored = workplace.json_lines("out.jsonl");
    for row in &scored {
        let ids = row["input_ids"].as_array().unwrap();
        let logps = logprobs(row);
        assert_eq!(ids.len(), logps.len() + 1);
        assert!(logps.iter().all(|logp| *logp < 0.0));
        let sum: f64 = logps.iter().sum();
        assert!((row["sum_logprob"].as_f64().unwrap() - sum).abs() < 1e-3);
    }
    assert_eq!(scored[1]["input_ids"][0], 1, "the template's own token");
}

#[test]
fn an_adapter_changes_scores_and_its_folder_is_a_model() {
    let workplace = Workplace::new();
    workplace.run();
    workplace.write("in.jsonl", &crate::support::conversation(3));
    let score = |model: &[&str], out: &str| {
        let mut args = vec!["score", "--input", "in.jsonl", "--output", out, "--model"];
        args.extend(model);
        workplace.forgelm(&args).expect_code(0);
        workplace.json_lines(out)[0]["sum_logprob"].as_f64().unwrap()
    };
    let base = score(&["model"], "base.jsonl");
    let flag = score(&["model", "--adapter", "out/final_model"], "flag.jsonl");
    let folder = score(&["out/final_model"], "folder.jsonl");
    assert!(flag > base + 0.5, "tuned rows are likelier: {flag} against {base}");
    assert!((flag - folder).abs() < 1e-12, "{flag} is not {folder}");
}

#[test]
fn bad_rows_are_refused_with_their_line_and_nothing_is_written() {
    let workplace = Workplace::new();
    let cases = [
        ("{\"text\": 3}", "text"),
        ("{\"input_ids\": [1, 512]}", "512"),
        ("{\"input_ids\": []}", "input_ids"),
        ("{\"prompt\": \"x\"}", "input_ids"),
        ("{\"text\": \"x\"", "in.jsonl:2"),
    ];
    for (row, said) in cases {
        workplace.write("in.jsonl", &format!("{{\"text\": \"fine\"}}\n{row}\n"));
        workplace
            .forgelm(&["score", "--model", "model", "--input", "in.jsonl", "--output", "o.jsonl"])
            .expect_code(1)
            .expect_stderr("in.jsonl:2")
            .expect_stderr(said);
        assert!(!workplace.path("o.jsonl").exists());
    }
}
