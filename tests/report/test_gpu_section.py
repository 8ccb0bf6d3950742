"""A report of a run on GPUs says what each kind of trial took, and how many trials and GPUs were at work at once."""

import json

from raysnap.report.gpu_section import gpu_section
from raysnap.report.page import render
from raysnap.runs.run import read_run
from tests.support.report_runs import trial


def run_of(folder, *rows: dict):
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "env.json").write_text(json.dumps({"stages_s": {"data": 5.0, "trials": 10.0}}))
    return read_run(folder)


def packed(number: int, share: float, peak_bytes: int | None = None, **more) -> dict:
    return trial(number, gpu_share=share, gpu_peak_bytes=peak_bytes, wall_s=10.0, batch_size=32, **more)


def test_a_run_without_gpus_has_no_section(tmp_path):
    run = run_of(tmp_path, trial(1))
    assert gpu_section(run) is None
    assert 'id="gpus"' not in render(run).page


def test_kinds_have_their_peak_and_their_smallest_share(tmp_path):
    run = run_of(tmp_path, packed(1, 1.0, 2 * 10**9), packed(1, 0.25, 10**9, name="second"), packed(2, 0.5))
    (first, second) = gpu_section(run)["table"].rows
    assert (first.values["trials"], first.values["peak_bytes"], first.values["share"]) == (2, 2 * 10**9, 0.25)
    assert (second.values["trials"], second.values["peak_bytes"], second.values["share"]) == (1, None, 0.5)


def test_what_was_forecast_stands_beside_what_came(tmp_path):
    run = run_of(
        tmp_path,
        packed(1, 1.0, 2 * 10**9, gpu_forecast_bytes=3 * 10**9),
        packed(1, 0.5, 10**9, gpu_forecast_bytes=10**9, name="second"),
        packed(2, 0.5, 10**9),
    )
    rows = gpu_section(run)["table"].rows
    assert [(row.values["forecast_bytes"], row.values["peak_bytes"]) for row in rows] == [
        (3 * 10**9, 2 * 10**9),
        (None, 10**9),
    ]


def test_the_use_of_gpus_is_an_average_over_the_stage(tmp_path):
    run = run_of(tmp_path, packed(1, 1.0), packed(2, 0.25), packed(3, 0.25))
    sentences = gpu_section(run)["sentences"]
    assert sentences == [
        "On average 3.0 trials ran at once and reserved 1.5 GPUs.",
        "2\u00a0trials shared a GPU with others.",
    ]
    assert sentences[0] in render(run).page
