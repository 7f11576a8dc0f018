"""Envelopes of a finished run verified by an independent DSSE library, and envelopes of that library for us.

    pip install "securesystemslib[crypto]==1.6.0"
    python tools/golden/dsse_securesystemslib.py out               # verifies every envelope of a run
    python tools/golden/dsse_securesystemslib.py --write           # writes tests/data/golden/dsse

Made with securesystemslib 1.6.0 and cryptography 50.0.2. The golden files are two signatures of the
seeds 01… and 02… over one statement, with our key ids and with none; Ed25519 signs the same bytes the
same way, so that writing them again changes nothing. `core/evidence/src/tests/foreign.rs` reads them.
"""

import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden" / "dsse"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def keyid(public) -> str:
    """SHA-256 of the SubjectPublicKeyInfo, as ours are."""
    der = serialization.Encoding.DER
    spki = public.public_bytes(der, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def refused(envelope: Envelope, key: SSlibKey) -> bool:
    try:
        envelope.verify([key], 1)
    except Exception:  # whatever it says, it did not accept
        return True
    return False


def verify_run(run: Path) -> None:
    pem = (run / "compliance" / "signing_key.pub").read_bytes()
    public = serialization.load_pem_public_key(pem)
    key = SSlibKey.from_crypto(public, keyid(public))
    other = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32).public_key()
    stranger = SSlibKey.from_crypto(other, keyid(other))
    documents = sorted(run.rglob("*.dsse.json"))
    envelopes = [(path, json.loads(path.read_text())) for path in documents]
    signature = run / "final_model" / "model.sig"
    envelopes.append((signature, json.loads(signature.read_text())["dsseEnvelope"]))
    assert len(envelopes) > 5, documents
    for path, document in envelopes:
        # A bundle of OpenSSF Model Signing names its key elsewhere.
        for entry in document["signatures"]:
            entry.setdefault("keyid", key.keyid)
        envelope = Envelope.from_dict(document)
        assert list(envelope.verify([key], 1)) == [key.keyid], path
        assert refused(envelope, stranger), path
        statement = json.loads(envelope.payload)
        for subject in statement["subject"]:
            file = run / subject["name"]
            if path.name.startswith("audit_log"):
                continue  # of the log as it was at that line
            if file.is_file():
                found = hashlib.sha256(file.read_bytes()).hexdigest()
                assert found == subject["digest"]["sha256"], file
        envelope.payload = envelope.payload.replace(b"in-toto.io", b"in-toto.ix", 1)
        assert refused(envelope, key), path
        print("verified, and refused when changed:", path.relative_to(run))


def write() -> None:
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "empty", "digest": {"sha256": hashlib.sha256(b"").hexdigest()}}],
        "predicateType": "https://forgelm.dev/attestations/compliance-manifest/v1",
        "predicate": {"by": "securesystemslib", "text": "é \u2028 \U0001f600"},
    }
    envelope = Envelope(json.dumps(statement).encode(), PAYLOAD_TYPE, {})
    for seed in [1, 2]:
        private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        public = private.public_key()
        envelope.sign(CryptoSigner(private, SSlibKey.from_crypto(public, keyid(public))))
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(envelope.to_dict(), indent=1) + "\n"
    (OUT / "two_signatures.dsse.json").write_text(text)


if sys.argv[1:] == ["--write"]:
    write()
else:
    verify_run(Path(sys.argv[1]))
