"""Bad input to every public entry: a clear error or a correct result, and nothing else changed.

An error is clear if iad_ext itself raises it, of a documented kind, naming the argument or showing the value. The
run-time type checks of the other tests are off here: users run without them.
"""

import contextlib
import io
import os
import re
import shutil
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.estimators.classification import PyTorchClassifier
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config
from recipe_files import TINY, call, load
from torch import nn

import iad_ext
from iad_ext import IntrospectiveAdversarialDistiller, Outputs, attacks, evaluate, introspect, load_network
from iad_ext import objectives as objectives_
from iad_ext.assets import UsageError
from iad_ext.backbones import create_network, save_network
from iad_ext.checkpoint import CheckpointError
from iad_ext.data import load_splits
from iad_ext.run import run
from iad_ext.settings import from_command_line, from_yaml, override, to_yaml

pytestmark = pytest.mark.slow

LONG = os.environ.get("IAD_EXT_FAULTS") == "long"
EXAMPLES = 60 if LONG else 16

KINDS = (TypeError, ValueError, NotImplementedError, OSError, UsageError, CheckpointError)
SIGNATURE = re.compile(r"missing|positional|unexpected keyword|multiple values|keyword-only|after \*\*")
PACKAGE = str(Path(iad_ext.__file__).parent)


@pytest.fixture(scope="module", autouse=True)
def _without_type_checks():
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


# ------------------------------------------------------------------------------------------- the rule


def _unclear(error, argument, value):
    """What is wrong with an error; None if it is clear."""
    if isinstance(error, Exit):
        code, said = error.args
        named = argument.strip("-").rpartition(".")[2]
        names = {named, named.replace("-", "_"), *ALSO.get(argument, ())}
        clear = code in (2, 4) and "Traceback" not in said and any(name in said for name in names)
        return None if clear else f"exit code {code}: {said[-300:]}"
    argument = argument.rpartition(".")[2]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno} `{frame.line}`"
    if isinstance(error, TypeError) and SIGNATURE.search(str(error)):
        return None
    if (
        not isinstance(error, KINDS)
        or not frame.filename.startswith(PACKAGE)
        or "raise" not in (frame.line or "")
    ):
        return f"{type(error).__name__} from {where}: {str(error)[:200]}"
    said = str(error).lower()
    names = {argument.lower(), argument.lower().replace("_", " "), *ALSO.get(argument, ())}
    if not any(name in said for name in names) and repr(value)[:20].lower() not in said:
        return f"does not name {argument}: {error}"
    return None


# how else a message may speak of an argument
ALSO = {
    "--data.name": ["data set", "neither a folder nor a hub id"],
    "--data.path": ["there is no folder", "data set"],
    "--precision": ["fp16"],
    "--out": ["run folder"],
    "architecture": ["unknown network"],
    "attacks": ["unknown attack"],
    "aa_settings": ["autoattack setting"],
    "base": ["objective"],
    "classifier": ["clip_values"],
    "model": ["the network"],
    "name": ["network", "weights of"],
    "objective_settings": ["argument of iad1", "beta"],
    "outputs": ["logits", "classes", "batch", "reads"],
    "path": ["folder", "data set"],
    "source": ["checkpoint", "config.json", "safetensors"],
    "text": ["setting"],
    "out": ["run folder"],
    "teacher": ["expected a network", "checkpoint"],
    "natural_teacher": ["expected a network", "checkpoint"],
    "validation_data": ["validation x", "validation y"],
    "x": ["images"],
    "y": ["labels"],
}


class Untouched:
    """Everything that a refused call must leave as it was."""

    def __init__(self, folder, networks, arrays):
        self.folder, self.networks, self.arrays = folder, networks, arrays
        self.before = self.state()

    def state(self):
        numpy_state = np.random.get_state()[1].tobytes()
        whole = [torch.get_rng_state(), numpy_state, torch.get_default_dtype(), torch.is_grad_enabled()]
        for network in self.networks:
            whole += [(module.training) for module in network.modules()]
            whole += [(p.requires_grad, p.grad is None, p.detach().clone()) for p in network.parameters()]
            whole += [b.clone() for b in network.buffers()]
        for array in self.arrays:
            whole += [getattr(array, "requires_grad", None), torch.as_tensor(array).detach().clone()]
        whole += sorted((str(path), path.is_file() and path.read_bytes()) for path in self.folder.rglob("*"))
        return whole

    def changed(self):
        return not all(map(_same, self.before, self.state())) or len(self.before) != len(self.state())


