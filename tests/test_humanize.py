"""Numbers read as people write them, and what is unknown reads as a dash."""

import math

import pytest

from raysnap import humanize as q


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (q.seconds_text, 0, "0 s"),
        (q.seconds_text, 0.0004, "0.4 ms"),
        (q.seconds_text, 0.0384, "38 ms"),
        (q.seconds_text, 0.9996, "1.00 s"),
        (q.seconds_text, 9.996, "10.0 s"),
        (q.seconds_text, 107.93, "107.9 s"),
        (q.seconds_text, 119.7, "2 min 00 s"),
        (q.seconds_text, 3599.7, "1 h 00 min"),
        (q.seconds_text, 7500, "2 h 05 min"),
        (q.bytes_text, 0, "0 B"),
        (q.bytes_text, 999, "999 B"),
        (q.bytes_text, 999_600, "1.00 MB"),
        (q.bytes_text, 44_800_000, "44.8 MB"),
        (q.flops_text, 1.82e12, "1.82 TFLOP"),
        (q.count_text, 12_800, "12,800"),
        (q.score_text, 0.9124, "0.912"),
        (q.share_text, 0.756, "76 %"),
        (q.ratio_text, 4.18, "4.2×"),
        (q.ratio_text, 1234.5, "1,234×"),
    ],
)
def test_a_number_reads_with_its_unit(function, value, text):
    assert function(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0), ("1000000", 1_000_000), ("3GiB", 3 * 2**30), ("500MB", 500_000_000), ("1.5 G", 1_500_000_000),
        ("2kib", 2048), ("7 B", 7), ("1e9", 10**9),
    ],
)  # fmt: skip
def test_a_number_of_bytes_is_read(text, num_bytes):
    assert q.parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "much", "-1", "3 Gigs", "1.2.3", "GB", "nan"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match=f"expected a number of bytes such as 3GiB or 500MB, found '{text}'"):
        q.parse_bytes(text)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "function",
    [q.seconds_text, q.bytes_text, q.flops_text, q.count_text, q.score_text, q.share_text, q.ratio_text],
)
def test_what_is_unknown_reads_as_a_dash(function, value):
    assert function(value) == "–"


@pytest.mark.parametrize(
    ("largest", "unit"), [(0.0, "ms"), (0.5, "ms"), (8.2, "s"), (119, "s"), (600, "min"), (9000, "h")]
)
def test_an_axis_of_times_is_marked_in_a_unit_that_fits(largest, unit):
    assert q.seconds_unit(largest)[0] == unit


@pytest.mark.parametrize(("largest", "unit"), [(0, "B"), (999, "B"), (5e5, "kB"), (4.9e8, "MB"), (6.6e9, "GB")])
def test_an_axis_of_bytes_is_marked_in_a_unit_that_fits(largest, unit):
    assert q.bytes_unit(largest)[0] == unit


def test_a_count_comes_with_its_noun():
    assert q.plural(1, "trial") == "1\u00a0trial"
    assert q.plural(1200, "trial") == "1,200\u00a0trials"
    assert q.plural(2, "is", "are") == "2\u00a0are"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("resnet81", "; did you mean 'resnet18'?"),
        ("ResNet18", "; did you mean 'resnet18'?"),
        ("PETS", "; did you mean 'Pets'?"),
        ("vgg", ""),
        (None, ""),
        ("", ""),
    ],
)
def test_suggest_names_the_word_spelt_most_alike(word, hint):
    assert q.suggest(word, ["resnet18", "Pets"]) == hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("90", 90), ("1.5 min", 90), ("5m", 300), ("1h30m", 5400), ("1 h 5 min 2.5 s", 3902.5), (".5s", 0.5)],
)
def test_a_duration_is_read_as_seconds(text, seconds):
    assert q.read_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-3s", "3 parsecs", "3x", "1h30", "s", "1 2", "1e3", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="expected a "):
        q.read_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, größer, 猫, می\u200cخواهم, 👩\u200d🔬, a b", None),
        ("\x1b[2K\r\x07\x7f\x9b", r"\x1b[2K\r\x07\x7f\x9b"),
        ("a\u202egnp.exe\u2066b\u200f\u061c", r"a\u202egnp.exe\u2066b\u200f\u061c"),
        ("a\u2028b\x85c\ufeff\u200b", r"a\u2028b\x85c\ufeff\u200b"),
        ("\udcff\ud83d\uffff", r"\udcff\ud83d\uffff"),
    ],
)
def test_what_would_act_or_hide_is_written_out(text, expected):
    assert q.shown(text) == q.shown_line(text) == (expected or text)
    assert q.shown(q.shown(text)) == q.shown(text)


def test_ends_of_lines_and_tabs_stay_unless_it_is_one_line():
    assert q.shown("a\n\tb") == "a\n\tb"
    assert q.shown_line("a\n\tb") == r"a\n\tb"


def test_given_names_come_before_that_of_the_trial():
    assert q.given_first(["001-net", "001-net-2", "pets"], "001-net") == ["pets", "001-net", "001-net-2"]
    assert q.given_first(["a", "b"], None) == ["a", "b"]
