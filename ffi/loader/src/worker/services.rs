//! What an evaluator asks of the program in the middle of its call: both ends of it.
//!
//! The worker's end is the services as the evaluator sees them; each question is one frame, and waits
//! for one frame. Large calls go in parts, which changes nothing, since an answer depends on its own
//! question alone.

use super::wire::{self, Offered, Say, Served, Wish};
use forgelm_sdk::Failed;
use forgelm_sdk::evaluator::{Generate, HeldOut, RecordText, Score, Services, TextPair, TextScore};
use forgelm_sdk::options::{OptionValue, from_json, to_json};
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of texts in one part of a call.
const PART_BYTES: usize = 1 << 20;
/// Texts or records in one part of a call: their answers must fit into a frame too.
const PART_MAX: usize = 256;

impl Offered {
    pub(super) fn of(model: &Services<'_>) -> Self {
        Self {
            score: model.score.is_some(),
            generate: model.generate.is_some(),
            held_out: model.held_out.map(HeldOut::n_records),
        }
    }
}

/// Answers a wish in the program.
pub(super) fn serve(model: &Services<'_>, wish: Wish) -> Served {
    match catch_unwind(AssertUnwindSafe(|| served(model, wish))) {
        Ok(served) => served.unwrap_or_else(Served::from),
        Err(_) => Failed::new("a bug in ForgeLM's service").into(),
    }
}

fn served(model: &Services<'_>, wish: Wish) -> Result<Served, Failed> {
    let missing = || Failed::argument("a service that is not offered");
    match wish {
        Wish::Score(pairs) => {
            let pairs: Vec<TextPair<'_>> =
                pairs.iter().map(|(prompt, completion)| TextPair { prompt, completion }).collect();
            model.score.ok_or_else(missing)?.score(&pairs).map(scores)
        }
        Wish::Generate(prompts, options) => {
            let options =
                from_json(&options).map_err(|error| Failed::argument(error.to_string()))?;
            let options: Vec<_> = options.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            model.generate.ok_or_else(missing)?.generate(&prompts, &options).map(Served::Texts)
        }
        Wish::HeldOutScore(first, n) => {
            model.held_out.ok_or_else(missing)?.score(first, n).map(scores)
        }
        Wish::HeldOutText(record) => {
            let text = model.held_out.ok_or_else(missing)?.text(record)?;
            Ok(Served::Texts(vec![text.prompt, text.completion]))
        }
    }
}

fn scores(scores: Vec<TextScore>) -> Served {
    let bits = |score: TextScore| (score.logp_sum.to_bits(), score.n_tokens);
    Served::Scores(scores.into_iter().map(bits).collect())
}

/// The worker's mouth: what it says comes whole, from whatever thread.
#[derive(Clone, Debug)]
pub(super) struct Mouth(Arc<Mutex<UnixStream>>);

impl Mouth {
    pub(super) fn new(socket: &UnixStream) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(socket.try_clone()?))))
    }

    pub(super) fn say(&self, say: &Say) -> io::Result<()> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&*socket, say)
    }
}

/// The services of the program, as an evaluator in a worker sees them.
pub(super) struct Link {
    mouth: Mouth,
    /// Where answers come; one question at a time.
    ear: Mutex<UnixStream>,
}

impl Link {
    pub(super) fn new(mouth: Mouth, socket: &UnixStream) -> io::Result<Self> {
        Ok(Self { mouth, ear: Mutex::new(socket.try_clone()?) })
    }

    fn ask(&self, wish: Wish) -> Result<Served, Failed> {
        let ear = self.ear.lock().unwrap_or_else(PoisonError::into_inner);
        self.mouth.say(&Say::Wish(wish)).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Failed::argument("a text is too long"),
            _ => Failed::new(format!("the program cannot be asked: {error}")),
        })?;
        match wire::receive(&ear) {
            Ok(Served::Refused { message, cause }) => Err(Failed { message, cause }),
            Ok(served) => Ok(served),
            Err(error) => Err(Failed::new(format!("the program does not answer: {error}"))),
        }
    }

    fn scores(&self, wish: Wish, n: usize) -> Result<Vec<TextScore>, Failed> {
        let Served::Scores(scores) = self.ask(wish)? else { return Err(other()) };
        let score = |(bits, n_tokens)| TextScore { logp_sum: f64::from_bits(bits), n_tokens };
        if scores.len() == n { Ok(scores.into_iter().map(score).collect()) } else { Err(other()) }
    }

    fn texts(&self, wish: Wish, n: usize) -> Result<Vec<String>, Failed> {
        match self.ask(wish)? {
            Served::Texts(texts) if texts.len() == n => Ok(texts),
            Served::Texts(_) | Served::Scores(_) | Served::Refused { .. } => Err(other()),
        }
    }
}

