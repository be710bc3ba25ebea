"""The order of keys: what is kept beside a sorted value gives back the value as it was written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import FormatError
from casstore.format import canonical
from casstore.format import run as run_format
from casstore.format.key_order import in_key_order, key_order
from casstore.format.run import EvaluationManifest, RunKey, RunManifest, RunStatus

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=30,
)


def written(value):
    return json.dumps(value)


@given(VALUES)
def test_a_value_comes_back_in_its_order(value):
    kept = canonical.decode(canonical.encode(value), what="it")
    assert written(in_key_order(kept, key_order(value))) == written(value)
    assert (key_order(value) == "") == (written(kept) == written(value))


@given(VALUES, st.text("0123 |x", max_size=8))
def test_an_order_of_something_else_is_refused_or_an_order(value, order):
    try:
        ordered = in_key_order(value, order)
    except ValueError:
        return
    assert ordered == value


def test_the_example_of_the_specification():
    assert key_order({"b": 1, "a": {"d": 2, "c": 3}}) == "1 0|1 0"
    assert written(in_key_order({"a": {"c": 3, "d": 2}, "b": 1}, "1 0|1 0")) == written(
        {"b": 1, "a": {"d": 2, "c": 3}}
    )


MAPS = st.dictionaries(KEYS, VALUES, max_size=4)


@given(MAPS, MAPS, MAPS)
def test_runs_and_evaluations_keep_the_order_of_what_people_read(config, metrics, result):
    run = RunManifest(
        name="out", key=RunKey("in", "p", "", config), status=RunStatus.DONE, input=None, output=None,
        input_name="", started=1, duration=2, config=config, metrics=metrics,
    )  # fmt: skip
    read = run_format.decode_run(run_format.encode_run(run))
    assert written([read.config, read.metrics]) == written([config, metrics])
    evaluation = EvaluationManifest("out", None, "", result)
    read = run_format.decode_evaluation(run_format.encode_evaluation(evaluation))
    assert written(read.result) == written(result)
    assert run_format.encode_evaluation(read) == run_format.encode_evaluation(evaluation)


@pytest.mark.parametrize("order", [3, None, {"result": 3}, {"result": "1 0 2"}, {"result": "0|0|0"}])
def test_an_order_that_does_not_fit_is_damage(order):
    data = run_format.encode_evaluation(EvaluationManifest("out", None, "", {"b": 1, "a": 2}))
    value = {**canonical.decode(data, what="it"), "key_order": order}
    with pytest.raises(FormatError, match="order"):
        run_format.decode_evaluation(canonical.encode(value))
