//! One run on several processes, as `mpirun` starts it: the bits of one process, whatever fails.

use crate::support::{Ran, Workplace, conversation};
use forgelm_kernels_emulator as emulator;
use serde_json::json;
use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What Debian calls the compilers and launchers of both MPIs, and how one starts more ranks than there
/// are cores.
const KNOWN: [(&str, &[&str]); 2] = [
    ("mpicc.openmpi", &["mpirun.openmpi", "--oversubscribe", "--bind-to", "none"]),
    ("mpicc.mpich", &["mpirun.mpich"]),
];

/// A job that hangs is a failure, and must not hang the tests.
pub const LONGEST: Duration = Duration::from_secs(180);

/// A launcher and a folder with the library for it.
pub struct Mpi {
    launcher: &'static [&'static str],
    plugins: TempDir,
}

/// Those of this machine; with `CI=true` it must be both.
#[expect(clippy::print_stdout, reason = "what is skipped is skipped aloud")]
pub fn every_mpi() -> Vec<Mpi> {
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let there = KNOWN.into_iter().filter_map(|(mpicc, launcher)| {
        let is_there = |program| Command::new(program).arg("--version").output().is_ok();
        if !is_there(mpicc) || !is_there(launcher[0]) {
            assert!(!is_ci, "{mpicc} or {} is missing, and CI=true wants both MPIs", launcher[0]);
            println!("skipped: {mpicc} or {} is missing", launcher[0]);
            return None;
        }
        let plugins = tempfile::tempdir().unwrap();
        let built = Workplace::new();
        let folder = plugins.path().display().to_string();
        built.forgelm(&["comm", "build", "--mpicc", mpicc, "--output", &folder]).expect_code(0);
        Some(Mpi { launcher, plugins })
    });
    there.collect()
}

impl Mpi {
    /// A job of this workplace's `run.yaml`, or of one config a rank.
    pub fn start(
        &self,
        workplace: &Workplace,
        n_ranks: usize,
        configs: &[&str],
        args: &[&str],
    ) -> Child {
        let plain = workplace.command(&[]);
        let mut job = self.launch();
        for (i, config) in configs.iter().enumerate() {
            if i > 0 {
                job.arg(":");
            }
            job.arg("-np").arg((n_ranks / configs.len()).to_string());
            job.arg(plain.get_program()).args(["--config", config]).args(args);
        }
        self.spawn(job, workplace)
    }

    /// The launcher, which is not told yet what to start.
    pub fn launch(&self) -> Command {
        let mut job = Command::new(self.launcher[0]);
        job.args(&self.launcher[1..]);
        job
    }

    pub fn launcher(&self) -> &'static str {
        self.launcher[0]
    }

    /// The words that start a job of `run.yaml`.
    pub fn words(&self, workplace: &Workplace, n_ranks: usize) -> Vec<String> {
        let program = workplace.command(&[]).get_program().to_string_lossy().into_owned();
        let words = self.launcher.iter().copied().chain(["-np"]).map(str::to_owned);
        let ranks = [n_ranks.to_string(), program, "--config".to_owned(), "run.yaml".to_owned()];
        words.chain(ranks).collect()
    }

    /// Starts a job in the workplace's environment.
    pub fn spawn(&self, mut job: Command, workplace: &Workplace) -> Child {
        job.env_clear();
        for (name, value) in workplace.command(&[]).get_envs() {
            job.env(name, value.unwrap_or_default());
        }
        job.current_dir(workplace.path("."))
            .env("FORGELM_PLUGIN_PATH", self.plugins.path())
            // It refuses root otherwise.
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .stdin(std::process::Stdio::null())
            .stdout(fs::File::create(workplace.path("stdout")).unwrap())
            .stderr(fs::File::create(workplace.path("stderr")).unwrap())
            .spawn()
            .unwrap()
    }

    pub fn run(&self, workplace: &Workplace, n_ranks: usize, args: &[&str]) -> Ran {
        let job = self.start(workplace, n_ranks, &["run.yaml"], args);
        ended(workplace, job)
    }
}

/// What became of a job, of whose processes none is left.
#[track_caller]
pub fn ended(workplace: &Workplace, mut job: Child) -> Ran {
    let start = Instant::now();
    let status = loop {
        if let Some(status) = job.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LONGEST {
            job.kill().unwrap();
            panic!("the job hangs:\n{}", workplace.read("stderr"));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    while !ranks(workplace).is_empty() {
        assert!(start.elapsed() < LONGEST, "processes are left behind");
        std::thread::sleep(Duration::from_millis(10));
    }
    let (stdout, stderr) = (workplace.read("stdout"), workplace.read("stderr"));
    Ran { code: status.code().unwrap_or(-1), stdout, stderr }
}

/// Processes of a job, each with its rank.
pub fn ranks(workplace: &Workplace) -> Vec<(u32, u32)> {
    let here = fs::canonicalize(workplace.path(".")).unwrap();
    let of = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        if fs::read_link(entry.path().join("cwd")).ok()? != here {
            return None;
        }
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let variables = environment.split(|&byte| byte == 0);
        let rank = variables.filter_map(|of| std::str::from_utf8(of).ok()?.split_once('='));
        let mut rank = rank.filter(|(name, _)| ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].contains(name));
        Some((pid, rank.next()?.1.parse().ok()?))
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| of(entry.ok()?)).collect()
}

