"""Networks by name, to files and back, and from the files of others."""

import importlib.util
import json
import logging
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from torch import nn

from iad_ext.backbones import (
    PixelSpace,
    architecture_of,
    create_network,
    hub_source,
    load_network,
    num_classes_of,
    save_network,
    saved_metadata,
)
from iad_ext.backbones import cifar as cifar_networks
from iad_ext.backbones import networks as backbones

MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)  # Tiny-ImageNet's
SMALL = {  # the same code at a size for tests
    "cifar_resnet18": {"width": 0.25},
    "cifar_preact_resnet18": {"width": 0.25},
    "cifar_wrn34_10": {"depth": 10, "width": 1},
}


@pytest.fixture(autouse=True)
def one_thread(request):
    """Networks this small are faster on one thread, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if request.node.get_closest_marker("real_data") else 1)
    yield
    torch.set_num_threads(threads)


def small(name, **arguments):
    return create_network(name, num_classes=7, seed=0, **SMALL.get(name, {}), **arguments)


def pixels(size=32, n=3, channels=3):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def settled(network):
    """`network` in eval mode with BatchNorm statistics and weights that are not the trivial ones."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return network.eval()


def same(loaded, network):
    with torch.inference_mode():
        return torch.equal(loaded(pixels()), network(pixels()))


# ------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", cifar_networks.NAMES)
def test_every_network_gives_logits_at_both_sizes(name, size):
    network = small(name).eval()
    with torch.inference_mode():
        features = network.forward_features(pixels(size))
        assert features.shape[:2] == (3, network.num_features)
        assert network.forward_head(features, pre_logits=True).shape == (3, network.num_features)
        assert network(pixels(size)).shape == (3, 7)


@pytest.mark.parametrize("name", cifar_networks.NAMES)
def test_an_image_s_logits_do_not_depend_on_its_batch(name):
    network, images = settled(small(name)), pixels(n=4)
    with torch.inference_mode():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", cifar_networks.NAMES)
def test_one_forward_pass_serves_several_losses_and_leaves_the_images(name):
    network, images = small(name).train(), pixels(n=4).requires_grad_()
    before = images.detach().clone()
    natural, adversarial = network(images), network(images + 0.01)
    labels = torch.arange(4)
    (F.cross_entropy(natural, labels) + (natural - adversarial).square().sum()).backward(retain_graph=True)
    F.cross_entropy(natural, labels).backward()
    assert torch.equal(images.detach(), before)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", cifar_networks.NAMES)