/// A failure of a part of a call, whose numbers begin at this one.
fn in_part(first: usize) -> impl Fn(Failed) -> Failed {
    move |failed| match first {
        0 => failed,
        _ => Failed { message: format!("from {first} on, {}", failed.message), ..failed },
    }
}

fn other() -> Failed {
    Failed::new("the program gave an answer to another question")
}

impl Score for Link {
    fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
        let mut scores = Vec::with_capacity(pairs.len());
        for part in parts(pairs, |pair| pair.prompt.len() + pair.completion.len()) {
            let pair = |pair: &TextPair<'_>| (pair.prompt.to_owned(), pair.completion.to_owned());
            let wish = Wish::Score(part.iter().map(pair).collect());
            let part = self.scores(wish, part.len()).map_err(in_part(scores.len()))?;
            scores.extend(part);
        }
        Ok(scores)
    }
}

impl Generate for Link {
    fn generate(
        &self,
        prompts: &[&str],
        options: &[(&str, OptionValue)],
    ) -> Result<Vec<String>, Failed> {
        let options = to_json(options).map_err(|error| Failed::argument(error.to_string()))?;
        let mut answers = Vec::with_capacity(prompts.len());
        for part in parts(prompts, |prompt| prompt.len()) {
            let texts = part.iter().map(|prompt| (*prompt).to_owned()).collect();
            let wish = Wish::Generate(texts, options.clone());
            let part = self.texts(wish, part.len()).map_err(in_part(answers.len()))?;
            answers.extend(part);
        }
        Ok(answers)
    }
}

/// The held-out records of the program.
pub(super) struct RemoteRecords<'a> {
    pub(super) link: &'a Link,
    pub(super) n_records: u64,
}

impl HeldOut for RemoteRecords<'_> {
    fn n_records(&self) -> u64 {
        self.n_records
    }

    fn score(&self, first: u64, n: usize) -> Result<Vec<TextScore>, Failed> {
        let mut scores = Vec::new();
        while scores.len() < n {
            let part = (n - scores.len()).min(PART_MAX);
            let from = first.saturating_add(scores.len() as u64);
            scores.extend(self.link.scores(Wish::HeldOutScore(from, part), part)?);
        }
        Ok(scores)
    }

    fn text(&self, record: u64) -> Result<RecordText, Failed> {
        let mut texts = self.link.texts(Wish::HeldOutText(record), 2)?;
        let completion = texts.pop().unwrap_or_default();
        Ok(RecordText { prompt: texts.pop().unwrap_or_default(), completion })
    }
}

/// Cuts a list into parts of at most [`PART_MAX`] items and about [`PART_BYTES`] bytes, none of them
/// empty.
fn parts<T>(mut items: &[T], n_bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    while !items.is_empty() {
        let mut sum = 0;
        let fits = items.iter().take(PART_MAX).take_while(|item| {
            sum += n_bytes(item);
            sum <= PART_BYTES
        });
        let (part, rest) = items.split_at(fits.count().max(1));
        parts.push(part);
        items = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_small_whole_and_never_empty() {
        let lengths = [10, PART_BYTES - 10, 1, 2 * PART_BYTES, 3];
        let cut = parts(&lengths, |&length| length);
        assert_eq!(cut, [&lengths[..2], &lengths[2..3], &lengths[3..4], &lengths[4..]]);
        let many = vec![1; 2 * PART_MAX + 1];
        let sizes: Vec<usize> = parts(&many, |&length| length).iter().map(|p| p.len()).collect();
        assert_eq!(sizes, [PART_MAX, PART_MAX, 1]);
        assert!(parts::<usize>(&[], |&length| length).is_empty());
    }

    #[test]
    fn a_service_that_is_not_there_is_refused_and_one_that_panics_is_a_failure() {
        let none = Services::default();
        let wishes = [
            Wish::Score(Vec::new()),
            Wish::Generate(Vec::new(), "{}".to_owned()),
            Wish::HeldOutScore(0, 1),
            Wish::HeldOutText(0),
        ];
        for wish in wishes {
            let Served::Refused { message: why, .. } = serve(&none, wish) else { panic!("served") };
            assert_eq!(why, "a service that is not offered");
        }
        struct Panics;
        impl Score for Panics {
            fn score(&self, _: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
                panic!("a planted panic")
            }
        }
        let model = Services { score: Some(&Panics), ..none };
        let Served::Refused { message: why, .. } = serve(&model, Wish::Score(Vec::new())) else {
            panic!("served")
        };
        assert_eq!(why, "a bug in ForgeLM's service");
    }
}
