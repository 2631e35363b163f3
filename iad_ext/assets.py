"""What a run needs from outside: images and teachers, found, loaded and checked."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from iad_ext import settings as settings_
from iad_ext.backbones import hub_source, load_network, network_digest, num_classes_of
from iad_ext.data import ImageSet, Splits, load_extra
from iad_ext.plan import NAMED_TEACHERS, Plan, data_folder, load_data
from iad_ext.settings import Settings

log = logging.getLogger(__name__)


class UsageError(Exception):
    """What was asked for cannot be done; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Assets:
    """What a run needs from outside: images and teachers."""

    splits: Splits
    teacher: nn.Module | None
    natural_teacher: nn.Module | None
    sources: Mapping[str, str]  # where each teacher came from
    digests: Mapping[str, str]  # SHA-256 of each teacher's weights
    extra: ImageSet | None = None  # more images to train on

    @classmethod
    def load(cls, plan: Plan, device: torch.device) -> "Assets":
        """Find and load them, on `device`; teachers are frozen and in eval mode."""
        settings = plan.settings
        # a missing teacher is the commonest stumble: say so before the images are read
        found = {
            role: _find_teacher(settings, role, getattr(settings, role))
            if any(name.startswith(f"{role}_") for name in plan.passes())
            else None
            for role in ("teacher", "natural_teacher")
        }
        for role, source in found.items():
            if source is None and getattr(settings, role) is not None:
                log.warning(
                    "%s reads no %s: %s is not used", plan.objective.name, role, settings_.option(role)
                )
        splits = load_data(settings)
        extra = None
        if settings.data.extra is not None:
            extra, where = load_extra(
                settings.data.extra, splits.classes, require_revision=settings.require_revision
            )
            digests = {**cast(Mapping[str, str], splits.provenance["digest"]), "extra": where["digest"]}
            provenance = {**splits.provenance, "extra": where, "digest": digests}
            splits = dataclasses.replace(splits, provenance=provenance)
        networks: dict[str, nn.Module | None] = {}
        for role, source in found.items():
            architecture = getattr(settings, f"{role}_architecture")
            networks[role] = (
                _load_teacher(role, source, architecture, splits, device, settings.require_revision)
                if source
                else None
            )
        loaded = {role: network for role, network in networks.items() if network is not None}
        return cls(
            splits,
            extra=extra,
            **networks,
            # a teacher of the hub by its commit, also where a branch was asked for
            sources={role: hub_source(network) or str(found[role]) for role, network in loaded.items()},
            digests={role: network_digest(network) for role, network in loaded.items()},
        )


def _find_teacher(settings: Settings, role: str, asked: str | None) -> str:
    """Return where the teacher is: what was asked for, or the run folder of the recipe that is called so."""
    option = settings_.option(role)
    if asked is None:
        raise UsageError(
            f"{settings.objective.name} needs {option}: at, trades or st (that recipe's run folder), a run folder, "
            "a checkpoint, a timm name or hf-hub:OWNER/NAME"
        )
    if asked not in NAMED_TEACHERS:
        return asked
    recipe = f"{asked}_{settings.recipe.partition('_')[2]}"
    root = Path("runs") / data_folder(settings) / recipe
    for seed in dict.fromkeys((settings.train.seed, 0)):
        folder = root / f"seed{seed}"
        if (folder / "results.json").exists():
            return str(folder)
        if (folder / "best").is_dir():
            log.warning("%s: its training has not finished; taking its best network so far", folder)
            return str(folder)
    data = settings.data
    flags = [f"--data.name {data.name}"]
    flags += [f"--data.path {data.path}"] if data.path else []
    flags += [f"--train.seed {settings.train.seed}"] if settings.train.seed else []
    raise UsageError(
        f"no teacher yet: {option} {asked} looks in {root}/seed{settings.train.seed}. Train it first:\n"
        f"  accelerate launch recipes/{recipe}.py {' '.join(flags)}\n"
        f"or name another one with {option} (a run folder, a checkpoint, a timm name, hf-hub:OWNER/NAME)"
    )


def _load_teacher(
    role: str,
    source: str,
    architecture: str | None,
    splits: Splits,
    device: torch.device,
    require_revision: bool,
) -> nn.Module:
    network = load_network(
        source,
        architecture=architecture,
        num_classes=splits.num_classes if architecture else None,
        require_revision=require_revision,
    )
    classes = num_classes_of(network)
    if classes != splits.num_classes:
        raise ValueError(
            f"{settings_.option(role)} {source} has {classes} classes, the data {splits.num_classes}; "
            "train a teacher on this data set"
        )
    network = network.to(device).eval().requires_grad_(False)
    with torch.inference_mode():
        logits = network(splits.train.take(slice(0, 16)).to(device).pixels())
    if logits.shape != (min(16, len(splits.train)), classes) or not logits.isfinite().all():
        raise ValueError(
            f"{settings_.option(role)} {source} returns {tuple(logits.shape)} or numbers that are not finite"
        )
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise ValueError(
            f"{settings_.option(role)} {source} returns probabilities; distillation needs logits"
        )
    return network
