"""Processes that are killed on every kind of store; killed.py kills as many as you like."""

from __future__ import annotations

import logging

import pytest
from fakes.counts import GC_KILLS
from mixed import killed
from mixed.command import run_script

_log = logging.getLogger(__name__)


@pytest.mark.parametrize("kind", ["local", "fsspec", "s3", "azure", "sftp"])
def test_a_ref_is_absent_or_whole_and_there_once_acknowledged(kind, request, tmp_path):
    _log.info("%s", run_script(killed, kind, request, tmp_path, "--kills", GC_KILLS))
