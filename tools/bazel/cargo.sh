#!/usr/bin/env bash
# Runs cargo for a Bazel action or test, in the real source tree, so that plain `cargo` and Bazel
# share one target directory and one incremental cache.
#
#   cargo.sh MANIFEST MODE SRCS [ARTIFACT=OUTPUT ...] -- CARGO-SUBCOMMAND [ARG ...]
#
# MANIFEST  the workspace's Cargo.toml as Bazel sees it (a symlink into the source tree)
# MODE      Bazel's compilation mode: opt is cargo's release profile, all others its dev profile
# SRCS      a file that lists the sources declared to Bazel, one workspace-relative path a line
# ARTIFACT  a file under target/<profile>/, copied to OUTPUT when cargo is done; empty: OUTPUT is
#           only made, when the tests are compiled
set -euo pipefail

manifest=$(readlink -f "$1") mode=$2 srcs=$3
shift 3
copies=()
while [ "$1" != -- ]; do copies+=("$1"); shift; done
subcommand=$2
shift 2

# Bazel hands actions no HOME unless --action_env=HOME, and tests a throw-away one. The rustup
# shims and cargo's registry cache need the user's.
if [ -z "${HOME:-}" ] || [ "$HOME" = "${TEST_TMPDIR:-}" ]; then
    HOME=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f6) || true
    export HOME="${HOME:-/nonexistent}"
fi
if ! command -v cargo >/dev/null 2>&1; then
    for dir in "${CARGO_HOME:-}/bin" "$HOME/.cargo/bin" /usr/local/cargo/bin; do
        if [ -x "$dir/cargo" ]; then export PATH="$dir:$PATH"; break; fi
    done
    if [ ! -v RUSTUP_HOME ] && [ -d /usr/local/rustup ]; then export RUSTUP_HOME=/usr/local/rustup; fi
fi
command -v cargo >/dev/null || { echo "cargo.sh: no cargo on PATH ($PATH) nor in a cargo home" >&2; exit 127; }

root=$(dirname "$manifest")
target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$root/$target ;; esac
case $mode in opt) dir=release profile=(--release) ;; *) dir=debug profile=() ;; esac

case $srcs in /*) ;; *) srcs=$PWD/$srcs ;; esac

# Prints those files of cargo's dep-info file $1 that are in the source tree and not in SRCS.
undeclared() {
    sed -e '/^#/d' -e 's/^[^:]*: *//' -e 's/\\ /\x01/g' "$1" | tr ' ' '\n' | tr '\001' ' ' | sed '/^$/d' |
        (cd "$root" && xargs -r -d '\n' realpath -ms --) | awk -v root="$root/" -v target="$target/" '
            NR == FNR { known[$0] = 1; next }
            index($0, target) == 1 || index($0, root) != 1 { next }
            { name = substr($0, length(root) + 1) }
            !(name in known) { print name }' "$srcs" - | sort -u
}

# Each file that cargo read must be one that Bazel knows of, or its next edit would go unnoticed.
check() {
    local missing
    missing=$(undeclared "$2")
    [ -n "$missing" ] || return 0
    echo "cargo.sh: $1 is made from files that no Bazel target lists:" >&2
    printf '    %s\n' "$missing" >&2
    return 1
}

here=$PWD # outputs are named relative to it
run() { (cd "$root" && exec cargo "$subcommand" --locked --target-dir "$target" "${profile[@]}" "$@" 9<&-); }

# From compiling to copying no other of these actions may put its own build, of other features
# say, in the same place. cargo's own lock ends with cargo.
if [ ${#copies[@]} -gt 0 ]; then
    exec 9<"$manifest"
    flock 9
fi

status=0
if [ "$subcommand" != test ]; then
    run --quiet "$@"
    for copy in "${copies[@]}"; do
        from=$target/$dir/${copy%%=*}
        cp --reflink=auto -f "$from" "$here/${copy#*=}"
        depinfo=$from.d
        [ -f "$depinfo" ] || depinfo=${from%.*}.d
        check "${copy%%=*}" "$depinfo" || status=1
    done
elif [ ${#copies[@]} -gt 0 ]; then
    # compile the tests only
    run --quiet --no-run --message-format=json-render-diagnostics "$@" >"$here/${copies[0]#*=}"
    while IFS= read -r exe; do
        check "$(basename "$exe")" "$exe.d" || status=1
    done < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$here/${copies[0]#*=}" | sort -u)
    : >"$here/${copies[0]#*=}"
else
    run "$@" # for their output, closing lines and exit code
fi
exit $status
