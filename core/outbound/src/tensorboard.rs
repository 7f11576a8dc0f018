//! Event files of TensorBoard, as bytes: records with masked checksums, an event in each.
//!
//! It knows no file and no clock. A file begins with [`version`]; one that goes on where another run
//! ended then has [`restart`], by which readers drop what that run wrote beyond the point.
//!
//! Source: `event.proto`, `summary.proto` and `record_writer` of TensorFlow and TensorBoard. Ours:
//! scalars are `simple_value`, which every version reads, and no file has text or graphs.

use crate::protobuf::Message;

/// What event files call their format.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.START`.
const START: i64 = 1;

/// The first record of a file.
#[must_use]
pub fn version(seconds: f64) -> Vec<u8> {
    record(&Message::new().double(1, seconds).text(3, VERSION).into_bytes())
}

/// The record that drops every scalar of `step` and later steps in the files before.
#[must_use]
pub fn restart(seconds: f64, step: u64) -> Vec<u8> {
    let log = Message::new().int(1, START);
    record(&event(seconds, step).message(7, &log).into_bytes())
}

/// The scalars of one moment, by tag.
#[must_use]
pub fn scalars(seconds: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::new();
    for (tag, value) in values {
        #[expect(clippy::cast_possible_truncation, reason = "the format has 32 bits")]
        let value = Message::new().text(1, tag).float(2, *value as f32);
        summary = summary.message(1, &value);
    }
    record(&event(seconds, step).message(5, &summary).into_bytes())
}

fn event(seconds: f64, step: u64) -> Message {
    Message::new().double(1, seconds).int(2, i64::try_from(step).unwrap_or(i64::MAX))
}

/// A record: length, checksum of the length, bytes, checksum of the bytes.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [&length, &masked(&length), bytes, &masked(bytes)];
    parts.concat()
}

/// CRC-32C, turned and moved, so that a record with checksums in it has none by accident.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The tag of a number: what trainers call `eval_NAME` is `eval/NAME`, all else `train/NAME`.
#[must_use]
pub fn tag(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(rest) => format!("eval/{rest}"),
        None => format!("train/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{restart, scalars, tag, version};

    /// What TensorBoard's own writer makes of the same events (`tools/golden/event_files.py`).
    #[test]
    fn the_bytes_are_those_of_tensorboards_own_writer() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/golden/events.out.tfevents.golden");
        let expected = std::fs::read(path).expect("a golden file");
        let values = |pairs: &[(&str, f64)]| {
            pairs.iter().map(|(tag, value)| ((*tag).to_owned(), *value)).collect::<Vec<_>>()
        };
        let found = [
            version(1_700_000_000.25),
            restart(1_700_000_001.0, 7),
            scalars(
                1_700_000_002.5,
                7,
                &values(&[("train/loss", 2.5), ("train/learning_rate", 2e-5)]),
            ),
            scalars(
                1_700_000_003.0,
                300,
                &values(&[("eval/loss", f64::NAN), ("train/größe", -0.0)]),
            ),
        ]
        .concat();
        assert_eq!(found, expected);
    }

    #[test]
    fn tags_are_those_of_other_trainers() {
        let tags =
            ["loss", "eval_loss", "rewards/margins", "eval_rewards/margins", "train_runtime"];
        assert_eq!(
            tags.map(tag),
            [
                "train/loss",
                "eval/loss",
                "train/rewards/margins",
                "eval/rewards/margins",
                "train/train_runtime"
            ]
        );
    }
}
