//! Offline files of Weights & Biases, as bytes: a log of records, which `wandb sync` sends later.
//!
//! It knows no file, no clock and no network. A file begins with [`Log::begin`]; every later record
//! depends on where the one before it ended, so that what was made has to be written in order.
//!
//! Source: `wandb_internal.proto`, and `datastore.py` of the client up to 0.19: blocks as LevelDB's log
//! has them, with a CRC-32 of zlib over type and bytes.

use crate::protobuf::Message;
use serde_json::Value;

/// `:W&B`, a number, and the version of the format.
const HEADER: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];
/// Bytes of a block, with the headers in it.
const BLOCK: usize = 32_768;
/// Checksum, length and type of a fragment.
const FRAGMENT_HEADER: usize = 7;
/// The oldest client that reads such a file, in the client's own words.
const MIN_CONSUMER: &str = "0.70.0";

/// A run as its file introduces it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its id: letters, digits and `-`.
    pub run_id: String,
    /// Who has the project; empty for whoever sends the file.
    pub entity: String,
    /// The project.
    pub project: String,
    /// What runs that belong together share.
    pub group: String,
    /// For people.
    pub name: String,
    /// What wrote the file, with its version.
    pub producer: String,
    /// Keys of the config with what they are set to.
    pub config: Vec<(String, Value)>,
    /// Microseconds since 1970.
    pub started_us: i64,
}

/// A file that is being made.
#[derive(Debug)]
pub struct Log {
    n_bytes: usize,
    n_records: i64,
    started_us: i64,
}

impl Log {
    /// A new file, and the bytes with which it begins.
    #[must_use]
    pub fn begin(about: &About) -> (Self, Vec<u8>) {
        let mut log = Self { n_bytes: HEADER.len(), n_records: 0, started_us: about.started_us };
        let mut bytes = HEADER.to_vec();
        let version = Message::new().text(1, &about.producer).text(2, MIN_CONSUMER);
        bytes.extend(log.record(21, &Message::new().message(1, &version)));
        let mut config = Message::new();
        for (key, value) in &about.config {
            let item = Message::new().text(1, key).text(16, &value.to_string());
            config = config.message(1, &item);
        }
        let started = Message::new()
            .int(1, about.started_us.div_euclid(1_000_000))
            .int(2, about.started_us.rem_euclid(1_000_000) * 1000);
        let run = [(1, &about.run_id), (2, &about.entity), (3, &about.project)]
            .into_iter()
            .fold(Message::new(), |run, (field, text)| run.present(field, text))
            .message(4, &config)
            .present(6, &about.group)
            .present(8, &about.name)
            .message(17, &started);
        bytes.extend(log.record(17, &run));
        (log, bytes)
    }

    /// The numbers of a step: what is newest of each name, and the row itself. A step has one row, and
    /// steps rise.
    #[must_use]
    pub fn row(&mut self, at_us: i64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of this millennium fit")]
        let seconds = |us: i64| us as f64 / 1e6;
        let runtime = seconds(at_us.saturating_sub(self.started_us).max(0));
        let own = [
            ("_step", step.to_string()),
            ("_timestamp", number(seconds(at_us))),
            ("_runtime", number(runtime)),
        ];
        let of_others = values.iter().map(|(name, value)| (name.as_str(), number(*value)));
        let mut items = Message::new();
        for (name, value) in of_others.chain(own) {
            items = items.message(1, &Message::new().text(2, name).text(16, &value));
        }
        let mut bytes = self.record(3, &items);
        let step = Message::new().int(1, i64::try_from(step).unwrap_or(i64::MAX));
        bytes.extend(self.record(2, &items.message(2, &step)));
        bytes
    }

    /// The end, by the program's exit code.
    #[must_use]
    pub fn exit(&mut self, code: u8) -> Vec<u8> {
        let exit = match code {
            0 => Message::new(),
            code => Message::new().int(1, i64::from(code)),
        };
        self.record(18, &exit)
    }

    /// A record: its number, and what it is by its field.
    fn record(&mut self, field: u32, content: &Message) -> Vec<u8> {
        self.n_records += 1;
        let record = Message::new();
        // Fields stand in the order of their numbers, as the client writes them.
        let record = record.int(1, self.n_records).message(field, content);
        self.fragments(&record.into_bytes())
    }

    /// Bytes cut where a block ends. A rest of a block too small for a header is zeros.
    fn fragments(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        const FULL: u8 = 1;
        const FIRST: u8 = 2;
        const MIDDLE: u8 = 3;
        const LAST: u8 = 4;
        let mut found = Vec::with_capacity(bytes.len() + FRAGMENT_HEADER);
        let mut is_first = true;
        loop {
            let left = BLOCK - (self.n_bytes + found.len()) % BLOCK;
            if left < FRAGMENT_HEADER {
                found.resize(found.len() + left, 0);
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(left - FRAGMENT_HEADER));
            let kind = match (is_first, rest.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            let mut checksum = crc32fast::Hasher::new();
            checksum.update(&[kind]);
            checksum.update(part);
            found.extend(checksum.finalize().to_le_bytes());
            // A fragment is smaller than a block.
            found.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes());
            found.push(kind);
            found.extend(part);
            if rest.is_empty() {
                break;
            }
            (bytes, is_first) = (rest, false);
        }
        self.n_bytes += found.len();
        found
    }
}

/// A number as the client writes it: JSON, with words for what JSON has no number for.
fn number(value: f64) -> String {
    if value.is_finite() {
        Value::from(value).to_string()
    } else if value.is_nan() {
        "NaN".to_owned()
    } else if value > 0.0 {
        "Infinity".to_owned()
    } else {
        "-Infinity".to_owned()
    }
}

#[cfg(test)]
mod tests;
