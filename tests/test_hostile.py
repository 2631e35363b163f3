"""Files made to do harm: each is refused with a clear error, and runs, downloads, reads or fills nothing."""

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from iad_ext.backbones import create_network, load_network, save_network, saved_metadata
from iad_ext.data import load_splits

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine(monkeypatch, tmp_path_factory):
    """A connection or a download is a failure, whoever catches what."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise AssertionError("it reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    yield
    assert asked == []


@pytest.fixture(scope="module")
def network():
    return create_network("cifar_resnet8", num_classes=7, seed=0)


class Evil:
    """Unpickled, it runs a command that leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


# ------------------------------------------------------------------------------------------------- pickles


def _tar(mark):
    """PyTorch's format before 0.1.10: a tar of pickles."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Evil(mark))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _zip(mark, *, extra=()):
    """PyTorch's format of today."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Evil(mark)}, protocol=2))
        archive.writestr("archive/version", "3\n")
        for name in extra:
            archive.writestr(f"archive/{name}", pickle.dumps(Evil(mark), protocol=2))
    return stream.getvalue()


def _saved(write, *arguments, **options):
    stream = io.BytesIO()
    write(stream, *arguments, **options)
    return stream.getvalue()


PICKLES = {
    **{f"protocol{n}.pt": lambda mark, n=n: pickle.dumps(Evil(mark), protocol=n) for n in range(6)},
    "plain.pkl": lambda mark: pickle.dumps({"state_dict": Evil(mark)}),
    "hidden.bin": lambda mark: pickle.dumps({"state_dict": {}, "args": Evil(mark)}, protocol=2),
    "whole.pth": lambda mark: _saved(lambda file, value: torch.save(value, file), Evil(mark)),
    "legacy.pth": lambda mark: _saved(
        lambda file, value: torch.save(value, file, _use_new_zipfile_serialization=False), {"a": Evil(mark)}
    ),
    "tar.pth.tar": _tar,
    "zip.pt": _zip,
    "script.pt": lambda mark: _zip(mark, extra=("constants.pkl",)),
    "array.npy": lambda mark: _saved(np.save, np.array([Evil(mark)], dtype=object), allow_pickle=True),
    "arrays.npz": lambda mark: _saved(np.savez, weight=np.array([Evil(mark)], dtype=object)),
    "packed.npz": lambda mark: _saved(np.savez_compressed, weight=np.array([Evil(mark)], dtype=object)),
    "renamed.safetensors": lambda mark: pickle.dumps(Evil(mark)),
    "renamed-zip.safetensors": _zip,
}


def runs_when_unpickled(content):
    """Whether the pickle in `content` does what it was made for, where somebody does load it."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = next(name for name in archive.namelist() if name.endswith((".pkl", ".npy")))
            content = archive.read(name)
    elif content[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            content = archive.extractfile("pickle").read()
    if content[:6] == b"\x93NUMPY":
        np.load(io.BytesIO(content), allow_pickle=True)
        return
    stream = io.BytesIO(content)
    while stream.tell() < len(content):  # a legacy file is several pickles in a row
        try:
            pickle.load(stream)
        except pickle.UnpicklingError:
            break


@pytest.mark.parametrize("name", PICKLES)
def test_no_pickle_runs_whatever_it_is_called_and_wrapped_in(tmp_path, name, network):
    mark, file = tmp_path / "ran", tmp_path / name
    content = PICKLES[name](mark)
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"(refused to load|expected a (PyTorch checkpoint|safetensors file)).*"
    ):
        load_network(file, "cifar_resnet8", 7)
    save_network(network, tmp_path / "folder", metadata={})
    inside = "model.safetensors" if name.endswith(".safetensors") else "pytorch_model.bin"
    (tmp_path / "folder/model.safetensors").unlink()
    (tmp_path / "folder" / inside).write_bytes(content)
    with pytest.raises(ValueError, match=inside):
        load_network(tmp_path / "folder")
    assert not mark.exists()
    runs_when_unpickled(content)
    assert mark.exists(), "the payload would not have shown itself"


# --------------------------------------------------------------------------------------------------- bombs

MIB, GIB = 2**20, 2**30


def zip_of(*entries):
    """A zip file, entry by entry as it is said to be: (name, method, content, bytes that it claims to unpack to).

    An entry without content is another name for the first one's bytes.
    """
    body, directory = b"", b""
    first = None
    for name, method, content, claimed in entries:
        encoded, where = name.encode(), len(body)
        sizes = struct.pack("<QQ", claimed, len(content) if content is not None else first[1])
        extra = struct.pack("<HH", 1, 16) + sizes
        check = zlib.crc32(content) if content and not method else 0
        common = struct.pack(
            "<HHHHHIIIHH", 45, 0, method, 0, 0, check, 0xFFFFFFFF, 0xFFFFFFFF, len(encoded), len(extra)
        )
        if content is None:
            where = first[0]
        else:
            body += b"PK\x03\x04" + common + encoded + extra + content
            first = first or (where, len(content))
        directory += b"PK\x01\x02" + struct.pack("<H", 45) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0, where) + encoded + extra
    count = len(entries)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def zeros(mebibytes):
    """So many MiB of zeros, deflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)  # stands for itself, at any place
    assert zlib.decompressobj(-15).decompress(one + one) == bytes(2 * MIB)
    return one * mebibytes + packer.flush(zlib.Z_FINISH)


