"""Text from outside stays text."""

from __future__ import annotations

from orchestrator.report.markup import Safe, el, join, prose

NASTY = "</script><script>alert(1)</script>\"'&<b onload=x>"


def test_children_and_attributes_are_escaped():
    made = el("p", NASTY, title=NASTY)
    assert made.count("<") == 2
    assert made.count('"') == 2


def test_safe_markup_passes_once_and_is_not_escaped_twice():
    assert el("p", el("b", "a & b")) == "<p><b>a &amp; b</b></p>"


def test_joining_escapes_separators_and_parts():
    assert join(["<", Safe("<i>")], "&") == "&lt;&amp;<i>"


def test_prose_sets_code_but_lets_nothing_else_through():
    assert prose("use `lr` <b>") == "use <code>lr</code> &lt;b&gt;"
    assert prose(f"`{NASTY}`").count("<") == 2


def test_attributes_are_named_as_html_names_them():
    assert el("line", class_="a", stroke_width=2.0, data_t="x", hidden=None) == (
        '<line class="a" stroke-width="2" data-t="x"/>'
    )
