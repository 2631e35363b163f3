"""Beyond one threat: what is measured together is what is measured alone, and the command tells it."""

import json
import re
import unicodedata

import pytest
import torch
import torchattacks
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file

from iad_ext import attacks, cli, evaluate, plots
from iad_ext import settings as settings_
from iad_ext.backbones import create_network, save_network
from iad_ext.cli import main
from iad_ext.data import load_splits
from iad_ext.entrants import named_apart, read_entrant, read_teachers
from iad_ext.evaluation import (
    accuracy_under,
    corrupt,
    evaluate_calibration,
    evaluate_threats,
    evaluate_transfer,
    under_corruptions,
    under_threats,
)
from iad_ext.evaluation.threat_tables import letters, page, tables
from iad_ext.randomness import stream

EPS, N = 0.1, 30


@pytest.fixture(scope="module")
def batch():
    generator = stream("test_threats")
    return torch.rand(N, 3, 6, 6, generator=generator), torch.randint(10, (N,), generator=generator)


@pytest.fixture(scope="module")
def networks(tiny_network):
    return {name: tiny_network(seed=seed) for seed, name in enumerate(("one", "two", "teacher"))}


@pytest.fixture(scope="module")
def answers(networks, batch):
    return evaluate_transfer(
        networks, *batch, measured=["one", "two"], teachers={"one": "teacher"}, eps=EPS, batch_size=8
    )


# ------------------------------------------------------------------------------------- transfer


def test_the_diagonal_is_the_evaluations_own_pgd20(networks, batch, answers):
    for name in ("one", "two"):
        alone = evaluate(networks[name], *batch, attacks=("natural", "pgd20"), eps=EPS, batch_size=8)
        assert torch.equal(answers.right[name][name], alone["robust"]["pgd20"])
        assert answers.result()["accuracy"][name][name] == alone["pgd20"]
        assert answers.result()["interval"]["accuracy"][name][name] == alone["interval"]["pgd20"]
        assert answers.result()["natural"][name] == alone["natural"]


def test_beside_the_diagonal_is_the_same_attack_shown_to_the_other(networks, batch, answers):
    images, labels = batch
    attack = torchattacks.PGD(networks["one"].eval(), eps=EPS, alpha=EPS / 4, steps=20, random_start=False)
    noise = torch.empty(256, 3, 6, 6).uniform_(-EPS, EPS, generator=stream(0, "evaluate", "pgd20", 0))[:N]
    adv = (images + noise).clamp(0, 1)
    # stock PGD keeps to the ball around what it is given, so a step at a time around the images themselves
    for _ in range(20):
        adv.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(networks["one"](adv), labels)
        (gradient,) = torch.autograd.grad(loss, adv)
        adv = adv.detach() + attack.alpha * gradient.sign()
        adv = (images + (adv - images).clamp(-EPS, EPS)).clamp(0, 1)
    with torch.no_grad():
        for name in ("two", "teacher"):
            logits = networks[name].eval()(adv)
            if name == "two":
                assert torch.equal(answers.right["one"]["two"], logits.argmax(1) == labels)
            else:
                assert torch.allclose(answers.adversarial["one"]["teacher"], logits, atol=1e-5)


def test_a_teacher_answers_to_its_student_and_is_not_measured(answers):
    assert list(answers.right) == ["one", "two"]
    assert list(answers.right["one"]) == ["one", "two"]
    assert list(answers.adversarial["one"]) == ["one", "teacher"]
    assert list(answers.adversarial["two"]) == ["two"]
    assert set(answers.result()["natural"]) == {"one", "two"}


def test_each_attack_is_made_once(networks, batch, monkeypatch):
    calls, original = [], attacks.PGD.forward

    def counted(self, *args, **kwargs):
        calls.append(self.steps)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(attacks.PGD, "forward", counted)
    evaluate_threats(networks, *batch, parts=("transfer", "calibration"), eps=EPS)
    assert calls == [20, 20, 20]


