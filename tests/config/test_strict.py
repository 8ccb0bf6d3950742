"""Parts of a configuration are frozen, refuse unknown keys, and take no boolean for a number or text."""

import pytest
from pydantic import ValidationError

from raysnap.config.bench_grid import BenchGrid
from raysnap.config.load import validate
from raysnap.config.parts import ResourcesConfig
from raysnap.config.search_options import SearchOptions
from raysnap.config.strict import Section, dotted_keys, model_at, refuse_repeated
from raysnap.errors import ConfigError


class Inner(Section):
    count: int = 1


class Outer(Section):
    text: str = ""
    numbers: tuple[int, ...] = ()
    is_fast: bool = False
    is_known: bool | None = None
    inner: Inner | None = None


@pytest.mark.parametrize("document", [{"text": True}, {"numbers": [1, False]}, {"inner": {"count": True}}])
def test_a_boolean_is_refused_where_none_is_expected(document):
    with pytest.raises(ValidationError, match="found the boolean (true|false), as YAML reads yes, no, on and off"):
        Outer.model_validate(document)


@pytest.mark.parametrize("document", [{"is_fast": True}, {"is_known": False}, {"is_known": None}])
def test_a_boolean_is_taken_where_one_is_expected(document):
    assert Outer.model_validate(document).model_dump(exclude_unset=True) == document


def test_keys_are_dotted_through_optional_parts():
    assert list(dotted_keys(Outer)) == ["text", "numbers", "is_fast", "is_known", "inner", "inner.count"]
    assert (model_at(Outer, "inner"), model_at(Outer, "text"), model_at(Outer, "none")) == (Inner, None, None)


@pytest.mark.parametrize(
    ("values", "shown"), [(("a", "b", "a"), "'a'"), ((1, 1), "1"), (((1, None), (1, None)), r"\(1, None\)")]
)
def test_a_repeated_value_is_refused(values, shown):
    refuse_repeated("key", values[:-1])
    with pytest.raises(ValueError, match=f"`key` lists {shown} twice"):
        refuse_repeated("key", values)


@pytest.mark.parametrize(("text", "num_bytes"), [("1GB", 10**9), ("3 GiB", 3 * 2**30), ("500k", 500_000), ("7", 7)])
def test_numbers_of_bytes_may_have_a_unit(text, num_bytes):
    assert ResourcesConfig(memory_bytes=text).memory_bytes == num_bytes
    assert SearchOptions(budget_bytes=text).budget_bytes == num_bytes
    assert BenchGrid(budget_bytes=[text, None]).budget_bytes == (num_bytes, None)
    dumped = ResourcesConfig(memory_bytes=text).model_dump(mode="json")
    assert ResourcesConfig.model_validate(dumped).memory_bytes == num_bytes


@pytest.mark.parametrize("text", ["many", "1 XB", "-1", "", "0.5B"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ConfigError, match="memory_bytes: expected"):
        validate({"memory_bytes": text}, ResourcesConfig, where="job.yaml")
