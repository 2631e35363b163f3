"""The model card: a README.md in the hub's format, every number with what it was measured on."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from iad_ext import objectives
from iad_ext import settings as settings_
from iad_ext.backbones.cifar import NAMES
from iad_ext.evaluation import TITLES, images
from iad_ext.export.record import Record
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
    results = []
    for attack in record.attacks:
        n = images(record.measured, attack)
        title = TITLES[attack]
        under = "natural" if attack == "natural" else f"{title} at L∞ {_eps(record.measured)}"
        results.append(
            EvalResult(
                task_type="image-classification",
                dataset_type=record.dataset_on_hub or record.dataset or "unknown",
                dataset_name=record.dataset or "unknown",
                dataset_split=(record.data.get("splits") or {}).get("test"),
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
    data = record.data
    split = (data.get("splits") or {}).get("test", "test")
    revision = f" at revision {data['revision']}" if data.get("revision") else ""
    digest = (data.get("digest") or {}).get("test")
    return f"the {split} images of {record.dataset or 'an unknown data set'}{revision}" + (
        f" (digest {digest})" if digest else ""
    )


def _cautions(record: Record) -> Iterator[str]:
    data, measured = record.data, record.measured
    if data.get("encoding_note"):
        yield f"The images were a re-encoded copy: {data['encoding_note']}."
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
            f"SGD, rate {train['lr']:g}, × {train['drop_factor']:g} at epochs {', '.join(map(str, train['drops']))}, "
            "momentum "
            f"{train['momentum']:g}, weight decay {train['weight_decay']:g}, batches of {train['batch_size']}",
        ),
        (
            "attack",
            "none"
            if objective.attack == "none"
            else f"{attack['name']}, {attack['steps']} steps of {show_fraction(attack['step'])}, L∞ radius "
            f"{show_fraction(attack['eps'])}, student in {attack['mode']} mode",
        ),
        ("data", _training_images(record)),
        ("seed", str(train["seed"])),
        (
            "precision",
            (results.get("precision") or record.environment.get("precision") or {}).get("kind", ""),
        ),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows if value)])


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
