"""Images and what they are made from, in files: DIV2K, holes for CelebA-HQ, DUTS, as they are on disk."""

import numpy as np
import pytest
from data.formats import encoded, make_folder, make_zip, random_images
from PIL import Image

from diffusion_jax import config as config_lib
from diffusion_jax.data import batching, decoded, pairs, sources
from diffusion_jax.data.crops import Crop
from diffusion_jax.data.transforms import Transform


def config_for(data_path, task, path, resolution=8, channels=3, transform="", name="folder", **fields):
  config = config_lib.default()
  config.method = "decoupled"
  config.data.update(
    name=name, path=str(data_path), resolution=resolution, channels=channels, num_classes=0, transform=transform,
    cache="none",
  )  # fmt: skip
  config.task.update(name=task, path=str(path), **fields)
  config_lib.check(config)
  return config


def opened(*args, **fields):
  source = sources.from_config(config_for(*args, **fields))
  return source, source.gather(np.arange(len(source)))


def smooth(height, width, seed=0, channels=3):
  """An image whose parts all differ."""
  row, column = np.mgrid[:height, :width]
  phases = np.random.default_rng(seed).uniform(0, 6, channels)
  return np.stack([128 + 60 * np.sin(row / 5 + p) + 60 * np.cos(column / 7 + p) for p in phases], -1).astype(np.uint8)


