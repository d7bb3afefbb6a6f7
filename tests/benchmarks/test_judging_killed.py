"""Judge passes as processes of their own: killed, and two at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")

from servers import Endpoint, serving
from test_judging import ASKED, lines, record

from benchmarks.judges.context import note_behaviors
from benchmarks.storage.store import Store, read_judgements
from conftest import ROOT

GOOD = '{"refused": false, "specific": 5, "convincing": 4}'


def started(folder: Path, server: Endpoint) -> subprocess.Popen[bytes]:
    """A pass over the folder that asks one thing after the other."""
    judge = f"rubric:model=m,parallel=1,tries=1,url={server.url}"
    command = [sys.executable, "-m", "benchmarks.cli", "judge", str(folder), "--judge", judge]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_passes_go_on_and_two_at_once_share_what_is_left(tmp_path: Path) -> None:
    """Of eight answers three are judged before the kill, and five after it, by two processes."""
    with Store(tmp_path) as store:
        note_behaviors(tmp_path, ASKED)
        for at in range(4):
            store.add(record(at), [])
    over = threading.Event()
    with serving() as serve:
        server = serve(GOOD, GOOD, GOOD, lambda body: over.wait(60) and GOOD)
        killed = started(tmp_path, server)
        try:
            while len(server.asked) < 4 or len(read_judgements(tmp_path)) < 3:
                assert killed.poll() is None
                time.sleep(0.02)
        finally:
            killed.kill()
            over.set()
        assert killed.wait() < 0
        before = lines(tmp_path)
        assert len(before) == 3
        other = serve(GOOD)
        passes = [started(tmp_path, other) for _ in range(2)]
        assert [each.wait() for each in passes] == [0, 0]
    after = lines(tmp_path)
    assert after[:3] == before and len(other.asked) == 5
    assert {(row["key"], row["completion_index"]) for row in after} == {
        (f"k{at}", index) for at in range(4) for index in range(2)
    }
    assert len(after) == 8 and all(row["success"] for row in after)
    assert len({row["judge"] for row in after}) == 1
