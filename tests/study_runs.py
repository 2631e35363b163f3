"""Run folders as a study's cells leave them, made up: flags that say whatever a test wants said."""

import dataclasses
import json

import numpy as np
from safetensors.numpy import save_file


def fake_run(
    cell,
    right,
    *,
    n=400,
    seed=None,
    epochs=3,
    seconds=2.0,
    masked=False,
    tested_on="t",
    logged=None,
    torch="2.0",
):
    """Write the folder of a finished cell whose network is right on a share `right[measure]` of n images.

    Flags of a higher share contain those of a lower one, but for what `seed` shuffles. `logged` has figures by epoch.
    """
    folder = cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    flags, results = {}, {}
    settings = dataclasses.asdict(cell.settings.eval)
    for which in ("best", "last"):
        results[which] = {"n": n, "flags": []}
        for attack in cell.attacks:
            count = n if attack != "aa" else n // 2
            order = np.arange(count)
            if seed is not None:
                order = np.random.default_rng(seed).permutation(count)
            share = right[attack] if isinstance(right, dict) else right
            robust = order < round(share * count)
            flags[f"{which}/{attack}"] = robust.astype(np.uint8)
            results[which][attack] = 100 * float(robust.mean())
        results[which]["n_aa"] = n // 2
        if masked:
            results[which]["flags"] = [{"attack": "pgd20", "flag": "zero_gradients", "detail": "…"}]
    save_file(flags, folder / "robust.safetensors")
    results |= {
        "evaluation": settings,
        "selection": "holdout",
        "data": {"digest": {"test": tested_on}},
        "epochs": {"best": 0, "last": epochs - 1},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "settings.yaml").write_text("")
    lines = [
        {"epoch": e, "time/epoch_s": seconds + 0.01 * e + (e == 0), "memory/peak_mib": 100.0 + seconds}
        | {name: values[e] for name, values in (logged or {}).items()}
        for e in range(epochs)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {
        "commit": "0" * 40,
        "hardware": {"gpus": [], "cpu": "a CPU"},
        "precision": {"kind": "fp32"},
        "versions": {"torch": torch, "numpy": "1.0"},
        "data": {"encoding_note": "JPEG, with loss"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
