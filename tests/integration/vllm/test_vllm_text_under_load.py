"""The gate for text under load, on the real engine: one that mixes rows up is refused, and the plain one is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.faults import mixed_rows

pytestmark = pytest.mark.engine

# An engine starts and answers six times a dozen short prompts: seconds, minutes on a machine that is busy.
LIMIT_S = 1000


def test_an_engine_that_mixes_rows_up_is_refused_and_the_plain_one_passes(chat_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.harness.faults.mixed_rows", str(chat_folder)],
        env=os.environ | mixed_rows.install_in(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {one["fault"]: one for one in json.loads(done.stdout.splitlines()[-1])}
    assert found.keys() == {mixed_rows.PLAIN, *mixed_rows.FAULTS}
    for fault, one in found.items():
        assert one["passed"] is (fault == mixed_rows.PLAIN), one
