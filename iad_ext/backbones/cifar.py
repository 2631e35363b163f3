"""The CIFAR and Tiny-ImageNet networks of the adversarial-training literature, registered in timm.

After `import iad_ext.backbones`, `timm.create_model("cifar_resnet18", num_classes=10)` works as for any
other. Every network takes raw pixels in [0, 1] of any size from 32² up, pools globally, and can normalise
inside: `mean=(…), std=(…)`, one number a channel. Parameters are called as in the widespread code, so that
published checkpoints load:

* ResNet, PreActResNet, MobileNetV2: `conv1, bn1, layer1.0.conv1 …, linear`
  (github.com/kuangliu/pytorch-cifar);
* WideResNet: `conv1, block1.layer.0.bn1 …, bn1, fc` (github.com/yaodongyu/TRADES), without its unused
  `sub_block1`.

Nothing here works in place: the objectives differentiate one forward pass through several terms.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from iad_ext.names import refuse_unknown
from iad_ext.types import Images


class Common(TypedDict, total=False):
    """What every network here takes besides its own arguments."""

    num_classes: int  # 0: no last layer, the pooled features come out
    in_chans: int
    global_pool: str  # timm's pooling types; "avg" is what the published networks do
    drop_rate: float  # dropout before the last layer
    mean: Sequence[float] | None  # normalisation inside, one number a channel, pixels in [0, 1]
    std: Sequence[float] | None


class PixelNetwork(nn.Module):
    """What the networks share: pixels in, normalisation inside if asked, pooling, timm's classifier methods.

    Subclasses build their layers, then call `_add_head`; `forward_features` of theirs begins with
    `normalised`.
    """

    classifier_name = "linear"
    num_features: int

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self._pool_type = global_pool
        hold_normalisation(self, mean=mean, std=std, channels=in_chans)

    def _add_head(self, num_features: int) -> None:
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(self.num_classes, self._pool_type)

    def forward_features(self, x: Images) -> Tensor:
        """Return the last feature map, (batch, num_features, height, width)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map and classify it; `pre_logits` stops before the last layer."""
        x = self.global_pool(x)
        x = F.dropout(x, self.drop_rate, training=self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Images) -> Tensor:
        """Return logits (batch, classes) of images with pixels in [0, 1]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a fresh last layer for `num_classes` (0: none), and change the pooling if asked."""
        pool = self._pool_type if global_pool is None else global_pool
        if not pool and num_classes:
            raise ValueError(
                f"expected a pooling type such as 'avg' before {num_classes} classes, got {pool!r}"
            )
        self.num_classes, self._pool_type = num_classes, pool
        self.global_pool = SelectAdaptivePool2d(pool_type=pool, flatten=bool(pool))
        last = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        setattr(self, self.classifier_name, last)


def hold_normalisation(
    module: nn.Module, *, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> None:
    """Register `mean` and `std`, (1, channels, 1, 1) or both None, as buffers outside the state dict."""
    if (mean is None) != (std is None):
        raise ValueError(
            f"expected mean and std together, got mean={mean} and std={std}; give both or neither"
        )
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise ValueError(
                f"expected one {name} a channel, {channels} of them, got {len(values)}: {values}; "
                f"set in_chans or {name}"
            )
    if std is not None and not all(0 < value < math.inf for value in std):
        raise ValueError(f"expected every std above 0, in pixels of [0, 1], got {std}")
    if mean is not None and not all(math.isfinite(value) for value in mean):
        raise ValueError(f"expected a finite mean, in pixels of [0, 1], got {mean}")
    for name, values in (("mean", mean), ("std", std)):
        buffer = None if values is None else torch.tensor(list(values), dtype=torch.float32).view(1, -1, 1, 1)
        module.register_buffer(name, buffer, persistent=False)


def normalised(module: nn.Module, x: Images) -> Images:
    """Return (x − mean) / std with what `hold_normalisation` registered, or `x` itself where it is None."""
    return x if module.mean is None else (x - module.mean) / module.std  # type: ignore[operator]


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False)


# ---------------------------------------------------------------------------------------------------- ResNet


class PadShortcut(nn.Module):
    """He et al.'s option A: every `stride`-th pixel, and zeros for the new channels. No parameters."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) → (batch, channels + new, ⌈h/stride⌉, ⌈w/stride⌉)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """conv–BN–ReLU–conv–BN, added to the shortcut, ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != channels:
            if shortcut == "pad":
                self.shortcut = PadShortcut(stride, channels - in_channels)
            else:
                self.shortcut = nn.Sequential(
                    _conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) → (batch, channels, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(PixelNetwork):
    """ResNet with a 3×3 stem and no max pooling; each stage after the first halves the image.

    Source: He et al. (2016), in the CIFAR form of kuangliu/pytorch-cifar (`shortcut="conv"`), or of the
    paper's own CIFAR section (`shortcut="pad"`, as in akamaster/pytorch_resnet_cifar10).

    Args:
        blocks: blocks of each stage.
        base_width: channels of the first stage; each later stage has twice as many.
        width: multiplies every number of channels, rounded.
        shortcut: what a shortcut does where the shape changes: 1×1 convolution with BatchNorm, or padding.
        stem_stride: 1, or 2 for a 4×4 stem that halves the image: a quarter of the work at the same width.
        common: see `Common`.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        base_width: int = 64,
        width: float = 1.0,
        shortcut: str = "conv",
        stem_stride: int = 1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if shortcut not in ("conv", "pad"):
            raise ValueError(f"expected shortcut 'conv' or 'pad', got {shortcut!r}")
        if stem_stride not in (1, 2):
            raise ValueError(f"expected stem_stride 1 or 2, got {stem_stride!r}")
        widths = _stage_widths(len(blocks), base_width, width)
        if stem_stride == 1:
            self.conv1 = _conv3x3(self.in_chans, widths[0])
        else:  # 4×4, so that every pixel is read as often as any other
            self.conv1 = nn.Conv2d(self.in_chans, widths[0], kernel_size=4, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages: list[str] = []
        for stage, (count, channels) in enumerate(zip(blocks, widths, strict=True)):
            before = widths[max(stage - 1, 0)]
            first = BasicBlock(before, channels, 1 if stage == 0 else 2, shortcut)
            rest = [BasicBlock(channels, channels, 1, shortcut) for _ in range(count - 1)]
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(first, *rest))
        self._add_head(widths[-1])

    def forward_features(self, x: Images) -> Tensor:
        """Return the last stage's feature map, (batch, num_features, h / 8, w / 8) for four stages."""
        x = F.relu(self.bn1(self.conv1(normalised(self, x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x


def _stage_widths(stages: int, base_width: int, width: float) -> list[int]:
    if stages < 1 or width <= 0:
        raise ValueError(
            f"expected at least one stage and a width above 0, got {stages} stages and width={width}"
        )
    return [max(1, round(base_width * 2**stage * width)) for stage in range(stages)]


# --------------------------------------------------------------------------------------------- PreActResNet


class PreActBlock(nn.Module):
    """BN–ReLU–conv twice, added to the input, or to its activated projection where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(_conv1x1(in_channels, channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) → (batch, channels, h / stride, w / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class CifarPreActResNet(PixelNetwork):
    """ResNet with pre-activation blocks.

    Source: He et al. (2016b), in the form of kuangliu/pytorch-cifar; the final BatchNorm `bn` is the paper's
    and that of the robust-overfitting code (Rice et al. 2020). The former code has none: `final_norm=False`
    loads its checkpoints.

    Args:
        blocks: blocks of each stage.
        base_width: channels of the first stage; each later stage has twice as many.
        width: multiplies every number of channels, rounded.
        final_norm: BatchNorm and ReLU before pooling.
        common: see `Common`.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        base_width: int = 64,
        width: float = 1.0,
        final_norm: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        widths = _stage_widths(len(blocks), base_width, width)
        self.conv1 = _conv3x3(self.in_chans, widths[0])
        self.stages: list[str] = []
        for stage, (count, channels) in enumerate(zip(blocks, widths, strict=True)):
            first = PreActBlock(widths[max(stage - 1, 0)], channels, 1 if stage == 0 else 2)
            rest = [PreActBlock(channels, channels, 1) for _ in range(count - 1)]
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(first, *rest))
        self.bn = nn.BatchNorm2d(widths[-1]) if final_norm else None
        self._add_head(widths[-1])

    def forward_features(self, x: Images) -> Tensor:
        """Return the last stage's feature map, (batch, num_features, h / 8, w / 8) for four stages."""
        x = self.conv1(normalised(self, x))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x if self.bn is None else F.relu(self.bn(x))


# ----------------------------------------------------------------------------------------------- WideResNet


class WideBlock(nn.Module):
    """BN–ReLU–conv twice, added to the input, or to its activated projection where the width changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.convShortcut = None if in_channels == channels else _conv1x1(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) → (batch, channels, h / stride, w / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(activated)
        out: Tensor = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class WideStage(nn.Module):
    """A row of blocks, of which the first changes the shape; it exists for its name in checkpoints."""

    def __init__(self, count: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *[WideBlock(channels, channels, 1) for _ in range(count - 1)])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) → (batch, channels, h / stride, w / stride)."""
        return self.layer(x)  # type: ignore[no-any-return]


class CifarWideResNet(PixelNetwork):
    """WRN-depth-width of any depth 6n + 4 and any width: 34-10 in the paper; 28-10, 16-4, 10-1 … as well.

    Source: Zagoruyko & Komodakis (2016), in the form and with the initialisation of the TRADES code, without
    the stage `sub_block1` that it builds and never uses.

    Args:
        depth: number of convolutions, 6n + 4 for n blocks in each of the three stages.
        width: the stages have 16, 32 and 64 times as many channels.
        common: see `Common`.
    """

    classifier_name = "fc"

    def __init__(self, *, depth: int = 34, width: int = 10, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"expected depth 6n + 4 (10, 16, 22, 28, 34 …), got depth={depth}")
        if width < 1 or width != int(width):
            raise ValueError(f"expected a whole width of at least 1, got width={width}")
        count = (depth - 4) // 6
        self.conv1 = _conv3x3(self.in_chans, 16)
        self.block1 = WideStage(count, 16, 16 * width, stride=1)
        self.block2 = WideStage(count, 16 * width, 32 * width, stride=2)
        self.block3 = WideStage(count, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(
                    module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
                )
        self._add_head(64 * width)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As in `PixelNetwork`; the last layer's bias starts at 0."""
        super().reset_classifier(num_classes, global_pool)
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Images) -> Tensor:
        """Return the activated last feature map, (batch, num_features, h / 4, w / 4)."""
        x = self.conv1(normalised(self, x))
        x = self.block3(self.block2(self.block1(x)))
        return F.relu(self.bn1(x))


# ---------------------------------------------------------------------------------------------- MobileNetV2


class InvertedResidual(nn.Module):
    """1×1 to a wide layer, 3×3 depthwise, 1×1 to a narrow one; added to the input where the stride is 1."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.conv1 = _conv1x1(in_channels, wide)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, kernel_size=3, stride=stride, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = _conv1x1(wide, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            same = in_channels == channels
            self.shortcut = (
                nn.Sequential()
                if same
                else nn.Sequential(_conv1x1(in_channels, channels), nn.BatchNorm2d(channels))
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) → (batch, channels, h / stride, w / stride)."""
        out: Tensor = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class CifarMobileNetV2(PixelNetwork):
    """MobileNetV2 with strides for small images.

    Source: Sandler et al. (2018), in the CIFAR form of kuangliu/pytorch-cifar: stem and second group at
    stride 1, ReLU instead of ReLU6, a projected shortcut wherever the stride is 1.
    """

    GROUPS = (  # expansion, channels, blocks, stride of the first
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        self.conv1 = _conv3x3(self.in_chans, 32)
        self.bn1 = nn.BatchNorm2d(32)
        layers, before = [], 32
        for expansion, channels, count, stride in self.GROUPS:
            for position in range(count):
                layers.append(InvertedResidual(before, channels, expansion, stride if position == 0 else 1))
                before = channels
        self.layers = nn.Sequential(*layers)
        self.conv2 = _conv1x1(before, 1280)
        self.bn2 = nn.BatchNorm2d(1280)
        self._add_head(1280)

    def forward_features(self, x: Images) -> Tensor:
        """Return the last feature map, (batch, 1280, h / 8, w / 8)."""
        x = F.relu(self.bn1(self.conv1(normalised(self, x))))
        return F.relu(self.bn2(self.conv2(self.layers(x))))


# ---------------------------------------------------------------------------------------------- registration


def _cfg(**differing: Any) -> dict[str, Any]:
    # mean 0 and std 1: the networks take raw pixels, so whoever reads this must not normalise again
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": 1.0,
        "first_conv": "conv1",
        "classifier": "linear",
        **differing,
    }


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet8": _cfg(),
        "cifar_resnet8_s2": _cfg(),
        "cifar_resnet18": _cfg(),
        "cifar_resnet20": _cfg(),
        "cifar_preact_resnet18": _cfg(),
        "cifar_wrn34_10": _cfg(classifier="fc"),
        "cifar_mobilenetv2": _cfg(),
    }
)

NAMES: tuple[str, ...] = tuple(default_cfgs)
_TIMM_ARGUMENTS = ("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir")


def _build(
    kind: type[PixelNetwork], name: str, pretrained: bool, own: dict[str, Any], given: dict[str, Any]
) -> PixelNetwork:
    arguments = own | given
    known = [*inspect.signature(kind).parameters, *Common.__annotations__, *_TIMM_ARGUMENTS]
    refuse_unknown(f"argument of {name}", arguments, [argument for argument in known if argument != "common"])
    network: PixelNetwork = build_model_with_cfg(kind, name, pretrained, **arguments)
    return network


Entry = TypeVar("Entry", bound=Callable[..., PixelNetwork])


def _registered(entry: Entry) -> Entry:
    register_model(entry)  # timm's decorator, with the type that it lacks
    return entry


@_registered
def cifar_resnet8(pretrained: bool = False, **arguments: Any) -> PixelNetwork:
    """ResNet-8 with 16, 32 and 64 channels: 0.08 M parameters, for tests and laptops."""
    own = {"blocks": (1, 1, 1), "base_width": 16, "shortcut": "pad"}
    return _build(CifarResNet, "cifar_resnet8", pretrained, own, arguments)


@_registered
def cifar_resnet8_s2(pretrained: bool = False, **arguments: Any) -> PixelNetwork:
    """ResNet-8 at half the resolution, 32, 64 and 128 channels: 0.31 M parameters, for robust training on a CPU.

    The most accurate network that a CPU core trains adversarially in minutes: about 4,000 images a second, forward and
    input gradient, in bf16 on one AVX-512 core, against 2,150 for `cifar_resnet8` and 140 for `cifar_resnet18`.
    """
    own = {"blocks": (1, 1, 1), "base_width": 32, "stem_stride": 2}
    return _build(CifarResNet, "cifar_resnet8_s2", pretrained, own, arguments)


@_registered
def cifar_resnet18(pretrained: bool = False, **arguments: Any) -> PixelNetwork:
    """ResNet-18, of the paper's Table 2 and its studies on CIFAR: 11.2 M parameters."""
    return _build(CifarResNet, "cifar_resnet18", pretrained, {}, arguments)


@_registered
def cifar_resnet20(pretrained: bool = False, **arguments: Any) -> PixelNetwork:
    """ResNet-20 with 16, 32 and 64 channels, the smallest of He et al.'s own for CIFAR: 0.27 M parameters."""
    own = {"blocks": (3, 3, 3), "base_width": 16, "shortcut": "pad"}
    return _build(CifarResNet, "cifar_resnet20", pretrained, own, arguments)


@_registered
def cifar_preact_resnet18(pretrained: bool = False, **arguments: Any) -> PixelNetwork:
    """PreActResNet-18 with a final BatchNorm, of the paper's Table 4 (Tiny-ImageNet): 11.2 M parameters."""
    return _build(CifarPreActResNet, "cifar_preact_resnet18", pretrained, {}, arguments)


@_registered
def cifar_wrn34_10(pretrained: bool = False, **arguments: Any) -> PixelNetwork:
    """WRN-34-10 of the paper's Table 3: 46.2 M parameters. `depth=` and `width=` give any other."""
    return _build(CifarWideResNet, "cifar_wrn34_10", pretrained, {}, arguments)


@_registered
def cifar_mobilenetv2(pretrained: bool = False, **arguments: Any) -> PixelNetwork:
    """MobileNetV2 with strides for 32² images: 2.3 M parameters."""
    return _build(CifarMobileNetV2, "cifar_mobilenetv2", pretrained, {}, arguments)
