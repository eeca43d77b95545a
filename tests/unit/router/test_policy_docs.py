"""docs/policy.md: every snippet loads, the reference and the schema are what the loader reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from router.policy.loader import load
from router.policy.schema import json_schema, reference

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "policy.md").read_text()
SNIPPETS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
TITLES = [
    re.findall(r"^## (.*)$", TEXT[: TEXT.index(snippet)], re.MULTILINE)[-1] for snippet in SNIPPETS
]


@pytest.mark.parametrize("i", range(len(SNIPPETS)), ids=[f"{i}-{t}" for i, t in enumerate(TITLES)])
def test_every_snippet_loads_over_the_first(i: int):
    policy = {**yaml.safe_load(SNIPPETS[0]), **yaml.safe_load(SNIPPETS[i])}
    loaded = load(yaml.safe_dump(policy, sort_keys=False))
    assert loaded.ok, "\n".join(str(p) for p in loaded.problems)
    # nothing in the reference may be something lint advises against
    assert [p for p in loaded.problems if "never reached" in p.message] == []


def test_there_is_an_example_for_every_top_level_key():
    used = set().union(*(yaml.safe_load(s) for s in SNIPPETS))
    assert used == set(json_schema()["anyOf"][0]["properties"])


def test_reference_and_schema_are_generated():
    assert TEXT.endswith(reference()), "run: mailweir policy schema --markdown"
    stored = json.loads((ROOT / "docs" / "policy.schema.json").read_text())
    assert stored == json.loads(json.dumps(json_schema())), "run: mailweir policy schema"


@pytest.mark.parametrize("name", ["policy.yaml", "policy-template.yaml"])
def test_examples_load(name: str):
    loaded = load((ROOT / "examples" / name).read_bytes(), file=name)
    assert loaded.ok
    if name == "policy.yaml":
        assert loaded.problems == ()