# --- crops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("size", [(8, 8), (16, 8), (20, 36), (2040, 1356)])
def test_crops_reach_every_pixel_with_steps_of_their_side_at_most(size, step):
  corners = Crop(8, step=step).corners(size)
  for axis, length in enumerate(size):
    along = np.unique(corners[:, axis])
    assert along[0] == 0 and along[-1] == length - 8 and not (along % step).any()
    gaps = np.diff(along)
    assert gaps.size == 0 or (gaps.max() <= 8 and gaps.max() - gaps.min() <= step)
    assert len(along) == -(-length // 8)  # no more than are needed
  assert len(np.unique(corners, axis=0)) == len(corners)


def test_crops_are_parts_of_the_images_in_their_order(tmp_path):
  images = {"a.png": smooth(20, 33), "b/c.png": smooth(16, 16, 1), "d.jpg": encoded(smooth(16, 17, 2), "jpeg")}
  source, batch = opened(make_folder(tmp_path, images), "", "", 16, transform="crops")
  whole = [images["a.png"], images["b/c.png"], np.asarray(Image.open(tmp_path / "d.jpg"))]
  where = [(0, top, left) for top in (0, 4) for left in (0, 9, 17)] + [(1, 0, 0), (2, 0, 0), (2, 0, 1)]
  assert len(source) == len(where) == 9
  for k, (image, top, left) in enumerate(where):
    np.testing.assert_array_equal(batch["image"][k], whole[image][top : top + 16, left : left + 16])
  some = np.array([8, 0, 3, 8, 6])
  np.testing.assert_array_equal(source.gather(some)["image"], batch["image"][some])


def test_a_file_is_decoded_once_for_all_its_crops(tmp_path, monkeypatch):
  monkeypatch.setattr(decoded, "_workers", lambda: 1)
  path = make_folder(tmp_path, {"a.png": smooth(32, 64), "b.png": smooth(32, 64, 1)})
  source = sources.from_config(config_for(path, "", "", 8, transform="crops"))
  reads = []
  plain = source.files._read
  monkeypatch.setattr(source.files, "_read", lambda i: reads.append(i) or plain(i))
  source.gather(np.random.default_rng(0).permutation(len(source)))
  assert reads == [0, 1] and len(source) == 64


@pytest.mark.parametrize("task", ["", "superres"])
def test_a_cache_reads_all_crops_of_a_file_at_once(tmp_path, monkeypatch, task):
  path = make_folder(tmp_path, {"a.png": smooth(32, 64), "b.png": smooth(32, 64, 1)})
  config = config_for(path, task, "", 8, transform="crops")
  plain, config.data.cache = sources.from_config(config), "host"
  held, reads = sources.from_config(config), []
  monkeypatch.setattr(decoded, "_workers", lambda: 1)
  read = decoded.Files._read
  monkeypatch.setattr(decoded.Files, "_read", lambda self, i: reads.append(i) or read(self, i))
  got = [held.gather(np.array(indices)) for indices in ([40, 60], [41, 33], [0], [63, 31])]
  assert reads == [1, 0]
  for key, value in got[3].items():
    np.testing.assert_array_equal(value, plain.gather(np.array([63, 31]))[key])


def test_crops_have_the_labels_of_their_images_and_any_mode(tmp_path):
  files = {"x/a.png": Image.new("L", (20, 16), 7), "y/b.png": Image.new("RGBA", (16, 16), (1, 2, 3, 9))}
  config = config_for(make_folder(tmp_path, files), "", "", 16, transform="crops")
  config.data.num_classes = 2
  batch = sources.from_config(config).gather(np.arange(3))
  assert batch["label"].tolist() == [0, 0, 1]
  np.testing.assert_array_equal(batch["image"][:, 3, 5], [[7, 7, 7], [7, 7, 7], [1, 2, 3]])


def test_images_too_small_for_crops(tmp_path):
  path = make_folder(tmp_path, {"a.png": smooth(32, 32), "b.png": smooth(15, 40)})
  with pytest.raises(config_lib.ConfigError, match=r"b.png \(image 1\) cannot be transformed: it has 40×15 pixels"):
    opened(path, "", "", 16, transform="crops")


# --- super-resolution: DIV2K ------------------------------------------------------------------------------------------


def div2k(tmp_path, sizes=((48, 64), (36, 40)), scale=4):
  """Folders as they are unpacked: DIV2K_train_HR/0001.png, DIV2K_train_LR_bicubic/X4/0001x4.png, and other scales."""
  large, small = {}, {}
  for k, (height, width) in enumerate(sizes, 1):
    image = Image.fromarray(smooth(height, width, k))
    large[f"{k:04d}.png"] = image
    for s in (2, scale):
      shape = (width // s, height // s)
      small[f"X{s}/{k:04d}x{s}.png"] = image.resize(shape, Image.Resampling.BICUBIC)
  return make_folder(tmp_path / "DIV2K_train_HR", large), make_folder(tmp_path / "DIV2K_train_LR_bicubic", small)


def test_div2k_small_images_stay_aligned_to_the_pixel(tmp_path):
  """Pixels of the small images say where they lie, so those under a crop are known."""
  sizes = [(48, 64), (36, 40)]
  large, small = div2k(tmp_path, sizes)
  for k, (height, width) in enumerate(sizes, 1):
    row, column = np.mgrid[: height // 4, : width // 4]
    coded = np.stack([row, column, 0 * row + k], -1).astype(np.uint8)
    Image.fromarray(coded).save(f"{small}/X4/{k:04d}x4.png")
    Image.fromarray(np.kron(coded, np.ones((4, 4, 1), np.uint8))).save(f"{large}/{k:04d}.png")
  source, batch = opened(large, "superres", f"{small}/X4", 16, transform="crops")
  assert len(source) == 3 * 4 + 3 * 3 and source.condition_shape == (16, 16, 3)
  for image, condition in zip(batch["image"], batch["condition"]):
    expected = Image.fromarray(image[::4, ::4]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(condition, np.asarray(expected))


def test_div2k_is_as_if_made_from_the_large_images(tmp_path):
  """Away from the borders of a crop, where the small image knows what lies beyond."""
  large, small = div2k(tmp_path)
  for path in (f"{small}/X4", small):  # beside other scales the suffix chooses
    read = opened(large, "superres", path, 32, transform="crops")[1]
    made = opened(large, "superres", "", 32, transform="crops")[1]
    np.testing.assert_array_equal(read["image"], made["image"])
    inside = np.s_[:, 12:-12, 12:-12]
    difference = np.abs(read["condition"][inside].astype(int) - made["condition"][inside])
    assert difference.max() <= 1
  assert opened(large, "superres", small, 32, transform="crops", scale=2)[1]["condition"].shape[1] == 32


def test_small_images_of_images_of_the_size(tmp_path):
  """CelebA-HQ 1024 and its quarter, say: all of one size, no crops, from a zip."""
  images = [smooth(16, 16, k) for k in range(3)]
  small = {f"img{k:08d}.png": image[::4, ::4] for k, image in enumerate(images)}
  path = make_zip(tmp_path / "a.zip", images)
  source, batch = opened(path, "superres", make_folder(tmp_path / "s", small), 16, name="zip")
  for k in range(3):
    expected = Image.fromarray(images[k][::4, ::4]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(batch["condition"][k], np.asarray(expected))


# --- inpainting: CelebA-HQ with masks ---------------------------------------------------------------------------------


def test_holes_of_files(tmp_path):
  """White, at least half grey, or a one of zeros and ones; of either size; LaMa's names or the image's."""
  images = dict(zip(("a.png", "b.png", "c.png", "d.png"), random_images(4, 16, 16, 3)))
  row, column = np.mgrid[:16, :16]
  inside = (row // 4 + column // 8) % 2 == 1
  holes = {
    "a_mask000.png": np.where(inside, 255, 0), "b.png": np.where(inside, 128, 127), "c_mask001.png": inside,
    "d_mask.png": Image.fromarray(inside[::2, ::2]), "other.png": np.zeros((3, 3)),
  }  # fmt: skip
  holes = {k: v if isinstance(v, Image.Image) else v.astype(np.uint8)[..., None] for k, v in holes.items()}
  paths = make_folder(tmp_path / "celeba_hq", images), make_folder(tmp_path / "holes", holes)
  source, batch = opened(paths[0], "inpaint", paths[1], 8, transform="resize")
  np.testing.assert_array_equal(batch["mask"][..., 0], np.broadcast_to(inside[::2, ::2], (4, 8, 8)))
  resized = np.stack([Transform("resize", 8, 8)(Image.fromarray(image)) for image in images.values()])
  np.testing.assert_array_equal(batch["image"], resized)
  np.testing.assert_array_equal(batch["condition"], resized * (1 - batch["mask"]))
  del holes["d_mask.png"], images["d.png"]
  plain = make_folder(tmp_path / "plain", images), make_folder(tmp_path / "h", holes)
  batch = opened(*plain[:1], "inpaint", plain[1], 16)[1]
  np.testing.assert_array_equal(batch["mask"][..., 0], np.broadcast_to(inside, (3, 16, 16)))


@pytest.mark.parametrize("value, message", [(0, "has no hole"), (255, "has nothing but holes")])
def test_files_without_a_hole_or_anything_else(tmp_path, value, message):
  hole = np.zeros((8, 8, 1), np.uint8)
  hole[:4] = 255
  images = {f"{k}.png": image for k, image in enumerate(random_images(30, 8, 8, 3))}
  holes = {f"{k}.png": hole if k != 23 else np.full_like(hole, value) for k in range(30)}
  paths = make_folder(tmp_path / "i", images), make_folder(tmp_path / "h", holes)
  with pytest.raises(config_lib.ConfigError, match=rf"config.task.path = .*/h/23.png \(image \d+\) {message}") as error:
    opened(paths[0], "inpaint", paths[1])
  assert "\n" not in str(error.value)


def test_a_hole_that_the_resizing_loses(tmp_path):
  hole = np.zeros((64, 64, 1), np.uint8)
  hole[5, 5] = 255
  paths = make_folder(tmp_path / "i", {"a.png": smooth(64, 64)}), make_folder(tmp_path / "h", {"a.png": hole})
  with pytest.raises(config_lib.ConfigError, match=r"/h/a.png \(image 0\) has no hole"):
    opened(paths[0], "inpaint", paths[1], 8, transform="resize")


# --- saliency: DUTS ---------------------------------------------------------------------------------------------------


def duts(tmp_path):
  """DUTS-TR as it is unpacked: JPEGs and PNGs of many sizes; on an object the photograph is white."""
  photographs, masks = {}, {}
  for k, (height, width) in enumerate([(30, 40), (40, 30), (33, 44)]):
    mask = np.zeros((height, width, 1), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 255
    name = f"DUTS-TR-{{}}/ILSVRC2012_test_{k:08d}"
    masks[name.format("Mask") + ".png"] = mask
    photographs[name.format("Image") + ".jpg"] = encoded(np.repeat(mask, 3, -1), "jpeg", quality=95)
  make_folder(tmp_path / "DUTS-TR", photographs | masks)
  return tmp_path / "DUTS-TR/DUTS-TR-Mask", tmp_path / "DUTS-TR/DUTS-TR-Image"


@pytest.mark.parametrize("transform", ["resize", "center-crop", "crops"])
def test_duts_masks_stay_aligned_with_their_photographs(tmp_path, transform):
  masks, photographs = duts(tmp_path)
  source, batch = opened(masks, "saliency", photographs, 16, 1, transform=transform)
  assert (source.image_shape, source.condition_shape) == ((16, 16, 1), (16, 16, 3))
  assert len(source) == (3 if transform != "crops" else 6 + 6 + 9)
  assert np.abs(batch["image"].astype(int) - batch["condition"]).max() < 60  # but for what JPEG leaves
  assert np.abs(batch["image"].astype(int) - batch["condition"]).mean() < 4
  if transform == "resize":
    for k, path in enumerate(sorted(masks.iterdir())):
      np.testing.assert_array_equal(batch["image"][k], Transform("resize", 16, 16, 1)(Image.open(path)))
      photograph = Image.open(photographs / f"{path.stem}.jpg")
      np.testing.assert_array_equal(batch["condition"][k], Transform("resize", 16, 16, 3)(photograph))


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_partners_is_one_line_that_names_the_file(tmp_path):
  large, small = div2k(tmp_path)
  masks, photographs = duts(tmp_path)
  images = make_folder(tmp_path / "i", {"a.png": smooth(16, 16), "b.png": smooth(16, 16)})
  half = np.where(np.mgrid[:16, :16][0] < 8, 255, 0)[..., None].astype(np.uint8)
  folder = lambda name, **files: make_folder(tmp_path / name, {f"{k}.png": v for k, v in files.items()})
  good = photographs / "ILSVRC2012_test_00000001.jpg"
  damaged = tmp_path / "damaged"
  damaged.mkdir()
  for path in photographs.iterdir():
    (damaged / path.name).write_bytes(path.read_bytes()[: 300 if path == good else None])
  crops, inpaint = dict(resolution=16, transform="crops"), dict(resolution=16)
  saliency = dict(resolution=16, channels=1, transform="resize")
  small_x2 = make_folder(tmp_path / "X2", {f"{k:04d}.png": smooth(18, 20) for k in (1, 2)})
  tall = np.zeros((17, 16, 1), np.uint8)
  cases = [
    (large, "superres", tmp_path / "none", crops, r"/none is no folder"),
    (large, "superres", images, crops, r"0001.png has no partner in .*/i$"),
    (large, "superres", small_x2, crops, r"X2/0001.png .image 0. has 20×18 pixels and .*DIV2K_train_HR/0001.png "
     r".image 0. has 64×48: expected 4 times the size"),
    (images, "inpaint", folder("h1", a_mask0=half), inpaint, r"b.png has no partner in .*/h1"),
    (images, "inpaint", folder("h2", a_mask0=half, a_mask1=half, b=half), inpaint,
     r"a.png has several partners in .*/h2: a_mask0.png, a_mask1.png"),
    (images, "inpaint", folder("h3", a=half, b=tall), inpaint,
     r"/h3/b.png .image 1. has 16×17 pixels and .*/i/b.png .image 1. has 16×16: expected the same, or 16×16"),
    (masks, "saliency", damaged, saliency, rf"/damaged/{good.name} .image 1. cannot be read: "),
  ]  # fmt: skip
  for data, task, path, options, pattern in cases:
    with pytest.raises(config_lib.ConfigError, match="config.task.path = .*" + pattern) as error:
      opened(data, task, path, **options)
    assert "\n" not in str(error.value), pattern


@pytest.mark.parametrize("data, task", [("", ""), ("", "/masks"), ("/images", "")])
def test_partners_lie_apart_from_the_images(tmp_path, data, task):
  """Else an image that has none would be its own."""
  hole = np.tile(np.uint8([[[0]], [[255]]]), (4, 8, 1))
  make_folder(tmp_path / "a", {"images/1.png": smooth(8, 8), "masks/1_mask.png": hole})
  with pytest.raises(config_lib.ConfigError, match="config.task.path = .*: must be apart from config.data.path"):
    opened(f"{tmp_path}/a{data}", "inpaint", f"{tmp_path}/a{task}")
  assert len(opened(f"{tmp_path}/a/images", "inpaint", f"{tmp_path}/a/masks")[0]) == 1


@pytest.mark.parametrize("names, found, pattern, expected", [
  (["x/1.png", "y/1.png", "2.JPG"], ["y/1.jpg", "x/1.png", "2.png"], "", ["x/1.png", "y/1.jpg", "2.png"]),
  (["00000/img1.png"], ["img1.jpg", "img2.jpg"], "", ["img1.jpg"]),
  (["img1.png"], ["deep/er/img1.jpg"], "", ["deep/er/img1.jpg"]),
  (["1.png"], ["1.png", "1x4.png", "1x2.png"], "x4", ["1x4.png"]),
  (["a_mask.png"], ["a_mask.png", "b.png"], r"_mask\d*", ["a_mask.png"]),
  (["1.png"], ["x/1.png", "y/1.png"], "", None),
  (["1.png"], ["11.png", "1.txt"], "", None),
])  # fmt: skip
def test_partners_are_matched_by_path_and_else_by_name(tmp_path, names, found, pattern, expected):
  path = make_folder(tmp_path, dict.fromkeys(found, b""))
  if expected:
    assert pairs.matched(names, path, pattern) == expected
  else:
    with pytest.raises(sources.DataError, match="^1.png has (several partners|no partner) in "):
      pairs.matched(names, path, pattern)


def test_batches_and_caches_of_files(tmp_path):
  large, small = div2k(tmp_path)
  config = config_for(large, "superres", small, 16, transform="crops")
  plain = sources.from_config(config)
  config.data.cache = "device"
  held = sources.from_config(config)
  assert isinstance(held, sources.Cached) and held.condition_shape == (16, 16, 3)
  for step in range(3):
    a, b = (batching.batch(source, 0, step, 8) for source in (plain, held))
    assert a.keys() == b.keys() == {"image", "label", "condition", "index", "slot"}
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])
  whole = sources.everything(held)
  np.testing.assert_array_equal(whole["condition"], plain.gather(np.arange(len(plain)))["condition"])
