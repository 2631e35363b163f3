"""Corruptions: the published definitions by other libraries and by loops, and laws that hold for all of them."""

import colorsys
import io

import numpy as np
import PIL.Image
import pytest
import torch
from scipy import ndimage

from iad_ext.evaluation import corruptions
from iad_ext.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from iad_ext.randomness import stream

EVERY = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
NOISE = [name for name, kind in CORRUPTIONS.items() if kind.group == "noise"]


@pytest.fixture(scope="module")
def images():
    levels = torch.randint(256, (5, 3, 32, 32), generator=stream("test_corruptions"))
    levels[0] = levels[0, :1]  # grey, whose hue is not defined
    levels[1, :, :8], levels[1, :, 8:16] = 0, 255
    smooth = torch.linspace(0, 255, 32).round()
    levels[2] = torch.stack([smooth.expand(32, 32), smooth[:, None].expand(32, 32), levels[2, 0].float()])
    return levels.float() / 255


def constant(name, severity):
    return CORRUPTIONS[name].constants[severity - 1]


def as_levels(changed):
    """What the published code stores: whole numbers of 0 … 255, cut."""
    return np.floor(np.clip(changed, 0, 1) * 255 + 1e-4)


def far(found, expected):
    """How many levels they differ by at most, and on what share of the values."""
    gap = np.abs(found.double().mul(255).round().numpy() - expected)
    return gap.max(), (gap > 0).mean()


# ------------------------------------------------------------------------------------- the definitions


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box_filter_to_the_level(images, severity):
    size = int(32 * constant("pixelate", severity))
    for image, found in zip(images, corrupt(images, "pixelate", severity), strict=True):
        picture = PIL.Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        small = picture.resize((size, size), PIL.Image.Resampling.BOX)
        expected = np.asarray(small.resize((32, 32), PIL.Image.Resampling.BOX)).transpose(2, 0, 1)
        assert far(found, expected.astype(float)) == (0, 0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows(images, severity):
    held = io.BytesIO()
    pixels = (images[3] * 255).round().byte().permute(1, 2, 0).numpy()
    PIL.Image.fromarray(pixels).save(held, "JPEG", quality=constant("jpeg_compression", severity))
    expected = np.asarray(PIL.Image.open(held)).transpose(2, 0, 1).astype(float)
    assert far(corrupt(images, "jpeg_compression", severity)[3], expected) == (0, 0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_scipys(images, severity):
    sigma = constant("gaussian_blur", severity)
    expected = ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0
    )
    most, share = far(corrupt(images, "gaussian_blur", severity), as_levels(expected))
    assert most <= 1
    assert share < 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_a_smoothed_disc(images, severity):
    radius, blur = constant("defocus_blur", severity)
    place = np.arange(-8, 9)  # as large as the published code makes it
    disc = (place[:, None] ** 2 + place**2 <= radius**2).astype(float)
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * blur**2))
    smoothing = np.outer(weights, weights) / weights.sum() ** 2
    kernel = ndimage.correlate(disc / disc.sum(), smoothing, mode="mirror")
    expected = ndimage.correlate(images.double().numpy(), kernel[None, None], mode="mirror")
    most, share = far(corrupt(images, "defocus_blur", severity), as_levels(expected))
    assert most <= 1
    assert share < 5e-3  # many sums of equal weights are whole numbers, up to rounding


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_light_is_changed_in_hsv(images, name, severity):
    change = constant(name, severity)
    expected = np.empty((3, 3, 8, 32))
    for n, i, j in np.ndindex(3, 8, 32):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[n, :, 2 * i + 4, j].tolist())
        if name == "brightness":
            value = min(1.0, value + change)
        else:
            saturation = min(1.0, max(0.0, saturation * change[0] + change[1]))
        expected[n, :, i, j] = colorsys.hsv_to_rgb(hue, saturation, value)
    most, share = far(corrupt(images, name, severity)[:3, :, 4:20:2], as_levels(expected))
    assert most <= 1
    assert share < 1e-2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_keeps_a_share_of_the_distance_from_each_channels_mean(images, severity):
    x, share = images.double().numpy(), constant("contrast", severity)
    means = x.mean(axis=(2, 3), keepdims=True)
    most, part = far(corrupt(images, "contrast", severity), as_levels((x - means) * share + means))
    assert most <= 1
    assert part < 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_spread(severity):
    grey = torch.full((40, 3, 32, 32), 0.5)
    n = grey.numel()
    error = 5 * (2 / n) ** 0.5  # of a relative standard deviation, five of its own
    half_a_level = 0.5 / 255  # what cutting takes off on average
    for name, expected in (
        ("gaussian_noise", constant("gaussian_noise", severity)),
        ("speckle_noise", 0.5 * constant("speckle_noise", severity)),
        ("shot_noise", (0.5 / constant("shot_noise", severity)) ** 0.5),
    ):
        found = corrupt(grey, name, severity, seed=3) - 0.5
        assert float(found.std()) == pytest.approx(expected, rel=error + 0.005)
        assert float(found.mean()) == pytest.approx(-half_a_level, abs=5 * expected / n**0.5 + half_a_level)
    found, amount = corrupt(grey, "impulse_noise", severity, seed=3), constant("impulse_noise", severity)
    for value in (0.0, 1.0):
        share = float((found == value).double().mean())
        assert share == pytest.approx(amount / 2, abs=5 * (amount / n) ** 0.5)
    assert (
        float((found == float(corrupt(grey, "impulse_noise", 1)[0, 0, 0, 0])).double().mean()) >= 0.9 - amount
    )


