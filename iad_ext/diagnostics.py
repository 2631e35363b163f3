"""What an epoch's passes say about student and teacher, summed on the device and read once an epoch.

Nothing here runs a network: a figure whose pass was not run is null.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from iad_ext import terms
from iad_ext.objectives import ImageWeight, Loss, Outputs, alpha
from iad_ext.reliability import combined_guidance, predicts, three_cases, trust
from iad_ext.types import Labels, PerImage

# the name of every figure in metrics.jsonl, in the order that a reader meets it
FIGURES = (
    "train/acc_adv",
    "train/acc_nat",
    "teacher/acc_nat",
    "teacher/acc_on_student_adv",
    "teacher/entropy_on_student_adv",
    "natural_teacher/acc_on_student_adv",
    "combined/acc_on_student_adv",
    "cases/reliable",
    "cases/unreliable",
    "cases/wrong",
    "cases/recovered",
    "trust/mean",
)

# how many images have their P_T(x̃|y) between two of TRUST_EDGES, as a list; the last bin holds 1 itself
HISTOGRAM = "trust/histogram"
# 20 bins of one width in p and 20 of one width in p^0.1, laid over each other: α = p^β can be drawn from the counts for
# every β, for β = 1 and the paper's 0.1 in bins of one width
TRUST_EDGES = tuple(sorted({k / 20 for k in range(21)} | {(k / 20) ** 10 for k in range(21)}))


def figures(
    outputs: Outputs,
    labels: Labels,
    loss: Loss,
    *,
    trust_of: ImageWeight | None = None,
) -> dict[str, PerImage]:
    """Per-image figures that these passes allow.

    Accuracies and cases are 0 or 100, so that their mean is in percent; losses and entropy are in nats, α is in
    [0, 1]. `trust/histogram` holds P_T(x̃|y), which `Sums` counts by bins.

    Args:
        outputs: logits of the passes that were run.
        labels: true classes, (batch,).
        loss: what the objective made of them.
        trust_of: α that teacher and student are combined by, as in Figure 3; β = 0.1 unless told otherwise.
    """
    labels = labels.long()
    found: dict[str, PerImage] = {"loss/total": loss.per_image.detach()}
    found |= {f"loss/{name}": values.detach() for name, values in loss.terms.items()}
    accuracy_of = {
        "train/acc_adv": outputs.student_adv,
        "train/acc_nat": outputs.student_nat,
        "teacher/acc_nat": outputs.teacher_nat,
        "teacher/acc_on_student_adv": outputs.teacher_adv,
        "natural_teacher/acc_on_student_adv": outputs.natural_teacher_adv,
    }
    found |= {name: 100.0 * predicts(z, labels) for name, z in accuracy_of.items() if z is not None}
    if outputs.teacher_nat is not None and outputs.teacher_adv is not None:
        cases = three_cases(outputs.teacher_nat, outputs.teacher_adv, labels)
        found |= {f"cases/{name}": 100.0 * flags for name, flags in cases.items()}
    if loss.trust is not None:
        found["trust/mean"] = loss.trust
    if outputs.teacher_adv is not None:
        found[HISTOGRAM] = trust(outputs.teacher_adv, labels, beta=1.0)
        found["teacher/entropy_on_student_adv"] = terms.entropy(outputs.teacher_adv).detach()
        if outputs.student_nat is not None:
            weighs = trust_of or alpha(0.1)
            if all(getattr(outputs, name) is not None for name in weighs.reads):
                guidance = combined_guidance(
                    outputs.teacher_adv, outputs.student_nat.detach(), weighs(outputs, labels)
                )
                found["combined/acc_on_student_adv"] = 100.0 * predicts(guidance, labels)
    return found


def introspection_share(record: Mapping[str, float | None], term: str | None) -> float | None:
    """Percent of the loss that the introspection term makes up; None where it takes no part, as in warm-up."""
    own, total = record.get(f"loss/{term}"), record["loss/total"]
    return 100.0 * own / total if own is not None and total else None


class Sums:
    """Running sums of per-image figures on the device, each with the number of images it was known for.

    `trust/histogram` is counted by bins instead.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.sums: dict[str, Tensor] = {}  # figure -> (sum, images), or the counts of bins; float64
        self._inner_edges = torch.tensor(TRUST_EDGES[1:-1], dtype=torch.float64, device=self.device)

    def add(self, values: Mapping[str, PerImage]) -> None:
        """Add a batch; no host sync."""
        for name, per_image in values.items():
            if name == HISTOGRAM:
                batch = self._counted(per_image)
            else:
                images = torch.full((), len(per_image), dtype=torch.float64, device=self.device)
                batch = torch.stack([per_image.sum(dtype=torch.float64), images])
            self.sums[name] = self.sums[name] + batch if name in self.sums else batch

    def reduced(self, names: list[str], total: Tensor) -> dict[str, float | None]:
        """Divide the summed-up `total` (figures, 2) by its counts; None for a figure that no image had."""
        rows = total.tolist()
        return {name: (s / n if n else None) for name, (s, n) in zip(names, rows, strict=True)}

    def _counted(self, probabilities: PerImage) -> Tensor:
        """How many of them lie in each bin; bincount would make the host wait for the device."""
        bins = torch.bucketize(probabilities.double(), self._inner_edges, right=True)
        places = torch.arange(len(TRUST_EDGES) - 1, device=self.device)
        return (bins[:, None] == places).sum(dim=0, dtype=torch.float64)

    def histogram(self) -> Tensor:
        """The counts of `trust/histogram`, (bins,); zeros where T(x̃) was never run."""
        empty = torch.zeros(len(TRUST_EDGES) - 1, dtype=torch.float64, device=self.device)
        return self.sums.get(HISTOGRAM, empty)

    def stacked(self, names: list[str]) -> Tensor:
        """The sums of `names` as (figures, 2); zeros where a figure is not known."""
        zero = torch.zeros(2, dtype=torch.float64, device=self.device)
        return torch.stack([self.sums.get(name, zero) for name in names])
