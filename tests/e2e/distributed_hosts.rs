//! Two hosts on this machine: network namespaces that a cable joins, and what happens when it is cut.
//! Needs root and `ip` of iproute2.

use crate::distributed::{LONGEST, Mpi, ZERO2, ended, every_mpi, of_one_process, ranks, workplace};
use crate::support::Workplace;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Two namespaces that end with the test.
struct Hosts {
    names: [String; 2],
}

const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn ip(args: &str) -> bool {
    let ended = Command::new("ip").args(args.split(' ')).output();
    ended.is_ok_and(|ended| ended.status.success())
}

impl Hosts {
    /// `None` where this machine makes none.
    #[expect(clippy::print_stdout, reason = "what is skipped is skipped aloud")]
    fn new() -> Option<Self> {
        let names = ["a", "b"].map(|of| format!("forgelm-{}-{of}", std::process::id()));
        let hosts = Self { names };
        let [a, b] = &hosts.names;
        if !ip(&format!("netns add {a}")) {
            println!("skipped: no network namespaces here (root and iproute2 are needed)");
            return None;
        }
        assert!(ip(&format!("netns add {b}")));
        assert!(ip(&format!("link add va netns {a} type veth peer name vb netns {b}")));
        for ((name, address), cable) in hosts.names.iter().zip(ADDRESSES).zip(["va", "vb"]) {
            assert!(ip(&format!("-n {name} addr add {address}/24 dev {cable}")));
            assert!(ip(&format!("-n {name} link set lo up")));
            assert!(ip(&format!("-n {name} link set {cable} up")));
        }
        Some(hosts)
    }

    fn cut(&self) {
        assert!(ip(&format!("-n {} link set va down", self.names[0])));
    }

    /// A job with a rank on each, started on the first by `forgelm launch`; a script stands in for ssh.
    fn start(&self, mpi: &Mpi, workplace: &Workplace) -> std::process::Child {
        let [a, b] = &self.names;
        let agent = format!(
            "#!/bin/sh\nhost=$1; shift\ncase $host in {}) n={a} ;; {}) n={b} ;; *) exit 1 ;; esac\n\
             exec ip netns exec $n /bin/sh -c \"$*\"\n",
            ADDRESSES[0], ADDRESSES[1]
        );
        workplace.write("agent", &agent);
        let path = workplace.path("agent");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        workplace.write("hosts", &format!("{} slots=1\n{} slots=1\n", ADDRESSES[0], ADDRESSES[1]));
        let plain = workplace.command(&[]);
        let mut job = workplace.command(&["launch", "--grace", "3", "--", "ip"]);
        job.args(["netns", "exec", a, mpi.launcher(), "--bind-to", "none", "--map-by", "node"])
            .arg("--hostfile")
            .arg(workplace.path("hosts"))
            .args(["--mca", "plm", "rsh", "--mca", "plm_rsh_agent"])
            .arg(&path)
            .args(["--mca", "btl", "tcp,self", "--mca", "pml", "ob1"])
            .args(["--mca", "btl_tcp_if_include", "10.77.0.0/24"])
            .args(["--mca", "oob_tcp_if_include", "10.77.0.0/24"])
            .args(["-x", "HOME", "-x", "FORGELM_OPERATOR", "-x", "FORGELM_PLUGIN_PATH"])
            .args(["-np", "2"])
            .arg(plain.get_program())
            .args(["--config", "run.yaml"]);
        mpi.spawn(job, workplace)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

/// Both ranks end by themselves; Open MPI's launcher may stay, and is ended by `forgelm launch`.
#[test]
fn a_cut_cable_ends_the_processes_on_both_sides_and_the_last_checkpoint_is_good() {
    let Some(mpi) = every_mpi().into_iter().find(|mpi| mpi.launcher().contains("openmpi")) else {
        return;
    };
    let Some(hosts) = Hosts::new() else { return };
    let workplace = workplace(ZERO2);
    workplace.edit_config("timeout_seconds: 60", "timeout_seconds: 5");
    let mut job = hosts.start(&mpi, &workplace);
    crate::resume::wait_for(&workplace.path("out/checkpoint-4"), &mut job);
    hosts.cut();
    let start = Instant::now();
    while !ranks(&workplace).is_empty() {
        assert!(start.elapsed() < LONGEST, "{}", workplace.read("stderr"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = start.elapsed();
    let ended = ended(&workplace, job).expect_code(2);
    assert!(took < Duration::from_secs(60), "{took:?}:\n{}", ended.stderr);
    ended
        .expect_stderr("no sign of rank")
        .expect_stderr("launch: ended with 2, checkpoint of step ");
    workplace.edit_config("timeout_seconds: 5", "timeout_seconds: 60");
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    assert!(workplace.adapter("out") == of_one_process());
}

/// Ranks that are on two hosts by name: the frozen weights lie in parts within each.
#[test]
fn hybrid_shard_gives_the_same_bits_on_two_hosts() {
    let Some(mpi) = every_mpi().into_iter().find(|mpi| mpi.launcher().contains("openmpi")) else {
        return;
    };
    let renames = Command::new("unshare").args(["--uts", "hostname", "node0"]).status();
    if !renames.is_ok_and(|status| status.success()) {
        println!("skipped: hosts cannot be given names here (root and unshare are needed)");
        return;
    }
    let workplace = workplace("strategy: fsdp, fsdp_strategy: hybrid_shard");
    workplace.write(
        "named",
        "hostname node$((OMPI_COMM_WORLD_RANK / 2)) && exec \"$@\" --config run.yaml",
    );
    let mut job = Command::new(mpi.launcher());
    job.args(["--oversubscribe", "--bind-to", "none", "-np", "4"])
        .args(["unshare", "--uts", "sh", "named"])
        .arg(workplace.command(&[]).get_program());
    let job = mpi.spawn(job, &workplace);
    ended(&workplace, job).expect_code(0);
    assert!(workplace.adapter("out") == of_one_process());
    let lines = workplace.json_lines("out/audit_log.jsonl");
    let started = lines.iter().find(|line| line["event"] == "training.distributed").unwrap();
    let hosts = ["node0", "node0", "node1", "node1"];
    assert_eq!(started["hosts"], serde_json::json!(hosts));
    assert_eq!(started["strategy"], "fsdp hybrid_shard");
}
