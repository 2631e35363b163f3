"""The model card: a README.md in the hub's format, every number with what it was measured on."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from iad_ext import objectives
from iad_ext import settings as settings_
from iad_ext.backbones.cifar import NAMES
from iad_ext.evaluation import TITLES, images
from iad_ext.export.record import Record, dataset_of, hub_id_of, shown_source
from iad_ext.units import show_fraction

FEW = 1000  # images under which a percentage is an impression rather than a measurement
PAPER = "https://openreview.net/forum?id=u6TRGdzhfip"


def model_card(record: Record, *, name: str, license: str | None = None) -> str:  # noqa: A002 (the hub's word)
    """Write the card.

    Args:
        record: of the network.
        name: what the model is called, also in the commands that load it.
        license: the hub's word for the weights' licence (`mit`, `cc-by-4.0` …); left out when None.
    """
    parts = [
        f"---\n{_front_matter(record, name, license)}\n---",
        f"# {name}",
        _summary(record),
        "## Accuracy",
        *_accuracy(record),
        "## Loading it",
        *_loading(record, name),
        "## Training",
        _training(record),
        "## Provenance",
        _provenance(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ------------------------------------------------------------------------------------------- for machines


def _front_matter(record: Record, name: str, license_name: str | None) -> str:
    objective = (record.settings.get("objective") or {}).get("name")
    on_hub = record.dataset_on_hub
    card = ModelCardData(
        license=license_name,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "adversarial-robustness", "iad-ext"]
        + (["adversarial-distillation", objective] if objective else []),
        datasets=[on_hub] if on_hub else None,
        metrics=["accuracy"] if record.attacks else None,
        model_name=name if record.attacks else None,
        eval_results=_eval_results(record) or None,
    )
    text: str = card.to_yaml()
    return text.strip()


def _eval_results(record: Record) -> list[EvalResult]:
    results, tested = [], record.measured_on
    for attack in record.attacks:
        n = images(record.measured, attack)
        title = TITLES[attack]
        under = "natural" if attack == "natural" else f"{title} at L∞ {_eps(record.measured)}"
        results.append(
            EvalResult(
                task_type="image-classification",
                dataset_type=hub_id_of(tested) or dataset_of(tested) or "unknown",
                dataset_name=dataset_of(tested) or "unknown",
                dataset_split=(tested.get("splits") or {}).get("test"),
                metric_type="accuracy",
                metric_name=f"accuracy, {under}, {n} images",
                metric_value=round(record.measured[attack], 2),
            )
        )
    return results


# ------------------------------------------------------------------------------------------- for people


def _summary(record: Record) -> str:
    _, height, width = record.image_shape
    what = f"`{record.architecture}`: {record.classes} classes, images of {height} × {width} pixels in [0, 1]"
    how = _objective(record)
    trained = f", trained on {record.dataset}" if record.dataset and record.settings else ""
    if how is None:
        return f"{what}{trained}."
    return (
        f"{what}{trained} with the objective `{how.name}` of adversarial training and distillation "
        f"([Zhu et al., ICLR 2022]({PAPER})) by iad-ext."
    )


def _objective(record: Record) -> objectives.Objective | None:
    if not record.settings:
        return None
    flat = {f"objective.{key}": value for key, value in record.settings["objective"].items()}
    settings = settings_.override(settings_.Settings(), flat).objective
    epochs = record.settings["train"]["epochs"]
    return objectives.build(settings.name, **settings_.objective_arguments(settings, epochs=epochs))


def _accuracy(record: Record) -> Iterator[str]:
    measured = record.measured
    if not record.attacks:
        yield "Not measured. `iad-ext evaluate` measures it."
        return
    rows = ["| attack | accuracy, % | 95% interval | images | |", "|---|---:|---|---:|---|"]
    for attack in record.attacks:
        low, high = measured["interval"][attack]
        rows.append(
            f"| {TITLES[attack]} | {measured[attack]:.2f} | {low:.2f} to {high:.2f} | {images(measured, attack)} "
            f"| {_in_words(attack, _attack_settings(measured, attack))} |"
        )
    yield "\n".join(rows)
    protocol = measured["protocol"]
    yield (
        f"L∞ radius {_eps(measured)}, seed {protocol['seed']}, {protocol['dtype']}, batches of "
        f"{protocol['batch_size']}, {protocol['hardware']}; {_test_images(record)}. The intervals (Wilson) speak of "
        "the choice of images only, neither of random starts nor of training."
    )
    if not measured.get("flags") and record.attacks != ["natural"]:
        yield "No sign of masked gradients was flagged, which is no proof that there is none."
    cautions = list(_cautions(record))
    if cautions:
        yield "**Read with care:**\n\n" + "\n".join(f"- {caution}" for caution in cautions)


def _eps(measured: Mapping[str, Any]) -> str:
    return show_fraction(measured["protocol"]["eps"])


def _attack_settings(measured: Mapping[str, Any], attack: str) -> Mapping[str, Any]:
    """An attack's settings; those of AutoAttack on fewer images stand in a protocol of their own."""
    protocol = measured["protocol"]
    found: Mapping[str, Any] = protocol.get(attack, protocol)["attacks"][attack]
    return found


