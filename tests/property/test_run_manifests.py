"""Runs and evaluations: what is written is what is read; keys differ exactly where what decides differs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.cache.values import plain
from casstore.errors import ConfigError, FormatError
from casstore.format import run as run_format
from casstore.format.run import EvaluationManifest, RunKey, RunManifest, RunStatus

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MAPS = st.dictionaries(TEXT, VALUES, max_size=4)
IDS = st.binary(min_size=32, max_size=32)
KEYS = st.builds(
    RunKey,
    input=TEXT,
    pass_name=TEXT,
    pass_version=TEXT,
    config=MAPS,
    accelerator=st.none() | TEXT,
    environment=MAPS,
)
RUNS = st.builds(
    RunManifest,
    name=TEXT,
    key=KEYS,
    status=st.sampled_from(RunStatus),
    input=st.none() | IDS,
    output=st.none() | IDS,
    input_name=TEXT,
    started=st.integers(0, 2**63 - 1),
    duration=st.integers(0, 2**63 - 1),
    config=MAPS,
    recorded=MAPS,
    metrics=MAPS,
    artifacts=st.dictionaries(TEXT, IDS, max_size=3),
    error=TEXT,
)


@given(RUNS)
def test_a_run_comes_back(run):
    assert run_format.decode_run(run_format.encode_run(run)) == run


@given(st.builds(EvaluationManifest, TEXT, st.none() | IDS, TEXT, MAPS, MAPS))
def test_an_evaluation_comes_back(evaluation):
    assert run_format.decode_evaluation(run_format.encode_evaluation(evaluation)) == evaluation


@given(KEYS, KEYS)
def test_keys_are_equal_where_documents_are(one, other):
    assert (one.digest() == other.digest()) == (
        repr(one.document()) == repr(other.document()) or _same(one, other)
    )


def _same(one, other):
    # Maps in another order are the same value; 0.0 and -0.0, 1 and True are not.
    def canonical(value):
        if isinstance(value, dict):
            return sorted((key, canonical(item)) for key, item in value.items())
        return (
            [canonical(item) for item in value]
            if isinstance(value, list)
            else (type(value).__name__, repr(value))
        )

    return canonical(one.document()) == canonical(other.document())


@given(st.binary(max_size=200))
def test_noise_is_refused(data):
    with pytest.raises(FormatError):
        run_format.decode_run(data)


@given(VALUES)
def test_plain_values_stay_what_they_are(value):
    assert plain(value, what="it") == value


def test_values_without_a_plain_form_are_named():
    with pytest.raises(ConfigError, match=r"passes\.0\.scale"):
        plain({"passes": [{"scale": object()}]}, what="The config")


def test_every_nan_is_the_same():
    assert math.isnan(plain(-math.nan, what="it"))
    one, other = (RunKey("i", "p", "1", plain({"x": nan}, what="it")) for nan in (math.nan, -math.nan))
    assert one.digest() == other.digest()