def _same(one, other):
    if isinstance(one, tuple):
        return all(map(_same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# ------------------------------------------------------------------------------------------- what is given

NOT_A_NUMBER = ["None", "'0.1'", "[0.1]", "1j", "object()", "nan", "inf", "-inf"]
NOT_A_COUNT = ["'3'", "[3]", "1.5", "nan", "-1", "True", "object()"]
COUNT = [*NOT_A_COUNT, "None", "0"]
RADIUS = [*NOT_A_NUMBER, "True", "-0.1", "8", "0"]
IMAGES = [
    "None", "'images'", "5", "images.tolist()", "images[0]", "images[:0]", "images * 255", "images - 0.5", "images[:3]",
    "images.clone().fill_(nan)", "images.clone().fill_(inf)", "images.long()", "images > 0.5", "images.flatten(1)",
    "images.permute(0, 2, 3, 1)", "images.to(torch.complex64)", "np.array(['a'])", "images[:, :1]", "images[..., :0]",
    "np.array([None] * 4)", "images[None]",
]  # fmt: skip
LABELS = [
    "None", "'labels'", "3", "labels.tolist()", "labels[:2]", "labels + 10", "labels - 5", "labels.float()",
    "labels[:0]", "labels[:, None]", "torch.eye(10)[labels]", "labels > 3", "labels * 10**12",
    "np.array(['a', 'b', 'c', 'd'])",
]  # fmt: skip

OBJECTIVE_NUMBER = [*NOT_A_NUMBER, "-1", "True", "'much'"]
OBJECTIVE = {
    "beta": OBJECTIVE_NUMBER,
    "gamma": ["'alpha'", "-1", "nan", "{1: 1.0}", "{0: -1}", "{0: 'x'}", "{'a': 1}", "[1]", "object()", "{}", "None"],
    "tau": [*OBJECTIVE_NUMBER, "0"],
    "introspection_tau": [*OBJECTIVE_NUMBER, "0"],
    "label_weight": OBJECTIVE_NUMBER,
    "teacher_weight": OBJECTIVE_NUMBER,
    "natural_teacher_weight": OBJECTIVE_NUMBER,
    "self_weight": OBJECTIVE_NUMBER,
    "warmup_epochs": [*NOT_A_COUNT, "None"],
    "gate_teacher": ["'yes'", "None", "2", "[]"],
    "detach_target": ["'yes'", "None", "2", "[]"],
    "weights": ["{'techer': 1}", "{'teacher': -1}", "{'teacher': nan}", "{'teacher': 'x'}", "'teacher=1'", "[1]", "5",
                "{1: 2}", "{'teacher': None}", "['teacher']"],
    "bta": ["1"],
}  # fmt: skip

PATHS = ["'/nowhere/at/all'", "'no/such'", "'../..//nothing'", "Path('missing.pt')", "'.'", "Path('empty')",
         "'file.txt'", "Path('broken.safetensors')", "Path('broken.pt')", "'hf-hub:'", "''", "5", "None", "b'x'",
         "[]", "'x\\0y'"]  # fmt: skip

# entry -> argument -> expressions that must be refused; one that begins with ~ may be taken, and if so gives what the
# untouched arguments give
ENTRIES = {
    "evaluate": {
        "model": ["None", "'resnet18'", "lambda x: x", "classifier", "nn.Identity()", "nn.Flatten(2)",
                  "broken", "narrow"],
        "images": [*IMAGES, "~images.numpy()", "~images.clone().requires_grad_()", "~images.double()",
                   "~images.flip(3).flip(3)", "~torch.cat([images, images], 3)[..., :8]", "~images.numpy()[:, :, ::1]"],
        "labels": [*LABELS, "~labels.numpy()", "~labels.int()", "~labels.to(torch.uint8)",
                   "~labels.repeat_interleave(2)[::2]"],
        "attacks": ["[]", "('natural', 'pdg20')", "'pgd'", "None", "5", "[None]", "{}", "[[]]", "~['natural', 'pgd10']",
                    "('natural', 3)"],
        "eps": RADIUS,
        "seed": [*NOT_A_COUNT, "2**64", "None"],
        "batch_size": [*COUNT, "2**64"],
        "device": ["'gpu'", "'cuda:7'", "5", "[]", "~'cpu'", "~torch.device('cpu')", "'meta'"],
        "progress": ["~False"],
        "channels_last": ["~False", "'no'", "None", "3"],
        "aa_settings": ["{'n_itr': 1}", "{'n_iter': 0}", "{'n_iter': 'x'}", "5", "'n_iter=5'", "[]", "{'n_iter': 1.5}"],
        "world": ["2", "'accelerate'", "[]", "~None"],
        "epsilon": ["0.1"],
    },
    "load_network": {
        "source": PATHS,
        "architecture": ["'resnet8'", "5", "''", "[]", "'cifar_resnet20'"],
        "num_classes": [*COUNT[:-2], "0", "11"],
        "revision": ["'main'", "5"],
        "key": ["'ema'", "5"],
        "model_args": ["{'dept': 3}", "5", "'depth=3'", "[1]"],
        "num_clases": ["10"],
    },
    "create_network": {
        "name": ["None", "5", "'cifar_resnet9'", "''", "'hf-hub:a/b'", "'../x'", "[]", "'resnet18.nothing'"],
        "num_classes": COUNT,
        "image_size": ["0", "-8", "'8'", "(8,)", "(8, 8, 8)", "1.5", "(8, 'x')", "~8", "~(8, 8)", "True"],
        "mean": ["0.5", "'x'", "[0.5]", "[nan] * 3", "[None] * 3", "object()"],
        "std": ["[0, 0, 0]", "[-1] * 3", "[nan] * 3", "'x'", "0.5", "[1, 1]"],
        "seed": [*NOT_A_COUNT, "2**64"],
        "pretrained": ["'yes'", "True"],
        "num_clases": ["10"],
    },
    "objectives.build": {"name": ["'iad3'", "None", "5", "''", "[]", "{}"], **OBJECTIVE},
    "introspect": {"base": ["None", "'ard'", "5", "[]", "objectives_.iad1()", "objectives_.ard"], **{
        name: OBJECTIVE[name] for name in ("beta", "gamma", "introspection_tau", "gate_teacher", "warmup_epochs",
                                           "detach_target", "weights", "bta")}},
    "with_weights": {"weights": OBJECTIVE["weights"]},
    "objective": {
        "outputs": ["None", "Outputs()", "5", "{}", "Outputs(student_nat=z, student_adv=z[:2], teacher_nat=z)",
                    "Outputs(student_nat=z, student_adv=z, teacher_nat=z[:, :5], teacher_adv=z)",
                    "Outputs(student_nat=z[0], student_adv=z[0], teacher_nat=z[0], teacher_adv=z[0])",
                    "Outputs(student_nat=z, student_adv=z, teacher_nat='x', teacher_adv=z)",
                    "Outputs(student_nat=z, student_adv=z, teacher_nat=z.numpy(), teacher_adv=z)",
                    "Outputs(student_nat=z.long(), student_adv=z.long(), teacher_nat=z.long(), teacher_adv=z.long())"],
        "labels": ["None", "'x'", "3", "labels.tolist()", "labels[:2]", "labels.float()", "labels[:, None]",
                   "labels.numpy()", "torch.eye(10)[labels]", "labels > 3", "~labels.int()"],
        "epoch": ["-1", "1.5", "None", "'0'", "True", "nan"],
    },
    "attacks.build": {
        "name": ["'pdg'", "None", "5", "[]", "''"],
        "model": ["None", "'resnet18'", "lambda x: x", "5"],
        "eps": RADIUS[:-1],
        "alpha": [*NOT_A_NUMBER, "True", "-0.1"],
        "steps": COUNT,
        "training": ["'yes'", "None", "3"],
        "loss_scale": [*NOT_A_NUMBER, "0", "-1", "True"],
        "step": ["1"],
    },
    "load_splits": {
        "name": ["None", "5", "''", "'cifar11'", "'a/b/c'", "[]", "'../x'", "'x\\0y'", "'digits '"],
        "path": ["'nowhere'", "'file.txt'", "5", "'empty'", "'../nothing'", "[]", "'x\\0y'"],
        "revision": ["'main'", "5"],
        "selection": ["'train'", "None", "5", "[]", "''"],
        "holdout": COUNT,
        "limit_train": [*COUNT[:-2], "0"],
        "limit_test": [*COUNT[:-2], "0"],
        "config": ["'nothing'", "5", "[]", "''"],
        "image_column": ["'nothing'", "5", "[]", "'label'"],
        "label_column": ["'nothing'", "5", "[]"],
        "limit": ["3"],
    },
    "trainer": {
        "classifier": ["None", "'x'", "network", "5"],
        "teacher": ["None", "5", "'nowhere'", "[]", "narrow", "broken", "classifier", "nn.Identity()",
                    "Path('file.txt')"],
        "attack": ["5", "'pgd'", "network", "[]", "lambda x: x"],
        "objective": ["None", "'iad3'", "5", "[]", "objectives_.iad1", "''"],
        "natural_teacher": ["5", "'nowhere'", "narrow"],
        "eps": RADIUS[1:],
        "objective_settings": ["{'bta': 1}", "{'beta': -1}", "5", "'beta'", "[1]", "{'beta': None}", "{1: 2}"],
        "seed": [*NOT_A_COUNT, "None"],
        "precision": ["'fp8'", "None", "5", "[]"],
        "epsilon": ["1"],
    },
    "fit": {
        "x": [*("x" + e.removeprefix("images") if e.startswith("images") else e for e in (
            "None", "'x'", "5", "images[0]", "images[:0]", "images * 255", "images - 0.5", "images[:3]",
            "images * np.nan", "images * np.inf", "images.reshape(4, -1)", "images.transpose(0, 2, 3, 1)",
            "images.astype(complex)",
            "images[:, :1]", "np.array(['a'])", "object()", "[[], [1]]")), "~np.asfortranarray(x)"],
        "y": [*("y" + e.removeprefix("labels") if e.startswith("labels") else e for e in (
            "None", "'y'", "3", "labels[:2]", "labels + 10", "labels - 50", "labels + 0.5", "labels[:0]",
            "labels * np.nan", "np.array(['a'] * 4)", "[None] * 4", "object()",
            "np.ones((4, 3))", "np.ones((4, 10))"))],
        "validation_data": ["5", "'x'", "(x,)", "(x, y, x)", "(x[:2], y)", "(None, None)", "(x * 9, y)"],
        "batch_size": [*COUNT, "10**30"],
        "nb_epochs": COUNT,
        "scheduler": ["5", "'cosine'", "object()", "[]", "lambda: None"],
        "epochs": ["3"],
    },
    "fit_generator": {
        "generator": ["None", "5", "[]", "iter([])", "(x, y)", "NumpyDataGenerator(x * 9, y, batch_size=4)",
                      "NumpyDataGenerator(x, y + 20, batch_size=4)", "NumpyDataGenerator(x[:, :1], y, batch_size=4)"],
        "nb_epochs": COUNT,
        "scheduler": ["5", "'cosine'", "object()"],
        "epochs": ["3"],
    },
    "command line": {
        "--train.epochs": ["'0'", "'-1'", "'x'", "'1.5'", "'nan'", "''", "'1e3'", "'None'"],
        "--train.batch-size": ["'0'", "'-4'", "'x'", "'1.5'"],
        "--train.lr": ["'0'", "'-1'", "'nan'", "'inf'", "'x'", "'1/0'"],
        "--train.momentum": ["'-1'", "'nan'", "'inf'", "'x'"],
        "--train.weight-decay": ["'-1'", "'nan'", "'inf'"],
        "--train.drops": ["'x'", "'1.5'"],
        "--train.drop-factor": ["'0'", "'nan'", "'-1'", "'inf'"],
        "--train.seed": ["'-1'", "'x'", "'1.5'", "str(2**70)"],
        "--train.accumulation": ["'0'", "'17'", "'x'"],
        "--train.padding": ["'-1'", "'x'"],
        "--train.schedule": ["'cosine'"],
        "--attack.eps": ["'8'", "'0'", "'8/0'", "'nan'", "'x'", "'-1/255'", "'1/2/3'"],
        "--attack.steps": ["'0'", "'x'", "'2.5'"],
        "--attack.step": ["'0'", "'nan'", "'2'"],
        "--attack.name": ["'cw'"],
        "--attack.mode": ["'test'"],
        "--eval.eps": ["'8'", "'inf'", "'x'"],
        "--eval.attacks": ["'natural,pdg10'", "'all'", "'natural;pgd10'"],
        "--eval.of": ["'first'", "''", "'best;last'"],
        "--eval.limit": ["'0'", "'-1'", "'x'"],
        "--eval.batch-size": ["'0'", "'x'"],
        "--eval.seed": ["'-1'", "str(2**70)"],
        "--objective.weights": ["'label'", "'label=x'", "'lable=1'", "'label=-1'", "'label=nan'", "'=1'"],
        "--objective.beta": ["'0.1'", "'x'"],
        "--objective.name": ["'iad3'"],
        "--data.name": ["'cifar11'", "''", "'a/b/c'", "'../nothing'"],
        "--data.path": ["'nowhere'", "'file.txt'", "''", "'../nothing'"],
        "--data.limit-train": ["'0'", "'-5'", "'x'"],
        "--data.holdout": ["'0'", "'-1'", "'x'"],
        "--data.selection": ["'train'"],
        "--student.name": ["'cifar_resnet9'", "''", "'../x'"],
        "--precision": ["'fp8'", "'fp16'"],
        "--resume": ["'nowhere'", "'file.txt'", "''"],
        "--checkpoint.keep": ["'0'", "'x'"],
        "--checkpoint.every-steps": ["'0'", "'-1'"],
        "--out": ["'file.txt'", "'file.txt/r'"],
        "--train.epoch": ["'3'"],
        "--epochs": ["'3'"],
    },
    "from_yaml": {
        "text": ["''", "'[]'", "'5'", "'a: ['", "'!!python/object/apply:os.getcwd []'", "'train: {epoch: 3}'",
                 "'train: 5'",
                 "'train: {drops: 5}'", "'out: 5'", "'5: 6'", "'train: {5: 6}'", "'\\0'", "'data: {path: [1]}'",
                 "'train: {epochs: many}'", "'attack: {eps: big}'", "'data: null'"],
    },
    "run": {
        "train.epochs": ["'3'", "None", "1.5", "[]", "0"],
        "train.lr": ["'x'", "None", "nan"],
        "train.seed": ["1.5", "'x'", "-1"],
        "attack.eps": ["'8/255'", "None", "8"],
        "eval.attacks": ["5", "None", "['natural']", "'pdg'"],
        "eval.of": ["5", "None", "'first'"],
        "data.name": ["5", "None", "'cifar11'"],
        "data.path": ["5", "Path('nowhere')"],
        "student.name": ["5", "None", "'x'"],
        "precision": ["5", "None", "'fp8'"],
        "resume": ["5", "None", "'nowhere'"],
        "objective.weights": ["5", "{'label': 1}"],
        "out": ["5", "Path('file.txt')"],
    },
}  # fmt: skip

anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=4)
    | st.lists(st.integers(-3, 3) | st.none(), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.none(), max_size=1)
)
# what may be a small number of seconds of work, or take all memory, if it is legal
LEGAL_BUT_LARGE = {
    "steps",
    "nb_epochs",
    "num_classes",
    "image_size",
    "model_args",
    "progress",
    "source",
    "path",
}


