"""Networks compared image by image, from what their measurements left."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from iad_ext import statistics
from iad_ext.backbones import create_network, save_network
from iad_ext.comparing import compare, read_measured, verdicts_beside

N = 400


def right(share, seed, n=N):
    return np.random.default_rng(seed).random(n) < share


def percentages(verdicts):
    return {name: 100 * float(flags.mean()) for name, flags in verdicts.items()}


def write_run(folder, verdicts, *, images="one", eps=8 / 255):
    """As a run leaves it: both networks, `last` with one image fewer right."""
    folder.mkdir()
    held = {}
    for name, flags in verdicts.items():
        worse = flags.copy()
        worse[np.flatnonzero(flags)[0]] = False
        held |= {f"best/{name}": flags.astype(np.uint8), f"last/{name}": worse.astype(np.uint8)}
    save_file(held, folder / "robust.safetensors")
    content = {"data": {"digest": {"test": images}}}
    for which in ("best", "last"):
        own = {name.removeprefix(f"{which}/"): flags for name, flags in held.items() if which in name}
        content[which] = {"protocol": {"eps": eps}} | percentages(own)
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def write_evaluation(file, verdicts, *, images="one", eps=8 / 255):
    """As `iad-ext evaluate --out` does."""
    held = {name: flags.astype(np.uint8) for name, flags in verdicts.items()}
    save_file(held, verdicts_beside(file))
    measured = {"protocol": {"eps": eps}} | percentages(verdicts)
    file.write_text(json.dumps({"measured": measured, "data": {"digest": {"test": images}}}))
    return file


def test_one_pair_is_compared_on_the_images_that_both_were_asked(tmp_path):
    a = {"natural": right(0.8, 0), "pgd20": right(0.5, 1), "aa": right(0.4, 2, 100)}
    b = {"aa": right(0.2, 5), "pgd20": right(0.4, 4), "cw_inf": right(0.3, 6)}
    write_run(tmp_path / "a", a)
    write_evaluation(tmp_path / "b.json", b)
    found = compare([read_measured(tmp_path / "a")], [read_measured(tmp_path / "b.json")])
    assert list(found) == ["pgd20", "aa"]
    assert (found["pgd20"].n, found["aa"].n) == (N, 100)
    by_hand = 100 * sum(int(x) - int(y) for x, y in zip(a["aa"], b["aa"][:100], strict=True)) / 100
    assert found["aa"].difference == pytest.approx(by_hand)
    assert found["aa"].low < by_hand < found["aa"].high
    assert found["aa"].seed_spread is None
    last = compare([read_measured(tmp_path / "a", of="last")], [read_measured(tmp_path / "b.json")])
    assert last["pgd20"].difference == pytest.approx(found["pgd20"].difference - 100 / N)


def test_seeds_are_paired_and_their_spread_is_in_the_interval(tmp_path):
    shares = [(0.5, 0.3), (0.6, 0.5), (0.55, 0.4)]
    sides = [
        [
            write_run(tmp_path / f"{side}{k}", {"pgd20": right(pair[side], 10 * k + side)})
            for k, pair in enumerate(shares)
        ]
        for side in (0, 1)
    ]
    these, against = ([read_measured(folder) for folder in side] for side in sides)
    found = compare(these, against)["pgd20"]
    each = [
        100 * (x.right["pgd20"].mean() - y.right["pgd20"].mean()) for x, y in zip(these, against, strict=True)
    ]
    assert found.difference == pytest.approx(np.mean(each))
    assert found.seed_spread == pytest.approx(np.std(each, ddof=1))
    assert found.seeds == 3
    alone = statistics.paired_difference(
        [x.right["pgd20"] for x in these], [y.right["pgd20"] for y in against]
    )
    assert found.high - found.low > 2 * (alone.high - alone.low)


def test_a_command_says_it_and_writes_it(tmp_path, say):
    a = write_run(tmp_path / "a", {"pgd20": right(0.6, 1), "natural": right(0.8, 3)})
    b = write_run(tmp_path / "b", {"pgd20": right(0.4, 2), "natural": right(0.8, 3)})
    code, printed, _ = say("compare", a, "--against", b, "--out", tmp_path / "found.json")
    assert code == 0
    held = json.loads((tmp_path / "found.json").read_text())["differences"]
    assert held["natural"]["difference"] == 0
    assert held["natural"]["verdict"] == "tie"
    one = held["pgd20"]
    assert one["verdict"] == "higher"
    difference, between = f"{one['difference']:+.2f}", f"{one['low']:+.2f} to {one['high']:+.2f}"
    assert re.search(rf"PGD-20 +{re.escape(difference)} +{re.escape(between)} +higher +\S+ +{N}\n", printed)
    assert "of these very networks" in " ".join(printed.split())
    assert "L∞ radius 8/255" in printed
    code, printed, _ = say("compare", a, a, "--against", b, b)
    assert code == 0
    assert "over images and seeds" in printed.replace("\n" + " " * 10, " ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": "two"}, "was measured on other test images than"),
        ({"eps": 4 / 255}, "was attacked at 4/255, "),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, say, change, said):
    a = write_run(tmp_path / "a", {"pgd20": right(0.6, 1)})
    b = write_run(tmp_path / "b", {"pgd20": right(0.6, 2)}, **change)
    code, _, err = say("compare", a, "--against", b)
    assert code == 2
    assert said in err


def test_measurements_whose_names_have_a_dot_keep_their_own_verdicts(tmp_path):
    assert verdicts_beside(tmp_path / "r.json") == tmp_path / "r.robust.safetensors"
    shares = {"beta0.1": right(0.6, 1), "beta0.5": right(0.3, 2)}
    for name, flags in shares.items():
        write_evaluation(tmp_path / name, {"pgd20": flags})
    for name, flags in shares.items():
        assert (read_measured(tmp_path / name).right["pgd20"] == flags).all()


def test_verdicts_of_another_measurement_are_refused(tmp_path, say):
    one = write_evaluation(tmp_path / "one.json", {"pgd20": right(0.6, 1)})
    two = write_evaluation(tmp_path / "two.json", {"pgd20": right(0.3, 2)})
    shutil.copyfile(verdicts_beside(two), verdicts_beside(one))
    code, _, err = say("compare", one, "--against", two)
    assert code == 2
    assert "one.robust.safetensors is not of the measurement in" in err.replace("\n", " ")
    save_file({"aa": right(0.3, 2).astype(np.uint8)}, verdicts_beside(two))
    with pytest.raises(ValueError, match=r"AutoAttack is .* that of the measurement not there; measure"):
        read_measured(two)


def test_what_is_not_understood_is_said(tmp_path, say):
    a = write_run(tmp_path / "a", {"pgd20": right(0.6, 1)})
    b = write_run(tmp_path / "b", {"natural": right(0.6, 2)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.json").write_text("{}")
    save_file({"pgd20": right(0.5, 1).astype(np.uint8)}, tmp_path / "odd.robust.safetensors")
    for line, said in {
        (a, "--against", b): "no attack that all of these networks have met",
        (a, a, "--against", a): "as many networks of each, got 2 and 1",
        (a, "--against", tmp_path / "empty"): "results.json is missing; give measured run folders",
        (a, "--against", tmp_path / "nowhere.json"): "nowhere.json is missing",
        (a, "--against", tmp_path / "odd.json"): "odd.json holds no measurement",
        (a, "--against", a, "--of", "first"): "unknown network of a run 'first'",
    }.items():
        code, _, err = say("compare", *line)
        assert code == 2
        assert said in err.replace("\n", " "), err


def test_which_network_is_asked_of_run_folders_only(tmp_path, say):
    run = write_run(tmp_path / "run", {"pgd20": right(0.6, 1)})
    file = write_evaluation(tmp_path / "one.json", {"pgd20": right(0.5, 2)})
    code, _, err = say("compare", file, "--against", file, "--of", "best")
    assert code == 2
    assert "--of is for run folders" in err
    for sides, of in (([file, file], None), ([run, file], "best"), ([file, run, "--of", "last"], "last")):
        first, second, *rest = sides
        code, _, err = say("compare", first, "--against", second, *rest, "--out", tmp_path / "found.json")
        assert code == 0, err
        assert json.loads((tmp_path / "found.json").read_text())["of"] == of


def test_what_evaluate_writes_can_be_compared(tmp_path, say):
    line = ["--data.name", "digits", "--limit", "24", "--attacks", "natural,pgd20", "--curve-limit", "0"]
    for seed, name in enumerate(("one", "two")):
        save_network(create_network("cifar_resnet8", num_classes=10, seed=seed), tmp_path / name, metadata={})
        code, printed, err = say("evaluate", tmp_path / name, *line, "--out", tmp_path / f"{name}.json")
        assert code == 0, err
        assert f"{name}.robust.safetensors" in printed
    measured = json.loads((tmp_path / "one.json").read_text())["measured"]
    flags = load_file(tmp_path / "one.robust.safetensors")
    for attack in ("natural", "pgd20"):
        assert 100 * flags[attack].mean() == pytest.approx(measured[attack])
    code, printed, _ = say("compare", tmp_path / "one.json", "--against", tmp_path / "two.json")
    assert code == 0
    assert re.search(r"PGD-20 +\S+ +\S+ to \S+ +\w+ +\S+ +24\n", printed)
