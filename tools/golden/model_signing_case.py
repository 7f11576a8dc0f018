"""A model folder signed by OpenSSF's own tool, and the check that it accepts what we sign.

    pip install model-signing==1.1.1 pyOpenSSL
    python tools/golden/model_signing_case.py tests/data/golden/model_signing

Makes `theirs.sig` with the key of the folder, and verifies `ours.sig`, which is what the unit test
`p256_bundles_are_read_and_written_as_model_signing_has_them` writes. The key protects nothing.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

TOOL = [sys.executable, "-m", "model_signing"]


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        model = pathlib.Path(scratch) / "model"
        shutil.copytree(folder / "model", model)
        theirs = folder / "theirs.sig"
        key = ["--private_key", str(folder / "key.pem")]
        subprocess.run([*TOOL, "sign", "key", str(model), "--signature", str(theirs), *key], check=True)
        public = ["--public_key", str(folder / "key.pub")]
        for name in ["theirs.sig", "ours.sig"]:
            # Where it lies in a signed model.
            signature = model / "model.sig"
            shutil.copy(folder / name, signature)
            command = [*TOOL, "verify", "key", str(model), "--signature", str(signature), *public]
            verified = subprocess.run(command, check=True, capture_output=True, text=True)
            # The tool exits with 0 whatever it finds.
            assert "Verification succeeded" in verified.stdout, verified
            print(name, "verified by model-signing")
            (model / "config.json").write_text("changed\n")
            verified = subprocess.run(command, capture_output=True, text=True)
            assert "Verification failed" in verified.stdout + verified.stderr, verified
            shutil.copy(folder / "model" / "config.json", model / "config.json")
            signature.unlink()


main()
