"""The on-device batches: laws of order, crops and flips, and a loop over torchvision's functions as the oracle."""

import pytest
import torch
import torchvision.transforms.functional as tvf
from hypothesis import given, settings
from hypothesis import strategies as st

from iad_ext.augment import AUGMENTATIONS
from iad_ext.batches import Batches
from iad_ext.data import ImageSet

SIZE, PADDING = 12, 4


def random_images(n, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.randint(5, (n,), generator=generator), tuple("abcde"))


def telling_images(n, size=SIZE):
    """Every pixel says where it lies: 1 + row in red, 1 + column in green. Blue is noise."""
    images = random_images(n, size).images
    images[:, 0] = torch.arange(size, dtype=torch.uint8)[:, None] + 1
    images[:, 1] = torch.arange(size, dtype=torch.uint8) + 1
    return ImageSet(images, torch.arange(n) % 5, tuple("abcde"))


def raw(batch):
    return (batch.images * 255).round().to(torch.uint8)


def corners_and_flips(batch):
    """What was done to each of the `telling_images`, read off the middle of the result."""
    middle = SIZE // 2
    pixels = raw(batch).long()
    down = pixels[:, 0, middle, middle] - 1 - middle + PADDING
    flip = pixels[:, 1, middle, middle] > pixels[:, 1, middle, middle + 1]
    right = torch.where(flip, pixels[:, 1, middle, SIZE - 1 - middle], pixels[:, 1, middle, middle])
    return down, right - 1 - middle + PADDING, flip


def epoch_of(batches, epoch, parts=1):
    return [
        batches.batch(epoch, step, part=part, parts=parts)
        for step in range(len(batches))
        for part in range(parts)
    ]


def equal(one, other):
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.index, other.index)
    )


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40), batch_size=st.integers(1, 17), epoch=st.integers(0, 300), parts=st.integers(1, 4)
)
def test_every_epoch_visits_every_image_once(n, batch_size, epoch, parts):
    data = random_images(n, size=4)
    seen = epoch_of(Batches(data, batch_size=batch_size, seed=3, padding=1, flip=True), epoch, parts)
    index = torch.cat([part.index for part in seen])
    assert torch.equal(index.sort().values, torch.arange(n))
    assert torch.equal(torch.cat([part.labels for part in seen]), data.labels[index])


def test_seed_and_epoch_say_everything():
    data = telling_images(300)

    def whole(seed, epoch):
        (batch,) = epoch_of(Batches(data, batch_size=300, seed=seed, padding=PADDING, flip=True), epoch)
        return batch

    assert equal(whole(1, 7), whole(1, 7))
    for other in (whole(1, 8), whole(2, 7)):
        assert not torch.equal(whole(1, 7).index, other.index)
        for drawn, drawn_otherwise in zip(
            corners_and_flips(whole(1, 7)), corners_and_flips(other), strict=True
        ):
            assert not torch.equal(drawn, drawn_otherwise)


def test_global_random_state_is_neither_read_nor_changed():
    batches = Batches(random_images(20), batch_size=8, seed=0, padding=2, flip=True)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = batches.batch(5, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal(Batches(random_images(20), batch_size=8, seed=0, padding=2, flip=True).batch(5, 1), first)


def test_any_step_asked_for_directly_is_that_of_the_sequence():
    settings = {"batch_size": 7, "seed": 4, "padding": PADDING, "flip": True}
    data = random_images(45)
    in_sequence = Batches(data, **settings)
    sequence = [
        (epoch, step, in_sequence.batch(epoch, step))
        for epoch in range(3)
        for step in range(len(in_sequence))
    ]
    directly = Batches(data, **settings)
    for epoch, step, batch in reversed(sequence):
        assert equal(directly.batch(epoch, step), batch)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("step", [0, 2])
def test_parts_put_together_are_the_whole_batch(parts, step):
    batches = Batches(random_images(39), batch_size=16, seed=0, padding=PADDING, flip=True)
    whole = batches.batch(2, step)
    slices = [batches.batch(2, step, part=part, parts=parts) for part in range(parts)]
    sizes = [len(part.images) for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert [part.offset for part in slices] == [sum(sizes[:position]) for position in range(parts)]
    assert {part.total for part in slices} == {len(whole.images)}
    assert torch.equal(torch.cat([part.images for part in slices]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in slices]), whole.labels)
    assert torch.equal(torch.cat([part.index for part in slices]), whole.index)


def test_parts_are_empty_only_where_images_are_fewer():
    batches = Batches(random_images(3), batch_size=8, seed=0, padding=1, flip=True)
    sizes = [len(batches.batch(0, 0, part=part, parts=5).images) for part in range(5)]
    assert sorted(sizes) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("flip", [False, True])
def test_the_gather_equals_a_loop_of_torchvision(flip):
    data = telling_images(60)
    batch = Batches(data, batch_size=60, seed=1, padding=PADDING, flip=flip).batch(9, 0)
    down, right, flipped = corners_and_flips(batch)
    expected = []
    for position, index in enumerate(batch.index.tolist()):
        image = tvf.pad(data.images[index], [PADDING] * 4, fill=0)
        image = tvf.crop(image, int(down[position]), int(right[position]), SIZE, SIZE)
        image = tvf.hflip(image) if flipped[position] else image
        expected.append(image.float().div(255))
    assert torch.equal(batch.images, torch.stack(expected))
    assert flipped.any() == flip


def test_offsets_are_uniform_and_half_of_the_images_flipped():
    data = telling_images(500)
    batches = Batches(data, batch_size=500, seed=0, padding=PADDING, flip=True)
    drawn = [corners_and_flips(batches.batch(epoch, 0)) for epoch in range(20)]
    down, right, flip = (torch.cat(each) for each in zip(*drawn, strict=True))
    assert min(down.min(), right.min()) >= 0
    counts = torch.bincount(down * (2 * PADDING + 1) + right, minlength=81).double()
    expected = len(down) / 81
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 132  # the 0.9998 quantile at 80 degrees of freedom; the draw is fixed
    assert abs(flip.double().mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([down, right, flip]).double()) - torch.eye(3)).max() < 0.05