class _Broken(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] * float("nan")


class World:
    """What expressions speak of, made anew for every example; and the entries on it."""

    def __init__(self, folder):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand((4, 3, 8, 8), generator=generator)
        self.labels = torch.tensor([1, 0, 3, 9])
        self.z = torch.randn((4, 10), generator=generator)
        self.x, self.y = self.images.numpy().copy(), self.labels.numpy().copy()
        self.network, self.teacher = self._network(10, 0), self._network(10, 1)
        self.narrow, self.broken = self._network(3, 2), _Broken()
        self.network[2].eval()  # somebody froze a layer
        self.folder = folder

    @staticmethod
    def _network(classes, start):
        with torch.random.fork_rng():
            torch.manual_seed(start)
            return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))

    @property
    def classifier(self):
        return PyTorchClassifier(
            self.network,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(self.network.parameters(), lr=0.1),
            input_shape=(3, 8, 8),
            nb_classes=10,
            clip_values=(0, 1),
            device_type="cpu",
        )

    def trainer(self, **changed):
        usual = {"classifier": self.classifier, "teacher": self.teacher, "objective": "iad1"}
        return IntrospectiveAdversarialDistiller(**usual | changed)

    def watched(self):
        return [self.network, self.teacher, self.narrow], [self.images, self.labels, self.z, self.x, self.y]

    def value(self, expression):
        names = {
            name: getattr(self, name)
            for name in ("images", "labels", "z", "x", "y", "network", "narrow", "broken")
        }
        if "classifier" in expression:
            names["classifier"] = self.classifier
        return eval(expression, {**globals(), **names, "nan": float("nan"), "inf": float("inf")})

    # each entry takes the arguments that are changed and returns something to compare

    def evaluate(self, changed):
        usual = {
            "model": self.network,
            "images": self.images,
            "labels": self.labels,
            "attacks": ("natural", "pgd10"),
        }
        if "aa_settings" in changed:
            usual["attacks"] = ("natural", "aa")
        result = evaluate(**usual | changed)
        assert all(0 <= result[name] <= 100 for name in result["robust"])
        return {name: flags.tolist() for name, flags in result["robust"].items()}

    def load_network(self, changed):
        usual = {"source": "saved.safetensors", "architecture": "cifar_resnet8"}
        return load_network(**usual | changed)(self.images).tolist()

    def create_network(self, changed):
        usual = {"name": "cifar_resnet8", "num_classes": 10, "seed": 0}
        network = create_network(**usual | changed)
        assert network.eval()(self.images).isfinite().all()

    def build(self, changed):
        name = (
            "trades"
            if "self_weight" in changed
            else "iad2"
            if changed.keys() & {"teacher_weight"}
            else "iad1"
        )
        name = "iad2" if "natural_teacher_weight" in changed else name
        objective = objectives_.build(**{"name": name} | changed)
        self._use(objective)

    def introspect(self, changed):
        self._use(introspect(**{"base": objectives_.ard()} | changed))

    def with_weights(self, changed):
        self._use(objectives_.ard(label_weight=0.5).with_weights(**changed))

    def _use(self, objective):
        outputs = Outputs(**dict.fromkeys(objectives_.PASSES, self.z))
        for epoch in (0, 500):
            assert objective(outputs, self.labels, epoch=epoch).total.isfinite()

    def objective(self, changed):
        outputs = Outputs(student_nat=self.z, student_adv=self.z + 1, teacher_nat=-self.z, teacher_adv=self.z)
        usual = {"outputs": outputs, "labels": self.labels, "epoch": 0}
        return objectives_.iad1(warmup_epochs=0)(**usual | changed).total.tolist()

    def attacks_build(self, changed):
        usual = {"name": "pgd", "model": self.network, "eps": 0.1, "alpha": 0.025, "steps": 2}
        attack = attacks.build(**usual | changed)
        start = torch.zeros_like(self.images)
        adversarial = attack(self.images, self.labels, noise=start)
        assert ((adversarial - self.images).abs() <= attack.eps + 1e-6).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1

    def load_splits(self, changed):
        splits = load_splits(**{"name": "digits", "limit_train": 20, "limit_test": 10} | changed)
        assert len(splits.train)

    def make_trainer(self, changed):
        if "natural_teacher" in changed:
            changed = {"objective": "akd2"} | changed
        trainer = self.trainer(**changed)
        trainer.fit(self.x, self.y, nb_epochs=1)

    def fit(self, changed):
        trainer = self.trainer()
        trainer.fit(**{"x": self.x, "y": self.y, "nb_epochs": 1} | changed)
        return [value.tolist() for value in self.network.state_dict().values()]

    def fit_generator(self, changed):
        generator = NumpyDataGenerator(self.x, self.y, batch_size=4)
        self.trainer().fit_generator(**{"generator": generator, "nb_epochs": 1} | changed)

    def command_line(self, changed):
        """Not a dry run, which looks at less; what is taken although wrong trains a moment."""
        ((option, value),) = changed.items()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = call("at_resnet18", *TINY, "--train.epochs", 1, "--out", self.folder / "r", option, value)
        if code:
            raise Exit(code, said.getvalue())

    def run(self, changed):
        settings = from_command_line(
            load("at_resnet18"), [*TINY, "--train.epochs", "1", "--out", str(self.folder / "r")]
        )
        with contextlib.redirect_stdout(io.StringIO()):
            run(override(settings, changed))

    def from_yaml(self, changed):
        read = from_yaml(**changed)
        assert from_yaml(to_yaml(read)) == read