pub fn signal(workplace: &Workplace, rank: u32, name: &str) {
    let (pid, _) = ranks(workplace).into_iter().find(|of| of.1 == rank).expect("it runs");
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A run of eight micro-batches a step that several processes may share.
pub fn workplace(strategy: &str) -> Workplace {
    let workplace = Workplace::new();
    let rows: Vec<String> = (0..40).map(conversation).collect();
    workplace.write("data.jsonl", &(rows.join("\n") + "\n"));
    workplace.edit_config("train_batch_size: 4", "train_batch_size: 1");
    workplace.edit_config("accumulation_steps: 1", "accumulation_steps: 8");
    let config = workplace.read("run.yaml");
    let section = format!(
        "distributed: {{{strategy}, timeout_seconds: 60}}\nplugins: {{isolation: in_process}}\n"
    );
    workplace.write("run.yaml", &(config + &section));
    workplace
}

pub const ZERO2: &str = "strategy: deepspeed";
const ZERO3: &str = "strategy: deepspeed, deepspeed_config: zero3";

pub fn of_one_process() -> Vec<u8> {
    let workplace = workplace(ZERO2);
    workplace.run().expect_stderr("this is the only process");
    workplace.adapter("out")
}

#[test]
fn one_adapter_whatever_the_number_of_processes_and_what_they_share_out() {
    let expected = of_one_process();
    for (i, mpi) in every_mpi().into_iter().enumerate() {
        for (n_ranks, strategy) in [
            (2, ZERO2),
            (4, "strategy: fsdp, fsdp_strategy: shard_grad_op"),
            (8, "strategy: fsdp, fsdp_strategy: no_shard"),
            (2, ZERO3),
            (4, "strategy: fsdp, fsdp_backward_prefetch: backward_post, fsdp_offload: true"),
        ] {
            if i > 0 && n_ranks > 2 {
                continue;
            }
            let workplace = workplace(strategy);
            mpi.run(&workplace, n_ranks, &[]).expect_code(0);
            assert!(workplace.adapter("out") == expected, "{n_ranks} ranks, {strategy}");
            let lines = workplace.json_lines("out/audit_log.jsonl");
            let started = lines.iter().filter(|line| line["event"] == "training.distributed");
            let started: Vec<_> = started.collect();
            assert_eq!(started.len(), 1, "one log");
            assert_eq!(started[0]["hosts"].as_array().unwrap().len(), n_ranks);
            assert_eq!(started[0]["comparable"], true);
            let library = started[0]["collective"].as_str().unwrap();
            assert!(library.contains(if i == 0 { "Open MPI" } else { "MPICH" }), "{library}");
            workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
        }
    }
}

/// The reference model's numbers are made by the leader and read by all.
#[test]
fn preferences_and_prompts_are_shared_too() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    let pair = |i: usize| {
        format!(
            r#"{{"prompt": "What is {i}?", "chosen": "It is {i}.", "rejected": "No idea {i}"}}"#
        )
    };
    let rows: Vec<String> = (0..40).map(pair).collect();
    for trainer in ["dpo", "kto"] {
        let mut adapters = Vec::new();
        for (n_ranks, strategy) in [(1, ZERO2), (2, ZERO2), (2, ZERO3)] {
            let workplace = workplace(strategy);
            let rows = match trainer {
                "kto" => (0..40)
                    .map(|i| {
                        let label = i % 2 == 0;
                        format!(r#"{{"prompt": "What is {i}?", "completion": "It is {i}.", "label": {label}}}"#)
                    })
                    .collect(),
                _ => rows.clone(),
            };
            workplace.write("data.jsonl", &(rows.join("\n") + "\n"));
            workplace.edit_config(
                "  max_steps: 12",
                &format!("  trainer_type: {trainer}\n  max_steps: 4"),
            );
            match n_ranks {
                1 => workplace.run(),
                _ => mpi.run(&workplace, n_ranks, &[]).expect_code(0),
            };
            adapters.push(workplace.adapter("out"));
        }
        assert!(adapters.iter().all(|of| *of == adapters[0]), "{trainer}");
    }
}

#[test]
fn a_killed_process_ends_the_job_and_any_number_goes_on() {
    let expected = of_one_process();
    for (mpi, strategy) in every_mpi().into_iter().zip([ZERO2, ZERO3]) {
        let workplace = workplace(strategy);
        let mut job = mpi.start(&workplace, 4, &["run.yaml"], &[]);
        crate::resume::wait_for(&workplace.path("out/checkpoint-4"), &mut job);
        signal(&workplace, 2, "-KILL");
        let ended = ended(&workplace, job);
        assert_ne!(ended.code, 0, "{}", ended.stderr);
        mpi.run(&workplace, 2, &["--resume"]).expect_code(0);
        assert!(workplace.adapter("out") == expected);
    }
}

#[test]
fn a_process_that_stands_still_is_named_and_the_job_ends() {
    for mpi in every_mpi() {
        let workplace = workplace(ZERO2);
        workplace.edit_config("timeout_seconds: 60", "timeout_seconds: 5");
        workplace.edit_config("max_steps: 12", "max_steps: 4000");
        let mut job = mpi.start(&workplace, 2, &["run.yaml"], &[]);
        crate::resume::wait_for(&workplace.path("out/checkpoint-4"), &mut job);
        signal(&workplace, 1, "-STOP");
        let start = Instant::now();
        ended(&workplace, job).expect_code(2).expect_stderr("no sign of rank 1");
        assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
        workplace.edit_config("max_steps: 4000", "max_steps: 8");
        mpi.run(&workplace, 2, &["--resume", "--force-resume"]).expect_code(0);
    }
}

#[test]
fn what_cannot_be_one_run_is_refused() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    let plain = Workplace::new();
    let refused = mpi.run(&plain, 2, &[]).expect_code(1);
    refused.expect_stderr("2 processes were started (`OMPI_COMM_WORLD_SIZE`)");

    let workplace = workplace(ZERO2);
    let refused = mpi.run(&workplace, 9, &[]).expect_code(1);
    let refused = refused.expect_stderr("9 processes share a step of 8 micro-batches");
    let n_errors = refused.stderr.lines().filter(|line| line.starts_with("error")).count();
    assert_eq!(n_errors, 1, "told once:\n{}", refused.stderr);

    let config = workplace.read("run.yaml");
    workplace.write("other.yaml", &config.replace("learning_rate: 5e-3", "learning_rate: 4e-3"));
    let job = mpi.start(&workplace, 2, &["run.yaml", "other.yaml"], &[]);
    ended(&workplace, job)
        .expect_code(1)
        .expect_stderr("the processes of this run differ")
        .expect_stderr("`training.learning_rate`: 0.005 on rank 0, 0.004 here");
    assert!(!workplace.path("out").exists(), "nothing was begun");
}

