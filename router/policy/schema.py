"""The JSON schema of policy files, for editors: made from the grammar the loader reads by."""

from __future__ import annotations

from typing import Any

from router.policy.grammar import POLICY
from router.policy.template import TEMPLATE


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a policy file, in its own form or the article's template."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Mailweir policy",
        "description": "Where mail goes: sources, pools, rules, limits. See docs/policy.md.",
        "anyOf": [POLICY.schema(), TEMPLATE.schema()],
    }
