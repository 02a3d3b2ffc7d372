"""A lineage as text for people, as JSON for programs, and as a Mermaid flowchart for documents."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from rich.text import Text
from rich.tree import Tree

from common.redaction import redact_text
from pipelines.lineage.tree import Check, Lineage, Node, Outcome

_SIGNS: dict[Outcome, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "failed": ("✗", "red"),
    "warning": ("!", "yellow"),
    "unchecked": ("?", "dim"),
}
_WORDS: dict[Outcome, str] = {
    "ok": "ok",
    "failed": "failed",
    "warning": "with a warning",
    "unchecked": "could not be checked",
}
_SHOWN_FACTS = {
    "response": ("prompt", "seed"),
    "package": ("version", "precision", "champion since", "staging since"),
    "manifest": ("files",),
    "run": ("measured", "preset", "status", "started"),
    "step": ("status", "time"),
    "artifact": ("path", "rows", "result", "registered as", "aliases"),
}
_DIGEST_LENGTH, _SHORT_LENGTH = 64, 12
_JSON_FORMAT = 1


def as_tree(lineage: Lineage) -> Tree:
    """Each package below the answer that it gave, or below the package whose parent it is."""
    packages = [_branch(package, "parent " if index else "") for index, package in enumerate(lineage.packages)]
    row = packages if lineage.response is None else [_branch(lineage.response), *packages]
    for above, below in pairwise(row):
        above.children.append(below)
    return row[0]


def summary(lineage: Lineage) -> Text:
    counts = lineage.counts()
    parts = [f"{counts[outcome]} {words}" for outcome, words in _WORDS.items() if counts[outcome] or outcome == "ok"]
    return Text(f"{sum(counts.values())} checks: {', '.join(parts)}", "red" if lineage.failed else "")


def as_json(lineage: Lineage) -> str:
    """The same lineage gives the same text; `packages` begins with the one asked for, each followed by its parent."""
    content = {
        "format": _JSON_FORMAT,
        "ok": not lineage.failed,
        "counts": lineage.counts(),
        "response": _plain(lineage.response) if lineage.response else None,
        "packages": [_plain(package) for package in lineage.packages],
    }
    return redact_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)) + "\n"


def as_mermaid(lineage: Lineage) -> str:
    """A flowchart: a box for each thing, coloured by the worst of its checks; parents hang on their children."""
    lines = ["flowchart TD"]
    drawn: dict[int, str] = {}
    for node in lineage.nodes():
        drawn[id(node)] = f"n{len(drawn)}"
        lines.append(f'  {drawn[id(node)]}["{_label(node)}"]:::{_worst(node)}')
    lines += [f"  {drawn[id(above)]} -->{label} {drawn[id(below)]}" for above, below, label in _edges(lineage)]
    lines += [
        "  classDef ok stroke:#2e7d32",
        "  classDef failed stroke:#c62828,fill:#ffebee,stroke-width:3px",
        "  classDef warning stroke:#f9a825",
        "  classDef unchecked stroke-dasharray:4",
        "  classDef plain stroke:#888",
    ]
    return "\n".join(lines) + "\n"


def _edges(lineage: Lineage) -> Iterator[tuple[Node, Node, str]]:
    if lineage.response is not None:
        yield lineage.response, lineage.packages[0], "|drawn by|"
    for child, parent in pairwise(lineage.packages):
        yield child, parent, "|parent|"
    for node in lineage.nodes():
        for below in node.children:
            yield node, below, ""


def _branch(node: Node, prefix: str = "") -> Tree:
    tree = Tree(_title(node, prefix), guide_style="dim")
    for check in node.checks:
        tree.add(_line(check))
    for child in node.children:
        tree.children.append(_branch(child))
    return tree


def _title(node: Node, prefix: str) -> Text:
    title = Text(f"{prefix}{node.kind} ", "bold").append(_short(node.name), "bold cyan")
    facts = [f"{key} {_short(node.facts[key])}" for key in _SHOWN_FACTS.get(node.kind, ()) if key in node.facts]
    return title.append(f"  {', '.join(facts)}" if facts else "", "not bold")


def _line(check: Check) -> Text:
    sign, style = _SIGNS[check.outcome]
    line = Text(f"{sign} {check.name}: ", style).append(redact_text(check.detail))
    if check.outcome == "failed":
        line.append(f" (expected {check.expected}, found {check.found})")
    return line


def _plain(node: Node) -> dict[str, Any]:
    return {
        "kind": node.kind,
        "name": node.name,
        "facts": dict(node.facts),
        "checks": [asdict(check) for check in node.checks],
        "children": [_plain(child) for child in node.children],
    }


def _label(node: Node) -> str:
    lines = [f"{node.kind} {_short(node.name)}"]
    lines += [f"{_SIGNS[check.outcome][0]} {check.name}" for check in node.checks]
    return "<br/>".join(_escaped(redact_text(line)) for line in lines)


def _escaped(text: str) -> str:
    """Inside a quoted label only a quote ends it; Mermaid writes characters as `#name;`, and reads HTML."""
    for character, entity in (("#", "#35;"), ("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, entity)
    return " ".join(text.split())


def _worst(node: Node) -> str:
    outcomes = {check.outcome for check in node.checks}
    worst: tuple[Outcome, ...] = ("failed", "warning", "unchecked", "ok")
    return next((outcome for outcome in worst if outcome in outcomes), "plain")


def _short(value: str) -> str:
    """A digest by its beginning; anything else whole."""
    is_digest = len(value) == _DIGEST_LENGTH and set(value) <= set("0123456789abcdef")
    return value[:_SHORT_LENGTH] if is_digest else value
