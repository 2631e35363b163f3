"""Fail where a dependency may be, or is pinned to, a version with published vulnerabilities.

    python .ci/check_floors.py [pyproject.toml] [constraints.txt]

Every package in FLOORS must be a declared dependency whose range begins at its floor or above: also one that only
others need, since an installer may otherwise choose any version of it.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

FLOORS = {
    "pillow": (
        "13",
        "older decoders of JPEG, TIFF and GIF write outside their buffers (CVE-2026-96639 and others)",
    ),
    "requests": (
        "2.33",
        "older releases have published vulnerabilities, and torchattacks 3.4 to 3.5.1 ask for 2.25",
    ),
    "torch": ("2.10", "older weights-only loading can be made to corrupt memory (CVE-2026-24747)"),
}


def lowest(range_: SpecifierSet) -> Version | None:
    """The version that a range begins at; None where it has no beginning."""
    begins = [
        Version(part.version.removesuffix(".*"))
        for part in range_
        if part.operator in (">=", ">", "~=", "==", "===")
    ]
    return max(begins, default=None)


def problems(pyproject: str, constraints: str) -> list[str]:
    """What is wrong with the declared ranges and the pins, one sentence each."""
    project = tomllib.loads(pyproject)["project"]
    declared: dict[str, Requirement] = {}
    for line in project["dependencies"]:
        requirement = Requirement(line)
        declared[canonicalize_name(requirement.name)] = requirement
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    pins = [
        Requirement(text) for line in constraints.splitlines() if (text := line.partition("#")[0].strip())
    ]
    found = []
    for name, (floor, reason) in FLOORS.items():
        if name not in declared:
            found.append(f"pyproject.toml declares no {name}: declare {name}>={floor} ({reason})")
        everywhere = [("pyproject.toml", declared[name])] if name in declared else []
        for where, others in (("pyproject.toml", map(Requirement, extras)), ("constraints.txt", pins)):
            everywhere += [(where, other) for other in others if canonicalize_name(other.name) == name]
        for where, requirement in everywhere:
            begin = lowest(requirement.specifier)
            if begin is None or begin < Version(floor):
                found.append(
                    f"{where} permits {name} {begin or 'of any age'}: raise it to {floor} ({reason})"
                )
        if not any(canonicalize_name(pin.name) == name for pin in pins):
            found.append(f"constraints.txt does not pin {name}: pin it at {floor} or newer ({reason})")
    return found


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    root = Path(__file__).resolve().parent.parent
    files = [Path(argument) for argument in sys.argv[1:]] or [
        root / "pyproject.toml",
        root / "constraints.txt",
    ]
    found = problems(*(file.read_text(encoding="utf-8") for file in files))
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
