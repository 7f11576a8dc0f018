"""Keys and signatures by others: OpenSSL's encrypted key files, Ed25519 vectors, DSSE envelopes.

Run with OpenSSL 3 and the packages cryptography and securesystemslib: python tools/golden/keys.py
Writes tests/data/golden/keys/; salts are OpenSSL's, so its two files differ each time. With arguments it
writes nothing: python tools/golden/keys.py ENVELOPE PUBLIC_KEY has securesystemslib verify a file of ours.
"""

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden" / "keys"
PASSPHRASE = "correct horse battery staple"
# RFC 8032, section 7.1: seed, public key, message, signature.
ABC = hashlib.sha512(b"abc").hexdigest()
RFC_8032 = [
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
     "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
    ("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
     "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf", ABC,
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"),
]

# The curve, plainly.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def add(a, b):
    k = D * a[0] * b[0] * a[1] * b[1] % P
    return ((a[0] * b[1] + b[0] * a[1]) * pow(1 + k, -1, P) % P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, -1, P) % P)


def mul(n, a):
    out = (0, 1)
    while n:
        if n & 1:
            out = add(out, a)
        a, n = add(a, a), n >> 1
    return out


def point(y, sign):
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        return None
    return ((P - x) % P if x & 1 != sign else x, y)


def encode(a):
    return (a[1] | (a[0] & 1) << 255).to_bytes(32, "little")


def decode(raw):
    number = int.from_bytes(raw, "little")
    return point(number % 2**255, number >> 255)


BASE = point(4 * pow(5, -1, P) % P, 0)
# A point of order 8: L times any point that has a part of it.
TORSION = next(
    t for t in (mul(L, point(y, 0)) for y in range(2, 100) if point(y, 0)) if mul(4, t) != (0, 1)
)


def scalar(seed):
    head = hashlib.sha512(seed).digest()[:32]
    return int.from_bytes(head, "little") & (2**254 - 8) | 2**254


def challenge(r, a, message):
    return int.from_bytes(hashlib.sha512(r + a + message).digest(), "little") % L


def loose(public, message, signature):
    """The equation with the cofactor, and S as it comes: what a reader that is not strict accepts."""
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    right = add(decode(r), mul(challenge(r, public, message), decode(public)))
    return mul(8, mul(s, BASE)) == mul(8, right)


def refused_signatures():
    seed, public, message, signature = (bytes.fromhex(field) for field in RFC_8032[2])
    s = int.from_bytes(signature[32:], "little")
    yield "S is larger by the order of the group", signature[:32] + (s + L).to_bytes(32, "little")
    yield "S is larger by seven times the order", signature[:32] + (s + 7 * L).to_bytes(32, "little")
    # R with a part of order 8, and S made for that R: right only when multiplied by the cofactor.
    r = encode(add(mul(12345, BASE), TORSION))
    s = (12345 + challenge(r, public, message) * scalar(seed)) % L
    yield "R has a part of order 8", r + s.to_bytes(32, "little")
    for order, part in ((1, (0, 1)), (2, (0, P - 1)), (8, TORSION)):
        r = encode(part)
        s = challenge(r, public, message) * scalar(seed) % L
        yield f"R is of order {order}", r + s.to_bytes(32, "little")


def ed25519():
    for seed, public, message, signature in RFC_8032:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
        assert key.public_key().public_bytes_raw().hex() == public
        assert key.sign(bytes.fromhex(message)).hex() == signature
    public, message = (bytes.fromhex(RFC_8032[2][i]) for i in (1, 2))
    signatures = []
    for what, signature in refused_signatures():
        assert loose(public, message, signature), what
        signatures.append({"what": what, "signature": signature.hex()})
    small = [encode(mul(k, TORSION)).hex() for k in range(8)]
    # y from p to 2^255 - 1 says what y - p says: 19 second names, with either sign.
    second = [(y | sign << 255).to_bytes(32, "little").hex() for y in range(P, 2**255) for sign in (0, 1)]
    none = [(y).to_bytes(32, "little").hex() for y in range(2, 40) if point(y, 0) is None]
    names = ("seed", "public_key", "message", "signature")
    return {
        "rfc_8032": [dict(zip(names, vector)) for vector in RFC_8032],
        "refused_public_keys": {"small_order": small, "not_canonical": second, "not_on_the_curve": none},
        "refused_signatures": {"public_key": public.hex(), "message": message.hex(), "cases": signatures},
    }


def openssl_key(path, *options):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_8032[0][0]))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.pem"
        plain.write_bytes(key.private_bytes(*form))
        command = ["openssl", "pkcs8", "-topk8", "-in", plain, "-out", path, "-passout", f"pass:{PASSPHRASE}"]
        subprocess.run([*command, *options], check=True)


def dsse():
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_8032[0][0]))
    signer = CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), "a-hint"))
    digest = {"sha256": hashlib.sha256(b"").hexdigest()}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "empty", "digest": digest}],
        "predicateType": "https://forgelm.dev/attestations/compliance-manifest/v1",
        "predicate": {"by": "securesystemslib"},
    }
    envelope = Envelope(json.dumps(statement).encode(), "application/vnd.in-toto+json", {})
    envelope.sign(signer)
    (OUT / "securesystemslib.dsse.json").write_text(json.dumps(envelope.to_dict(), indent=1) + "\n")


def verify(envelope, public_key):
    public = serialization.load_pem_public_key(Path(public_key).read_bytes())
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = SSlibKey.from_crypto(public, hashlib.sha256(spki).hexdigest())
    found = Envelope.from_dict(json.loads(Path(envelope).read_text()))
    print("verified:", list(found.verify([key], 1)))
    assert json.loads(found.payload)["_type"] == "https://in-toto.io/Statement/v1"
    # It can refuse, too.
    found.payload = found.payload.replace(b"Statement", b"statement")
    try:
        found.verify([key], 1)
    except Exception as refusal:
        print("refused when changed:", refusal)
    else:
        raise SystemExit("a changed payload was accepted")


if len(sys.argv) == 3:
    verify(*sys.argv[1:])
else:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "ed25519.json").write_text(json.dumps(ed25519(), indent=1) + "\n")
    openssl_key(OUT / "openssl_pbkdf2.pem", "-v2", "aes-256-cbc")
    openssl_key(OUT / "openssl_scrypt.pem", "-scrypt")
    openssl_key(OUT / "openssl_sha512.pem", "-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA512", "-iter", "4096")
    dsse()