class Hidden(torch.nn.Module):
    """The network, with outputs so large that the softmax's gradient is exactly zero."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) * 1e5


def test_a_network_that_falls_to_anothers_attack_only_is_flagged(networks, batch):
    honest = networks["one"]
    with torch.no_grad():
        labels = honest.eval()(batch[0]).argmax(1)
    found = evaluate_transfer({"honest": honest, "hidden": Hidden(honest)}, batch[0], labels, eps=0.3)
    (flag,) = found.flags
    assert flag["flag"] == "transfer_beats_white_box"
    assert "hidden is right on" in flag["detail"]
    assert "made on honest" in flag["detail"]
    assert flag["images"] == int(
        found.right["hidden"]["hidden"].sum() - found.right["honest"]["hidden"].sum()
    )


def test_a_network_that_evaluate_refuses_is_refused_by_name(networks, batch):
    images = batch[0].clone()
    images[4] = 0

    class UndefinedOnBlack(torch.nn.Module):
        def forward(self, x):
            return networks["one"](torch.where(x.flatten(1).any(1)[:, None, None, None], x, torch.nan))

    with pytest.raises(ValueError, match=r"odd: expected finite logits; .* the first at position 4"):
        evaluate_transfer({"one": networks["one"], "odd": UndefinedOnBlack()}, images, batch[1], batch_size=2)


def test_networks_are_left_as_they_were(networks, batch):
    network = networks["one"].train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate_transfer({"one": network}, *batch, eps=EPS)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# ------------------------------------------------------------------------------------- unseen


def test_the_larger_radius_is_the_evaluations_pgd20(networks, batch):
    found = under_threats(networks["one"], *batch, linf_eps=0.2, l2_eps=0.7, batch_size=7)
    assert torch.equal(found["right"]["linf"], accuracy_under(networks["one"], *batch, "pgd20", eps=0.2))
    assert found["protocol"]["linf"]["norm"] == "Linf"
    protocol = found["protocol"]["l2"]
    assert (protocol["norm"], protocol["eps"], protocol["alpha"], protocol["steps"]) == (
        "L2",
        0.7,
        0.7 / 8,
        20,
    )


def test_the_l2_attack_is_stock_pgdl2_from_the_same_start(networks, batch):
    images, labels = batch
    found = under_threats(networks["one"], images, labels, l2_eps=0.7)
    generator = stream(0, "evaluate", "pgd20_l2", 0)
    direction = torch.randn(256, 3, 6, 6, generator=generator)
    length = torch.rand(256, 1, 1, 1, generator=generator)
    start = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * length * 0.7
    stock = torchattacks.PGDL2(networks["one"].eval(), eps=0.7, alpha=0.7 / 8, steps=20, random_start=False)

    # stock starts at the image itself: take its first step from our start, and the ball around the image
    adv = (images + start[:N]).clamp(0, 1)
    for _ in range(20):
        adv.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(stock.get_logits(adv), labels)
        (gradient,) = torch.autograd.grad(loss, adv)
        adv = adv.detach() + stock.alpha * gradient / (
            gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10
        )
        delta = adv - images
        adv = (images + delta * (0.7 / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)).clamp(
            0, 1
        )
    with torch.no_grad():
        assert torch.equal(found["right"]["l2"], networks["one"].eval()(adv).argmax(1) == labels)


@pytest.fixture(scope="module")
def wider():
    """Networks and images of 8 × 8, the smallest that can be corrupted."""
    test = load_splits("digits").test
    networks = {f"net{seed}": create_network("cifar_resnet8", num_classes=10, seed=seed) for seed in (0, 1)}
    return networks, test.images[:24], test.labels[:24]


def test_corruptions_are_a_loop_over_kinds_severities_and_networks(wider):
    networks, images, labels = wider
    kinds, levels = ["impulse_noise", "contrast"], [1, 4]
    found = under_corruptions(
        networks, images, labels, corruptions=kinds, severities=levels, seed=2, batch_size=9
    )
    for name, network in networks.items():
        of, every = found["networks"][name], []
        for kind in kinds:
            for level in levels:
                with torch.no_grad():
                    right = network.eval()(corrupt(images / 255, kind, level, seed=2)).argmax(1) == labels
                every.append(right)
                assert of["kinds"][kind]["severity"][str(level)] == pytest.approx(
                    100 * float(right.double().mean())
                )
        assert of["mean"] == pytest.approx(100 * float(torch.stack(every).double().mean()))
        assert of["interval"][0] <= of["mean"] <= of["interval"][1]
    assert found["protocol"]["image_size"] == [8, 8]


# ------------------------------------------------------------------------------------- all of it


@pytest.fixture(scope="module")
def result(wider):
    networks, images, labels = wider
    return evaluate_threats(
        networks, images, labels, teachers={"net0": "net1"}, betas={"net0": 0.1}, eps=EPS, severities=(1, 5)
    )


def test_the_whole_is_its_parts(wider, result):
    networks, images, labels = wider
    answers = evaluate_transfer(networks, images, labels, teachers={"net0": "net1"}, eps=EPS)
    assert result["transfer"] == answers.result()
    calibration = result["calibration"]
    assert calibration["net0"]["teacher_adv"] == evaluate_calibration(
        answers.adversarial["net0"]["net1"], labels
    )
    assert calibration["net0"]["student_nat"] == evaluate_calibration(answers.natural["net0"], labels)
    assert [each["beta"] for each in calibration["net0"]["trust"]] == [1.0, 0.1]
    assert set(calibration["net1"]) == {"student_nat", "student_adv"}
    assert (
        result["unseen"]["net1"]["linf"]
        == under_threats(networks["net1"], images, labels, linf_eps=0.2)["linf"]
    )
    for name, flags in result["right"].items():
        assert flags.shape == (24,), name
    assert float(result["right"]["transfer/net0>net1"].double().mean() * 100) == pytest.approx(
        result["transfer"]["accuracy"]["net0"]["net1"]
    )
    json.dumps({key: value for key, value in result.items() if key != "right"})


def columns(line):
    return sum(not unicodedata.combining(character) for character in line)


@pytest.mark.parametrize("count", [2, 16, 30])
def test_tables_fit_80_columns_and_hold_every_number(result, count):
    names = [f"a rather long name of a network/seed{k}" for k in range(count)]
    grown = dict(result, networks=names, teachers={names[0]: names[1]})
    cell = result["transfer"]["accuracy"]["net0"]["net1"]
    grown["transfer"] = dict(
        result["transfer"],
        natural=dict.fromkeys(names, 12.5),
        accuracy={source: dict.fromkeys(names, cell) for source in names},
        interval={
            "natural": dict.fromkeys(names, (1.0, 20.0)),
            "accuracy": {source: dict.fromkeys(names, (0.0, 100.0)) for source in names},
        },
    )
    for part in ("unseen", "calibration"):
        grown[part] = dict.fromkeys(names, result[part]["net0"])
    of_network = result["corruptions"]["networks"]["net0"]
    grown["corruptions"] = dict(result["corruptions"], networks=dict.fromkeys(names, of_network))
    for table in tables(grown):
        text = table.text(80)
        assert max(map(columns, text.splitlines())) <= 80
        for row in table.rows:
            for shown in row:
                assert shown.strip() in text
    assert letters(names)[names[-1]] == {2: "B", 16: "P", 30: "AD"}[count]


def test_the_page_says_what_was_measured_and_how(result):
    facts = {
        name: {"source": "/a/place", "of": "best", "architecture": "cifar_resnet8", "weights": "ab" * 32}
        for name in result["networks"]
    }
    text = page(result, facts, {"name": "cifar10", "encoding_note": "JPEG copy"}, ["transfer.svg"])
    assert "24 test images of cifar10 (JPEG copy)" in text
    assert "not the CIFAR-10-C images" in text
    assert "![transfer](transfer.svg)" in text
    assert "abababababab" in text
    assert "/a/place" not in text
    transfer = result["transfer"]["interval"]["accuracy"]
    widest = max((high - low) / 2 for answers in transfer.values() for low, high in answers.values())
    assert f"95% intervals are up to ±{widest:.1f} points." in text
    for row in [line for line in text.splitlines() if line.startswith("| ")]:
        assert row.endswith(" |")


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_figures_are_the_same_each_time(result, tmp_path, suffix):
    for draw in (plots.transfer_matrix, plots.reliability_diagrams):
        for k in range(2):
            draw(result, tmp_path / f"{k}.{suffix}")
        assert (tmp_path / f"0.{suffix}").read_bytes() == (tmp_path / f"1.{suffix}").read_bytes()


def test_the_matrix_and_the_diagrams_show_what_was_measured(result, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    monkeypatch.setattr(plots, "FEWEST", 1)
    plots.transfer_matrix(result, tmp_path / "a.png")
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    accuracy = result["transfer"]["accuracy"]
    assert texts == [f"{accuracy[s][t]:.1f}" for s in result["networks"] for t in result["networks"]]
    plots.reliability_diagrams(result, tmp_path / "b.png")
    panel = drawn[1].axes[2]  # the teacher's
    (line,) = [line for line in panel.lines if line.get_label() == "net0"]
    bins = [each for each in result["calibration"]["net0"]["teacher_adv"]["bins"] if each[2]]
    assert list(line.get_xdata()) == [each[3] for each in bins]
    assert list(line.get_ydata()) == [each[4] for each in bins]
    marks = [(each.get_marker(), each.get_linestyle()) for each in drawn[1].axes[0].lines[1:]]
    assert len(set(marks)) == 2
    with pytest.raises(ValueError, match="the transfer was not measured"):
        plots.transfer_matrix({"calibration": {}}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="calibration was not measured"):
        plots.reliability_diagrams({"transfer": {}}, tmp_path / "a.png")


def test_refusals(networks, batch, wider):
    for wrong, message in (
        ({"parts": ("transfr",)}, "unknown part 'transfr'; did you mean 'transfer'"),
        ({"parts": ()}, "parts: expected some of"),
        ({"measured": ["three"]}, "unknown network 'three'"),
        ({"measured": []}, "expected at least one network to measure, got none"),
        ({"teachers": {"one": "three"}}, "unknown network 'three'"),
        ({"eps": 8}, "did you mean 8 / 255"),
        ({"parts": ("unseen",), "l2_eps": 0}, "l2_eps, an L2 radius"),
        ({"parts": ("corruptions",)}, "at least 8 × 8 pixels"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            evaluate_threats(networks, *batch, **wrong)
    with pytest.raises(TypeError, match="unknown argument of evaluate_threats 'epsilon'; did you mean 'eps'"):
        evaluate_threats(networks, *batch, epsilon=0.1)
    with pytest.raises(ValueError, match="expected at least one"):
        evaluate_transfer({}, *batch)
    with pytest.raises(ValueError, match="did you mean 'contrast'"):
        under_corruptions(*wider, corruptions=["contrst"])
    with pytest.raises(ValueError, match=r"severities of 1 … 5; got .* and \[6\]"):
        under_corruptions(*wider, severities=[6])


# ------------------------------------------------------------------------------------- run folders


def run_folder(folder, *, seed, teacher=None, of=("best",), values=(), **objective):
    """What a run of the digits leaves, as far as it is read here."""
    values = {
        **dict(values),
        "data.name": "digits",
        "eval.eps": EPS,
        "student.name": "cifar_resnet8",
        "teacher": teacher,
    }
    values |= {f"objective.{name}": value for name, value in objective.items()}
    folder.mkdir(parents=True)
    settings = settings_.override(settings_.Settings(), values)
    (folder / "settings.yaml").write_text(settings_.to_yaml(settings))
    teachers = {"teacher": {"source": teacher}} if teacher else {}
    (folder / "environment.json").write_text(json.dumps({"teachers": teachers}))
    for which in of:
        network = create_network("cifar_resnet8", num_classes=10, seed=seed + (which == "last"))
        save_network(network, folder / which, metadata={})
    return folder


@pytest.fixture
def runs(tmp_path):
    run_folder(tmp_path / "runs/at/seed0", seed=7)
    for k, name in enumerate(("iad1-at", "ard-at")):
        folder = tmp_path / f"runs/{name},epochs=3/seed0"
        run_folder(
            folder, seed=k, teacher="runs/at/seed0", of=("best", "last"), name=name.removesuffix("-at")
        )
    return [tmp_path / f"runs/{name},epochs=3/seed0" for name in ("iad1-at", "ard-at")]


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        ({"name": "iad1", "beta": 0.3}, 0.3),
        ({"name": "rslad", "introspect": True}, 0.1),
        ({"name": "iad_mtard"}, 0.1),
        ({"name": "iad1", "beta": 0.1, "trust": "margin"}, None),
        ({"name": "iad1", "trust": "three_cases"}, None),
        ({"name": "iad1", "beta": 0.1, "gamma": "2"}, None),
        ({"name": "rslad"}, None),
        ({"name": "at"}, None),
    ],
)
def test_a_run_s_beta_is_that_of_eq_4_where_it_is_read(tmp_path, objective, beta):
    assert read_entrant(str(run_folder(tmp_path / "run", seed=0, **objective))).beta == beta


def test_run_folders_tell_names_betas_and_teachers(runs, tmp_path):
    students = named_apart([read_entrant(str(run)) for run in runs])
    assert [each.name for each in students] == ["iad1-at/seed0", "ard-at/seed0"]
    assert [each.beta for each in students] == [0.1, None]
    teachers, of_student, missing = read_teachers(students)
    assert [each.name for each in teachers] == ["at/seed0"]  # once, and found from above the run folder
    assert of_student == {"iad1-at/seed0": "at/seed0", "ard-at/seed0": "at/seed0"}
    assert missing == []
    with_it = named_apart([*students, read_entrant(str(tmp_path / "runs/at/seed0"))])
    teachers, of_student, _ = read_teachers(with_it)
    assert teachers == []
    assert set(of_student.values()) == {"at/seed0"}
    last = read_entrant(str(runs[0]), of="last")
    assert (last.which, last.weights) == ("last", read_entrant(str(runs[0] / "last")).weights)
    assert last.weights != students[0].weights


def test_cells_of_a_study_are_told_apart_by_what_differs(tmp_path):
    cells = (
        "iad1-at,epochs=6",
        "iad1-at,epochs=6,average=ema",
        "iad1-at,epochs=6,awp=0.005",
        "ard-at,epochs=6",
    )
    folders = [run_folder(tmp_path / cell / "seed0", seed=0) for cell in cells]
    names = [each.name for each in named_apart([read_entrant(str(folder)) for folder in folders])]
    assert names == ["iad1-at/seed0", "iad1-at/seed0,average=ema", "iad1-at/seed0,awp=0.005", "ard-at/seed0"]
    both = [read_entrant(str(folders[0] / which)) for which in ("best", "best")]
    with pytest.raises(ValueError, match="is there twice"):
        named_apart(both)
    elsewhere = run_folder(tmp_path / "other" / cells[0] / "seed0", seed=0)
    same = [read_entrant(str(folder)) for folder in (folders[0], elsewhere)]
    assert [each.name for each in named_apart(same)] == [str(folders[0]), str(elsewhere)]


def test_a_teacher_that_is_gone_is_told(runs, tmp_path):
    (tmp_path / "runs/at/seed0").rename(tmp_path / "elsewhere")
    students = named_apart([read_entrant(str(runs[0]))])
    teachers, of_student, (missing,) = read_teachers(students)
    assert (teachers, of_student) == ([], {})
    assert "the teacher of iad1-at/seed0, runs/at/seed0, cannot be loaded" in missing
    (teacher,), of_student, _ = read_teachers(students, str(tmp_path / "elsewhere"))
    assert list(of_student.values()) == [teacher.name]


def test_the_command_measures_run_folders(say, runs, tmp_path):
    out = tmp_path / "out"
    line = ["threats", *runs, "--with-teachers", "--limit", "20", "--corruptions", "contrast,shot_noise"]
    code, printed, err = say(*line, "--out", out)
    assert code == 0, err
    assert re.findall(r"^([ABC]) {9}(\S+): best", printed, re.MULTILINE) == [
        ("A", "iad1-at/seed0"),
        ("B", "ard-at/seed0"),
        ("C", "at/seed0"),
    ]
    assert max(map(columns, printed.splitlines())) <= 110
    content = json.loads((out / "threats.json").read_text())
    measured = content["measured"]
    assert measured["networks"] == ["iad1-at/seed0", "ard-at/seed0", "at/seed0"]
    assert measured["protocol"]["eps"] == EPS
    assert measured["n"] == 20
    assert content["data"]["name"] == "digits"
    assert content["environment"]["versions"]["torch"]
    assert content["models"]["at/seed0"]["source"] == "runs/at/seed0"
    assert content["models"]["iad1-at/seed0"]["weights"] == read_entrant(str(runs[0])).weights
    flags = load_file(out / "right.safetensors")
    for source, answers in measured["transfer"]["accuracy"].items():
        for target, value in answers.items():
            assert 100 * float(flags[f"transfer/{source}>{target}"].double().mean()) == pytest.approx(value)
            assert f"{value:.1f}" in printed
    names = {"threats.json", "threats.md", "right.safetensors"}
    figures = {f"{part}.{suffix}" for part in ("transfer", "calibration") for suffix in ("svg", "png")}
    assert {path.name for path in out.iterdir()} == names | figures
    assert "α = P(y|x̃)^0.1" in printed
    test = load_splits("digits", limit_test=20).test  # as a run with that limit has them
    alone = evaluate(
        read_entrant(str(runs[1])).network, test.images, test.labels, attacks=("pgd20",), eps=EPS
    )
    assert measured["transfer"]["accuracy"]["ard-at/seed0"]["ard-at/seed0"] == alone["pgd20"]


def test_the_command_takes_parts_names_and_saved_networks(say, runs, tmp_path):
    line = ["threats", runs[0] / "best", runs[1], "--of", "last", "--parts", "unseen", "--names", "x,y"]
    code, printed, _ = say(*line, "--data.name", "digits", "--limit", "5", "--l2-eps", "0.25")
    assert code == 0
    assert "A         x: best" in printed
    assert "B         y: last" in printed
    assert "Unseen threats" in printed
    assert "L2 0.25" in printed
    assert "Transfer" not in printed


def test_an_attack_is_told_where_there_is_one(say, runs):
    line = ["threats", runs[0], "--limit", "5", "--corruptions", "contrast", "--parts"]
    for parts, told in (
        ("corruptions", []),
        ("corruptions,unseen", ["PGD-20 on each network, seed 0"]),
        ("corruptions,transfer", ["PGD-20 on each network, L∞ radius 0.1, seed 0"]),
    ):
        code, printed, err = say(*line, parts)
        assert code == 0, err
        assert re.findall(r"^attacks +(.*)", printed, re.MULTILINE) == told


def test_any_name_is_drawn_as_it_is(say, runs, tmp_path):
    names = [r"a$\x$", "_two"]
    line = ["threats", *runs, "--limit", "20", "--parts", "transfer,calibration"]
    code, _, err = say(*line, "--names", ",".join(names), "--out", tmp_path / "out")
    assert code == 0, err
    for figure in ("transfer.svg", "calibration.svg"):
        text = (tmp_path / "out" / figure).read_text(encoding="utf-8")
        assert all(name in text for name in names), figure


def test_a_figure_that_fails_costs_no_number(say, runs, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(plots, "transfer_matrix", fails)
    line = ["threats", runs[0], "--limit", "5", "--parts", "transfer", "--out", tmp_path / "out"]
    with pytest.raises(RuntimeError, match="no font"):
        say(*line)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "threats.json",
        "threats.md",
        "right.safetensors",
    }


def test_what_a_bare_checkpoint_needs_is_not_asked_of_the_runs_beside_it(say, runs, tmp_path):
    network = create_network("cifar_resnet20", num_classes=10, seed=3)
    torch.save({"a": network.state_dict(), "b": {}}, tmp_path / "bare.pt")
    line = ["threats", runs[0], tmp_path / "bare.pt", "--parts", "calibration", "--limit", "8"]
    needed = ["--architecture", "cifar_resnet20", "--key", "a"]
    code, printed, err = say(*line, *needed)
    assert code == 0, err
    assert "bare" in printed
    code, _, err = say("threats", runs[0], *needed)
    assert code == cli.WRONG_INPUT
    assert "--architecture has nothing to tell: none of the networks is a bare checkpoint" in err


def test_a_path_alone_says_where_the_runs_own_data_are(runs, tmp_path, monkeypatch):
    asked = []

    def seen(name, **rest):
        asked.append((name, rest["path"]))
        raise ValueError("enough")

    monkeypatch.setattr("iad_ext.data.load_splits", seen)
    with pytest.raises(SystemExit):
        main(["threats", str(runs[0]), "--data.path", str(tmp_path)])
    assert asked == [("digits", tmp_path)]


def test_the_runs_own_columns_are_read_wherever_the_images_are(tmp_path, monkeypatch):
    """And what is asked for stands in their place, with a path or without."""
    run = run_folder(
        tmp_path / "run/seed0", seed=1, values={"data.label_column": "coarse", "data.config": "all"}
    )
    asked = []

    def seen(name, **rest):
        asked.append((rest["path"], rest["label_column"], rest["config"], rest["revision"]))
        raise ValueError("enough")

    monkeypatch.setattr("iad_ext.data.load_splits", seen)
    for line in (["--data.path", str(tmp_path)], ["--data.label-column", "fine", "--data.revision", "abc"]):
        with pytest.raises(SystemExit):
            main(["threats", str(run), *line])
    assert asked == [(tmp_path, "coarse", "all", None), (None, "fine", "all", "abc")]


def test_runs_of_other_labels_are_not_measured_together(say, runs, tmp_path):
    other = run_folder(tmp_path / "other/seed0", seed=1, values={"data.label_column": "coarse"})
    code, _, err = say("threats", runs[0], other)
    assert code == 2
    assert "the runs are of digits and digits coarse; give --data.name" in err


def test_a_folder_that_cannot_be_written_is_told_before_measuring(say, runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    code, out, err = say("threats", *runs, "--limit", "5", "--out", tmp_path / "file")
    assert code == cli.CANNOT_WRITE
    assert "cannot write" in err
    assert out == ""


REFUSED = {
    "nothing": ("", "name at least one MODEL"),
    "part": ("x --parts transfr", "unknown one of --parts 'transfr'; did you mean 'transfer'?"),
    "no part": ("x --parts ,", "--parts takes some of"),
    "corruption": ("x --corruptions fog", "unknown one of --corruptions 'fog'"),
    "radius": ("x --eps 8", "--eps is in pixels of [0, 1]"),
    "L2": ("x --l2-eps 0", "--l2-eps is in pixels of [0, 1]"),
    "L2 of nothing": ("x --parts transfer --l2-eps 0.5", "--l2-eps is for unseen; add unseen to --parts"),
    "L∞ of nothing": ("x --parts transfer --linf-eps 0.5", "--linf-eps is for unseen; add unseen to --parts"),
    "corruption of nothing": (
        "x --parts transfer --corruptions contrast",
        "--corruptions is for corruptions; add",
    ),
    "radius of nothing": (
        "x --parts corruptions --eps 0.3",
        "--eps is for transfer and calibration and unseen; add",
    ),
    "radius of other radii": (
        "x --parts unseen --eps 0.3 --linf-eps 0.1",
        "--eps is for transfer and calibration; add transfer to --parts",
    ),
    "teacher of nothing": ("x --parts transfer,unseen --teacher y", "--teacher is for calibration; add"),
    "limit": ("x --limit 0", "--limit must be at least 1"),
    "device": ("x --device gpu", "--device gpu: "),
    "names": ("RUN --names a,b", "expected 1 names, one a network, got 2"),
    "twice": ("RUN RUN", "is there twice"),
    "which": ("RUN --of first", "unknown network of a run 'first'"),
    "no last": ("AT --of last", "has no last/"),
    "no teacher": ("RUN --with-teachers --teacher nowhere/at", "found nothing"),
    "no data": ("RUN/best/model.safetensors", "does not say which images it is for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_one_plain_error(say, runs, tmp_path, case):
    line, message = REFUSED[case]
    places = {"RUN": str(runs[0]), "AT": str(tmp_path / "runs/at/seed0")}
    words = [re.sub(r"^(RUN|AT)", lambda found: places[found[1]], word) for word in line.split()]
    code, out, err = say("threats", *words)
    assert code == cli.WRONG_INPUT
    assert err.startswith("error: ")
    assert message in " ".join(err.split())
    assert out == ""


def test_runs_that_differ_in_radius_or_data_ask_for_one(say, runs, tmp_path):
    changed = yaml.safe_load((runs[1] / "settings.yaml").read_text())
    changed["eval"]["eps"] = 0.2
    (runs[1] / "settings.yaml").write_text(yaml.safe_dump(changed))
    code, _, err = say("threats", *runs)
    assert (code, "the runs were measured at 0.1 and 0.2; give --eps" in err) == (cli.WRONG_INPUT, True)
    changed["data"]["name"] = "cifar10"
    (runs[1] / "settings.yaml").write_text(yaml.safe_dump(changed))
    code, _, err = say("threats", *runs)
    assert (code, "the runs are of cifar10 and digits; give --data.name" in err) == (cli.WRONG_INPUT, True)
