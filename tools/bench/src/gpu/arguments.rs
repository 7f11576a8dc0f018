//! The arguments of `forgelm-bench gpu`.

use std::path::PathBuf;

const USAGE: &str = "usage: forgelm-bench gpu [--minutes N] [--out FOLDER] [--only PART,..]
                     [--tests PROGRAM[=NAME]].. [--python PROGRAM] [--libraries FOLDER].. [--tiny]
  --minutes    what all of it may take, 15 if nothing is said
  --out        where the page and the raw numbers go; docs/performance, and target/gpu for what is
               not kept
  --only       these parts alone
  --tests      a test program that cargo built, and `=NAME` for those of its tests whose names have
               that; they run on the device, and skip aloud without one
  --python     an interpreter with torch, transformers and peft, for the baseline
  --libraries  folders to look for NVIDIA's libraries in, before all others
  --tiny       sizes for an emulated device: tests this program, measures nothing";

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Arguments {
    pub minutes: f64,
    pub out: Option<PathBuf>,
    /// All if empty.
    pub only: Vec<String>,
    /// Programs, and what their tests are named.
    pub tests: Vec<String>,
    pub python: PathBuf,
    pub libraries: Vec<PathBuf>,
    pub tiny: bool,
    /// Whether each allocation is one of the driver's own: for a tool that watches them.
    pub strict: bool,
    /// The one part that this process runs: said by its parent.
    pub part: Option<String>,
    /// Where parts leave what they found.
    pub parts: PathBuf,
    /// What the part may take.
    pub seconds: f64,
}

impl Arguments {
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut parsed = Self {
            minutes: 15.0,
            out: None,
            only: Vec::new(),
            tests: Vec::new(),
            python: "python3".into(),
            libraries: Vec::new(),
            tiny: false,
            strict: false,
            part: None,
            parts: PathBuf::new(),
            seconds: 60.0,
        };
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            let flag = match word.as_str() {
                "--tiny" => Some(&mut parsed.tiny),
                "--strict" => Some(&mut parsed.strict),
                _ => None,
            };
            if let Some(flag) = flag {
                *flag = true;
                continue;
            }
            if !word.starts_with("--") {
                return Err(format!("`{word}` is not a known option\n{USAGE}"));
            }
            let value =
                rest.next().ok_or_else(|| format!("{word}: a value is missing\n{USAGE}"))?;
            parsed.set(word, value)?;
        }
        Ok(parsed)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        match option {
            "--minutes" => self.minutes = positive(option, value)?,
            "--seconds" => self.seconds = positive(option, value)?,
            "--out" => self.out = Some(value.into()),
            "--only" => self.only = value.split(',').map(str::to_owned).collect(),
            "--tests" => self.tests.push(value.to_owned()),
            "--python" => self.python = value.into(),
            "--libraries" => self.libraries.push(value.into()),
            "--part" => self.part = Some(value.to_owned()),
            "--parts" => self.parts = value.into(),
            _ => return Err(format!("`{option}` is not a known option\n{USAGE}")),
        }
        Ok(())
    }

    /// The same for a process that runs one part.
    pub(crate) fn for_part(&self, name: &str, seconds: f64) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let mut words = vec!["gpu".to_owned()];
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        add("--part", name.to_owned());
        add("--parts", path(&self.parts));
        add("--seconds", seconds.to_string());
        add("--python", path(&self.python));
        for test in &self.tests {
            add("--tests", test.clone());
        }
        for folder in &self.libraries {
            add("--libraries", path(folder));
        }
        if self.tiny {
            words.push("--tiny".to_owned());
        }
        words
    }
}

fn positive(option: &str, value: &str) -> Result<f64, String> {
    let number = value.parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| format!("{option}: `{value}` is not a number above 0"))
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_part_is_told_what_its_parent_was() {
        let text = "--minutes 3 --tiny --tests a --tests b --libraries c --python d";
        let mut parent = Arguments::parse(&words(text)).unwrap();
        parent.parts = "here".into();
        let part = Arguments::parse(&parent.for_part("ops", 7.5)[1..]).unwrap();
        let expected = Arguments {
            part: Some("ops".to_owned()),
            seconds: 7.5,
            minutes: 15.0, // the parent's alone
            ..parent
        };
        assert_eq!(part, expected);
    }

    #[test]
    fn what_is_not_an_argument_is_refused_with_its_name() {
        let refused = |text| Arguments::parse(&words(text)).unwrap_err();
        assert_eq!(refused("--minutes 0"), "--minutes: `0` is not a number above 0");
        assert!(refused("--only").starts_with("--only: a value is missing\nusage:"));
        assert!(refused("--fast 1").starts_with("`--fast` is not a known option\nusage:"));
        assert!(refused("fast").starts_with("`fast` is not a known option\nusage:"));
    }
}
