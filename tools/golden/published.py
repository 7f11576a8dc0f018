"""Validates the documents for other programs with what the formats' own people publish.

    pip install 'cyclonedx-python-lib[json-validation]==11.12.0' spdx-python-model==0.0.6 mlcroissant==1.1.1
    cargo test --workspace --lib write_the_documents -- --ignored
    python tools/golden/published.py core/evidence/src/tests/published/full
    python tools/golden/published.py out/compliance

The first two lines are needed once; the folders hold `mlbom.cdx.json`, `ai.spdx.json` and
`croissant.json`. CycloneDX: the JSON schema of 1.6 in strict mode, as the foundation's library ships it.
SPDX: the bindings that are generated from the SHACL shapes of 3.0.1, which hold types, cardinalities,
vocabularies and patterns; then every object that is referred to must be in the document. Croissant: the
reference implementation's checks, for the version that the document names. Each validator must also refuse
a document that was spoiled on purpose.
"""

import json
import sys
import tempfile
from pathlib import Path


def cyclonedx(text):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return None if error is None else str(error)[:2000]


def spdx(text):
    import io

    from spdx_python_model import v3_0_1 as model

    objects = model.SHACLObjectSet()
    try:
        model.JSONLDDeserializer().read(io.BytesIO(text.encode()), objects)
    except Exception as error:  # whatever the bindings raise is a refusal
        return f"{type(error).__name__}: {error}"[:2000]
    missing = objects.link()
    if missing:
        return f"not in the document: {sorted(missing)[:5]}"
    # What the bindings do not know they keep as an extension, or drop: nothing may be lost.
    out = io.BytesIO()
    model.JSONLDSerializer().write(objects, out)
    count = lambda value: (
        sum(map(count, value.values())) if isinstance(value, dict)
        else sum(map(count, value)) if isinstance(value, list)
        else 1
    )
    before, after = json.loads(text), json.loads(out.getvalue())
    if len(before["@graph"]) != len(after["@graph"]):
        return f"{len(before['@graph'])} elements became {len(after['@graph'])}"
    if count(before) != count(after):
        return f"{count(before)} values became {count(after)}"
    return None


def croissant(text):
    import mlcroissant

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "croissant.json"
        path.write_text(text)
        try:
            dataset = mlcroissant.Dataset(str(path))
        except mlcroissant.ValidationError as error:
            return str(error)[:2000]
    if str(dataset.metadata.ctx.conforms_to.value) != json.loads(text)["conformsTo"]:
        return f"read as {dataset.metadata.ctx.conforms_to}"
    return None


def spoiled(name, text):
    document = json.loads(text)
    if name == "mlbom.cdx.json":
        document["metadata"]["component"]["modelCard"]["unheard_of"] = 1
    elif name == "ai.spdx.json":
        model = next(e for e in document["@graph"] if e.get("type") == "ai_AIPackage")
        model["builtTime"] = "yesterday"
    else:
        document["distribution"][0].pop("sha256")
    return json.dumps(document)


def main(folder):
    validators = {"mlbom.cdx.json": cyclonedx, "ai.spdx.json": spdx, "croissant.json": croissant}
    failed = 0
    for name, validate in validators.items():
        path = Path(folder) / name
        text = path.read_text()
        error = validate(text)
        print(f"{path}: {'valid' if error is None else 'refused: ' + error}")
        failed += error is not None
        if validate(spoiled(name, text)) is None:
            print(f"{path}: the validator accepts a spoiled document too")
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(min(1, sum(main(folder) for folder in sys.argv[1:])))
