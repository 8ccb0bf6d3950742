"""The command line: read arguments, call one function, print its result.

torch and ray are imported inside the commands, so that `raysnap --help` stays fast. Results go to stdout, everything
else to stderr.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from raysnap.cli.console import (
    SOME_FAILED,
    AsJson,
    ConfigPath,
    LogFormatter,
    Overrides,
    StoreArgument,
    any_path,
    print_json,
    print_message,
    print_result,
    request_lines,
    run_place,
    store_place,
)
from raysnap.cli.data_commands import data_app
from raysnap.cli.finetuning.commands import finetune, predict, recommend
from raysnap.cli.job_commands import generate, init, quickstart, sweep, synthesize
from raysnap.cli.search_commands import bench, search
from raysnap.cli.store_commands import store_app
from raysnap.errors import RaysnapError, UsageError, describe_failure
from raysnap.humanize import shown
from raysnap.system import package_version

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="raysnap",
    help="Fine-tune image models on Ray, store each shared block once, search for the best starting point.\n\n"
    "A snapshot is a set of trained weights. The store splits it into blocks (stem, layers, head) and keeps equal "
    "blocks once. A search ranks snapshots as starting points for fine-tuning on another dataset, without fine-tuning "
    "any of them.",
    epilog="To try everything on built-in data, run `raysnap quickstart`. Any command takes -q (--quiet: no progress, "
    "no warnings), -v (--verbose: more of what it does) and --debug (an error's traceback). Exit codes: 0 success; "
    "1 some trials or candidates failed, or a check found problems; 2 bad usage, configuration or input; 3 damaged "
    "store; 4 Ray can't be started or reached, or the cluster can't give what the job needs; 130 interrupted.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")

INTERRUPTED = 130
LOG_LEVELS = {
    "-q": logging.ERROR,
    "--quiet": logging.ERROR,
    "-v": logging.INFO,
    "--verbose": logging.INFO,
}
RESUMABLE_COMMANDS = ("quickstart", "finetune", "generate", "sweep", "synthesize", "bench")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print_result(f"raysnap {package_version('raysnap') or 'of unknown version'}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code; every error becomes one line on stderr.

    Args:
        argv: the arguments after the program's name; None takes those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in given
    arguments = [argument for argument in given if argument not in ("--debug", *LOG_LEVELS)] or ["--help"]
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(LogFormatter("raysnap: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[logs])
    levels = [LOG_LEVELS[argument] for argument in given if argument in LOG_LEVELS]
    logging.getLogger("raysnap").setLevel(levels[-1] if levels else logging.NOTSET)
    try:
        exit_code = app(args=arguments, prog_name="raysnap", standalone_mode=False) or 0
        if exit_code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_message(f"interrupted{_how_to_resume(arguments)}")
        return INTERRUPTED
    except RaysnapError as error:
        if is_debugging:
            _print_traceback()
        print_message(str(error))
        return error.exit_code
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:  # noqa: BLE001 - the outermost handler: unforeseen errors become one line, too
        if is_debugging:
            _print_traceback()
        is_usage = hasattr(error, "format_message")  # a mistake in the command line, as typer found it
        message = _usage_message(error) if is_usage else f"unexpected {describe_failure(error)}; run again with --debug"
        print_message(message)
        return UsageError.exit_code
    finally:
        for line in request_lines():
            logger.info("%s", line)


def _print_traceback() -> None:
    sys.stderr.write(shown(traceback.format_exc()))


def _usage_message(error: Any) -> str:
    message: str = error.format_message().replace("Value error, ", "").replace("Input should be ", "expected ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "raysnap"
    return f"{message.removesuffix('.')}{' ' if message.endswith('?') else '; '}see `{command} --help`"


def _how_to_resume(arguments: list[str]) -> str:
    if arguments[0] not in RESUMABLE_COMMANDS:
        return ""
    needs_flag = arguments[0] != "quickstart" and "--resume" not in arguments
    return f"; finish it with: {shlex.join(['raysnap', *arguments, *(['--resume'] if needs_flag else [])])}"


for command in (quickstart, init, search, recommend, finetune, predict, generate, sweep, synthesize, bench):
    app.command()(command)


@app.command()
def report(
    run_dir: Annotated[
        StoreArgument,
        typer.Argument(
            metavar="RUN_DIR",
            parser=run_place,
            help="Folder of a run, its address in a bucket, or a file that holds the output of `search --json`.",
        ),
    ],
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.html",
            parser=any_path,
            help="File to write; by default RUN_DIR/report.html, of a bucket ./report.html.",
        ),
    ] = None,
) -> int:
    """Write a run's report as one HTML file.

    The page needs no other file. Its tables are also written as CSV and Markdown to a folder beside it.
    """
    from raysnap.report.page import write_report

    print_result(str(write_report(run_dir, out_path)))
    return 0


@app.command("config")
def show_config(config_path: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Print a configuration with all defaults filled in.

    The output is itself a configuration file, which runs the same job again.
    """
    from raysnap.config.load import dump_yaml, load_config

    config = load_config(config_path, overrides or [])
    if as_json:
        print_json(config.model_dump(mode="json"))
    else:
        sys.stdout.write(dump_yaml(config))
    return 0


