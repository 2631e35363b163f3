"""`report.html`: one self-contained page a run and one a study, made from their folders alone."""

from pathlib import Path

from iad_ext import files, plots
from iad_ext.report import run_page, study_page

__all__ = ["write", "write_figures"]


def write(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, or into a study's folder, and return where it is.

    What a section needs and the folder lacks is left out; a damaged file is named on the page.

    Raises:
        ValueError: it is neither a run's folder (`settings.yaml`) nor a study's (`study.json`).
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if (folder / "study.json").is_file():
        text = study_page.html_of(folder)
    elif (folder / "settings.yaml").is_file():
        text = run_page.html_of(folder)
    else:
        raise ValueError(
            f"{folder} is no run folder (settings.yaml) and no study's (study.json); give a folder such as "
            "runs/cifar10/iad1_resnet18-at/seed0"
        )
    files.write_text(folder / "report.html", text)
    return folder / "report.html"


def write_figures(folder: str | Path) -> list[Path]:
    """Draw what a run has of `iad_ext.plots.FIGURES` into its `figures/`, as SVG and PNG, and return where they are.

    Raises:
        ValueError: it is no run folder.
        OSError: they cannot be written.
    """
    run, into = plots.Run.read(folder), Path(folder) / "figures"
    into.mkdir(exist_ok=True)
    written = []
    for name in plots.FIGURES:
        for suffix in ("svg", "png"):
            try:
                plots.draw(name, [run], into / f"{name}.{suffix}")
            except plots.NothingToDrawError:
                break
            written.append(into / f"{name}.{suffix}")
    return written