def test_normalising_inside_is_normalising_outside(name):
    plain, inside = settled(small(name)), settled(small(name, mean=MEAN, std=STD))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        assert torch.equal(inside(pixels()), plain((pixels() - mean) / std))
    assert plain.state_dict().keys() == inside.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar_resnet18", 11_173_962),  # kuangliu/pytorch-cifar
        ("cifar_preact_resnet18", 11_171_146 + 2 * 512),  # the same, and the final BatchNorm
        ("cifar_mobilenetv2", 2_296_922),  # kuangliu/pytorch-cifar
        ("cifar_wrn34_10", 46_160_474),  # RobustBench's count of WRN-34-10
        ("cifar_resnet20", 269_722),  # He et al.: 0.27 M
        ("cifar_resnet8", 75_290),
        (
            "cifar_resnet8_s2",
            309_322,
        ),  # by hand: stem 1,600, stages 18,560, 57,728 and 230,144, last layer 1,290
    ],
)
def test_parameters_are_as_many_as_published(name, count):
    with torch.device("meta"):
        network = timm.create_model(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


WIDESPREAD = {
    "cifar_resnet18": """conv1.weight bn1.weight bn1.bias bn1.running_mean bn1.running_var layer1.0.conv1.weight
        layer1.0.bn1.weight layer1.0.conv2.weight layer1.0.bn2.bias layer1.1.conv1.weight
        layer2.0.shortcut.0.weight layer2.0.shortcut.1.weight layer2.0.shortcut.1.running_var
        layer4.1.bn2.num_batches_tracked linear.weight linear.bias""",
    "cifar_preact_resnet18": """conv1.weight layer1.0.bn1.weight layer1.0.conv1.weight layer1.0.bn2.weight
        layer1.0.conv2.weight layer2.0.shortcut.0.weight layer4.1.conv2.weight bn.weight bn.running_mean
        linear.weight linear.bias""",
    "cifar_wrn34_10": """conv1.weight block1.layer.0.bn1.weight block1.layer.0.conv1.weight
        block1.layer.0.bn2.running_var block1.layer.0.conv2.weight block1.layer.0.convShortcut.weight
        block1.layer.4.conv2.weight block2.layer.0.convShortcut.weight block3.layer.4.bn2.bias bn1.weight
        bn1.running_mean fc.weight fc.bias""",
    "cifar_mobilenetv2": """conv1.weight bn1.weight layers.0.conv1.weight layers.0.bn1.weight
        layers.0.conv2.weight layers.0.conv3.weight layers.0.bn3.bias layers.0.shortcut.0.weight
        layers.0.shortcut.1.running_mean layers.16.bn3.weight conv2.weight bn2.bias linear.weight
        linear.bias""",
    "cifar_resnet20": "conv1.weight bn1.weight layer1.0.conv1.weight layer3.2.bn2.bias linear.weight linear.bias",
}


@pytest.mark.parametrize("name", WIDESPREAD)
def test_parameters_have_their_widespread_names(name):
    with torch.device("meta"):
        names = timm.create_model(name).state_dict().keys()
    assert set(WIDESPREAD[name].split()) <= names
    assert not any(name.startswith(("sub_block1", "layer1.0.shortcut", "mean", "std")) for name in names)


def test_depth_width_and_channels_reach_the_networks_through_timm():
    wide = timm.create_model("cifar_wrn34_10", depth=16, width=2, num_classes=5)
    assert len(wide.block1.layer) == 2
    assert wide.fc.weight.shape == (5, 128)
    assert timm.create_model("cifar_resnet18", width=0.25).linear.in_features == 128
    grey = timm.create_model("cifar_resnet8", in_chans=1, mean=[0.5], std=[0.2])
    assert grey(pixels(channels=1)).shape == (3, 10)


def test_a_stem_of_stride_2_halves_the_image_and_reads_every_pixel():
    network = small("cifar_resnet8_s2").eval()
    images = pixels().requires_grad_(True)
    assert network.conv1(images).shape == (3, 32, 16, 16)
    network.conv1(images).abs().sum().backward()
    assert bool((images.grad != 0).all())
    with pytest.raises(ValueError, match="expected stem_stride 1 or 2, got 3"):
        timm.create_model("cifar_resnet8", stem_stride=3)


def test_timm_can_replace_or_leave_out_the_last_layer():
    network = timm.create_model("cifar_resnet8", num_classes=0)
    assert network(pixels()).shape == (3, 64)
    network.reset_classifier(11)
    assert num_classes_of(network) == network.get_classifier().out_features == 11
    network.reset_classifier(0, "")
    assert network(pixels()).shape == (3, 64, 8, 8)
    with pytest.raises(ValueError, match="expected a pooling type"):
        network.reset_classifier(4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "cifar_resnet19"}, ValueError, "did you mean 'cifar_resnet1?8'"),
        ({"name": "resnet18.a9_in1k"}, ValueError, "did you mean 'a[123]_in1k'"),
        ({"name": "cifar_resnet8", "widht": 2}, TypeError, "did you mean 'width'"),
        (
            {"name": "cifar_resnet8", "pretrained": True},
            ValueError,
            "no pretrained weights of 'cifar_resnet8'",
        ),
        ({"name": "cifar_resnet8", "mean": (0.5,) * 3}, ValueError, "mean and std together"),
        (
            {"name": "cifar_resnet8", "mean": (0.5,), "std": (0.5,)},
            ValueError,
            "one mean a channel, 3 of them, got 1",
        ),
        (
            {"name": "cifar_resnet8", "mean": (0.5,) * 3, "std": (0.5, 0.0, 1.0)},
            ValueError,
            "every std above 0",
        ),
        ({"name": "cifar_wrn34_10", "depth": 33}, ValueError, "expected depth 6n \\+ 4 .*got depth=33"),
        ({"name": "cifar_resnet8", "shortcut": "padd"}, ValueError, "expected shortcut 'conv' or 'pad'"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, error, message):
    with pytest.raises(error, match=message):
        create_network(**arguments, num_classes=10)


