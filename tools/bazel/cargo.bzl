"""Bazel rules over a cargo workspace. They need no other Bazel repository.

cargo_build runs one `cargo build` and hands out its artifacts; cargo_binary, cargo_library and
cargo_test give Bazel's kinds of target to what cargo made; c_host_test links a C program to it.
Works with Bazel 2.1 and later: keep to the Starlark API that all of them have.
"""

CargoInfo = provider(
    doc = "What one cargo run built, and from what.",
    fields = {
        "artifacts": "dict: artifact name -> File",
        "manifest": "File of the workspace's Cargo.toml",
        "srcs": "depset of the files it is made from",
    },
)

CLibraryInfo = provider(
    doc = "A C library with its header.",
    fields = {
        "hdrs": "list of File",
        "include": "directory of the headers",
        "shared": "File",
        "static": "File",
    },
)

# cargo works in the source tree, on the registry and on a target directory of its own: none of
# which a sandbox or a remote machine has. What it makes is not bit for bit the same elsewhere.
_OUTSIDE = {"local": "1", "no-cache": "1", "no-remote": "1", "no-sandbox": "1", "requires-network": "1"}

_CARGO_SH = {"_cargo_sh": attr.label(default = "//tools/bazel:cargo.sh", allow_single_file = True)}

def crate_srcs(name = "srcs", extra = []):
    """The files of the crate in this package, for cargo_build(srcs)."""
    native.filegroup(
        name = name,
        srcs = native.glob(
            ["Cargo.toml", "*.rs", "src/**", "include/**", "tests/**", "benches/**", "examples/**"] + extra,
            exclude = ["**/BUILD.bazel"],
            allow_empty = True,
        ),
        visibility = ["//visibility:public"],
    )

def _cargo(ctx, manifest, srcs, artifacts, command, after = []):
    """One cargo action. artifacts: dict artifact name -> File to make."""
    listing = ctx.actions.declare_file(ctx.label.name + ".srcs")
    ctx.actions.write(listing, "".join([f.path + "\n" for f in srcs.to_list()]))
    ctx.actions.run(
        outputs = artifacts.values(),
        inputs = depset([listing, manifest] + after, transitive = [srcs]),
        tools = [ctx.file._cargo_sh],
        executable = ctx.file._cargo_sh,
        arguments = [manifest.path, ctx.var["COMPILATION_MODE"], listing.path] +
                    ["%s=%s" % (a, f.path) for a, f in artifacts.items()] + ["--"] + command,
        mnemonic = "Cargo",
        progress_message = "cargo " + " ".join(command),
        use_default_shell_env = True,
        execution_requirements = _OUTSIDE,
    )
    return listing

def _cargo_build_impl(ctx):
    srcs = depset([ctx.file.manifest] + ctx.files.srcs)
    artifacts = {a: ctx.actions.declare_file(ctx.label.name + "/" + a) for a in ctx.attr.artifacts}
    _cargo(ctx, ctx.file.manifest, srcs, artifacts, ["build"] + ctx.attr.cargo_args)
    return [
        DefaultInfo(files = depset(artifacts.values())),
        CargoInfo(artifacts = artifacts, manifest = ctx.file.manifest, srcs = srcs),
    ]

cargo_build = rule(
    implementation = _cargo_build_impl,
    attrs = dict({
        "cargo_args": attr.string_list(mandatory = True, doc = "which packages: cargo's -p NAME or --workspace"),
        "artifacts": attr.string_list(mandatory = True, doc = "files under target/<profile>/"),
        "manifest": attr.label(allow_single_file = True, default = "//:Cargo.toml"),
        "srcs": attr.label_list(allow_files = True, doc = "all that cargo reads, Cargo.lock too"),
    }, **_CARGO_SH),
)

_FIND_RUNFILES = """#!/bin/sh
set -eu
if [ -n "${TEST_SRCDIR:-}" ]; then runfiles=$TEST_SRCDIR
elif [ -d "$0.runfiles" ]; then runfiles=$(cd "$0.runfiles" && pwd)
elif [ -n "${RUNFILES_DIR:-}" ]; then runfiles=$RUNFILES_DIR
else echo "$0: no runfiles beside it" >&2; exit 1
fi
ws=$runfiles/%s
"""

def _launcher(ctx, body):
    script = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(script, _FIND_RUNFILES % ctx.workspace_name + body, is_executable = True)
    return script

def _dirname(path):
    return path.rpartition("/")[0]

def _cargo_binary_impl(ctx):
    binary = ctx.attr.build[CargoInfo].artifacts[ctx.attr.artifact]
    plugins = [f for f in ctx.files.plugins if f.extension == "so"]
    path = {"$ws/" + _dirname(f.short_path): None for f in plugins}.keys()
    script = _launcher(ctx, """
FORGELM_PLUGIN_PATH="${FORGELM_PLUGIN_PATH:+$FORGELM_PLUGIN_PATH:}%s"
export FORGELM_PLUGIN_PATH
# bazel run starts programs in the runfiles tree, but paths on the command line are the user's
cd "${BUILD_WORKING_DIRECTORY:-.}"
exec "$ws/%s" "$@"
""" % (":".join(path), binary.short_path))
    return [DefaultInfo(
        files = depset([script]),
        executable = script,
        runfiles = ctx.runfiles(files = [binary] + plugins + ctx.files.data),
    )]

