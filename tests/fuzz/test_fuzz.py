"""Every fuzz target for a moment, by mutation: atheris has no wheel for some systems that the tests run on."""

from __future__ import annotations

import logging
import subprocess
import sys

from fakes.counts import FUZZ_INPUTS
from fuzz import run, targets

_log = logging.getLogger(__name__)


def test_every_target(tmp_path):
    """In a process of its own, so that the memory is that of decoders alone."""
    command = [
        sys.executable,
        "-W",
        "error",
        run.__file__,
        "--inputs",
        str(FUZZ_INPUTS),
        "--corpus",
        str(tmp_path),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no defect") == len(targets.TARGETS)
    assert not list(tmp_path.glob("*crash*"))
    _log.info("%s", done.stdout)


def test_what_mutation_begins_with_is_accepted():
    """Or nothing behind the first check would ever be tried."""
    for name, (fuzz, seeds) in targets.TARGETS.items():
        refused = [seed for seed in seeds if not fuzz(seed)]
        # An ONNX file that keeps all its tensors in another file has none itself.
        assert len(refused) == (name == "onnx"), name
