"""Each reader survives what it once found hard, and a short time of random input."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sealpoint.errors import SealpointError
from tests.fuzz import targets

HERE = Path(__file__).resolve().parent

RUNS = 3000


# What a reader leaves out, it says; that is no fault of it.
@pytest.mark.filterwarnings("ignore::sealpoint.errors.OmissionWarning")
@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_seeds_and_corpus_raise_nothing_but_our_errors(name):
    kept = sorted((HERE / "corpus" / name).glob("*"))
    sound = 0
    for data in [*targets.seeds(name), *(path.read_bytes() for path in kept)]:
        try:
            targets.TARGETS[name](data)
            sound += 1
        except SealpointError:
            pass
    assert sound, "not one input was read to its end"


@pytest.mark.fuzz
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="no atheris for this Python"
)
@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_random_input_raises_nothing_but_our_errors(name, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.fuzz",
            name,
            f"-runs={RUNS}",
            "-max_total_time=15",
            "-seed=1",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "number_of_executed_units" in done.stderr
    assert list(tmp_path.iterdir()) == []