class Made:
    """Unpickled, it is a tensor that the file has no numbers for."""

    def __init__(self, *size):
        self.size = size

    def __reduce__(self):
        return torch.FloatTensor, self.size


def pickled_weight(elements):
    """What PyTorch pickles for {"w": a vector of so many numbers}; the numbers themselves lie elsewhere."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", elements, None) if value == "STORAGE" else None

    class Tensor:
        def __reduce__(self):
            arguments = ("STORAGE", 0, (elements,), (1,), False, {})
            return torch._utils._rebuild_tensor_v2, arguments

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"w": Tensor()})
    return stream.getvalue()


def claiming_storage(elements):
    """The format before 1.6, where a pickle says how large a storage is before its bytes come."""
    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, stream, protocol=2)
    stream.write(pickled_weight(elements))
    pickle.dump(["0"], stream, protocol=2)
    stream.write(struct.pack("<q", elements) + bytes(64))
    return stream.getvalue()


def doubling(times, *, codec=b"hex", short=False):
    """A pickle of one letter, written in hexadecimal, that in hexadecimal, and so on: 2 ** times bytes."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    content = b"c_codecs\nencode\n(" + text(b"a") + text(b"latin1") + b"tR"
    named = b"U" + bytes([len(codec)]) + codec if short else text(codec)
    for _ in range(times):
        content = b"c_codecs\nencode\n(" + content + named + b"tR"
    return b"\x80\x02" + content + b"."


def of_today(content):
    return zip_of(("a/data.pkl", 0, content, len(content)), ("a/version", 0, b"3\n", 2))


def legacy(content):
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return (
        b"".join(pickle.dumps(value, protocol=2) for value in head) + content + pickle.dumps([], protocol=2)
    )


def saved(value):
    return _saved(lambda file, it: torch.save(it, file), value)


def endless():
    content = {}
    content["state_dict"] = content
    return content


BOMBS = {
    "deflated.pt": lambda: zip_of(
        ("a/data.pkl", 0, pickled_weight(2**31), len(pickled_weight(2**31))),
        ("a/version", 0, b"3\n", 2),
        ("a/data/0", 8, zeros(8192), 8 * GIB),
    ),
    "pickle.pt": lambda: zip_of(("a/data.pkl", 8, zeros(4096), 4 * GIB), ("a/version", 0, b"3\n", 2)),
    "modest.pt": lambda: zip_of(("a/data.pkl", 8, zeros(4096), 100), ("a/version", 0, b"3\n", 2)),
    "claims.pt": lambda: zip_of(("a/data.pkl", 0, pickle.dumps({}), 64 * GIB)),
    "overlap.pt": lambda: zip_of(
        ("a/data.pkl", 0, bytes(MIB), MIB), *((f"a/data/{i}", 0, None, MIB) for i in range(4096))
    ),
    "arrays.npz": lambda: zip_of(("weight.npy", 8, zeros(4096), 4 * GIB)),
    "strides.pt": lambda: saved({"w": torch.zeros(1).expand(2**40)}),
    "made.pt": lambda: saved({"w": Made(2**33)}),
    "made-modest.pt": lambda: saved({"w": Made(2**26)}),
    "storage.pt": lambda: claiming_storage(2**33),
    "doubling.pt": lambda: of_today(doubling(34)),
    "doubling-alias.pt": lambda: of_today(doubling(34, codec=b"Base-64")),
    "doubling-short.pt": lambda: of_today(doubling(34, short=True)),
    "doubling-legacy.pth": lambda: legacy(doubling(34)),
    "endless.pt": lambda: saved(endless()),
}

CHILD = """
import json, resource, sys, time
import torch
from iad_ext.backbones import load_network
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
for file in sys.argv[1:]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        load_network(file, "cifar_resnet8", 7)
        said = "loaded"
    except ValueError as error:
        said = str(error)
    except BaseException as error:
        said = f"not a clear error: {error!r}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"said": said, "seconds": time.perf_counter() - began, "mib": grown / 1024}), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What a process with half a GiB to spare makes of every bomb."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, build in BOMBS.items():
        (folder / name).write_bytes(build())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *(str(folder / name) for name in BOMBS)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(BOMBS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once_and_in_little_memory(outcomes, name):
    outcome = outcomes[name]
    assert name in outcome["said"]
    assert outcome["said"].startswith(
        ("refused to load", "expected a PyTorch checkpoint", "found no weights")
    )
    assert outcome["seconds"] < 3
    assert outcome["mib"] < 100


@pytest.mark.parametrize("name", ["deflated.pt", "pickle.pt", "claims.pt", "overlap.pt"])
def test_the_sizes_that_a_zip_claims_are_told(outcomes, name):
    assert "PyTorch writes no compressed files" in outcomes[name]["said"]


def test_text_that_grows_while_it_is_read_is_named(outcomes):
    for name in ("doubling.pt", "doubling-short.pt", "doubling-legacy.pth"):
        assert "grow while they are read (hex)" in outcomes[name]["said"]
    assert "grow while they are read (Base-64)" in outcomes["doubling-alias.pt"]["said"]


def test_bytes_in_a_checkpoint_and_names_of_codecs_are_no_bomb(tmp_path, network):
    torch.save({"state_dict": network.state_dict(), "hex": 1}, tmp_path / "hex.pt")
    torch.save({"state_dict": network.state_dict(), "rng": b"\x00\xff"}, tmp_path / "bytes.pt")
    for file in ("hex.pt", "bytes.pt"):
        assert load_network(tmp_path / file, "cifar_resnet8", 7).num_classes == 7


def test_the_tensor_that_claims_too_much_is_named(outcomes):
    assert "w (1099511627776,)" in outcomes["strides.pt"]["said"]
    assert "claim more than its" in outcomes["made-modest.pt"]["said"]


# --------------------------------------------------------------------------------------------- safetensors


def safetensors_file(header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def entry(shape, first, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


LIES = {
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "a header of all that eight bytes can say": b"\xff" * 8 + b"{}",
    "offsets outside the file": safetensors_file({"w": entry([4], 0, 16)}, bytes(8)),
    "offsets far outside the file": safetensors_file({"w": entry([2**40], 0, 2**42)}, bytes(16)),
    "overlap": safetensors_file({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
    "negative offsets": safetensors_file({"w": entry([4], -16, 0)}, bytes(16)),
    "offsets backwards": safetensors_file({"w": entry([4], 16, 0)}, bytes(16)),
    "a negative shape": safetensors_file({"w": entry([-4], 0, 16)}, bytes(16)),
    "a shape that is too large for its bytes": safetensors_file({"w": entry([8], 0, 16)}, bytes(16)),
    "a product that overflows": safetensors_file({"w": entry([2**32, 2**32, 2**32], 0, 16)}, bytes(16)),
    "an unknown type": safetensors_file({"w": entry([4], 0, 16, "F31")}, bytes(16)),
    "a type that its bytes do not fit": safetensors_file({"w": entry([4], 0, 16, "F64")}, bytes(16)),
    "a hole": safetensors_file({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, bytes(24)),
    "bytes that belong to nobody": safetensors_file({"w": entry([4], 0, 16)}, bytes(64)),
    "a name twice": safetensors_file(
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}',
        bytes(32),
    ),
    "nesting": safetensors_file(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no header": safetensors_file(b"[]"),
    "eight-bit floats": safetensors_file({"w": entry([4], 0, 4, "F8_E4M3")}, bytes(4)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, lie, network):
    file = tmp_path / "lie.safetensors"
    file.write_bytes(LIES[lie])
    with pytest.raises(
        ValueError, match=r"expected (a safetensors file|plain dense weights).*lie\.safetensors"
    ):
        load_network(file, "cifar_resnet8", 7)
    save_network(network, tmp_path / "folder", metadata={})
    (tmp_path / "folder/model.safetensors").write_bytes(LIES[lie])
    with pytest.raises(ValueError, match=r"expected (a safetensors file|plain dense weights)"):
        load_network(tmp_path / "folder")


@pytest.mark.parametrize("metadata", ["{", "[1]", "[" * 100_000], ids=["cut", "list", "deep"])
def test_metadata_that_are_none_are_refused(tmp_path, metadata):
    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors", {"iad_ext": metadata})
    with pytest.raises(ValueError, match=r"as the metadata in .*model\.safetensors"):
        saved_metadata(tmp_path)


# -------------------------------------------------------------------------------------------- wrong weights


def spoilt(network, kind):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weight = state["linear.weight"]
    if kind == "transposed":
        state["linear.weight"] = weight.T.contiguous()
    elif kind == "flat":
        state["conv1.weight"] = state["conv1.weight"].flatten()
    elif kind == "integers":
        state["linear.weight"] = weight.to(torch.int32)
    elif kind == "complex":
        state["linear.weight"] = weight.to(torch.complex64)
    elif kind == "nan":
        weight[3, 2] = torch.nan
    elif kind == "infinite":
        state["bn1.running_var"][0] = torch.inf
    elif kind == "too large for fp32":
        state["linear.weight"] = weight.double() * 1e300
    return state


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("transposed", r"of another shape \(linear\.weight|has 64 classes|does not fit"),
        ("flat", r"of another shape \(conv1\.weight"),
        ("integers", r"of another type \(linear\.weight: torch\.int32 in the file"),
        ("complex", r"plain dense weights .* linear\.weight \(torch\.complex64"),
        ("nan", r"NaN or infinity in linear\.weight"),
        ("infinite", r"NaN or infinity in bn1\.running_var"),
        ("too large for fp32", r"NaN or infinity in linear\.weight"),
    ],
)
def test_weights_that_do_not_fit_or_are_no_numbers_are_refused(tmp_path, network, kind, said):
    state = spoilt(network, kind)
    torch.save(state, tmp_path / "weights.pt")
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    for file in ("weights.pt", "weights.safetensors"):
        with pytest.raises(ValueError, match=said):
            load_network(tmp_path / file, "cifar_resnet8", 7)
    save_network(network, tmp_path / "folder", metadata={})
    safetensors.torch.save_file(state, tmp_path / "folder/model.safetensors")
    with pytest.raises(ValueError, match=said):
        load_network(tmp_path / "folder")


@pytest.mark.parametrize(
    "strange",
    [
        lambda: torch.zeros(3, 3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.zeros(3).to(torch.float8_e5m2),
    ],
    ids=["sparse", "quantised", "meta", "float8"],
)
@pytest.mark.filterwarnings("ignore")  # torch deprecates some of these kinds
def test_what_is_no_plain_tensor_is_refused(tmp_path, strange):
    torch.save({"w": strange()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt"):
        load_network(tmp_path / "weights.pt", "cifar_resnet8", 7)


# -------------------------------------------------------------------------------------------- model folders


@pytest.fixture
def folder(tmp_path, network):
    save_network(network, tmp_path / "model", metadata={})
    return tmp_path / "model"


def rewrite(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    config.update(changed)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "architecture",
    ["hf-hub:somebody/net", "hf_hub:somebody/net", "local-dir:/tmp", "../../net", "/etc/passwd", "a" * 10**6],
)
def test_an_architecture_that_is_a_place_is_refused(folder, architecture):
    rewrite(folder, architecture=architecture)
    with pytest.raises(ValueError, match=r"unknown network|cannot be read as one"):
        load_network(folder)


def test_a_configuration_cannot_name_other_weights_than_its_own(folder, network, tmp_path):
    other = create_network("cifar_resnet8", num_classes=7, seed=1)
    save_network(other, tmp_path / "other", metadata={})
    config = json.loads((folder / "config.json").read_text())
    elsewhere = {
        "url": "https://example.com/model.safetensors",
        "file": str(tmp_path / "other/model.safetensors"),
        "hf_hub_id": "somebody/net",
        "hf_hub_filename": "../../other/model.safetensors",
        "source": "hf-hub",
        "custom_load": True,
        "state_dict": {"linear.bias": [1.0] * 7},
    }
    rewrite(folder, pretrained_cfg=config["pretrained_cfg"] | elsewhere)
    loaded = load_network(folder).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "argument",
    [
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained": True},
        {"pretrained_cfg": {"url": "https://example.com/a.pt"}},
        {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
        {"cache_dir": "/tmp/elsewhere"},
        {"num_classes": 10**12},
        {"num_classes": -(10**12)},
        {"width": 1e9},
        {"base_width": 60_000},
        {"blocks": [10**9, 1, 1]},
        {"mean": [1e400, 0, 0], "std": [1, 1, 1]},
        {"num_classes": "many"},
        {"unheard_of": 1},
        {"in_chans": [3]},
    ],
    ids=str,
)
def test_arguments_that_lead_elsewhere_or_to_a_giant_are_refused_before_it_is_built(folder, argument):
    config = json.loads((folder / "config.json").read_text())
    rewrite(folder, model_args=config["model_args"] | argument)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_network(folder)


@pytest.mark.parametrize(
    "described",
    [
        {"mean": 3},
        {"mean": {"a": 1}},
        {"mean": ["0", "0", "0"]},
        {"mean": [0.5]},
        {"mean": [[0.5], 0, 0]},
        {"std": [float("nan")] * 3},
        {"std": [float("inf"), 1, 1]},
        {"mean": [float("-inf"), 0, 0]},
        {"std": [0, 1, 1]},
        {"input_size": "3 32 32"},
        {"num_classes": [7]},
    ],
    ids=str,
)
def test_normalisation_that_is_none_is_refused(folder, described):
    config = json.loads((folder / "config.json").read_text())
    rewrite(folder, pretrained_cfg=config["pretrained_cfg"] | described)
    with pytest.raises(ValueError, match=r"config\.json|expected (every std|a finite mean|one std)"):
        load_network(folder)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"a":' * 10**5, '{"a": "' + "x" * 17 * MIB + '"}', "\x00" * 100, "1" * 10**5],
    ids=["lists", "objects", "large", "zeros", "digits"],
)
def test_a_configuration_that_is_deep_or_huge_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"expected timm's config\.json"):
        load_network(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_a_model_s_folder_is_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a link to .*; copy that file there"):
        load_network(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(Path("..") / name)
    with pytest.raises(ValueError, match=f"{name} is a link to"):
        load_network(folder)


def test_a_folder_may_be_a_link_itself_and_links_within_it_lead_somewhere(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "epoch7.safetensors")
    (folder / "model.safetensors").symlink_to("epoch7.safetensors")
    (tmp_path / "latest").symlink_to(folder)
    load_network(tmp_path / "latest")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FileNotFoundError):
        load_network(folder)


# ------------------------------------------------------------------------------------------------ data sets

IMAGE, LABEL = datasets.Image(), datasets.ClassLabel(names=["ant", "bee"])


def encoded(picture, file_format="PNG"):
    stream = io.BytesIO()
    picture.save(stream, file_format)
    return stream.getvalue()


def good(value=0):
    return encoded(PIL.Image.new("RGB", (6, 5), (value, 7, 9)))


def parquets(where, *, test_image=None):
    """A data set of parquet files; `test_image` takes the place of one of its images."""
    (where / "data").mkdir(parents=True, exist_ok=True)
    for split, n in (("train", 20), ("test", 4)):
        images = [{"bytes": good(row), "path": None} for row in range(n)]
        if split == "test" and test_image is not None:
            images[2] = test_image
        content = {"image": images, "label": [row % 2 for row in range(n)]}
        features = datasets.Features({"image": IMAGE, "label": LABEL})
        table = datasets.Dataset.from_dict(content, features=features).data.table
        pyarrow.parquet.write_table(table, where / f"data/{split}-0.parquet")  # looks at no image
    return where


def test_the_data_set_that_is_spoilt_below_is_a_good_one(tmp_path):
    assert len(load_splits(str(parquets(tmp_path))).test) == 4


def script(mark):
    return f"import os\nos.system('touch {mark}')\nimport datasets\nclass Evil(datasets.GeneratorBasedBuilder): ...\n"


def test_a_loading_script_is_never_run(tmp_path):
    mark, beside, alone = tmp_path / "ran", tmp_path / "beside", tmp_path / "alone"
    parquets(beside)
    alone.mkdir()
    for folder in (beside, alone):
        for name in ("dataset.py", "__init__.py"):
            (folder / name).write_text(script(mark))
    assert len(load_splits(str(beside)).test) == 4
    with pytest.raises(OSError, match="alone cannot be loaded"):
        load_splits(str(alone))
    for folder in (beside, alone):
        (folder / f"{folder.name}.py").write_text(script(mark))
        with pytest.raises(OSError, match="scripts are no longer supported"):
            load_splits(str(folder))
        with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
            load_splits(str(folder / f"{folder.name}.py"))
    assert not mark.exists()


def _pickle_files(folder, mark):
    for split in ("train", "test"):
        (folder / f"{split}.pkl").write_bytes(pickle.dumps(Evil(mark)))


def _pickle_named_by_the_card(folder, mark):
    _pickle_files(folder, mark)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.pkl}\n"
        "  - {split: test, path: test.pkl}\n---\n"
    )


def _pickle_as_parquet(folder, mark):
    for split in ("train", "test"):
        (folder / f"{split}-0.parquet").write_bytes(pickle.dumps(Evil(mark)))


def _pickle_as_arrow(folder, mark):
    for split in ("train", "test"):
        (folder / f"{split}-0.arrow").write_bytes(pickle.dumps(Evil(mark)))


def _tars(folder, suffix, content):
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}-0.tar", "w") as archive:
            for row in range(12):
                for name, data in (("png", good(row)), ("cls", b"1"), (suffix, content)):
                    member = tarfile.TarInfo(f"{row:04}.{name}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


PICKLED_DATA = {
    "pickles": _pickle_files,
    "pickles by the card": _pickle_named_by_the_card,
    "parquet": _pickle_as_parquet,
    "arrow": _pickle_as_arrow,
    "npy in a tar": lambda folder, mark: _tars(folder, "npy", PICKLES["array.npy"](mark)),
    "npz in a tar": lambda folder, mark: _tars(folder, "npz", PICKLES["arrays.npz"](mark)),
    "pth in a tar": lambda folder, mark: _tars(folder, "pth", PICKLES["zip.pt"](mark)),
}


@pytest.mark.parametrize("kind", PICKLED_DATA)
def test_no_pickle_runs_in_a_data_set(tmp_path, kind):
    mark, folder = tmp_path / "ran", tmp_path / "data"
    folder.mkdir()
    PICKLED_DATA[kind](folder, mark)
    with pytest.raises((OSError, ValueError), match=r"cannot be loaded|no column|no label|no image"):
        load_splits(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["pickle", "pyd"])
def test_pickles_beside_the_images_in_a_tar_stay_bytes(tmp_path, suffix):
    mark, folder = tmp_path / "ran", tmp_path / "data"
    folder.mkdir()
    _tars(folder, suffix, pickle.dumps(Evil(mark)))
    with pytest.raises((OSError, ValueError)):  # all images of one class: fit for nothing but this
        load_splits(str(folder), label_column=suffix)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("../secret/*.parquet", "names files outside the folder: '../secret"),
        ("data/../../secret/*.parquet", "names files outside the folder"),
        ("/etc/*.parquet", "names files outside the folder: '/etc"),
        ("https://example.com/data.parquet", "names files outside the folder: 'https:"),
        ("hf://datasets/somebody/data/train.parquet", "names files outside the folder"),
        ("zip://a.parquet::https://example.com/a.zip", "names files outside the folder"),
    ],
)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_description_that_leads_outside_is_refused(tmp_path, address, said, card):
    secret, folder = parquets(tmp_path / "secret"), parquets(tmp_path / "public")
    assert secret.is_dir()
    text = json.dumps(
        {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": address}]}]}
    )
    (folder / card).write_text(f"---\n{text}\n---\n" if card == "README.md" else text)
    with pytest.raises(ValueError, match=said):
        load_splits(str(folder))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [1]\nb: *a\n", "the anchor 'a' in line 1"),
        ("a: !!python/object/apply:os.system ['true']\n", "the tag"),
        ("[" * 10**5, "nested too deeply"),
    ],
    ids=["alias", "tag", "deep"],
)
def test_a_description_with_more_than_plain_values_is_refused(tmp_path, text, said):
    folder = parquets(tmp_path / "data")
    (folder / "README.md").write_text(f"---\n{text}\n---\n# The data\n")
    with pytest.raises(ValueError, match=f"README.md cannot be read: .*({said})"):
        load_splits(str(folder))
    (folder / "README.md").write_text("---\nlicense: mit\npretty_name: Ants, bees\n---\n# The data\n")
    assert len(load_splits(str(folder)).test) == 4


@pytest.mark.parametrize("directory", [False, True])
def test_a_link_out_of_a_data_set_s_folder_is_refused(tmp_path, directory):
    secret, folder = parquets(tmp_path / "secret"), parquets(tmp_path / "public")
    if directory:
        (folder / "more").symlink_to(secret / "data")
    else:
        (folder / "data/train-0.parquet").unlink()
        (folder / "data/train-0.parquet").symlink_to("../../secret/data/train-0.parquet")
    with pytest.raises(ValueError, match=r"is a link to .*secret"):
        load_splits(str(folder))


def test_a_snapshot_of_the_hub_s_cache_is_read_through_its_links(tmp_path):
    home = tmp_path / "datasets--somebody--data"
    folder = parquets(home / "snapshots" / ("0" * 40))
    (home / "blobs").mkdir()
    for file in list(folder.glob("data/*")):
        blob = file.rename(home / "blobs" / file.name)
        file.symlink_to(os.path.relpath(blob, file.parent))
    assert len(load_splits(str(folder)).test) == 4


@pytest.mark.parametrize(
    "path", ["{tmp}/secret.png", "../secret.png", "https://example.com/a.png", "/dev/zero"]
)
def test_an_image_that_is_elsewhere_is_not_read(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(good())
    where = path.format(tmp=tmp_path)
    folder = parquets(tmp_path / "data", test_image={"bytes": None, "path": where})
    with pytest.raises(ValueError, match="row 2 of test is outside the data set's own folder"):
        load_splits(str(folder))


def image_folder(where):
    """Images in files of their own, as `imagefolder` reads them."""
    for split, n in (("train", 20), ("test", 4)):
        for label in ("ant", "bee"):
            (where / split / label).mkdir(parents=True)
            for row in range(n // 2):
                (where / split / label / f"{row}.png").write_bytes(good(row))
    return where


def test_a_folder_of_images_is_read(tmp_path, monkeypatch):
    splits = load_splits(str(image_folder(tmp_path / "data")))
    assert (len(splits.train), len(splits.test)) == (18, 4)
    monkeypatch.chdir(tmp_path)
    assert len(load_splits("data").test) == 4


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # datasets leaves the list open
def test_a_list_of_images_cannot_name_those_of_others(tmp_path):
    folder = tmp_path / "data"
    (tmp_path / "secret.png").write_bytes(good())
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        rows = []
        for row in range(20):
            (folder / split / f"{row}.png").write_bytes(good(row))
            rows.append(json.dumps({"file_name": f"{row}.png", "label": row % 2}))
        (folder / split / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    assert len(load_splits(str(folder)).test) == 20
    listed = folder / "test/metadata.jsonl"
    listed.write_text(listed.read_text().replace("7.png", "../../secret.png", 1))
    with pytest.raises((ValueError, OSError), match=r"outside the data set's own folder|cannot be loaded"):
        load_splits(str(folder))


def png(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(4 * MIB))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_would_unpack_to_gigabytes_is_refused(tmp_path, size):
    folder = parquets(tmp_path, test_image={"bytes": png(*size), "path": None})
    with pytest.raises(ValueError, match="row 2 of test cannot be decoded"):
        load_splits(str(folder))


def test_only_formats_that_pillow_reads_itself_are_opened(tmp_path):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\n(x) print\n%%EOF\n"
    folder = parquets(tmp_path, test_image={"bytes": postscript, "path": None})
    with pytest.raises(ValueError, match="row 2 of test cannot be decoded"):
        load_splits(str(folder))
