"""The JSON schema of policy files, for editors: made from the grammar the loader reads by."""

from __future__ import annotations

from typing import Any

from router.policy import grammar
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


def reference() -> str:
    """The keys as Markdown tables, for docs/policy.md."""
    out: list[str] = []
    for title, record in (
        ("Top level", POLICY),
        ("sources", grammar.SOURCE),
        ("auth", grammar.AUTH),
        ("pools", grammar.POOL),
        ("rules", grammar.RULE),
        ("match", grammar.MATCH),
        ("action", grammar.ACTION),
        ("buckets", grammar.BUCKET_RECORD),
        ("retry", grammar.RETRY),
        ("affinity", grammar.AFFINITY),
        ("domains", grammar.DOMAIN_RECORD),
        ("dkim", grammar.DKIM),
        ("providers", grammar.PROVIDER),
        ("warmup", grammar.WARMUP),
        ("thresholds", grammar.THRESHOLDS),
        ("tenants", grammar.TENANT),
    ):
        out.append(f"### {title}\n\n| key | meaning |\n|---|---|")
        for name, key in record.keys.items():
            need = " Required." if key.required else ""
            out.append(f"| `{name}` | {key.doc.replace('|', chr(92) + '|')}{need} |")
        out.append("")
    return "\n".join(out)
