"""The forms of a lineage: stable JSON, a flowchart that holds together, lines for people."""

import json
import re

from rich.console import Console

from pipelines.lineage.render import as_json, as_mermaid, as_tree, summary
from pipelines.lineage.tree import Check, Lineage, Node

_BOX = re.compile(r'  (n\d+)\["([^"]*)"\]:::(\w+)')
_EDGE = re.compile(r"  (n\d+) -->(\|[\w ]+\|)? (n\d+)")


def _flowchart(text: str) -> tuple[dict[str, str], list[tuple[str, str]], set[str]]:
    """Boxes with their labels, edges and classes; fails at a line that is none of a flowchart's."""
    first, *lines = text.splitlines()
    assert first == "flowchart TD"
    boxes, edges, classes, used = {}, [], set(), set()
    for line in lines:
        if box := _BOX.fullmatch(line):
            assert box[1] not in boxes
            boxes[box[1]] = box[2]
            used.add(box[3])
        elif edge := _EDGE.fullmatch(line):
            edges.append((edge[1], edge[3]))
        else:
            assert line.startswith("  classDef "), line
            classes.add(line.split()[1])
    assert used <= classes
    return boxes, edges, classes


def test_the_flowchart_is_one_tree_of_all_nodes(place):
    lineage = place.lineage()
    boxes, edges, _ = _flowchart(as_mermaid(lineage))
    assert len(boxes) == sum(1 for _ in lineage.nodes())
    assert {end for edge in edges for end in edge} <= boxes.keys()
    below = [end for _, end in edges]
    assert len(below) == len(set(below)) == len(boxes) - 1
    assert set(boxes) - set(below) == {"n0"}


def test_the_json_is_the_same_each_time(place):
    text = as_json(place.lineage())
    assert text == as_json(place.lineage())
    content = json.loads(text)
    assert content["ok"] is True and content["response"] is None
    assert [package["name"] for package in content["packages"]] == [place.child, place.parent]
    assert str(place.home.root) not in text  # paths are those under the home, wherever that lies


def _nasty() -> Lineage:
    check = Check("files", "failed", 'a "quoted" [bold]name[/bold]\nand more', "one", "two")
    inner = Node("run", 'r"];n0 --> n1;["', {"address": "http://me:hunter2@host/"}, (check,))
    return Lineage((Node("package", "a" * 64, {}, (), (inner,)), Node("package", "b" * 64)), Node("response", "<b>#1"))


def test_no_name_breaks_out_of_its_label():
    boxes, edges, _ = _flowchart(as_mermaid(_nasty()))
    assert len(boxes) == 4 and edges == [("n0", "n1"), ("n1", "n3"), ("n1", "n2")]
    assert "#quot;" in boxes["n2"] and "#lt;b#gt;#35;1" in boxes["n0"]


def test_a_secret_is_hidden_in_every_form():
    lineage = _nasty()
    assert "hunter2" not in as_json(lineage) + as_mermaid(lineage)


def test_the_text_shows_the_parent_below_its_child_and_counts_the_checks():
    console = Console(width=200)
    with console.capture() as captured:
        console.print(as_tree(_nasty()))
        console.print(summary(_nasty()))
    text = captured.get()
    assert re.search(r"response .*\n└── package a{12}", text)
    assert "parent package bbbbbbbbbbbb" in text
    assert 'a "quoted" [bold]name[/bold]' in text and "(expected one, found two)" in text
    assert "1 checks: 0 ok, 1 failed" in text


def test_a_long_lineage_is_shown_whole():
    generations = tuple(Node("package", f"{index:064x}", {}, (Check("a", "ok", ""),)) for index in range(400))
    lineage = Lineage(generations)
    assert len(json.loads(as_json(lineage))["packages"]) == 400
    assert len(_flowchart(as_mermaid(lineage))[0]) == 400
