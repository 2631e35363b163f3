"""Checkpoints in the formats that others released: TRADES, ARD, IAD, RobustBench, MadryLab's robustness.

Each file is built as those programs save theirs; what is loaded must compute what they compute.
"""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from iad_ext import load_network
from iad_ext.backbones import create_network

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
WRN = {"depth": 10, "width": 1}
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network(name, **model_args):
    """A network whose BatchNorm statistics are not the initial ones, so that a wrong normalisation shows."""
    built = create_network(name, num_classes=7, seed=3, **model_args)
    built.train()
    with torch.no_grad():
        for _ in range(3):
            built(IMAGES)
    return built.eval()


def prefixed(state, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def optimizer_of(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(IMAGES).sum().backward()
    optimizer.step()
    return optimizer


def normalised(net, mean=MEAN, std=STD):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return lambda x: net((x - mean) / std)


def agrees(loaded, expected):
    with torch.inference_mode():
        return torch.allclose(loaded(IMAGES), expected(IMAGES), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."], ids=["one GPU", "DataParallel"])
def test_trades(tmp_path, prefix):
    net = network("cifar_wrn34_10", **WRN)
    unused = {"sub_block1.layer.0.conv1.weight": torch.zeros(16, 16, 3, 3)}  # built by its code, never run
    torch.save(prefixed({**net.state_dict(), **unused}, prefix), tmp_path / "model-wideres-epoch76.pt")
    loaded = load_network(tmp_path / "model-wideres-epoch76.pt", "cifar_wrn34_10", model_args=WRN)
    assert agrees(loaded, net)


def test_ard(tmp_path):
    net = network("cifar_mobilenetv2")
    optimizer = optimizer_of(net)
    state = {"net": net.state_dict(), "epoch": 199, "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "epoch=199.t7")
    assert agrees(load_network(tmp_path / "epoch=199.t7", "cifar_mobilenetv2", 7), net)


@pytest.mark.parametrize("prefix", ["module.", "basic_net.module.", "module.basic_net."])
def test_iad(tmp_path, prefix):
    """Its own files have `module.`; those with the attack's wrapper come from programs that save that instead."""
    net = network("cifar_resnet8")
    optimizer = optimizer_of(net)
    state = {
        "epoch": 200,
        "state_dict": prefixed(net.state_dict(), prefix),
        "test_nat_acc": 83.26,
        "test_pgd20_acc": 53.84,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, tmp_path / "bestpoint.pth.tar")
    assert agrees(load_network(tmp_path / "bestpoint.pth.tar", "cifar_resnet8"), net)


def test_robustbench_wide_resnet_in_a_training_state(tmp_path):
    net = network("cifar_wrn34_10", **WRN)
    unused = {"sub_block1.layer.0.conv1.weight": torch.zeros(16, 16, 3, 3)}
    state = {
        "epoch": 200,
        "state_dict": prefixed({**net.state_dict(), **unused}, "module."),
        "best_prec1": 0.89,
    }
    torch.save(state, tmp_path / "Carmon2019Unlabeled.pt")
    assert agrees(load_network(tmp_path / "Carmon2019Unlabeled.pt", "cifar_wrn34_10", model_args=WRN), net)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_robustbench_network_that_normalises_by_mu_and_sigma(tmp_path, prefix):
    net = network("cifar_preact_resnet18", final_norm=False)
    buffers = {name: torch.tensor(values).view(1, 3, 1, 1) for name, values in (("mu", MEAN), ("sigma", STD))}
    torch.save(prefixed({**buffers, **net.state_dict()}, prefix), tmp_path / "Wong2020Fast.pt")
    loaded = load_network(
        tmp_path / "Wong2020Fast.pt", "cifar_preact_resnet18", model_args={"final_norm": False}
    )
    assert agrees(loaded, normalised(net))


def test_robustbench_wrapper_between_dataparallel_and_its_normalisation(tmp_path):
    net = network("cifar_resnet8")
    state = {f"module.{name}": torch.tensor(values) for name, values in (("mu", MEAN), ("sigma", STD))}
    torch.save(state | prefixed(net.state_dict(), "module.model."), tmp_path / "t.pt")
    assert agrees(load_network(tmp_path / "t.pt", "cifar_resnet8"), normalised(net))


def test_normalisation_of_ones_own_is_given_whole(tmp_path):
    """The file's is left out, or taken, and never mixed with it or put in its place."""
    net = network("cifar_resnet8")
    own = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}
    torch.save(net.state_dict() | own, tmp_path / "t.pt")
    another = {"mean": [0.5] * 3, "std": [0.25] * 3}
    loaded = load_network(tmp_path / "t.pt", "cifar_resnet8", model_args=another)
    assert agrees(loaded, normalised(net, **another))
    for name, values in another.items():
        with pytest.raises(ValueError, match="expected mean and std together"):
            load_network(tmp_path / "t.pt", "cifar_resnet8", model_args={name: values})


@pytest.mark.parametrize(
    ("given", "mean", "std"), [("Rice2020", MEAN, STD), ("Hendrycks2019", [0.5] * 3, [0.5] * 3)]
)
def test_robustbench_weights_whose_normalisation_stands_in_code_only(tmp_path, given, mean, std):
    """Hendrycks2019's 2x − 1 is a mean and a standard deviation of 0.5."""
    net = network("cifar_wrn34_10", **WRN)
    torch.save(prefixed(net.state_dict(), "module."), tmp_path / f"{given}.pt")
    arguments = {**WRN, "mean": mean, "std": std}
    assert agrees(
        load_network(tmp_path / f"{given}.pt", "cifar_wrn34_10", model_args=arguments),
        normalised(net, mean, std),
    )
    assert not agrees(
        load_network(tmp_path / f"{given}.pt", "cifar_wrn34_10", model_args=WRN), normalised(net, mean, std)
    )


def test_robustbench_file_with_the_last_and_the_best_weights(tmp_path):
    last, best = network("cifar_resnet8"), network("cifar_resnet8")
    nn.init.zeros_(best.linear.bias)
    nn.init.ones_(last.linear.bias)
    torch.save({"last": last.state_dict(), "best": best.state_dict()}, tmp_path / "Andriushchenko2020.pt")
    assert agrees(load_network(tmp_path / "Andriushchenko2020.pt", "cifar_resnet8"), last)
    assert agrees(load_network(tmp_path / "Andriushchenko2020.pt", "cifar_resnet8", key="best"), best)


class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


@pytest.mark.parametrize("named", [True, False], ids=["normalize, model", "0, 1"])
def test_robustbench_normalising_layer_before_the_network(tmp_path, named):
    net = network("cifar_resnet8")
    layers = (
        OrderedDict(normalize=Normalise(), model=net) if named else OrderedDict({"0": Normalise(), "1": net})
    )
    whole = nn.Sequential(layers)
    torch.save(nn.DataParallel(whole).state_dict(), tmp_path / "t.pt")
    assert agrees(load_network(tmp_path / "t.pt", "cifar_resnet8"), whole)


def test_robustness_library_with_its_attacker_s_copy(tmp_path):
    net = network("cifar_resnet8")
    buffers = {"new_mean": torch.tensor(MEAN).view(3, 1, 1), "new_std": torch.tensor(STD).view(3, 1, 1)}
    state = {
        **prefixed(buffers, "module.normalizer."),
        **prefixed(net.state_dict(), "module.model."),
        **prefixed(buffers, "module.attacker.normalize."),
        **prefixed(net.state_dict(), "module.attacker.model."),
    }
    torch.save({"model": state, "epoch": 150}, tmp_path / "cifar_linf_8.pt")
    assert agrees(load_network(tmp_path / "cifar_linf_8.pt", "cifar_resnet8"), normalised(net))
