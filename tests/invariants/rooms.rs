//! Who may touch the world: clock, environment, output, exit, files, network, processes and
//! `unsafe` each have their rooms, and are found in no other.

use crate::source::{code, code_outside_tests, has_word, is_test_file};
use crate::tree::Tree;

struct Room {
    /// What the words do.
    what: &'static str,
    /// Found as whole words in code.
    words: &'static [&'static str],
    /// Paths that may; a folder ends with `/`.
    may: &'static [&'static str],
    /// Where the wish goes instead.
    instead: &'static str,
}

const ROOMS: [Room; 7] = [
    Room {
        what: "reads the clock",
        words: &["SystemTime::now", "Instant::now", "Timestamp::now"],
        may: &["core/world/", "tools/"],
        instead: "take a `forgelm_artifact::time::Clock` as an argument",
    },
    Room {
        what: "reads the environment",
        words: &["env::var", "env::var_os", "env::vars", "env::vars_os"],
        may: &["core/world/", "kernels/cpu/build.rs", "kernels/emulator/build.rs", "tools/"],
        instead: "take the value as an argument; core/world reads it",
    },
    Room {
        what: "ends the process",
        words: &["process::exit", "process::abort"],
        may: &["core/cli/"],
        instead: "return an error; core/cli turns it into an exit code",
    },
    Room {
        what: "writes to the terminal",
        words: &["println!", "print!", "eprintln!", "eprint!", "io::stdout", "io::stderr"],
        // a worker takes both away from the plugin that it loads
        may: &[
            "core/cli/",
            "tools/",
            "ffi/capi/build.rs",
            "ffi/loader/src/worker/server.rs",
            "kernels/cpu/build.rs",
            "kernels/emulator/build.rs",
        ],
        instead: "return a value or emit an event; core/cli prints",
    },
    Room {
        what: "writes files",
        words: &[
            "fs::write",
            "fs::rename",
            "fs::remove_file",
            "fs::remove_dir",
            "fs::remove_dir_all",
            "fs::create_dir",
            "fs::create_dir_all",
            "fs::copy",
            "File::create",
            "File::create_new",
            "create_new",
            "create(true)",
            "write(true)",
            "append(true)",
            "DirBuilder",
        ],
        // a private key is created exclusively, with its mode from the first byte
        may: &["core/artifact/", "core/evidence/src/keys/", "kernels/emulator/build.rs", "tools/"],
        instead: "use `forgelm_artifact::write`",
    },
    Room {
        what: "uses the network or another program",
        words: &[
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "to_socket_addrs",
            "hf_hub",
            "ureq",
            "Command::new",
        ],
        // the process of a plugin is this program again; a build script calls the C++ compiler
        may: &[
            "core/hub/",
            "core/outbound/",
            "core/world/",
            "ffi/loader/src/worker/",
            "kernels/emulator/build.rs",
            "tools/",
        ],
        instead: "ask core/hub for what is fetched, core/outbound for what is sent",
    },
    Room {
        what: "is `unsafe`",
        words: &["unsafe"],
        // the benchmarks measure the machine itself, with the instructions themselves; the compiler
        // of CUDA is a library in C
        may: &[
            "kernels/cpu/",
            "kernels/cuda/",
            "kernels/emulator/",
            "ffi/",
            "tools/bench/",
            "tools/xtask/src/cudnn.rs",
            "tools/xtask/src/kernels/nvrtc.rs",
            "core/artifact/src/map.rs",
        ],
        instead: "move it behind a checked surface in one of its rooms",
    },
];

fn may(room: &Room, name: &str) -> bool {
    room.may.iter().any(|place| name == *place || (place.ends_with('/') && name.starts_with(place)))
}

fn problems(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in tree.rust() {
        let outside_tests =
            if is_test_file(name) { String::new() } else { code_outside_tests(text) };
        let everything = code(text);
        for room in ROOMS.iter().filter(|room| !may(room, name)) {
            // tests may touch a temporary folder, but are no room for unsafe code
            let read = if room.words == ["unsafe"] { &everything } else { &outside_tests };
            for (number, line) in read.lines().enumerate() {
                if let Some(word) = room.words.iter().find(|word| has_word(line, word)) {
                    found.push(format!(
                        "{name}:{}: `{word}` {}, which only {} may: {}",
                        number + 1,
                        room.what,
                        room.may.join(", "),
                        room.instead
                    ));
                }
            }
        }
    }
    found
}

#[test]
fn the_world_is_touched_only_in_its_rooms() {
    crate::must_be_empty(&problems(&Tree::of_repository()));
}

#[test]
fn canary_each_room_finds_what_it_is_for() {
    for room in &ROOMS {
        for word in room.words {
            let text = format!("fn f() {{\n    {word}\n}}\n#[cfg(test)]\nmod tests {{ x }}\n");
            let files = [("core/model/src/a.rs", text.as_str())];
            crate::must_find(&problems(&Tree::planted(&files)), &["core/model/src/a.rs:2", word]);
        }
    }
}

#[test]
fn canary_rooms_let_in_who_may_and_leave_tests_alone() {
    let write = "#[cfg(test)]\nmod tests {\n fn f() { std::fs::write(a, b) }\n}\n// println!\n";
    let files = [
        ("core/model/src/a.rs", write),
        ("core/artifact/src/write.rs", "std::fs::rename(a, b);"),
        ("core/artifact/src/map.rs", "unsafe {}"),
        ("tests/e2e/main.rs", "std::fs::write(a, b);"),
    ];
    crate::must_be_empty(&problems(&Tree::planted(&files)));
    let files = [("core/artifact/src/lock.rs", "unsafe {}")];
    crate::must_find(&problems(&Tree::planted(&files)), &["core/artifact/src/lock.rs:1"]);
}