cargo_binary = rule(
    implementation = _cargo_binary_impl,
    executable = True,
    attrs = {
        "artifact": attr.string(mandatory = True),
        "build": attr.label(providers = [CargoInfo], mandatory = True),
        "data": attr.label_list(allow_files = True),
        "plugins": attr.label_list(allow_files = True, doc = "found at run time by FORGELM_PLUGIN_PATH"),
    },
)

def _cargo_library_impl(ctx):
    artifacts = ctx.attr.build[CargoInfo].artifacts
    outs = []
    kinds = {}
    for artifact, out in ctx.attr.outs.items():
        f = ctx.actions.declare_file(out)
        ctx.actions.run_shell(
            outputs = [f],
            inputs = [artifacts[artifact]],
            command = 'cp -f "$1" "$2"',
            arguments = [artifacts[artifact].path, f.path],
            mnemonic = "Copy",
        )
        outs.append(f)
        kinds[f.extension] = f
    return [
        DefaultInfo(files = depset(outs + ctx.files.hdrs), runfiles = ctx.runfiles(files = outs + ctx.files.hdrs)),
        CLibraryInfo(
            hdrs = ctx.files.hdrs,
            include = ctx.files.hdrs[0].dirname if ctx.files.hdrs else None,
            shared = kinds.get("so"),
            static = kinds.get("a"),
        ),
    ]

cargo_library = rule(
    implementation = _cargo_library_impl,
    attrs = {
        "build": attr.label(providers = [CargoInfo], mandatory = True),
        "hdrs": attr.label_list(allow_files = [".h"]),
        "outs": attr.string_dict(mandatory = True, doc = "artifact -> file name here"),
    },
)

def _cargo_test_impl(ctx):
    info = ctx.attr.build[CargoInfo]
    srcs = depset(ctx.files.srcs, transitive = [info.srcs])

    # Compiled while Bazel builds: a compile error is then a failed build, not a failed test, and
    # the test's time limit is the tests' own. After the artifacts, only so that two cargos don't
    # wait for each other's lock.
    stamp = ctx.actions.declare_file(ctx.label.name + ".built")
    listing = _cargo(ctx, info.manifest, srcs, {"": stamp}, ["test"] + ctx.attr.cargo_args, info.artifacts.values())
    script = _launcher(ctx, """
exec "$ws/%s" "$ws/%s" %s "$ws/%s" -- test %s "$@"
""" % (
        ctx.file._cargo_sh.short_path,
        info.manifest.short_path,
        ctx.var["COMPILATION_MODE"],
        listing.short_path,
        " ".join(ctx.attr.cargo_args),
    ))
    return [
        DefaultInfo(
            files = depset([script, stamp]),
            executable = script,
            runfiles = ctx.runfiles(
                files = [ctx.file._cargo_sh, info.manifest, listing, stamp] + ctx.files.data,
                transitive_files = srcs,
            ),
        ),
        testing.ExecutionInfo(_OUTSIDE),
    ]

cargo_test = rule(
    implementation = _cargo_test_impl,
    test = True,
    attrs = dict({
        "cargo_args": attr.string_list(mandatory = True, doc = "which packages: cargo's -p NAME or --workspace"),
        "build": attr.label(providers = [CargoInfo], mandatory = True),
        "data": attr.label_list(allow_files = True),
        "srcs": attr.label_list(allow_files = True, doc = "what the tests read beyond the build's srcs"),
    }, **_CARGO_SH),
)

def _c_host_test_impl(ctx):
    lib = ctx.attr.lib[CLibraryInfo]
    host = ctx.actions.declare_file(ctx.label.name + "_host")
    if ctx.attr.static:
        link = [lib.static.path, "-lpthread", "-ldl", "-lm"]
    else:
        link = ["-L" + lib.shared.dirname, "-l" + lib.shared.basename[len("lib"):-len(".so")]]
    ctx.actions.run_shell(
        outputs = [host],
        inputs = ctx.files.srcs + lib.hdrs + [lib.static if ctx.attr.static else lib.shared],
        command = '${CC:-cc} "$@"',
        arguments = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O1", "-I" + lib.include, "-o", host.path] +
                    [f.path for f in ctx.files.srcs] + link,
        mnemonic = "CHost",
        progress_message = "cc " + ctx.label.name,
        use_default_shell_env = True,
    )
    script = _launcher(ctx, """
# the host asks for the library by the name of its ABI
mkdir -p "$TEST_TMPDIR/lib"
ln -sf "$ws/%s" "$TEST_TMPDIR/lib/%s"
LD_LIBRARY_PATH="$TEST_TMPDIR/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LD_LIBRARY_PATH
exec "$ws/%s" "$@"
""" % (lib.shared.short_path, lib.shared.basename + ".1", host.short_path))
    return [DefaultInfo(
        executable = script,
        runfiles = ctx.runfiles(files = [host] + ([] if ctx.attr.static else [lib.shared])),
    )]

c_host_test = rule(
    implementation = _c_host_test_impl,
    test = True,
    attrs = {
        "lib": attr.label(providers = [CLibraryInfo], mandatory = True),
        "srcs": attr.label_list(allow_files = [".c"], mandatory = True),
        "static": attr.bool(),
    },
)
