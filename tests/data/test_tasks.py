"""Tasks on built-in data: what an image is made from, and that it reaches a batch, a cache and the devices."""

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from diffusion_jax import config as config_lib
from diffusion_jax.data import batching, builtin, cache, masks, sources, tasks


def config_for(name, task, resolution, channels, cache="none", **fields):
  config = config_lib.default()
  config.method = "decoupled"
  config.data.update(name=name, resolution=resolution, channels=channels, num_classes=0, split="test", cache=cache)
  config.task.update(name=task, **fields)
  config_lib.check(config)
  return config


def first(source, count=40):
  return source.gather(np.arange(count))


def test_without_a_task_there_is_no_condition():
  config = config_for("scenes", "", 16, 3)
  source = sources.from_config(config)
  assert set(first(source)) == {"image", "label"} and not hasattr(source, "condition_shape")


@pytest.mark.parametrize("scale", [2, 4])
def test_the_smaller_copy_is_pils_bicubic(scale):
  source = sources.from_config(config_for("photos", "superres", 32, 3, scale=scale))
  assert source.condition_shape == source.image_shape == (32, 32, 3)
  got, plain = first(source), sources.load("photos", "test", resolution=32).gather(np.arange(40))
  np.testing.assert_array_equal(got["image"], plain["image"])
  np.testing.assert_array_equal(got["label"], plain["label"])
  for image, condition in zip(plain["image"], got["condition"]):
    small = Image.fromarray(image).resize((32 // scale, 32 // scale), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(condition, np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC)))


def test_the_smaller_copy_is_averaged_not_picked():
  """A board of single pixels becomes even grey: what lies between the pixels that are kept is not lost."""
  board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None, ..., None]
  low = tasks.lowered(board, 4)[:, 8:-8, 8:-8].astype(int)
  assert np.abs(low - 127.5).max() < 2


def test_floats_become_bytes_in_the_smaller_copy():
  images = sources.load("digits", "test").gather(np.arange(20))["image"]
  as_bytes = np.rint((images + 1) * 127.5).astype(np.uint8)
  np.testing.assert_array_equal(tasks.lowered(images, 2), tasks.lowered(as_bytes, 2))


@pytest.mark.parametrize("name, resolution, channels, low", [("photos", 16, 3, 0), ("digits", 8, 1, -1.0)])
@pytest.mark.parametrize("kind", masks.KINDS)
def test_holes_are_black_and_all_else_is_the_image(name, resolution, channels, low, kind):
  source = sources.from_config(config_for(name, "inpaint", resolution, channels, masks=kind))
  batch = first(source)
  image, mask, condition = batch["image"], batch["mask"], batch["condition"]
  assert mask.shape == (40, resolution, resolution, 1) and mask.dtype == np.uint8 and condition.dtype == image.dtype
  hole = np.broadcast_to(mask == 1, image.shape)
  assert (condition[hole] == low).all()
  np.testing.assert_array_equal(condition[~hole], image[~hole])
  for i in (0, 7, 39):
    np.testing.assert_array_equal(mask[i, ..., 0], masks.holes(kind, i, (resolution, resolution)))
  np.testing.assert_array_equal(source.gather(np.array([7]))["mask"][0], mask[7])  # alone as among others


# --- scenes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[16, 32])
def scenes(request):
  return sources.load("scenes", "test", resolution=request.param)


def cut_out(ink):
  """[h, w] as 8×8: what is not zero, and no border."""
  rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
  ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  image = Image.fromarray((255 * ink).astype(np.uint8))
  return np.asarray(image.resize((8, 8), Image.Resampling.BOX)) / 255


def test_scenes_are_digits(scenes):
  """The masks' shapes are nearest to those of digits of their own class."""
  digits = sklearn.datasets.load_digits()
  shapes = np.stack([cut_out(np.where(image >= 7, image, 0) / 16) for image in digits.images])
  assert (len(scenes), scenes.num_classes, scenes.image_shape[-1]) == (297, 10, 3)
  assert set(np.unique(scenes.masks)) == {0, 255}
  nearest = [((shapes - cut_out(mask)) ** 2).sum((1, 2)).argmin() for mask in scenes.masks[..., 0] > 0]
  assert (digits.target[nearest] == scenes.labels).mean() > 0.8


def test_scenes_are_photographs_but_for_the_digit(scenes):
  """Off the ink every pixel is a photograph's, from columns that only this split may see."""
  photographs = np.stack(sklearn.datasets.load_sample_images().images)
  test = {tuple(pixel) for pixel in photographs[:, :, 480:].reshape(-1, 3)}
  near = np.stack([np.roll(scenes.masks[..., 0] > 0, shift, (1, 2)) for shift in np.ndindex(5, 5)]).any(0)
  near = np.roll(near, (-2, -2), (1, 2))
  for image, ink in list(zip(scenes.images, near))[::10]:
    pixels = [tuple(pixel) for pixel in image[~ink]]
    assert np.mean([pixel in test for pixel in pixels]) > 0.97  # a soft edge may reach further


def test_the_digit_can_be_seen_but_no_threshold_finds_it(scenes):
  """By its colour against what it covers; the best threshold of brightness, chosen image by image, is far from it."""
  ink = scenes.masks[..., 0] > 0
  contrast = [np.abs(image[m].mean(0) - image[~m].mean(0)).max() for image, m in zip(scenes.images.astype(float), ink)]
  assert np.percentile(contrast, 5) > 15
  grey = scenes.images.mean(-1)
  errors = [np.abs((grey > level) - ink.astype(float)).mean((1, 2)) for level in range(8, 256, 16)]
  errors = np.stack(errors)
  assert errors.mean(1).min() > ink.mean() - 0.02  # one threshold for all is no better than to call nothing salient
  share = (scenes.images[ink].mean(-1) > 127).mean()
  assert 0.2 < share < 0.8  # digits are as often light as dark


def test_scenes_are_a_function_of_the_index():
  again = builtin.scenes.__wrapped__("test", 16)
  known = sources.load("scenes", "test", resolution=16)
  np.testing.assert_array_equal(again.images, known.images)
  np.testing.assert_array_equal(again.masks, known.masks)
  assert len({image.tobytes() for image in known.images}) == len(known)


def test_scenes_of_train_use_train_digits_and_columns(monkeypatch):
  asked = []
  ink, photographs = builtin.digits("train"), builtin._photographs().copy()
  photographs[:, :, 480:] = 0  # of test
  monkeypatch.setattr(builtin, "_photographs", lambda: photographs)
  few = sources.Arrays("digits", "train", ink.images[:200], ink.labels[:200], 10)
  monkeypatch.setattr(builtin, "digits", lambda split: asked.append(split) or few)
  scenes = builtin.scenes.__wrapped__("train", 32)
  assert asked == ["train"] and len(scenes) == 4 * 200
  black = (scenes.images == 0).all(-1) & (scenes.masks[..., 0] == 0)
  assert black.mean((1, 2)).max() < 0.5  # a patch of black columns would be all black
  np.testing.assert_array_equal(scenes.labels, np.tile(ink.labels[:200], 4))


def test_saliency_draws_the_mask_from_the_photograph(scenes):
  side = scenes.image_shape[0]
  source = sources.from_config(config_for("scenes", "saliency", side, 1))
  assert (source.image_shape, source.condition_shape) == ((side, side, 1), (side, side, 3))
  batch = source.gather(np.array([5, 2, 2]))
  np.testing.assert_array_equal(batch["image"], scenes.masks[[5, 2, 2]])
  np.testing.assert_array_equal(batch["condition"], scenes.images[[5, 2, 2]])
  np.testing.assert_array_equal(batch["label"], scenes.labels[[5, 2, 2]])


@pytest.mark.parametrize("split, resolution", [("trian", 32), ("test", 8), ("test", 16.0)])
def test_scenes_that_there_are_not(split, resolution):
  with pytest.raises(ValueError, match="did you mean 'train'|resolution of source 'scenes' must be 16 or 32"):
    sources.load("scenes", split, resolution=resolution)


# --- caches -----------------------------------------------------------------------------------------------------------

BUILT_IN = [("photos", "superres", 16, 3), ("photos", "inpaint", 16, 3), ("scenes", "saliency", 16, 1)]


@pytest.mark.parametrize("case", BUILT_IN, ids=lambda case: case[1])
def test_a_cache_holds_conditions_too(case):
  plain, held = (sources.from_config(config_for(*case, cache=mode)) for mode in ("none", "host"))
  assert isinstance(held, sources.Cached) and not isinstance(plain, sources.Cached)
  assert held.condition_shape == plain.condition_shape
  for step in range(2):
    a, b = (batching.batch(source, 1, step, 16) for source in (plain, held))
    assert a.keys() == b.keys() and "condition" in a and ("mask" in a) == (case[1] == "inpaint")
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_everything_of_a_task():
  source = sources.from_config(config_for("digits", "inpaint", 8, 1, cache="device"))
  whole, plain = sources.everything(source), source.gather(np.arange(len(source)))
  assert whole.keys() == {"image", "label", "mask", "condition"}
  for key in whole:
    np.testing.assert_array_equal(whole[key], plain[key])


def test_conditions_count_in_memory(monkeypatch):
  config = config_for("digits", "inpaint", 8, 1, cache="auto")
  size = 297 * (8 * 8 * 4 * 2 + 8 * 8)  # two of floats, one of bytes
  for memory, held in ((4 * size, True), (4 * size - 1, False)):
    monkeypatch.setattr(cache, "available_memory", lambda: memory)
    assert isinstance(sources.from_config(config), sources.Cached) == held


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, pattern", [
  ({"task.name": "superress"}, r"config.task.name = 'superress': .*nearest: superres"),
  ({"task.masks": "stroke"}, r"config.task.masks = 'stroke': .*nearest: strokes"),
  ({"task.masks": "boxes"}, r"config.task.masks = 'boxes': must be 'mixed' for task 'superres'"),
  ({"task.name": "inpaint", "task.scale": 2}, r"config.task.scale = 2: must be 4 for task 'inpaint'"),
  ({"task.name": "", "task.path": "x"}, r"config.task.path = 'x': must be '' for task 'none'"),
  ({"task.scale": 1}, r"config.task.scale = 1: must be at least 2 and divide data.resolution \(32\)"),
  ({"task.scale": 5}, r"config.task.scale = 5: must be at least 2 and divide data.resolution \(32\)"),
  ({"method": "dpdm"}, r"config.task.name = 'superres': must be '' for method 'dpdm'; edm, dual_output"),
  ({"data.augment": 0.1}, r"config.data.augment = 0.1: must be 0 with a task"),
  ({"train.score_every": 5000}, r"config.train.score_every = 5000: must be 0 with a task"),
  ({"task.name": "saliency"}, r"config.data.channels = 3: must be 1 for task 'saliency'"),
  ({"task.path": "x"}, r"config.task.path = 'x': must be '' for data.name = 'photos'"),
  ({"data.transform": "crops"}, r"config.data.transform = 'crops': must be of a folder or zip, not .*'photos'"),
  ({"data.transform": "crop"}, r"config.data.transform = 'crop': .*nearest: crops"),
  ({"data.name": "zip", "task.path": "x", "data.transform": "resize"}, r"'resize': must be '' or 'crops' for task"),
  (
    {"data.name": "zip", "task.name": "inpaint", "task.path": "x", "data.transform": "crops"},
    r"config.data.transform = 'crops': must not be 'crops' for task 'inpaint' with task.path",
  ),
  (
    {"data.name": "zip", "task.name": "inpaint", "task.path": "x", "task.masks": "boxes"},
    r"config.task.masks = 'boxes': must be 'mixed' with task.path",
  ),
])  # fmt: skip
def test_fields_that_do_not_go_together(changes, pattern):
  config = config_for("photos", "superres", 32, 3)
  config.update_from_flattened_dict(changes)
  with pytest.raises(config_lib.ConfigError, match=pattern) as error:
    config_lib.check(config)
  assert "\n" not in str(error.value)


def test_saliency_needs_masks():
  with pytest.raises(config_lib.ConfigError, match="task.name = 'saliency': digits has no masks: scenes has, or task"):
    sources.from_config(config_for("digits", "saliency", 8, 1))
