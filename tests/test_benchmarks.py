"""The benchmarks run, compare what is the same, and lose nothing; what they measure is not tested here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.slow
def test_a_quick_trial_runs_every_contender(tmp_path):
    """Groups i and j start processes of their own, which takes longer than all the others."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(
        [
            sys.executable,
            FOLDER / "run.py",
            "--quick",
            "--only",
            "a,b,c,d,e,f,g,h,k",
            "--device",
            "cpu",
            "--out",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases = json.loads((tmp_path / "cases.json").read_text())["cases"]
    assert not [name for name, case in cases.items() if "failed" in case]
    for letter in "abcdefghk":
        table = json.loads((tmp_path / f"{letter}.json").read_text())
        assert table["rows"], letter
        assert table["about"]["quick"]
        assert (tmp_path / f"{letter}.md").read_text() in done.stdout
    assert "these figures mean nothing" in (tmp_path / "README.md").read_text()
    released = [case for case in cases.values() if "released / ours" in case]
    assert len(released) == 2
    for case in released:
        assert case["equivalence"]["fp32 x̃ equal"] == case["equivalence"]["fp64 x̃ equal"] == "100.00%"


def bench(out, **changed):
    from harness import Bench

    return Bench(device=torch.device("cpu"), budget=10.0, out=out, **changed)


def test_an_interrupted_run_loses_no_case(benchmarks, tmp_path):
    first = bench(tmp_path)
    assert first.case("one", lambda: {"figure": 1})["figure"] == 1

    def measured_again():
        raise AssertionError("it was known")

    second = bench(tmp_path)
    assert second.case("one", measured_again)["figure"] == 1
    assert second.case("two", lambda: {"figure": 2})["figure"] == 2
    assert bench(tmp_path, quick=True).found == {}  # another kind of run begins anew


def test_a_failure_is_kept_and_the_rest_goes_on(benchmarks, tmp_path):
    def fails():
        raise RuntimeError("no such kernel")

    assert bench(tmp_path).case("one", fails)["failed"] == "RuntimeError: no such kernel"
    with pytest.raises(RuntimeError, match="no such kernel"):
        bench(None, quick=True).case("one", fails)


def test_contenders_take_turns_and_ratios_are_formed_within_a_turn(benchmarks):
    from harness import Contender, Timings

    order = []
    contenders = {
        name: Contender(run=lambda n=name: order.append(n), warm=lambda n=name: order.append(n.upper()))
        for name in "ab"
    }
    bench(None).race(contenders, share=0.0, turns=4, least=4)
    assert "".join(order) == "AB" + "ab" + "ba" + "ab" + "ba"
    timings = Timings({"a": [1.0, 10.0, 3.0], "b": [2.0, 5.0, 3.0]}, {"a": 0.0, "b": 0.0})
    assert timings.ratio("a", "b") == {"median": 1.0, "low": 0.5, "high": 2.0, "n": 3}


def test_unequal_contenders_are_refused(benchmarks):
    from equivalence import NotEqualError, compared

    weights = {"w": torch.ones(100)}
    one = {"adversarial": torch.zeros(1000), "loss": 1.0, "weights": weights}
    pixels = one["adversarial"].clone()
    pixels[:1] = 1.0
    assert compared(one, one | {"adversarial": pixels}, parts=("weights",))["x̃ equal"] == "99.90%"
    pixels[:2] = 1.0
    for other, said in [
        ({"adversarial": pixels}, "99.800%"),
        ({"loss": 1.02}, "losses"),
        ({"weights": {"w": torch.full((100,), 1.02)}}, "weights are"),
        ({"weights": {"v": weights["w"]}}, "other things"),
    ]:
        with pytest.raises(NotEqualError, match=said):
            compared(one, one | other, parts=("weights",))


def test_the_counted_passes_are_those_of_the_accounting(benchmarks):
    """28 forwards for IAD-I, 24 in its warm-up, 32 and 29 as released."""
    from released import FORWARDS
    from workloads import OBJECTIVES, passes_in_forwards

    ours = {name: passes_in_forwards(build(), epoch, 10) for name, (build, epoch) in OBJECTIVES.items()}
    assert (ours["IAD-I"], ours["IAD-I in warm-up"]) == (28, 24)
    assert (ours["AT"], ours["TRADES"]) == (23, 27)
    assert (FORWARDS["IAD-I"](10), FORWARDS["IAD-I in warm-up"](10)) == (32, 29)