# ----------------------------------------------------------------------------------------------- pixel space


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_any_timm_network_normalises_inside(name):
    network = create_network(name, num_classes=5, image_size=32).eval()
    assert isinstance(network, PixelSpace)
    config = network.network.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        assert torch.equal(network(pixels()), network.network((pixels() - mean) / std))
    assert num_classes_of(network) == 5
    assert architecture_of(network) == name
    assert not any(key.startswith(("mean", "std")) for key in network.state_dict())


def test_the_cifar_networks_take_pixels_as_they_are():
    network = create_network("cifar_resnet8", num_classes=3, image_size=64)
    assert not isinstance(network, PixelSpace)
    assert network.pretrained_cfg["mean"] == (0.0, 0.0, 0.0)
    assert network.pretrained_cfg["std"] == (1.0, 1.0, 1.0)
    assert network.pretrained_cfg["input_size"] == (3, 64, 64)


def test_a_seed_makes_the_weights_and_leaves_the_global_random_state():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two, other = (create_network("cifar_resnet8", num_classes=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one.conv1.weight, two.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_helpers_know_networks_that_timm_did_not_build():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    assert num_classes_of(network) == 4
    assert architecture_of(network) is None
    with pytest.raises(ValueError, match="cannot tell how many classes Flatten has"):
        num_classes_of(nn.Flatten())


# ------------------------------------------------------------------------------------------- our own folders

SAVED = [
    ("cifar_resnet8", {}),
    ("cifar_resnet18", {"width": 0.125, "mean": MEAN, "std": STD}),
    ("cifar_preact_resnet18", {"width": 0.125, "final_norm": False}),
    ("cifar_wrn34_10", {"depth": 10, "width": 2, "image_size": 64}),
    ("cifar_resnet8", {"in_chans": 1}),
    ("test_resnet", {}),
    ("test_resnet", {"mean": MEAN, "std": STD}),
    ("test_vit", {"image_size": 32}),
]


@pytest.mark.parametrize(("name", "arguments"), SAVED)
def test_a_saved_network_comes_back_here_and_in_timm(tmp_path, name, arguments):
    network = settled(create_network(name, num_classes=6, seed=2, **arguments))
    images = pixels(channels=arguments.get("in_chans", 3))
    save_network(network, tmp_path, metadata={"epoch": 4})
    loaded = load_network(tmp_path)
    in_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    channels = images.shape[1]
    mean, std = (torch.tensor(in_timm.pretrained_cfg[key]).view(1, channels, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = network(images)
        assert torch.equal(loaded(images), expected)
        assert torch.equal(in_timm((images - mean) / std), expected)
    assert architecture_of(loaded) == name
    assert num_classes_of(loaded) == 6
    assert not any(module.training for module in loaded.modules())
    save_network(loaded, tmp_path / "again", metadata={"epoch": 4})
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_a_raw_timm_network_is_saved_as_the_function_of_pixels_that_it_is(tmp_path):
    network = settled(timm.create_model("test_resnet", num_classes=4))
    save_network(network, tmp_path, metadata={})
    assert same(load_network(tmp_path), network)


def test_normalisation_around_a_cifar_network_and_its_pooling_are_saved(tmp_path):
    network = settled(PixelSpace(small("cifar_resnet8", mean=MEAN, std=STD), mean=(0.1,) * 3, std=(2.0,) * 3))
    network.network.reset_classifier(5, "max")
    save_network(network, tmp_path, metadata={})
    assert same(load_network(tmp_path), network)


def test_metadata_stand_in_the_configuration_and_in_the_weights(tmp_path):
    save_network(
        small("cifar_resnet8"), tmp_path, metadata={"epoch": 3, "loss": float("nan"), "path": Path("a")}
    )
    expected = {"epoch": 3, "loss": None, "path": "a"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["iad_ext"] == saved_metadata(tmp_path) == expected
    assert config["num_classes"] == 7
    with pytest.raises(TypeError, match="expected JSON values, got object"):
        save_network(small("cifar_resnet8"), tmp_path, metadata={"what": object()})


def test_a_write_that_fails_leaves_the_last_network(tmp_path, monkeypatch):
    old, new = settled(small("cifar_resnet8")), settled(small("cifar_resnet8", mean=MEAN, std=STD))
    save_network(old, tmp_path, metadata={"epoch": 1})

    def disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_network(new, tmp_path, metadata={"epoch": 2})
    monkeypatch.undo()
    assert same(load_network(tmp_path), old)
    assert saved_metadata(tmp_path) == {"epoch": 1}
    save_network(new, tmp_path, metadata={"epoch": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_shared_and_scattered_tensors_are_saved_whole(tmp_path):
    network = settled(small("cifar_resnet20").to(memory_format=torch.channels_last))
    network.layer1[1].conv1.weight = network.layer1[0].conv1.weight
    save_network(network, tmp_path, metadata={})
    with torch.inference_mode():
        torch.testing.assert_close(load_network(tmp_path)(pixels()), network(pixels()))


def test_what_nobody_could_build_again_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="expected a network that timm built, got Linear"):
        save_network(nn.Linear(2, 2), tmp_path, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_run_s_best_goes_before_its_last(tmp_path, caplog):
    best, last = small("cifar_resnet8"), small("cifar_resnet20")
    save_network(last, tmp_path / "last", metadata={})
    with caplog.at_level(logging.WARNING, logger="iad_ext"):
        assert architecture_of(load_network(tmp_path)) == "cifar_resnet20"
    assert "no best/" in caplog.text
    save_network(best, tmp_path / "best", metadata={})
    assert architecture_of(load_network(str(tmp_path))) == "cifar_resnet8"
    assert architecture_of(load_network(f"local-dir:{tmp_path / 'last'}")) == "cifar_resnet20"
    assert architecture_of(load_network(tmp_path / "last/model.safetensors")) == "cifar_resnet20"
    with pytest.raises(ValueError, match="holds cifar_resnet8, architecture='cifar_resnet20' was asked for"):
        load_network(tmp_path, "cifar_resnet20")
    with pytest.raises(ValueError, match="has 7 classes, num_classes=10 was asked for; pass num_classes=7"):
        load_network(tmp_path, num_classes=10)


def test_broken_folders_say_what_is_wrong(tmp_path):
    (tmp_path / "settings.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"expected config\.json .* found settings\.yaml"):
        load_network(tmp_path)
    save_network(small("cifar_resnet8"), tmp_path, metadata={})
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="broken or cut short"):
        load_network(tmp_path)
    with pytest.raises(ValueError, match="broken or cut short"):
        saved_metadata(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors beside"):
        load_network(tmp_path)
    for text in ("{", "[]", "{}", '{"architecture": 3}', '{"architecture": "resnet18", "model_args": 3}'):
        config.write_text(text)
        with pytest.raises(ValueError, match=r"expected timm's config\.json"):
            load_network(tmp_path)
    for sides in ("[3, 32]", "[3, 0, 32]", "[3, 32.5, 32]"):
        config.write_text(f'{{"architecture": "cifar_resnet8", "input_size": {sides}}}')
        with pytest.raises(ValueError, match=r"input_size is .*, not \[channels, height, width\]"):
            load_network(tmp_path)
    config.write_text('{"architecture": "resnet18", "model_args": {"checkpoint_path": "evil.pt"}}')
    with pytest.raises(ValueError, match="model_args has checkpoint_path"):
        load_network(tmp_path)


# -------------------------------------------------------------------------------------- anybody's checkpoints


@pytest.fixture
def student():
    return settled(small("cifar_resnet8"))


def prefixed(state, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "network.", "module._orig_mod.", "_orig_mod.module."],
)
def test_a_wrapper_s_prefix_is_seen_through(tmp_path, student, prefix):
    torch.save(prefixed(student.state_dict(), prefix), tmp_path / "t.pt")
    assert same(load_network(tmp_path / "t.pt", "cifar_resnet8", 7), student)


@pytest.mark.parametrize(
    "entry", ["state_dict", "model", "net", "model_state_dict", "student", "ema", "any_other"]
)
def test_weights_among_other_entries_are_found(tmp_path, student, entry):
    state = prefixed(student.state_dict(), "module.")
    torch.save({"epoch": 3, entry: state, "optimizer": {"lr": 0.1}}, tmp_path / "t.pt")
    assert same(load_network(tmp_path / "t.pt", "cifar_resnet8", 7), student)


@pytest.mark.parametrize("name", ["t.safetensors", "t.pth", "t.pth.tar", "t.ckpt", "t.th"])
def test_every_usual_kind_of_file_loads_and_tells_its_classes(tmp_path, student, name):
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(student.state_dict(), tmp_path / name)
    else:
        torch.save(student.state_dict(), tmp_path / name)
    loaded = load_network(str(tmp_path / name), architecture="cifar_resnet8")
    assert same(loaded, student)
    assert not any(module.training for module in loaded.modules())


def test_of_several_entries_one_can_be_chosen(tmp_path, student, caplog):
    other = settled(small("cifar_resnet8", mean=MEAN, std=STD))
    nn.init.zeros_(other.linear.weight)
    torch.save({"ema": other.state_dict(), "model": {"state_dict": student.state_dict()}}, tmp_path / "t.pt")
    with caplog.at_level(logging.WARNING, logger="iad_ext"):
        assert same(load_network(tmp_path / "t.pt", "cifar_resnet8"), student)
    assert "took 'model'" in caplog.text
    assert load_network(tmp_path / "t.pt", "cifar_resnet8", key="ema").linear.weight.abs().max() == 0
    with pytest.raises(ValueError, match="unknown entry 'emma'; did you mean 'ema'"):
        load_network(tmp_path / "t.pt", "cifar_resnet8", key="emma")


def test_normalisation_that_stands_among_the_weights_is_kept(tmp_path, student):
    normal = {"mu": torch.tensor(MEAN).view(1, 3, 1, 1), "sigma": torch.tensor(STD).view(1, 3, 1, 1)}
    torch.save({**normal, **prefixed(student.state_dict(), "model.")}, tmp_path / "t.pt")
    expected = settled(small("cifar_resnet8", mean=MEAN, std=STD))
    expected.load_state_dict(student.state_dict())
    assert same(load_network(tmp_path / "t.pt", "cifar_resnet8"), expected)


def test_what_trades_code_never_used_is_dropped_and_old_batchnorm_counts_may_lack(tmp_path):
    network = settled(small("cifar_wrn34_10"))
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    state["sub_block1.layer.0.conv1.weight"] = torch.zeros(16, 16, 3, 3)
    torch.save(prefixed(state, "module."), tmp_path / "t.pt")
    loaded = load_network(tmp_path / "t.pt", "cifar_wrn34_10", 7, model_args=SMALL["cifar_wrn34_10"])
    assert same(loaded, network)


def test_a_checkpoint_of_a_timm_network_gets_its_normalisation(tmp_path):
    network = settled(create_network("test_resnet", num_classes=4))
    torch.save(network.state_dict(), tmp_path / "wrapped.pt")
    torch.save(network.network.state_dict(), tmp_path / "raw.pt")
    for file in ("wrapped.pt", "raw.pt"):
        assert same(load_network(tmp_path / file, "test_resnet"), network)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_malicious_checkpoint_is_refused_and_never_runs(tmp_path, student):
    mark = tmp_path / "ran"
    payload = {"state_dict": student.state_dict(), "args": Evil(mark)}
    torch.save(payload, tmp_path / "zip.pt")
    torch.save(payload, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Evil(mark)))
    torch.save(Evil(mark), tmp_path / "whole.pth.tar")
    for file in ("zip.pt", "legacy.pth", "bare.ckpt", "whole.pth.tar"):
        with pytest.raises(ValueError, match=r"refused to load .* save the weights alone"):
            load_network(tmp_path / file, "cifar_resnet8", 7)
    save_network(student, tmp_path / "folder", metadata={})
    (tmp_path / "folder/model.safetensors").unlink()
    torch.save(payload, tmp_path / "folder/pytorch_model.bin")
    with pytest.raises(ValueError, match="refused to load"):
        load_network(tmp_path / "folder")
    assert not mark.exists()
    pickle.loads((tmp_path / "bare.ckpt").read_bytes())
    assert mark.exists(), "the payload would not have shown itself"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, student, value):
    student.layer2[0].bn1.running_var[3] = value
    torch.save(student.state_dict(), tmp_path / "t.pt")
    save_network(student, tmp_path / "folder", metadata={})
    for source in ("t.pt", "folder"):
        with pytest.raises(ValueError, match=r"NaN or infinity in layer2\.0\.bn1\.running_var"):
            load_network(tmp_path / source, *(["cifar_resnet8"] if source == "t.pt" else []))


def lying_header(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["linear.bias"]["data_offsets"][1] += 4096
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("t.safetensors", lambda data: data[:-10]),
        ("t.safetensors", lambda data: data[:4]),
        ("t.safetensors", lambda data: struct.pack("<Q", 2**60) + data[8:]),
        ("t.safetensors", lying_header),
        ("t.safetensors", lambda data: b""),
        ("t.pt", lambda data: data[: len(data) // 2]),
        ("t.pt", lambda data: b""),
        ("t.pt", lambda data: b"<!DOCTYPE html><html>Sign in to download</html>"),
    ],
)
def test_broken_files_are_said_to_be_broken(tmp_path, student, name, spoil):
    file = tmp_path / name
    if name.endswith(".pt"):
        torch.save(student.state_dict(), file)
    else:
        safetensors.torch.save_file(student.state_dict(), file)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match=r"t\.(safetensors|pt)"):
        load_network(file, "cifar_resnet8", 7)


def test_classes_that_disagree_are_named(tmp_path, student):
    torch.save(student.state_dict(), tmp_path / "t.pt")
    with pytest.raises(
        ValueError, match="checkpoint has 7 classes, num_classes=10 was asked for; pass num_classes=7"
    ):
        load_network(tmp_path / "t.pt", "cifar_resnet8", 10)


@pytest.mark.parametrize(
    ("trained", "model_args", "advice"),
    [
        ("cifar_resnet20", {}, "architecture='cifar_resnet20', num_classes=7$"),
        (
            "cifar_resnet20",
            {"shortcut": "conv"},
            "'cifar_resnet20', num_classes=7, model_args={'shortcut': 'conv'}",
        ),
        ("cifar_wrn34_10", {"depth": 16, "width": 2}, "model_args={'depth': 16, 'width': 2}"),
        ("cifar_mobilenetv2", {}, "'cifar_mobilenetv2'"),
        ("cifar_preact_resnet18", {"final_norm": False}, "model_args={'final_norm': False}"),
    ],
)
def test_the_architecture_that_would_fit_is_suggested(tmp_path, trained, model_args, advice):
    network = settled(create_network(trained, num_classes=7, **model_args))
    torch.save(prefixed(network.state_dict(), "module."), tmp_path / "t.pt")
    with pytest.raises(ValueError, match=f"holds weights only: expected the architecture .*{advice}"):
        load_network(tmp_path / "t.pt")
    with pytest.raises(
        ValueError,
        match=f"does not fit cifar_resnet18 with 7 classes: .* (missing|unexpected|of another shape) .*{advice}",
    ):
        load_network(tmp_path / "t.pt", "cifar_resnet18", 7)
    assert same(load_network(tmp_path / "t.pt", trained, model_args=model_args), network)


def test_what_holds_no_weights_is_said(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"found no weights in .*entries are epoch, optimizer"):
        load_network(tmp_path / "t.pt", "cifar_resnet8", 10)
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "t.pt")
    with pytest.raises(ValueError, match="cannot tell how many classes"):
        load_network(tmp_path / "t.pt", "cifar_resnet8")
    with pytest.raises(ValueError, match=r"missing \(conv1\.weight, .* 1 unexpected \(conv\.weight\)"):
        load_network(tmp_path / "t.pt", "cifar_resnet8", 10)
    torch.save(torch.zeros(3), tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"expected a dictionary of tensors .* got Tensor"):
        load_network(tmp_path / "t.pt", "cifar_resnet8", 10)


# --------------------------------------------------------------------------------------------- other sources


def test_a_network_is_returned_as_it_is(student):
    assert load_network(student.train()) is student
    assert student.training


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("runs/nothing/here", FileNotFoundError, "found nothing$"),
        ("nobody.pt", FileNotFoundError, r"checkpoint at .*nobody\.pt"),
        (Path("cifar_resnet18"), FileNotFoundError, "cifar_resnet18"),
        ("local-dir:nothing", FileNotFoundError, "nothing"),
        ("timm/resnet18.a1_in1k", FileNotFoundError, r"for the hub write hf-hub:timm/resnet18\.a1_in1k"),
        ("cifar_resnet19", ValueError, "unknown network 'cifar_resnet19'; did you mean"),
        ("cifar_resnet18", ValueError, "no pretrained weights of 'cifar_resnet18'"),
        (
            3,
            TypeError,
            "expected a network, a path or a name, got int|parameter 'source'",
        ),  # or the type check
    ],
)
def test_sources_that_lead_nowhere_say_so(tmp_path, monkeypatch, source, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load_network(source, num_classes=10)


def test_arguments_that_a_source_would_not_read_are_refused(tmp_path):
    save_network(small("cifar_resnet8"), tmp_path, metadata={})
    with pytest.raises(FileNotFoundError, match="found nothing"):
        load_network(tmp_path / "nothing.pt", key="ema")
    for arguments in ({"key": "ema"}, {"model_args": {"width": 2}}, {"revision": "main"}):
        with pytest.raises(TypeError, match="leave"):
            load_network(tmp_path, **arguments)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class NoFileError(RemoteEntryNotFoundError):
    __init__ = Exception.__init__  # without the response of a server


class NoRepositoryError(RepositoryNotFoundError):
    __init__ = Exception.__init__


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub with one network, somebody/net, at one commit; what is asked of it is noted."""
    snapshot, asked = tmp_path / "models--somebody--net/snapshots" / COMMIT, []
    save_network(settled(create_network("test_resnet", num_classes=4, seed=0)), snapshot, metadata={})

    def download(identifier, file, *, revision):
        asked.append((identifier, file, revision))
        if identifier != "somebody/net":
            raise NoRepositoryError("no such repository")
        if not (snapshot / file).exists():
            raise NoFileError("no such file")
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return snapshot, asked


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT])
def test_the_hub_is_asked_for_the_revision_and_all_files_are_of_the_commit_that_it_is(hub, revision):
    snapshot, asked = hub
    network = load_network("hf-hub:somebody/net", revision=revision)
    assert asked == [
        ("somebody/net", "config.json", revision),
        ("somebody/net", "model.safetensors", COMMIT),
    ]
    assert isinstance(network, PixelSpace)
    assert same(network, load_network(snapshot))
    assert hub_source(network) == f"hf-hub:somebody/net@{COMMIT}"
    if revision is not None:
        assert same(load_network(f"hf_hub:somebody/net@{revision}"), network)
        assert asked[2:] == asked[:2]


def test_where_a_network_came_from_is_not_said_of_what_is_saved_of_it(hub, tmp_path):
    save_network(load_network("hf-hub:somebody/net"), tmp_path / "mine", metadata={})
    assert "somebody" not in (tmp_path / "mine/config.json").read_text()
    assert hub_source(load_network(tmp_path / "mine")) is None
    assert hub_source(nn.Linear(2, 2)) is None


def test_what_the_hub_answers_is_checked(hub):
    snapshot, _ = hub
    with pytest.raises(ValueError, match="one revision"):
        load_network("hf-hub:somebody/net@abc", revision="def")
    with pytest.raises(ValueError, match="has 4 classes, num_classes=10 was asked for"):
        load_network("hf-hub:somebody/net@abc", num_classes=10)
    with pytest.raises(ValueError, match="cannot load hf-hub:nobody/net: no such repository"):
        load_network("hf-hub:nobody/net")
    torch.save({"state_dict": Evil(snapshot / "ran")}, snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"refused to load .*pytorch_model\.bin"):
        load_network("hf-hub:somebody/net")
    assert not (snapshot / "ran").exists()
    (snapshot / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"expected one of model\.safetensors, .* there, found none"):
        load_network("hf-hub:somebody/net")
    (snapshot / "config.json").unlink()
    with pytest.raises(ValueError, match=r"expected config\.json there, found none"):
        load_network("hf-hub:somebody/net")


def test_without_a_network_the_hub_cannot_be_had():
    with pytest.raises(
        OSError, match=r"cannot load hf-hub:somebody/net: .* without network, give a local folder"
    ):
        load_network("hf-hub:somebody/net")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_full_commit_can_be_required(hub, monkeypatch, how):
    _, asked = hub
    required = {"require_revision": True} if how == "argument" else {}
    monkeypatch.setenv("IAD_EXT_REQUIRE_REVISION", "1" if how == "environment" else "0")
    for source, revision in (
        ("hf-hub:somebody/net", None),
        ("hf-hub:somebody/net@main", None),
        ("hf-hub:somebody/net", "v1.0"),
        ("hf-hub:somebody/net", COMMIT[:12]),
        ("hf-hub:somebody/net", COMMIT.upper()),
    ):
        with pytest.raises(
            ValueError,
            match=r"full commit .* write hf-hub:somebody/net@COMMIT .* https://huggingface\.co/somebody/net/commits/main",
        ):
            load_network(source, revision=revision, **required)
    with pytest.raises(ValueError, match=r"write hf-hub:timm/test_resnet\.r160_in1k@COMMIT"):
        load_network("test_resnet.r160_in1k", **required)
    assert asked == []
    assert hub_source(load_network(f"hf-hub:somebody/net@{COMMIT}", **required)) is not None
    assert hub_source(load_network("hf-hub:somebody/net", revision=COMMIT, **required)) is not None


def test_the_environment_s_requirement_reaches_a_student_s_first_weights(monkeypatch):
    monkeypatch.setenv("IAD_EXT_REQUIRE_REVISION", "1")
    with pytest.raises(ValueError, match="a full commit is required"):
        create_network("test_resnet", num_classes=4, pretrained=True)


def test_weights_from_before_timm_renamed_a_layer_are_converted(tmp_path):
    network = settled(create_network("test_vit", num_classes=4, seed=0))
    save_network(network, tmp_path, metadata={})
    state = network.network.state_dict() | {"mask_token": torch.zeros(1, 64)}  # as DINOv2's files have it
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert same(load_network(tmp_path), network)


def test_timm_s_own_weights_come_by_name_in_pixel_space(monkeypatch):
    asked, create = [], timm.create_model

    def answer(name, pretrained):
        asked.append((name, pretrained))
        return create(name.partition(".")[0])

    monkeypatch.setattr(backbones.timm, "create_model", answer)
    network = load_network("test_resnet.r160_in1k")
    assert asked == [("test_resnet.r160_in1k", True)]
    assert isinstance(network, PixelSpace)
    assert not network.training


def test_loading_leaves_the_global_random_state(tmp_path, student):
    torch.save(student.state_dict(), tmp_path / "t.pt")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_network(tmp_path / "t.pt", "cifar_resnet8")
    assert torch.equal(torch.rand(2), expected)


# ------------------------------------------------------------------------------------------------- real ones


def foreign_resnet18():
    """The naturally trained CIFAR-10 ResNet-18 that AutoAttack's authors ship with their code."""
    package = importlib.util.find_spec("pyautoattack")
    file = Path(package.origin).parent / "examples/model_test.pt" if package and package.origin else None
    if file is None or not file.is_file():
        pytest.skip("this build of pyautoattack has no examples/model_test.pt")
    return file


@pytest.mark.slow
@pytest.mark.real_data
def test_a_foreign_checkpoint_classifies_cifar10_as_published():
    file = foreign_resnet18()
    folder = Path(os.environ.get("IAD_EXT_DATA", Path(__file__).parents[1] / "../shared/data")) / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 at {folder}; set IAD_EXT_DATA to the folder that holds cifar10")
    datasets = pytest.importorskip("datasets")
    test = datasets.load_dataset(str(folder), split="test").with_format("torch")
    assert len(test) == 10_000
    # a CPU takes minutes for all of them; two standard errors of a share of 2,000 are 1.6 points
    device, n, tolerance = ("cuda", 10_000, 0.3) if torch.cuda.is_available() else ("cpu", 2_000, 1.6)
    network = load_network(file, architecture="cifar_resnet18", num_classes=10)
    network = network.to(device, memory_format=torch.channels_last)
    right = 0
    with torch.inference_mode():
        for batch in test.select(range(n)).iter(batch_size=100):
            images = batch["img"].to(device, memory_format=torch.channels_last).float() / 255
            right += (network(images).argmax(dim=1).cpu() == batch["label"]).sum().item()
    assert 100 * right / n == pytest.approx(85.5, abs=tolerance)
