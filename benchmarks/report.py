"""Turns a result into Markdown. Measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
OURS = "casstore"
TITLES = {
    "add": "Add to an empty store",
    "add-again": "Add what is there already, reading all of it",
    "restore": "Restore",
    "memory": "Memory",
    "startup": "Start-up",
    "cuts": "Fixed cuts inside tensors against content-defined ones",
}


def markdown(result: dict[str, Any]) -> str:
    """Return the whole report."""
    parts = [_about(result)]
    for scenario in dict.fromkeys(item["scenario"] for item in result["measurements"]):
        items = [item for item in result["measurements"] if item["scenario"] == scenario]
        parts.append(f"### {TITLES.get(scenario, scenario)}\n")
        parts.append(_table(items))
        ratios = _ratios(items)
        if ratios:
            parts.append(ratios)
    return "\n".join(parts)


def placed(report: str, page: str) -> str:
    """Return `page` with the report between its marks; raise ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no {BEGIN} and {END}.")
    return f"{before}{begin}\n\n{report}\n{end}{after}"


def _about(result: dict[str, Any]) -> str:
    machine, options = result["environment"], result["options"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    about = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"{machine['file_system']}; Python {machine['python']}; {versions}; commit {machine['commit']}; "
        f"{machine['date']}. Medians (lowest to highest) of {options['repeats']} repeats after "
        f"{options['warmups']} to warm up, page cache {options['page_cache']}, load {machine['load_average']}.\n"
    )
    lines = [about]
    for name, peer in result["peers"].items():
        state = (
            f"missing: {peer['missing']}" if "missing" in peer else f"{peer['version']} ({peer['setting']})"
        )
        lines.append(f"- {name}: {state}")
    for corpus in result["corpora"]:
        models = ", ".join(model["name"] for model in corpus["models"])
        lines.append(f"- corpus {corpus['name']}: {corpus['bytes'] / 1e6:.1f} MB in {models}")
    return "\n".join(lines) + "\n"


def _table(items: Sequence[dict[str, Any]]) -> str:
    metrics = {item["metric"]["name"]: item["metric"] for item in items}
    cells = {(item["case"], item["subject"], item["metric"]["name"]): item for item in items}
    heads = [f"{name} ({metric['unit']})" if metric["unit"] else name for name, metric in metrics.items()]
    rows = []
    for case, subject in dict.fromkeys((item["case"], item["subject"]) for item in items):
        rows.append([case, subject, *(_cell(cells.get((case, subject, name))) for name in metrics)])
    return _rows(["", "", *heads], rows)


def _ratios(items: Sequence[dict[str, Any]]) -> str:
    """Return how many times better or worse than each peer casstore is; above 1 is better."""
    medians = {(item["case"], item["subject"], item["metric"]["name"]): item["median"] for item in items}
    metrics = {item["metric"]["name"]: item["metric"]["better"] for item in items}
    rows = []
    for case, subject in dict.fromkeys((item["case"], item["subject"]) for item in items):
        if subject == OURS or not any((case, OURS, name) in medians for name in metrics):
            continue
        row = []
        for name, better in metrics.items():
            ours, theirs = medians.get((case, OURS, name)), medians.get((case, subject, name))
            if better is None or not ours or not theirs:
                row.append("")
            else:
                row.append(f"{ours / theirs if better == 'higher' else theirs / ours:.2f}")
        rows.append([case, f"{OURS} against {subject}", *row])
    return _rows(["", "better by", *metrics], rows) if rows else ""


def _cell(item: dict[str, Any] | None) -> str:
    if item is None:
        return ""
    if len(set(item["samples"])) == 1:
        return _number(item["median"])
    return f"{_number(item['median'])} ({_number(item['min'])} to {_number(item['max'])})"


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _rows(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---", "---", *(["---:"] * (len(heads) - 2))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
