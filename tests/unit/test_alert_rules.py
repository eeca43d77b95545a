"""Alert rules ask for metrics and labels the code has, and say what to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = [
    rule
    for file in sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
KINDS = {"Counter": "_total", "Gauge": "", "Histogram": "_bucket", "GaugeMetricFamily": ""}
PACKAGES = ("mailweir", "router", "workers", "reputation", "suppression", "journal", "console")
OF_THE_SCRAPE = {"instance", "job"}


def metrics() -> dict[str, set[str]]:
    """Every metric the code makes, by the name it is asked for, with its labels."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                kind = getattr(node.func, "attr", getattr(node.func, "id", ""))
                name = node.args[0]
                if kind not in KINDS or not isinstance(name, ast.Constant):
                    continue
                lists = [*node.args, *(k.value for k in node.keywords)]
                labels = {
                    part.value
                    for n in lists
                    if isinstance(n, (ast.List, ast.Tuple))
                    for part in n.elts
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
                ending = KINDS[kind]
                base = str(name.value).removesuffix("_total")
                found[base + ending if ending else str(name.value)] = labels
    return found


METRICS = metrics()


def test_there_are_rules_and_metrics() -> None:
    assert len(RULES) >= 12
    assert METRICS["mailweir_path_out"] == {"source", "provider", "bucket"}
    assert METRICS["mailweir_feedback_refused_total"] == {"provider", "why"}


@pytest.mark.parametrize("rule", RULES, ids=[r["alert"] for r in RULES])
def test_a_rule_asks_for_what_there_is(rule: dict[str, object]) -> None:
    asked = str(rule["expr"])
    names = re.findall(r"\bmailweir_\w+", asked)
    assert names
    known: set[str] = set()
    for name in names:
        assert name in METRICS, f"no metric {name}"
        known |= METRICS[name]
    for inside in re.findall(r"\{([^}]*)\}", asked):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) <= known
    by = [set(re.split(r"\s*,\s*", inside)) for inside in re.findall(r"\bby \(([^)]*)\)", asked)]
    assert all(labels <= known | OF_THE_SCRAPE for labels in by)
    notes = rule["annotations"]
    assert isinstance(notes, dict)
    assert len(notes["description"]) > 30
    left = by[0] if by else known
    for label in re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]):
        assert label in left, f"no label {label} is left of the expression"
    assert rule["labels"] in [{"severity": s} for s in ("info", "warning", "critical")]


def test_what_an_alert_tells_to_run_exists() -> None:
    commands = (ROOT / "docs" / "cli.md").read_text()
    told = [
        c
        for r in RULES
        for c in re.findall(r"mailweir [a-z]+ [a-z]+", r["annotations"]["description"])
    ]
    assert len(told) > 5
    assert [c for c in told if f"## {c}\n" not in commands] == []


def test_every_name_is_there_once() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
