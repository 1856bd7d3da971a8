"""The report as one HTML file, which loads nothing else and runs no script."""

from __future__ import annotations

from html import escape
from typing import Any

from refinedet.conformance import reported
from refinedet.conformance.report import STATES, conclusion, reported_line, undecided_share
from refinedet.conformance.runner import FAILED, LIMITED, NOT_IMPLEMENTED, PASSED

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #656d76; --ground: #f6f8fa;
  --ok: #1a7f37; --near: #bf5700; --bad: #cf222e; --gap: #8250df; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #9198a1; --ground: #151b23;
    --ok: #3fb950; --near: #f0883e; --bad: #ff7b72; --gap: #bc8cff; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p.soft, caption { color: var(--soft); text-align: left; }
table { border-collapse: collapse; width: 100%; margin: 0 0 1.5rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left;
  vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre { font: 13px/1.4 ui-monospace, monospace; }
pre { background: var(--ground); padding: .6rem; overflow: auto; max-height: 20rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.passed { color: var(--ok); } .failed { color: var(--bad); font-weight: 700; }
.not-implemented, .limited { color: var(--gap); } .not-run { color: var(--soft); }
.bar { display: inline-block; width: 8rem; height: .7rem; margin-right: .5rem;
  background: var(--ground); border: 1px solid var(--line); }
.bar i { display: block; height: 100%; background: var(--ok); }
.near { color: var(--near); font-weight: 700; } .near .bar i { background: var(--near); }
.over { color: var(--bad); font-weight: 700; } .over .bar i { background: var(--bad); }
.scroll { overflow-x: auto; }
"""
NEAR = 0.8
"""An error of at least this fraction of its tolerance is highlighted."""


def as_html(data: dict[str, Any]) -> str:
    """The page for the data of ``report.as_data``."""
    where = data["environment"]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>RefineDet conformance</title><style>{STYLE}</style></head><body>",
        "<h1>RefineDet conformance</h1>",
        f'<p class="soft">Profile {escape(data["profile"])}, seed {data["seed"]}. refinedet '
        f"{escape(where['refinedet'])}, Python {escape(where['python'])}, NumPy "
        f"{escape(where['numpy'])}, {escape(where['platform'])}.</p>",
        _summary(data["backends"]),
    ]
    for backend in data["backends"]:
        parts += [f"<h2>{escape(backend['backend'])}</h2>", _checks(backend["checks"])]
        parts += [_failure(row) for row in backend["checks"] if row["failure"]]
        parts.append(f"<p>{escape(reported_line(backend))}</p>")
        if backend["reported"]["table"]:
            parts.append(f"<pre>{escape(backend['reported']['table'])}</pre>")
    return "\n".join([*parts, "</body></html>", ""])


def _summary(backends: list[dict[str, Any]]) -> str:
    heads = ("checks", *STATES, "undecided")
    lines = ['<div class="scroll"><table><thead><tr><th>backend</th><th>level</th>']
    lines += [f'<th class="number">{head}</th>' for head in heads]
    lines.append("<th>worst error, as a fraction of its tolerance</th></tr></thead><tbody>")
    for backend in backends:
        for row in backend["levels"]:
            cells = (row["checks"], *(row[state] for state in STATES), undecided_share(row))
            lines.append(
                f"<tr><td>{escape(backend['backend'])}</td><td>{escape(row['level'])}</td>"
            )
            lines += [f'<td class="number">{cell}</td>' for cell in cells]
            lines.append(f"{_bar(row['worst'])}</tr>")
        state = backend["reported"]["state"]
        lines.append(
            f"<tr><td>{escape(backend['backend'])}</td><td>{reported.LEVEL}</td>"
            f'<td class="{state.replace(" ", "-")}" colspan="7">{state}</td></tr>'
        )
    lines.append("</tbody></table></div>")
    lines += [f"<p><strong>{escape(conclusion(backend))}</strong></p>" for backend in backends]
    lines.append(
        '<p class="soft">Undecided: discrete results too close to a tie to be compared.</p>'
    )
    return "\n".join(lines)


def _bar(worst: float) -> str:
    """A cell with the worst error; from ``NEAR`` on it is highlighted."""
    kind = "over" if worst > 1 else "near" if worst >= NEAR else ""
    width = round(100 * min(worst, 1))
    bar = f'<span class="bar"><i style="width:{width}%"></i></span>'
    return f'<td class="{kind}">{bar}{worst:.3g}</td>'


def _checks(rows: list[dict[str, Any]]) -> str:
    lines = [
        '<div class="scroll"><table><thead><tr><th>level</th><th>check</th><th>law</th>'
        '<th>state</th><th>worst error / tolerance</th><th class="number">undecided</th>'
        '<th class="number">seconds</th></tr></thead><tbody>'
    ]
    for row in rows:
        state = row["state"]
        shown = f"{state}: {row['reason']}" if state in (NOT_IMPLEMENTED, LIMITED) else state
        measured = state in (PASSED, FAILED) or row["worst"]
        lines.append(
            f"<tr><td>{escape(row['level'])}</td><td><code>{escape(row['check'])}</code></td>"
            f'<td>{escape(row["law"])}</td><td class="{state.replace(" ", "-")}">{escape(shown)}'
            f"</td>{_bar(row['worst']) if measured else '<td>-</td>'}"
            f'<td class="number">{undecided_share(row)}</td>'
            f'<td class="number">{row["seconds"]:.2f}</td></tr>'
        )
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _failure(row: dict[str, Any]) -> str:
    failure = row["failure"]
    lines = [
        f"<details{' open' if row['state'] == FAILED else ''}><summary>"
        f'<span class="{row["state"]}">{escape(row["state"])}</span> '
        f"<code>{escape(row['check'])}</code>: {escape(failure['message'])}</summary>",
        f"<p>Law: {escape(row['law'])}</p>",
    ]
    if failure["error"] is not None:
        lines.append(f"<p>Error {failure['error']:.3g}, allowed {failure['tolerance']:.3g}.</p>")
    for name, key in (
        ("Smallest input", "case"),
        ("Actual", "actual"),
        ("Expected", "expected"),
        ("To reproduce", "snippet"),
    ):
        if failure[key]:
            lines.append(f"<p>{name}</p><pre>{escape(failure[key])}</pre>")
    lines.append("</details>")
    return "\n".join(lines)
