//! The MPIs of this machine, and what a job of one of them said.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// An MPI: its compiler, its launcher, and the library that was made with it.
pub struct Mpi {
    mpicc: &'static str,
    mpirun: &'static [&'static str],
    folder: TempDir,
}

/// What Debian calls those of the two, and how one starts more ranks than there are cores.
const KNOWN: [(&str, &[&str]); 2] = [
    ("mpicc.openmpi", &["mpirun.openmpi", "--oversubscribe", "--bind-to", "none"]),
    ("mpicc.mpich", &["mpirun.mpich"]),
];

/// How a rank knows what it is to do, and with which library.
pub const SCENARIO: &str = "FORGELM_TEST_SCENARIO";
pub const LIBRARY: &str = "FORGELM_TEST_LIBRARY";

/// Variables of a launcher around this test, which would say something about other processes.
const OTHERS: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "SLURM_STEP_NUM_TASKS"];

/// A job that hangs is a failure, and must not hang the tests.
const LONGEST: Duration = Duration::from_secs(60);

/// Those that are there; with `CI=true` it must be both.
#[expect(clippy::print_stdout, reason = "what is skipped is skipped aloud")]
pub fn every_mpi() -> impl Iterator<Item = Mpi> {
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    KNOWN.into_iter().filter_map(move |(mpicc, mpirun)| {
        let is_there = |program| Command::new(program).arg("--version").output().is_ok();
        if !is_there(mpicc) || !is_there(mpirun[0]) {
            assert!(!is_ci, "{mpicc} or {} is missing, and CI=true wants both MPIs", mpirun[0]);
            println!("skipped: {mpicc} or {} is missing", mpirun[0]);
            return None;
        }
        let mpi = Mpi { mpicc, mpirun, folder: tempfile::tempdir().unwrap() };
        mpi.compile(&[]);
        Some(mpi)
    })
}

/// What became of a job.
pub struct Ended {
    code: Option<i32>,
    pub said: String,
    pub took: Duration,
}

impl Ended {
    #[track_caller]
    pub fn must_be(&self, code: i32) {
        assert_eq!(self.code, Some(code), "after {:?}:\n{}", self.took, self.said);
    }

    #[track_caller]
    pub fn must_say(&self, text: &str) {
        assert!(self.said.contains(text), "`{text}` is missing:\n{}", self.said);
    }
}

impl Mpi {
    fn library(&self) -> PathBuf {
        self.folder.path().join("libforgelm_mpi.so")
    }

    /// As `forgelm comm build` does, with more flags, and less memory in which bytes arrive: the least
    /// that a round may have.
    pub fn compile(&self, flags: &[&str]) {
        let ffi = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let output = Command::new(self.mpicc)
            .args(["-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"])
            .args(["-Wl,-z,defs", "-Wl,-z,nodelete", "-DLANDING_BYTES=1"])
            .args(flags)
            .arg("-I")
            .arg(ffi.join("include"))
            .arg(ffi.join("mpi/forgelm_mpi.c"))
            .arg("-o")
            .arg(self.library())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}:\n{said}", self.mpicc);
    }

    /// A job of this many ranks.
    pub fn start(&self, n: usize, scenario: &str) -> Ended {
        self.start_with(n, scenario, self)
    }

    /// A job of this launcher, whose ranks load the library of another MPI.
    pub fn start_with(&self, n: usize, scenario: &str, other: &Mpi) -> Ended {
        let mut job = Command::new(self.mpirun[0]);
        job.args(&self.mpirun[1..]).arg("-np").arg(n.to_string());
        job.arg(std::env::current_exe().unwrap());
        other.run(job, scenario)
    }

    /// A process without a launcher.
    pub fn start_alone(&self, scenario: &str, variable: Option<(&str, &str)>) -> Ended {
        let mut job = Command::new(std::env::current_exe().unwrap());
        job.envs(variable);
        self.run(job, scenario)
    }

    fn run(&self, mut job: Command, scenario: &str) -> Ended {
        let output = tempfile::NamedTempFile::new().unwrap();
        let file = output.reopen().unwrap();
        for other in OTHERS {
            if !job.get_envs().any(|(name, _)| name == other) {
                job.env_remove(other);
            }
        }
        job.args(["--exact", "rank::a_rank_of_a_launcher", "--ignored", "--nocapture"])
            .env(SCENARIO, scenario)
            .env(LIBRARY, self.library())
            // Open MPI starts nothing for root unless it is told twice, and containers have no other user
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let began = Instant::now();
        let mut job = job.spawn().unwrap();
        while job.try_wait().unwrap().is_none() && began.elapsed() < LONGEST {
            std::thread::sleep(Duration::from_millis(20));
        }
        let took = began.elapsed();
        if took >= LONGEST {
            // Asked to, a launcher takes its ranks with it; killed, it leaves them behind.
            Command::new("kill").arg(job.id().to_string()).status().unwrap();
            std::thread::sleep(Duration::from_secs(2));
            job.kill().unwrap();
        }
        let status = job.wait().unwrap();
        let said = std::fs::read(output.path()).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ended { code: status.code(), said, took }
    }
}