@app.command()
def doctor(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PLACE", parser=any_path, help="Folders of runs, stores or datasets; by default this one, or /tmp."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="A Ray cluster to check; by default that of RAY_ADDRESS."),
    ] = None,
    store_dir: Annotated[
        StoreArgument | None,
        typer.Option(
            "--store",
            metavar="STORE",
            parser=store_place,
            help="A store, or a place for one: in a bucket, whether it keeps what a store needs is tried out.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check whether this machine, or every node of a Ray cluster, has what raysnap needs.

    Lists package versions, CPUs, GPUs and whether torch can use them, disk space, file systems, shared memory and
    limits; on a cluster also clocks, the token mode and what differs between nodes. Exit code 1 if there are problems.
    """
    from raysnap.cluster.nodes import examine_node

    if address:
        os.environ["RAY_ADDRESS"] = address
    if os.environ.get("RAY_ADDRESS") not in (None, "", "local"):
        return _doctor_of_cluster(places or [], as_json)
    findings = examine_node([str(place) for place in places or [Path.cwd()]])
    if store_dir is not None:
        from raysnap.cli.doctor import examine_store

        findings += examine_store(store_dir)
    problems = [finding for finding in findings if finding.problem]
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        from raysnap.cli.doctor import findings_table

        print_result(findings_table(findings))
        print_result("" if problems else "\nNo problems found.")
    return SOME_FAILED if problems else 0


def _doctor_of_cluster(places: list[Path], as_json: bool) -> int:
    from raysnap.cli.doctor import common_table, nodes_table, problem_lines
    from raysnap.cluster.nodes import differences, examine_cluster
    from raysnap.cluster.session import OBJECT_STORE_BYTES, ray_session

    for place in places:
        if not place.is_absolute():
            raise UsageError(
                f"{place}: expected an absolute path, which means the same on every node, found a relative one"
            )
    with ray_session(OBJECT_STORE_BYTES):
        reports = examine_cluster(places or [Path(tempfile.gettempdir())])
        unshared = [fault for place in places if (fault := _sharing_fault(place)) is not None]
    differing = differences(reports)
    problems = [*problem_lines(reports), *unshared]
    if as_json:
        nodes = [asdict(report) for report in reports]
        document = {"nodes": nodes, "differences": differing, "not_shared": unshared}
        print_json({"ok": not (problems or differing), **document})
    else:
        print_result(common_table(reports))
        print_result("")
        print_result(nodes_table(reports))
        for title, lines in (("Nodes differ:", differing), ("Problems:", problems)):
            if lines:
                print_result("\n".join(["", title, *lines]))
        print_result("" if problems or differing else "\nNo problems found.")
    return SOME_FAILED if problems or differing else 0


def _sharing_fault(place: Path) -> str | None:
    """Return why a folder of this machine is not the same one on every node; None if it is, or isn't there yet."""
    from raysnap.cluster.places import JobFolder, check_places

    if not place.is_dir():
        return None
    try:
        check_places([JobFolder("place", place, "shared" if os.access(place, os.W_OK) else "read")])
    except RaysnapError as error:
        return str(error)
    return None
