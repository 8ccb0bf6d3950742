"""What `raysnap doctor` shows: the findings on this machine, or on every node of a cluster and what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from raysnap.cli.console import simple_table
from raysnap.cluster.nodes import Finding, NodeReport
from raysnap.config.folders import BucketAddress, StorePath
from raysnap.errors import RaysnapError
from raysnap.humanize import plural


def examine_store(path: StorePath) -> list[Finding]:
    """Return what is found of a store, and what its bucket keeps; nothing but a few small objects is written there."""
    from raysnap.store.backends.client import Client
    from raysnap.store.backends.promises import try_promises
    from raysnap.store.store import Store

    findings = []
    try:
        if isinstance(path, BucketAddress):
            for promise in try_promises(Client.connect(path)):
                found = "kept" if promise.fault is None else promise.fault
                problem = promise.fault and "a store there would lose data; use another server, or a newer one"
                findings.append(Finding(f"bucket {promise.name}", found, problem))
            findings += _examine_rules(path)
        store = Store.find(path)
        found = "none yet" if store is None else plural(len(store.summaries()), "snapshot")
        findings.append(Finding(f"store {path}", found, None))
    except RaysnapError as error:
        findings.append(Finding(f"store {path}", "can't be used", str(error)))
    return findings


def _examine_rules(address: BucketAddress) -> list[Finding]:
    """Return what the rules of a store's bucket do to it."""
    from raysnap.store.backends.rules import read_rules

    rules, unknown = read_rules(address), "unknown: these credentials or this server don't tell, or boto3 is missing"
    destroying = "; ".join(rules.destroying or ())
    found = unknown if rules.destroying is None else destroying or "none that would destroy a store"
    lifecycle = Finding("bucket rules", found, "a store there would lose blocks; take it out" if destroying else None)
    aborts = "some abort unfinished uploads" if rules.aborts_uploads else "none; unfinished uploads are paid for"
    uploads = Finding("bucket rules on uploads", unknown if rules.aborts_uploads is None else aborts)
    versions = {"on": "on; what gc deletes is paid for until a rule removes old versions"}
    versioning = Finding("bucket versions", versions.get(rules.versioning or "", rules.versioning or unknown))
    is_locked = rules.lock in ("COMPLIANCE", "GOVERNANCE")
    problem = "what gc and `store rm` delete stays until the lock ends" if is_locked else None
    return [lifecycle, uploads, versioning, Finding("bucket object lock", rules.lock or unknown, problem)]


def findings_table(findings: Iterable[Finding]) -> Table:
    """Return the findings, one per line; the column of problems is left out if there are none."""
    rows = [(finding.what, finding.found, finding.problem or "") for finding in findings]
    has_problems = any(problem for *_, problem in rows)
    if has_problems:
        return simple_table(["", "found", "problem"], rows)
    return simple_table(["", "found"], [row[:2] for row in rows])


def common_table(reports: Sequence[NodeReport]) -> Table:
    """Return what all nodes have in common, one thing per line."""
    found: dict[str, set[str]] = {}
    for report in reports:
        for finding in report.findings:
            if finding.is_common:
                found.setdefault(finding.what, set()).add(finding.found)
    return simple_table(["", "on all nodes"], [(what, *values) for what, values in found.items() if len(values) == 1])


def nodes_table(reports: Sequence[NodeReport]) -> Table:
    """Return one line per node, with what each has for itself."""
    own = dict.fromkeys(f.what for report in reports for f in report.findings if not f.is_common)
    rows = []
    for report in reports:
        found = {finding.what: finding.found for finding in report.findings}
        rows.append([f"{report.address}{' (head)' if report.is_head else ''}", *(found.get(what) for what in own)])
    return simple_table(["node", *own], rows)


def problem_lines(reports: Sequence[NodeReport]) -> Iterator[str]:
    """Yield a line for each problem, with its node."""
    for report in reports:
        for finding in report.findings:
            if finding.problem:
                yield f"{report.address}: {finding.what}: {finding.found}; {finding.problem}"
