"""The report in a real browser: ``python -m benchmarks.studies.browser --out DIR --axe FILE``.

Makes a page of at least as many records as asked for, opens it in headless Chromium, and writes
its size, the time until its layout is done, what it says on the console, and the findings of
axe-core (a file of that package, `npm pack axe-core`) to `DIR/README.md`.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from attacks.core.errors import BadInput
from benchmarks.boards.tables import table
from benchmarks.common.versions import hardware
from benchmarks.report import report
from benchmarks.storage.store import JUDGEMENTS, RECORDS, read_records

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
#: Milliseconds from the start of the navigation until the page is laid out.
_OPENED = """addEventListener("load", () => {
  document.body.getBoundingClientRect();
  document.documentElement.dataset.found = JSON.stringify(performance.now());
});"""
_AXE = """addEventListener("load", () => axe.run().then((found) => {
  document.documentElement.dataset.found = JSON.stringify(
    found.violations.map((rule) => [rule.id, rule.nodes.length]));
}));"""


def browser() -> str | None:
    """The path of Chromium or Chrome; None: not installed."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def grown(run: Path, folder: Path, records: int) -> int:
    """Copies a run until it has at least so many records, about as many requests; how many it has.

    Raises:
        BadInput: see `read_records`.
    """
    times = -(-records // len(read_records(run)))
    for name in (RECORDS, JUDGEMENTS):
        copies = [
            # The same again under another key, about another request.
            {**row, "key": f"{row['key']}-{copy}"}
            | {key: f"{row[key]}-{copy}" for key in ("behavior_id",) if key in row}
            for row in map(json.loads, (run / name).read_text("utf-8").splitlines())
            for copy in range(times)
        ]
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in copies), "utf-8")
    return times * len(read_records(run))


def opened(page: Path, *, script: str = "", dark: bool = False) -> tuple[str, list[str]]:
    """The document as Chromium has it once it is idle, and the lines on its console.

    Args:
        page: an HTML file.
        script: run at its end, in a copy without the page's policy, which would forbid it.
        dark: whether the user prefers dark pages.

    Raises:
        BadInput: no Chromium.
    """
    found = browser()
    if found is None:
        raise BadInput("no browser: install chromium or google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        if script:
            copy = Path(folder) / "page.html"
            text = _POLICY.sub("", page.read_text("utf-8")).replace("</body>", "")
            copy.write_text(f"{text}<script>{script}</script>", "utf-8")
            page = copy
        command = [found, "--headless", "--no-sandbox", "--enable-logging=stderr"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        command += ["--virtual-time-budget=60000"] if script != _OPENED else []
        command += ["--dump-dom", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def found_by(document: str) -> object:
    """What a script left in the document, as `data-found`; None: nothing."""
    left = re.search(r'<html[^>]* data-found="([^"]*)"', document)
    return json.loads(html.unescape(left[1])) if left else None


def _row(name: str, page: Path, repeats: int) -> list[str]:
    """What is written of a page."""
    times = [found_by(opened(page, script=_OPENED)[0]) for _ in range(repeats)]
    seconds = [float(str(time)) / 1000 for time in times]
    span = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    return [name, f"{page.stat().st_size / 1e6:.2f}", span, str(len(opened(page)[1]))]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="benchmarks.studies.browser", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("results/pocket-recipes-search"))
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--axe", type=Path, required=True, help="axe.min.js of axe-core")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    rows = []
    axe = options.axe.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        many = Path(folder) / "many"
        many.mkdir()
        empty = Path(folder) / "empty.html"
        empty.write_text("<!doctype html><title>Empty</title>", "utf-8")
        rows.append(_row("an empty page", empty, options.repeats))
        pages = {len(read_records(options.run)): options.run}
        pages[grown(options.run, many, options.records)] = many
        for records, run in pages.items():
            page = Path(folder) / f"{records}.html"
            report([run], page)
            rows.append(_row(str(records), page, options.repeats))
            if run == options.run:
                breaches = {
                    scheme: found_by(opened(page, script=axe + _AXE, dark=scheme == "dark")[0])
                    for scheme in ("light", "dark")
                }
    version = subprocess.run([str(browser()), "--version"], capture_output=True, text=True)
    heads = ["Records", "Size, MB", "Opened after, s", "Console messages"]
    release = re.search(r"axe v([\d.]+)", axe)
    lines = [
        "# The report in a browser",
        f"`python -m benchmarks.studies.browser --run {options.run} --records {options.records} "
        f"--repeats {options.repeats} --axe axe.min.js --out {options.out}`, "
        f"{version.stdout.strip()}, {hardware('cpu')}. Opened: median (range) of the time from "
        "the start of the navigation until the page was laid out.",
        table(heads, rows, left=0),
        f"axe-core {release[1] if release else ''} on the page of {next(iter(pages))} records: "
        + "; ".join(
            f"{scheme}: {'no violations' if found == [] else json.dumps(found)}"
            for scheme, found in breaches.items()
        )
        + ".",
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "README.md").write_text("\n\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