def _in_words(attack: str, settings: Mapping[str, Any]) -> str:
    if attack == "natural":
        return "no attack"
    if attack == "aa":
        return f"{settings['version']}: {', '.join(stage['stage'] for stage in settings['stages'])}"
    start = "random start" if settings["random_start"] else "no random start"
    steps = f"{settings['steps']} steps" if settings["steps"] > 1 else "1 step"
    return f"{steps} of {show_fraction(settings['alpha'])}, {settings['loss']}, {start}"


def _test_images(record: Record) -> str:
    data = record.measured_on
    split = (data.get("splits") or {}).get("test", "test")
    revision = f" at revision {data['revision']}" if data.get("revision") else ""
    digest = (data.get("digest") or {}).get("test")
    return f"the {split} images of {dataset_of(data) or 'an unknown data set'}{revision}" + (
        f" (digest {digest})" if digest else ""
    )


def _cautions(record: Record) -> Iterator[str]:
    data, measured = record.data, record.measured
    if note := record.measured_on.get("encoding_note"):
        yield f"The images were a re-encoded copy: {note}."
    if (record.settings.get("data") or {}).get("selection") == "test":
        yield "The epoch was chosen on the test set, as in the paper, so these figures are a little too good."
    limit = (data.get("limits") or {}).get("train")
    if limit is not None and record.settings:
        yield f"Trained on {limit:,} of the training images only."
    few = {TITLES[a]: images(measured, a) for a in record.attacks if images(measured, a) < FEW}
    if few:
        counts = ", ".join(f"{title} {n}" for title, n in few.items())
        yield f"Measured on few images ({counts}): the intervals are wide."
    trained = (record.settings.get("attack") or {}).get("eps")
    if trained is not None and abs(trained - measured["protocol"]["eps"]) > 1e-9:
        yield f"Trained at a radius of {show_fraction(trained)}, measured at {_eps(measured)}."
    if "aa" not in measured:
        yield "AutoAttack was not run: the other attacks only bound robustness from above."
    for flag in measured.get("flags", ()):
        about = "" if flag["attack"] == "*" else f" ({TITLES[flag['attack']]})"
        yield f"`{flag['flag']}`{about}: {flag['detail']}."


def _loading(record: Record, name: str) -> Iterator[str]:
    yield (
        "```python\n"
        "from iad_ext import load_network\n\n"
        f'network = load_network("hf-hub:OWNER/{name}")  # or this folder; logits of pixels in [0, 1]\n'
        "```"
    )
    registers = (
        "import iad_ext  # registers the network with timm\nimport timm"
        if record.architecture in NAMES
        else "import timm"
    )
    yield (
        f'```python\n{registers}\n\nnetwork = timm.create_model("hf-hub:OWNER/{name}", pretrained=True)  '
        "# or local-dir:FOLDER\n```"
    )
    mean = getattr(record.network, "mean", None) if hasattr(record.network, "network") else None
    yield (
        "Both take pixels in [0, 1] as they are."
        if mean is None
        else "`load_network` takes pixels in [0, 1] and normalises inside; timm's network takes them normalised by the "
        "mean and standard deviation in its `pretrained_cfg`."
    )


def _training(record: Record) -> str:
    settings, results = record.settings, record.results
    if not settings:
        return "Not known."
    train, attack = settings["train"], settings["attack"]
    objective = _objective(record)
    assert objective is not None
    rows = [
        ("recipe", f"`{settings['recipe']}`"),
        ("objective", f"`{objective!r}`: {objective.formula}"),
        *(
            (role.replace("_", " "), said)
            for role in ("teacher", "natural_teacher")
            if (said := _teacher(record, role))
        ),
        ("epochs", _epochs(record)),
        (
            "optimiser",
            f"SGD, {_rates(train)}, {'Nesterov ' if train.get('nesterov') else ''}momentum {train['momentum']:g}, "
            f"weight decay {train['weight_decay']:g}, batches of {train['batch_size']}",
        ),
        (
            "attack",
            "none"
            if objective.attack == "none"
            else f"{attack['name']}, {attack['steps']} steps of {show_fraction(attack['step'])}, L∞ radius "
            f"{show_fraction(attack['eps'])}, student in {attack['mode']} mode",
        ),
        ("weights perturbed", _perturbed(train)),
        ("weights averaged", _average(settings.get("average") or {})),
        ("data", _training_images(record)),
        ("extra images", _extra(settings["data"])),
        ("augmentation", _augmentation(train)),
        ("seed", str(train["seed"])),
        (
            "precision",
            (results.get("precision") or record.environment.get("precision") or {}).get("kind", ""),
        ),
    ]
    # a bar would end the cell, in code too
    cells = [(key, value.replace("|", r"\|")) for key, value in rows if value]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)])


