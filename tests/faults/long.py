"""`make test-faults`: the fault tests at length, and a report of what was done and what came of it.

Usage: long.py [--report DIR], which writes DIR/README.md and DIR/faults.json.
"""

import argparse
import datetime
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

os.environ["IAD_EXT_FAULTS"] = "long"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


class Records:
    """What the tests recorded as properties, and how many of them passed."""

    def __init__(self):
        self.of = {"kill": [], "failure": [], "corruption": [], "bad input": []}
        self.tests = Counter()
        self.commit = None

    def pytest_collection_finish(self):
        # iad_ext may only be imported once tests/conftest.py has set up its checks
        from iad_ext import provenance

        self.commit = provenance.commit()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            self.tests[report.outcome] += 1
        if report.passed and report.when == "call":
            for kind, record in report.user_properties:
                self.of[kind].append(json.loads(record))


def summary(records, seconds):
    """Everything in plain numbers; no host and no path."""
    from iad_ext import provenance

    kills, inputs, corruptions = records.of["kill"], records.of["bad input"], records.of["corruption"]
    machine = provenance.hardware()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": records.commit,
        "hardware": f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread a process",
        "versions": provenance.versions(),
        "seconds": round(seconds),
        "tests": dict(records.tests),
        "kills": {
            "number": len(kills),
            "by kind": Counter(kill["kind"] for kill in kills),
            "by processes and precision": Counter(f"{k['processes']} × {k['precision']}" for k in kills),
            "by moment": Counter(kill["moment"] for kill in kills),
            "while a file was being written": sum(bool(kill["while writing"]) for kill in kills),
        },
        "one of two workers": [
            *(
                {k: v for k, v in kill.items() if "launcher" in k}
                for kill in kills
                if "launcher ended after s" in kill
            ),
            *records.of["failure"],
        ],
        "corruptions": {
            f"{record['state']}: {record['file']}": dict(record["outcomes"]) for record in corruptions
        },
        "bad inputs": {record["entry"]: dict(record["outcomes"]) for record in inputs},
    }


def markdown(found):
    """The report for people."""

    def table(heads, rows):
        return [
            "| " + " | ".join(heads) + " |",
            "|" + "---|" * len(heads),
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]

    def counted(counts):
        return ", ".join(f"{name}: {n}" for name, n in counts.items())

    tried = Counter()
    for outcomes in found["corruptions"].values():
        tried.update(outcomes)
    entered = Counter()
    for outcomes in found["bad inputs"].values():
        entered.update(outcomes)
    kills = found["kills"]
    return "\n".join(
        [
            "# Fault tests",
            "",
            f"{found['date']}, commit {found['commit']}, {found['hardware']}; {found['seconds']} s.",
            ", ".join(f"{name} {version}" for name, version in found["versions"].items()) + ".",
            "",
            f"Tests: {counted(found['tests'])}.",
            "",
            "## Kills",
            "",
            f"{kills['number']} runs of IAD-I died by SIGKILL, every process of theirs unless said otherwise, and were",
            "continued by the same command. Each ended with the same bits as the run that was left alone: best,",
            "last, every tensor of the final checkpoint, metrics, results, every image's verdict. A `fork` is a",
            "process of its own that runs the recipe's file, started from one that has imported the libraries.",
            "",
            *table(["", ""], [[name, counted(kills[name])] for name in kills if name.startswith("by ")]),
            f"While a file was being written: {kills['while a file was being written']}.",
            "One of two workers killed or failing: "
            + "; ".join(map(counted, found["one of two workers"]))
            + ".",
            "",
            "## Damaged files",
            "",
            f"{tried.total()} damages to a run folder's files (cut, emptied, flipped bits, deleted, a folder instead),",
            f"then the same command: {counted(tried)}.",
            "",
            "",
            *table(
                ["state of the run: file", "outcomes"],
                [[f, counted(o)] for f, o in found["corruptions"].items()],
            ),
            "## Bad input",
            "",
            f"{entered.total()} bad inputs to the public entries: {counted(entered)}.",
            "*Refused* is a clear error that names the argument and changes nothing; *taken* is a correct result.",
            "",
            "",
            *table(["entry", "outcomes"], [[entry, counted(o)] for entry, o in found["bad inputs"].items()]),
        ]
    )


def main():
    """Run the tests; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, metavar="DIR", help="write README.md and faults.json there")
    asked = parser.parse_args()
    records, began = Records(), time.monotonic()
    code = pytest.main(["-q", "--durations=5", str(Path(__file__).parent)], plugins=[records])
    if asked.report is not None:
        found = summary(records, time.monotonic() - began)
        asked.report.mkdir(parents=True, exist_ok=True)
        (asked.report / "faults.json").write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (asked.report / "README.md").write_text(markdown(found), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