class Exit(Exception):  # noqa: N818 (a process's end, as an exception)
    """The command line ended with a code and said something."""


CALLS = {
    "command line": "command_line",
    "objectives.build": "build",
    "attacks.build": "attacks_build",
    "trainer": "make_trainer",
}
TRAINS = {"trainer", "fit", "fit_generator"}  # the student changes where the input is good after all


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with files that are no networks, and one that is."""
    folder = tmp_path_factory.mktemp("bad")
    with contextlib.chdir(folder):
        Path("empty").mkdir()
        Path("file.txt").write_text("text")
        Path("broken.safetensors").write_bytes(b"\x10" * 40)
        Path("broken.pt").write_bytes(b"PK\x03\x04 not a zip")
        save_network(create_network("cifar_resnet8", num_classes=10, seed=0), "saved", metadata={})
        Path("saved/model.safetensors").rename("saved.safetensors")
        yield folder


def _tried(entry, folder, argument, expression, value=None):
    """The outcome of one bad input: `refused`, `taken`, or what is wrong."""
    shutil.rmtree(folder / "r", ignore_errors=True)  # what a run left
    world = World(folder)
    if expression is not None:
        value = world.value(expression.removeprefix("~"))
    call_of = getattr(world, CALLS.get(entry, entry))
    expected = call_of({}) if expression and expression.startswith("~") else None
    if expected is not None:
        world = World(folder)
        value, call_of = world.value(expression[1:]), getattr(world, CALLS.get(entry, entry))
    untouched = Untouched(folder, *world.watched())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call_of({argument: value})
    except Exception as error:
        wrong = _unclear(error, argument, value)
        return wrong or ("changed something" if untouched.changed() else "refused")
    if expression and not expression.startswith("~"):
        return "taken, although wrong"
    if expected is not None and result != expected:
        return f"another result: {str(result)[:100]}, not {str(expected)[:100]}"
    return (
        "changed something" if entry not in TRAINS | {"create_network"} and untouched.changed() else "taken"
    )


@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_input_is_refused_or_makes_no_difference(here, record_property, entry):
    outcomes = Counter()
    known = [(argument, expression) for argument, of in ENTRIES[entry].items() for expression in of]
    drawn = st.sampled_from(known).map(lambda pair: (*pair, None))
    free = [a for a in ENTRIES[entry] if a not in LEGAL_BUT_LARGE]
    if entry not in ("command line", "run", "from_yaml"):
        drawn |= st.tuples(st.sampled_from(free), st.none(), anything)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None, print_blob=False)
    @seed(0)
    @given(drawn)
    def check(case):
        argument, expression, value = case
        outcome = _tried(entry, here, argument, expression, value)
        outcomes[outcome if outcome in ("refused", "taken") else "wrong"] += 1
        assert outcome in ("refused", "taken"), f"{entry}({argument}={expression or repr(value)}): {outcome}"

    check()
    record_property("bad input", {"entry": entry, "outcomes": outcomes})