# ------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize(("name", "severity"), EVERY)
def test_the_result_is_whole_levels_of_0_to_1_and_does_not_depend_on_the_batch(images, name, severity):
    whole = corrupt(images, name, severity, seed=5, first=254)
    parts = torch.cat(
        [corrupt(part, name, severity, seed=5, first=254 + k) for k, part in enumerate(images.split(1))]
    )
    assert torch.equal(whole, parts)  # across the end of a block of noise
    assert whole.shape == images.shape
    assert whole.dtype == images.dtype
    levels = whole * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
    assert not torch.equal(whole, images)


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_the_seeds_the_severitys_and_the_positions(images, name):
    def noise(**named):
        return corrupt(images, name, **({"severity": 3, "seed": 1, "first": 0} | named))

    assert torch.equal(noise(), noise())
    assert not torch.equal(noise(), noise(seed=2))
    assert not torch.equal(noise(), noise(first=7))
    before = torch.random.get_rng_state()
    noise()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "saturate"])
def test_a_higher_severity_moves_images_further(images, name):
    """Saturation is taken away first and added later, and has no such order."""
    moved = [float((corrupt(images, name, s) - images).square().mean()) for s in SEVERITIES]
    assert moved == sorted(moved)
    assert moved[0] < moved[-1]


def test_images_of_another_size_and_type_are_taken():
    x = torch.rand(2, 3, 8, 11, generator=stream("odd"), dtype=torch.float64)
    for name, severity in EVERY:
        assert corrupt(x, name, severity).shape == x.shape
        assert corrupt(x, name, severity).dtype == torch.float64
    assert corrupt(x[:0], "contrast", 1).shape == (0, 3, 8, 11)


def test_refusals(images):
    for wrong, message in (
        ((images, "gausian_noise", 1), "did you mean 'gaussian_noise'"),
        ((images, "contrast", 0), "expected 1, 2, 3, 4 or 5; got 0"),
        ((images, "contrast", True), "got True"),
        ((images[:, :1], "contrast", 1), r"RGB images.*repeat a grey channel"),
        ((images[:, :, :7], "contrast", 1), "at least 8 × 8"),
    ):
        with pytest.raises(ValueError, match=message):
            corrupt(*wrong)
    with pytest.raises(ValueError, match="first must be at least 0"):
        corrupt(images, "contrast", 1, first=-1)


def test_results_never_pass_for_cifar_10_c():
    said = corruptions.protocol(["contrast"], [1, 5], seed=0)
    assert "not the CIFAR-10-C images" in said["note"]
    assert said["corruptions"]["contrast"]["constants"] == {"1": 0.75, "5": 0.15}
    assert all(len(kind.constants) == 5 for kind in CORRUPTIONS.values())