def test_without_augmentation_pixels_are_the_raw_ones():
    data = random_images(20)
    batch = Batches(data, batch_size=20, seed=0, shuffle=False).batch(0, 0)
    assert torch.equal(batch.index, torch.arange(20))
    assert torch.equal(batch.images, data.images.float() / 255)
    assert torch.equal(raw(batch), data.images)


def test_all_pixel_values_are_those_of_torchvision():
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    pixels = ImageSet(image, torch.zeros(1, dtype=torch.int64), ("a",)).pixels()
    assert torch.equal(pixels[0], tvf.to_tensor(image[0].permute(1, 2, 0).numpy()))
    assert pixels.min() == 0
    assert pixels.max() == 1


def test_data_stay_as_they_were():
    data = random_images(20)
    before = data.images.clone()
    batches = Batches(data, batch_size=20, seed=0)
    batches.batch(0, 0).images.zero_()
    assert torch.equal(data.images, before)
    assert batches.batch(0, 0).images.any()


def test_channels_last_changes_the_memory_only():
    settings = {"batch_size": 8, "seed": 0, "padding": PADDING, "flip": True}
    usual = Batches(random_images(20), **settings).batch(0, 1)
    other = Batches(random_images(20), **settings, channels_last=True).batch(0, 1)
    assert other.images.is_contiguous(memory_format=torch.channels_last)
    assert usual.images.is_contiguous()
    assert equal(usual, other)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 4]), (True, [8, 8])])
def test_the_last_batch_is_small_or_dropped(drop_last, sizes):
    batches = Batches(random_images(20), batch_size=8, seed=0, drop_last=drop_last)
    assert [batch.total for batch in epoch_of(batches, 0)] == sizes
    assert len(batches) == len(sizes)


def test_rectangles_work():
    data = ImageSet(random_images(6).images[..., :7].contiguous(), torch.zeros(6, dtype=torch.int64), ("a",))
    assert Batches(data, batch_size=4, seed=0, padding=2, flip=True).batch(0, 0).images.shape == (4, 3, 12, 7)


def test_wrong_arguments_are_errors():
    data = random_images(5)
    with pytest.raises(ValueError, match="batch_size=0"):
        Batches(data, batch_size=0, seed=0)
    with pytest.raises(ValueError, match="padding=-1"):
        Batches(data, batch_size=2, seed=0, padding=-1)
    with pytest.raises(ValueError, match="an epoch of 5 images has no batch of 6"):
        Batches(data, batch_size=6, seed=0, drop_last=True)
    with pytest.raises(ValueError, match="an epoch of 0 images"):
        Batches(data.take([]), batch_size=6, seed=0)
    batches = Batches(data, batch_size=2, seed=0)
    with pytest.raises(IndexError, match=r"steps 0 … 2; got 3"):
        batches.batch(0, 3)
    with pytest.raises(ValueError, match="part=2, parts=2"):
        batches.batch(0, 0, part=2, parts=2)
    with pytest.raises(ValueError, match="epoch=-1"):
        batches.batch(-1, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    "more", [{"padding": PADDING}, {"augmentation": AUGMENTATIONS["cropshift"], "cutmix": 0.5}]
)
def test_a_gpu_gives_the_same_batches_without_host_synchronisation(more):
    data = random_images(40)
    settings = {"batch_size": 16, "seed": 0, "flip": True, **more}
    here, there = Batches(data, **settings), Batches(data.to("cuda"), **settings)
    there.batch(1, 0)  # plans the epoch
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = there.batch(1, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(batch.images.cpu(), here.batch(1, 1).images)
    assert torch.equal(batch.index.cpu(), here.batch(1, 1).index)
