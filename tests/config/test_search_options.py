"""The options of a search: one model, from which keywords, the command line and a benchmark's grid take the bounds."""

import inspect
from typing import get_type_hints

import pytest

from raysnap.cli import search_commands
from raysnap.config.bench_grid import BenchGrid
from raysnap.config.search_options import SearchKeywords, SearchOptions
from raysnap.errors import UsageError

PARAMETERS = inspect.signature(search_commands.search, eval_str=True).parameters
# Options whose texts a function of our own reads, such as `3GiB`; their bounds are those of `SearchOptions` alone.
PARSED = ("budget_bytes", "memory_bytes", "time_budget_s")
ZERO_IS_NO_LIMIT = ("max_candidates", "num_test", "num_train")
SHARED = sorted(SearchOptions.model_fields.keys() & PARAMETERS.keys() - {"feature_cache_bytes"})


def bounds(field) -> dict:
    return {key: getattr(one, key) for one in field.metadata for key in ("ge", "lt", "le") if hasattr(one, key)}


def test_keywords_are_the_fields_of_the_options():
    assert get_type_hints(SearchKeywords).keys() == SearchOptions.model_fields.keys()


def test_keywords_replace_the_options_given():
    options = SearchOptions(method="shared", num_train=10)
    changed = SearchOptions.of(options, {"num_train": 20})
    assert (changed.method, changed.num_train, options.num_train) == ("shared", 20, 10)
    assert SearchOptions.of(options, {}) == options


@pytest.mark.parametrize("name", SHARED)
def test_the_command_line_has_the_same_default(name):
    assert PARAMETERS[name].default == SearchOptions.model_fields[name].default


@pytest.mark.parametrize("name", sorted({*SHARED} - {*ZERO_IS_NO_LIMIT, *PARSED}))
def test_the_command_line_has_the_same_lower_bound(name):
    (option,) = (one for one in PARAMETERS[name].annotation.__metadata__ if hasattr(one, "min"))
    schema = SearchOptions.model_json_schema()["properties"][name]
    assert option.min == schema.get("anyOf", [schema])[0].get("minimum")


@pytest.mark.parametrize("name", ["tolerance", "precision"])
def test_a_grid_has_the_same_defaults_and_bounds(name):
    ours, theirs = SearchOptions.model_fields[name], BenchGrid.model_fields[name]
    assert (ours.default, bounds(ours)) == (theirs.default, bounds(theirs))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_trian": 3}, r"num_trian: unknown key; did you mean 'num_train'\?"),
        ({"workers": 0}, "workers: expected at least 1, found 0"),
        ({"num_train": True}, "num_train: found the boolean true"),
        ({"image_size": 8, "seed": -1}, r"image_size: expected at least 16, found 8 \(and 1 more: seed: expected"),
    ],
)
def test_what_is_out_of_bounds_is_a_usage_error(keywords, message):
    with pytest.raises(UsageError, match=message):
        SearchOptions.of(None, keywords)
