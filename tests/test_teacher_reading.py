"""A teacher's reading against a loop, and what is said of teachers that are sure, right, or neither."""

import math

import oracles
import pytest
import torch
from torch import nn

from iad_ext import attacks
from iad_ext.backbones import create_network, save_network
from iad_ext.cli import main
from iad_ext.randomness import stream
from iad_ext.teacher_reading import Reading, read_teacher


@pytest.fixture(scope="module")
def batch():
    generator = stream("reading")
    return torch.rand(30, 3, 6, 6, generator=generator), torch.randint(10, (30,), generator=generator)


def test_a_reading_is_its_loop(tiny_network, batch):
    teacher, student = tiny_network(seed=1), tiny_network(seed=2).train()
    images, labels = batch
    reading = read_teacher(teacher, student, images, labels, eps=0.1, batch_size=30)
    assert student.training
    student.eval()
    teacher.eval()
    attack = attacks.PGD(student, eps=0.1, alpha=0.025)
    noise = attack.draw_noise(tuple(images.shape), generator=torch.Generator().manual_seed(0))
    adv = attack(images, labels, noise)
    with torch.no_grad():
        said = {
            "nat": teacher(images).tolist(),
            "adv": teacher(adv).tolist(),
            "own": student(adv).tolist(),
        }
    ys = labels.tolist()
    right = {
        k: [oracles.prediction(z) == y for z, y in zip(rows, ys, strict=True)] for k, rows in said.items()
    }
    entropies = [oracles.entropy(z) for z in said["adv"]]
    wrong = [h for h, ok in zip(entropies, right["adv"], strict=True) if not ok]
    assert reading.right_natural == pytest.approx(sum(right["nat"]) / 30)
    assert reading.right == pytest.approx(sum(right["adv"]) / 30)
    assert reading.student_right == pytest.approx(sum(right["own"]) / 30)
    assert reading.sure == pytest.approx(sum(max(oracles.softmax(z)) for z in said["adv"]) / 30, rel=1e-5)
    excess = [max(oracles.softmax(z)) - ok for z, ok in zip(said["adv"], right["adv"], strict=True)]
    mean = sum(excess) / 30
    error = math.sqrt(sum((one - mean) ** 2 for one in excess) / 29 / 30)
    # 2.0452: Student's t of 29 degrees of freedom at 97.5%
    assert reading.surer == pytest.approx((mean - 2.0452 * error, mean + 2.0452 * error), abs=1e-4)
    assert reading.entropy == pytest.approx(sum(entropies) / 30, rel=1e-5)
    assert reading.entropy_where_wrong == pytest.approx(sum(wrong) / len(wrong), rel=1e-5)
    assert (reading.images, reading.classes) == (30, 10)


def reading(**changed):
    usual = {
        "images": 200,
        "classes": 10,
        "student_right": 0.3,
        "right_natural": 0.8,
        "right": 0.6,
        "sure": 0.65,
        "surer": (-0.02, 0.12),
    }
    return Reading(**(usual | {"entropy": 1.0, "entropy_where_wrong": 1.5} | changed))


def test_what_is_said_of_it():
    assert "about as sure" in reading().advice
    surer = reading(sure=0.9, surer=(0.22, 0.38))
    assert "over-confident on your student's attacks: use the entropy weight" in surer.advice
    assert "surer than right by +30.0 points [+22.0, +38.0]" in "\n".join(surer.lines())
    # as much, but on images so few that it may be nothing
    assert not reading(images=10, sure=0.9, surer=(-0.03, 0.63)).over_confident
    itself = reading(sure=0.9, surer=(0.22, 0.38), on_itself=True)
    assert "over-confident on its own attacks" in itself.advice
    assert "PGD-10 on the teacher itself; --student names" in "\n".join(itself.lines())
    assert "no more often than chance" in reading(right_natural=0.12, sure=0.9).advice
    assert "of at most 2.303, 1.500 where it is wrong" in "\n".join(reading().lines())
    assert "where it is wrong" not in "\n".join(reading(entropy_where_wrong=None).lines())


def test_a_teacher_that_shouts_is_over_confident_and_one_that_hesitates_is_not(tiny_network, batch):
    class Loud(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.network, self.factor = tiny_network(seed=1), factor

        def forward(self, images):
            return self.factor * self.network(images)

    loud, quiet = (read_teacher(Loud(factor), tiny_network(seed=2), *batch) for factor in (1000.0, 0.001))
    assert loud.right == quiet.right
    assert loud.over_confident
    assert not quiet.over_confident
    assert loud.entropy < 0.05
    assert quiet.entropy == pytest.approx(math.log(10), rel=1e-3)


def test_what_cannot_be_read_is_refused(tiny_network, batch):
    images, labels = batch
    with pytest.raises(ValueError, match="at least two images, got 1"):
        read_teacher(tiny_network(), tiny_network(), images[:1], labels[:1])
    with pytest.raises(ValueError, match="the teacher has 5 classes, the student 10"):
        read_teacher(tiny_network(5), tiny_network(), images, labels % 5)


def test_the_doctor_reads_a_teacher(tmp_path, capsys):
    for seed, name in ((1, "teacher"), (2, "student")):
        network = create_network("cifar_resnet8", num_classes=10, image_size=(8, 8), seed=seed)
        save_network(network, tmp_path / name, metadata={})
    line = ["doctor", "--teacher", str(tmp_path / "teacher"), "--data.name", "digits", "--limit", "20"]
    with pytest.raises(SystemExit) as ended:
        main([*line, "--student", str(tmp_path / "student")])
    said = capsys.readouterr().out
    assert ended.value.code == 6  # untrained: it knows nothing
    assert "of 20 images" in said
    assert "no more often than chance" in said
    assert "PGD-10 on the student" in said
    with pytest.raises(SystemExit):
        main(line)
    assert "PGD-10 on the teacher itself" in capsys.readouterr().out
    # what a bare teacher needs is not asked of the student beside it
    other = create_network("cifar_resnet20", num_classes=10, image_size=(8, 8), seed=3)
    torch.save(other.state_dict(), tmp_path / "bare.pt")
    bare = ["doctor", "--teacher", str(tmp_path / "bare.pt"), *line[3:]]
    with pytest.raises(SystemExit) as ended:
        main([*bare, "--teacher-architecture", "cifar_resnet20", "--student", str(tmp_path / "student")])
    assert (ended.value.code, capsys.readouterr().err) == (6, "")
    for wrong in (["doctor", "--student", "x"], line[:3]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
    assert "give --data.name" in capsys.readouterr().err