/// A library of other bytes may do other things, although it works.
#[test]
fn processes_with_two_libraries_are_told_apart() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    let workplace = workplace(ZERO2);
    let mut bytes = fs::read(mpi.plugins.path().join("mpi.so")).unwrap();
    bytes.push(0);
    fs::create_dir(workplace.path("other")).unwrap();
    fs::write(workplace.path("other/mpi.so"), bytes).unwrap();
    let plain = workplace.command(&[]);
    let mut job = Command::new(mpi.launcher[0]);
    job.args(&mpi.launcher[1..]).arg("-np").arg("1").arg(plain.get_program());
    job.args(["--config", "run.yaml", ":", "-np", "1", "env", "FORGELM_PLUGIN_PATH=other"]);
    job.arg(plain.get_program()).args(["--config", "run.yaml"]);
    let job = mpi.spawn(job, &workplace);
    ended(&workplace, job).expect_code(1).expect_stderr("): plugins: sft ").expect_stderr(", mpi ");
    assert!(!workplace.path("out").exists(), "nothing was begun");
}

/// Of two emulated devices each process takes one, and a stand-in for NCCL links them.
#[test]
fn devices_that_nccl_links_give_the_bits_of_one() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    if emulator::unavailable().is_some() {
        return;
    }
    let folders = [emulator::library_folder().to_owned(), emulator::nccl_folder()];
    let folders = std::env::join_paths(folders).unwrap().into_string().unwrap();
    let variables = [("FORGELM_CUDA_PATH", folders), ("FORGELM_EMULATOR_DEVICES", "2".into())];
    let short = || {
        let workplace = workplace(ZERO2);
        workplace.edit_config("max_steps: 12", "max_steps: 2");
        workplace.edit_config("max_length: 128", "max_length: 64");
        workplace.edit_config("float32", "float32\n  device: auto");
        workplace
    };
    let alone = short();
    alone
        .command(&["--config", "run.yaml"])
        .envs(variables.clone())
        .output()
        .map(Ran::from)
        .unwrap()
        .expect_code(0);
    let nccl = "NCCL 2.32.3 carries numbers from device to device";
    let hosts =
        "the numbers of devices go through the memory of the hosts: NCCL is switched off (rank 0)";
    for (no_nccl, notice, link) in [("0", nccl, json!("NCCL 2.32.3")), ("1", hosts, json!(null))] {
        let workplace = short();
        let mut job = mpi.launch();
        job.args(["-np", "2", "env"]).arg(format!("FORGELM_NO_NCCL={no_nccl}"));
        job.args(variables.iter().map(|(name, value)| format!("{name}={value}")));
        job.arg(workplace.command(&[]).get_program()).args(["--config", "run.yaml"]);
        let job = mpi.spawn(job, &workplace);
        ended(&workplace, job).expect_code(0).expect_stderr(notice);
        assert!(workplace.adapter("out") == alone.adapter("out"), "{notice}");
        let lines = workplace.json_lines("out/audit_log.jsonl");
        let started = lines.iter().find(|line| line["event"] == "training.distributed").unwrap();
        assert_eq!(started["device_link"], link);
        workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    }
}
