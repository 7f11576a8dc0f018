//! Files as the client's own log writer makes them of the same messages.

use super::{About, Log};
use forgelm_artifact::hash::sha256_bytes;
use serde_json::json;

fn about() -> About {
    About {
        run_id: "fg-0123456789ab".to_owned(),
        entity: String::new(),
        project: "größe".to_owned(),
        group: "fg-0123456789ab".to_owned(),
        name: "a run".to_owned(),
        producer: "forgelm 0.1.0".to_owned(),
        config: vec![("_wandb".to_owned(), json!({})), ("lora".to_owned(), json!({"r": 8}))],
        started_us: 1_700_000_000_250_000,
    }
}

fn values(pairs: &[(&str, f64)]) -> Vec<(String, f64)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

/// What `tools/golden/wandb_run.py` makes.
#[test]
fn the_bytes_are_those_of_the_clients_own_log() {
    let (mut log, mut found) = Log::begin(&about());
    let row = values(&[("train/loss", 2.5), ("train/learning_rate", 0.125)]);
    found.extend(log.row(1_700_000_001_500_000, 1, &row));
    let row = values(&[("eval/loss", f64::NAN), ("a", f64::INFINITY), ("b", f64::NEG_INFINITY)]);
    found.extend(log.row(1_700_000_002_250_000, 300, &row));
    found.extend(log.exit(7));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/golden/run.wandb.golden");
    assert_eq!(found, std::fs::read(path).expect("a golden file"));
}

/// Every way in which a record can meet the end of a block: the length of one text moves it there.
#[test]
fn records_are_cut_at_blocks_as_the_clients_log_cuts_them() {
    let mut all = Vec::new();
    for length in (0..40).map(|i| 32_500 + i).chain([65_000, 100_000]) {
        let name = "n".repeat(length);
        let (mut log, mut found) = Log::begin(&About { name, ..about() });
        found.extend(log.row(1_700_000_001_500_000, 1, &values(&[("train/loss", 2.5)])));
        found.extend(log.exit(0));
        all.extend(sha256_bytes(&found).as_str().bytes());
    }
    assert_eq!(sha256_bytes(&all).as_str(), CUT);
}

/// Of the hashes of those files, in hexadecimal, one after the other; printed by the same tool.
const CUT: &str = "71064c32501a9eed98d5d6acf9fe442dd24c98c42b391649ac34c6a762bf1ae3";
