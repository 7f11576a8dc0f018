//! A folder with a tiny model, a data set and a config, and the program run in it.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// Where the files that tests share are.
pub fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
}

/// The tiny model of the golden values: two layers, 512 tokens, a ChatML template.
pub fn tiny_llama() -> PathBuf {
    data_dir().join("golden/models/tiny-llama")
}

/// One temporary folder: the program's working directory, home and caches.
pub struct Workplace {
    dir: TempDir,
}

/// What one run of the program left.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Panics with everything that was printed unless the exit code is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Panics unless standard error has this text.
    #[track_caller]
    pub fn expect_stderr(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no `{text}` in stderr:\n{}", self.stderr);
        self
    }

    /// Panics unless standard output has this text.
    #[track_caller]
    pub fn expect_stdout(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no `{text}` in stdout:\n{}", self.stdout);
        self
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}; stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Workplace {
    /// With `model/`, `data.jsonl` of 24 conversations and `run.yaml`.
    pub fn new() -> Self {
        let workplace = Self { dir: tempfile::tempdir().unwrap() };
        workplace.copy_model("model");
        let rows: Vec<String> = (0..24).map(conversation).collect();
        workplace.write("data.jsonl", &(rows.join("\n") + "\n"));
        workplace.write("run.yaml", CONFIG);
        workplace
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub fn write(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, relative: &str) -> String {
        let path = self.path(relative);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The objects of a JSONL file.
    pub fn json_lines(&self, relative: &str) -> Vec<Value> {
        self.read(relative).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `run.yaml` with one text replaced, which must be there.
    #[track_caller]
    pub fn edit_config(&self, from: &str, to: &str) {
        let config = self.read("run.yaml");
        assert!(config.contains(from), "no `{from}` in run.yaml");
        self.write("run.yaml", &config.replace(from, to));
    }

    /// A copy of the tiny model.
    pub fn copy_model(&self, relative: &str) {
        let to = self.path(relative);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(tiny_llama()).unwrap() {
            let entry = entry.unwrap();
            let file = to.join(entry.file_name());
            fs::copy(entry.path(), &file).unwrap();
        }
    }

    /// The program with these arguments, ready to start.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forgelm"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path().join("home"))
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("FORGELM_OPERATOR", "tester@example")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub fn forgelm(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// Starts the program.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// A finished run of `run.yaml`.
    #[track_caller]
    pub fn run(&self) -> Ran {
        self.forgelm(&["--config", "run.yaml"]).expect_code(0)
    }

    /// Digest of the tuned adapter.
    pub fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(out).join("final_model/adapter_model.safetensors")).unwrap()
    }
}

/// The config of [`Workplace::new`]: twelve steps, checkpoints every four.
pub const CONFIG: &str = "\
model:
  name_or_path: model
  max_length: 128
  load_in_4bit: false
lora:
  r: 4
  alpha: 8
  dropout: 0.1
  target_modules: [q_proj, v_proj]
training:
  output_dir: out
  max_steps: 12
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  learning_rate: 5e-3
  eval_steps: 4
  save_steps: 4
  threads: 1
  compute_dtype: float32
  report_to: none
data:
  dataset_name_or_path: data.jsonl
";

/// A short conversation that differs from row to row.
pub fn conversation(i: usize) -> String {
    let (color, thing) =
        (["red", "blue", "green"][i % 3], ["stone", "river", "lamp", "bird"][i % 4]);
    serde_json::json!({"messages": [
        {"role": "user", "content": format!("What is item {i}?")},
        {"role": "assistant", "content": format!("Item {i} is a {color} {thing}.")},
    ]})
    .to_string()
}