def _rates(train: Mapping[str, Any]) -> str:
    """The course of the learning rate; settings of an older run lack what it did not have."""
    lr, course = f"{train['lr']:g}", train.get("rates", "drops")
    warmup = train.get("rate_warmup", 0)
    rising = f", rising to it over the first {warmup} epochs" if warmup else ""
    if course == "cosine":
        return f"rate {lr}, falling to 0 by half a cosine{rising}"
    if course == "cyclic":
        return f"rate up to {lr} at 2/5 of the epochs and down to 0, linearly (cyclic){rising}"
    # in the released code each drop rescales the first rate: the second one is lost
    drops = sorted(train["drops"])[: 1 if train.get("schedule") == "released" else None]
    reached = [str(drop) for drop in drops if drop < train["epochs"]]
    if not reached:
        return f"rate {lr}{rising}"
    fallen = f"× {train['drop_factor']:g} at epoch{'s' if len(reached) > 1 else ''} {', '.join(reached)}"
    return f"rate {lr}, {fallen} (schedule {train.get('schedule', 'paper')}){rising}"


def _perturbed(train: Mapping[str, Any]) -> str:
    if not train.get("awp"):
        return ""
    return f"adversarially (AWP), γ = {train['awp']:g}, from epoch {train['awp_start']}"


def _average(average: Mapping[str, Any]) -> str:
    if average.get("name", "none") == "none":
        return ""
    decay = f", decay {average['decay']:g}" if average["name"] == "ema" else ""
    return (
        f"{average['name'].upper()}{decay}, from epoch {average['start']}; BatchNorm's statistics "
        f"{'averaged too' if average['batchnorm'] == 'average' else 're-estimated'}"
    )


def _extra(data: Mapping[str, Any]) -> str:
    if not data.get("extra"):
        return ""
    return f"`{shown_source(data['extra'])}`, {100 * data['extra_share']:g}% of an epoch's images"


def _augmentation(train: Mapping[str, Any]) -> str:
    kind, padding = train.get("augment", "crop"), train.get("padding", 0)
    crop = f"random crops after padding by {padding}" if padding else ""
    parts = [crop if kind == "crop" else kind]
    parts += ["random mirror images"] if train.get("flip") else []
    parts += [f"CutMix on {100 * train['cutmix']:g}% of images"] if train.get("cutmix") else []
    return ", ".join(filter(None, parts))


def _teacher(record: Record, role: str) -> str:
    known = (record.environment.get("teachers") or {}).get(role) or record.results.get(role) or {}
    if not known:
        return ""
    source = "/".join(PurePath(known["source"]).parts[-3:])  # of somebody's own disk, the end says enough
    return f"`{source}`: natural {known['natural']:.2f}%, PGD-10 {known['pgd10']:.2f}% on {known['n']} images"


def _epochs(record: Record) -> str:
    of = record.settings["train"]["epochs"]
    if record.epoch is None:
        return str(of)
    selection = record.settings["data"]["selection"]
    on = "the test set" if selection == "test" else "held-out training images"
    return f"{of}; these are the weights after epoch {record.epoch + 1}; the best epoch is chosen on {on}"


def _training_images(record: Record) -> str:
    data = record.data
    n = (data.get("n") or {}).get("train")
    revision = f", revision `{data['revision']}`" if data.get("revision") else ""
    encoding = f", {data['encoding']}" if data.get("encoding") else ""
    return f"{record.dataset}, {n:,} images{encoding}{revision}" if n else str(record.dataset)


def _provenance(record: Record) -> str:
    environment = record.environment
    protocol = record.measured.get("protocol") or {}
    hardware = environment.get("hardware") or {}
    trained_on = ", ".join(hardware.get("gpus") or [hardware.get("cpu") or ""])
    rows = [
        ("trained", environment.get("time", "")),
        ("on", trained_on),
        ("commit", f"`{environment['commit']}`" if environment.get("commit") else ""),
        ("versions, training", _versions(environment.get("versions") or {})),
        ("versions, evaluation", _versions(protocol.get("versions") or {})),
    ]
    if rows[-1][1] == rows[-2][1]:
        rows[-2:] = [("versions", rows[-1][1])]
    known = [f"| {key} | {value} |" for key, value in rows if value]
    return "\n".join(["| | |", "|---|---|", *known]) if known else "Not known."


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)
