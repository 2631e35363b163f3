"""Full commits of the hub: what counts as one, what requires one, and that a run says which it took."""

import huggingface_hub
import pytest
import torch

from iad_ext import data
from iad_ext.assets import Assets
from iad_ext.backbones import create_network, save_network
from iad_ext.plan import Plan
from iad_ext.revisions import REQUIRE, is_commit, refuse_unpinned
from iad_ext.settings import Settings, override

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGITS = {
    "data.name": "digits",
    "data.limit_train": 32,
    "data.limit_test": 16,
    "objective.name": "ard",
    "teacher": "hf-hub:somebody/net@main",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, with a teacher of digits at COMMIT, whatever branch is asked for."""
    snapshot = tmp_path / "snapshots" / COMMIT
    save_network(create_network("cifar_resnet8", num_classes=10, seed=0), snapshot, metadata={})
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda identifier, file, *, revision: str(snapshot / file)
    )


def load(**values):
    plan = Plan.of(override(Settings(), DIGITS | values))
    return Assets.load(plan, torch.device("cpu"))


@pytest.mark.parametrize(
    "revision", [None, "", "main", "v1", COMMIT[:-1], COMMIT + "0", COMMIT[:-1] + "g", COMMIT + "\n"]
)
def test_only_forty_digits_are_a_commit(revision):
    assert not is_commit(revision)
    assert is_commit(COMMIT)
    with pytest.raises(ValueError, match=r"huggingface\.co/a/b/commits/main"):
        refuse_unpinned("hf-hub:a/b@COMMIT", revision, address="a/b", require=True)


@pytest.mark.parametrize(
    ("value", "requires"), [(None, False), ("", False), ("0", False), ("1", True), ("true", True)]
)
def test_the_environment_can_require_one(monkeypatch, value, requires):
    monkeypatch.delenv(REQUIRE, raising=False)
    if value is not None:
        monkeypatch.setenv(REQUIRE, value)
    if requires:
        with pytest.raises(ValueError, match=REQUIRE):
            refuse_unpinned("hf-hub:a/b@COMMIT", "main", address="a/b", require=False)
    else:
        refuse_unpinned("hf-hub:a/b@COMMIT", "main", address="a/b", require=False)
    refuse_unpinned("hf-hub:a/b@COMMIT", COMMIT, address="a/b", require=True)


def test_a_run_notes_the_commit_that_its_teacher_s_branch_was_at(hub):
    assert load().sources == {"teacher": f"hf-hub:somebody/net@{COMMIT}"}


def test_a_run_can_require_commits_of_its_data_and_its_teachers(hub):
    with pytest.raises(ValueError, match=r"full commit .* got main: write hf-hub:somebody/net@COMMIT"):
        load(require_revision=True)
    assert load(require_revision=True, teacher=f"hf-hub:somebody/net@{COMMIT}").sources
    with pytest.raises(
        ValueError, match=r"full commit .* got none: write --data\.revision COMMIT for uoft-cs/cifar10"
    ):
        Plan.of(override(Settings(), {"require_revision": True}))
    Plan.of(override(Settings(), {"require_revision": True, "data.revision": COMMIT}))


def test_extra_images_of_the_hub_are_pinned_too(hub, monkeypatch):
    asked = []

    def fetched(where, revision=None, config=None):
        asked.append((where, revision))
        return data._digits()

    monkeypatch.setattr(data, "_load", fetched)
    values = {"require_revision": True, "teacher": f"hf-hub:somebody/net@{COMMIT}", "data.extra_share": 0.5}
    for source in ("somebody/images", "somebody/images@main"):
        with pytest.raises(ValueError, match=r"full commit .* write --data\.extra somebody/images@COMMIT"):
            load(**values | {"data.extra": source})
    assert asked == []
    provenance = load(**values | {"data.extra": f"somebody/images@{COMMIT}"}).splits.provenance
    assert asked == [("somebody/images", COMMIT)]
    assert provenance["extra"]["revision"] == COMMIT
