"""guided-diffusion's U-Net after Dhariwal and Nichol 2021: its state dict drawn at random, and its forward pass.

In NumPy's float64, images [B, C, H, W], and independent of diffusion_jax: modules are numbered while the network is
built, and found again by what lies at each number.
"""

from typing import NamedTuple

import numpy as np


class Spec(NamedTuple):
  """The published program's arguments; attention is given by downsampling factors."""

  channels: int = 128
  channel_mult: tuple[int, ...] = (1, 2)
  num_blocks: int = 1
  attention_ds: tuple[int, ...] = (2,)
  image_channels: int = 3
  out_channels: int = 6
  num_classes: int = 0
  heads: int | None = None  # of every attention; None: of 64 channels each
  new_order: bool = False


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
  """The state dict's names and shapes, in its order."""
  found: dict[str, tuple[int, ...]] = {}
  width = 4 * spec.channels

  def weighted(name, out, *rest):
    found[f"{name}.weight"], found[f"{name}.bias"] = (out, *rest), (out,)

  def norm(name, channels):
    found[f"{name}.weight"] = found[f"{name}.bias"] = (channels,)

  def block(name, channels, out):
    norm(f"{name}.in_layers.0", channels)
    weighted(f"{name}.in_layers.2", out, channels, 3, 3)
    weighted(f"{name}.emb_layers.1", 2 * out, width)
    norm(f"{name}.out_layers.0", out)
    weighted(f"{name}.out_layers.3", out, out, 3, 3)
    if out != channels:
      weighted(f"{name}.skip_connection", out, channels, 1, 1)

  def attention(name, channels):
    norm(f"{name}.norm", channels)
    weighted(f"{name}.qkv", 3 * channels, channels, 1)
    weighted(f"{name}.proj_out", channels, channels, 1)

  weighted("time_embed.0", width, spec.channels)
  weighted("time_embed.2", width, width)
  if spec.num_classes:
    found["label_emb.weight"] = (spec.num_classes, width)
  weighted("input_blocks.0.0", spec.channels, spec.image_channels, 3, 3)
  channels, ds, number = spec.channels, 1, 1
  kept = [channels]
  for level, mult in enumerate(spec.channel_mult):
    for _ in range(spec.num_blocks):
      block(f"input_blocks.{number}.0", channels, mult * spec.channels)
      channels = mult * spec.channels
      if ds in spec.attention_ds:
        attention(f"input_blocks.{number}.1", channels)
      kept.append(channels)
      number += 1
    if level + 1 < len(spec.channel_mult):
      block(f"input_blocks.{number}.0", channels, channels)
      kept.append(channels)
      number, ds = number + 1, 2 * ds
  block("middle_block.0", channels, channels)
  attention("middle_block.1", channels)
  block("middle_block.2", channels, channels)
  number = 0
  for level, mult in reversed(list(enumerate(spec.channel_mult))):
    for i in range(spec.num_blocks + 1):
      parts = 1
      block(f"output_blocks.{number}.0", channels + kept.pop(), mult * spec.channels)
      channels = mult * spec.channels
      if ds in spec.attention_ds:
        attention(f"output_blocks.{number}.1", channels)
        parts = 2
      if level and i == spec.num_blocks:
        block(f"output_blocks.{number}.{parts}", channels, channels)
        ds //= 2
      number += 1
  norm("out.0", channels)
  weighted("out.2", spec.out_channels, channels, 3, 3)
  return found


def draw(spec: Spec, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
  """A state dict of random tensors, of which none is zero and norms are near the identity."""
  rng, tensors = np.random.default_rng(seed), {}
  for name, shape in shapes(spec).items():
    x = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
      x /= np.sqrt(1 if name.startswith("label") else np.prod(shape[1:]))
    elif name.endswith("weight"):
      x = 1 + 0.2 * x
    else:
      x *= 0.2
    tensors[name] = x.astype(dtype)
  return tensors


def forward(tensors: dict[str, np.ndarray], spec: Spec, x, t, label=None) -> np.ndarray:
  """[B, C, H, W], indices [B], classes [B] -> [B, out_channels, H, W] in float64."""
  tensors = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
  of = lambda name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"])

  def linear(name, x):
    weight, bias = of(name)
    return x @ weight.T + bias

  def conv(name, x):
    weight, bias = of(name)
    reach = weight.shape[-1] // 2
    padded = np.pad(x, [(0, 0), (0, 0), (reach, reach), (reach, reach)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))
    return np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2) + bias[:, None, None]

  def norm(name, x):
    weight, bias = of(name)
    groups = x.reshape(len(x), 32, -1)
    groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    shape = (-1,) + (1,) * (x.ndim - 2)
    return groups.reshape(x.shape) * weight.reshape(shape) + bias.reshape(shape)

  def silu(x):
    return x / (1 + np.exp(-x))

  def resampled(x, how):
    if how == "down":
      return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
    return x.repeat(2, 2).repeat(2, 3) if how == "up" else x

  def block(name, x, how):
    h = conv(f"{name}.in_layers.2", resampled(silu(norm(f"{name}.in_layers.0", x)), how))
    scale, shift = np.split(linear(f"{name}.emb_layers.1", silu(emb))[:, :, None, None], 2, 1)
    h = conv(f"{name}.out_layers.3", silu(norm(f"{name}.out_layers.0", h) * (1 + scale) + shift))
    x = resampled(x, how)
    return h + (conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in tensors else x)

  def attention(name, x):
    batch, channels = x.shape[:2]
    count = spec.heads or channels // 64
    flat = x.reshape(batch, channels, -1)
    weight, bias = of(f"{name}.qkv")
    qkv = np.einsum("oi,bin->bon", weight[:, :, 0], norm(f"{name}.norm", flat)) + bias[:, None]
    each = channels // count
    if spec.new_order:
      q, k, v = (part.reshape(batch, count, each, -1) for part in np.split(qkv, 3, 1))
    else:
      q, k, v = np.split(qkv.reshape(batch, count, 3 * each, -1), 3, 2)
    logits = np.einsum("bhcq,bhck->bhqk", q, k) / np.sqrt(each)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    h = np.einsum("bhqk,bhck->bhcq", weights, v).reshape(batch, channels, -1)
    weight, bias = of(f"{name}.proj_out")
    return (flat + np.einsum("oi,bin->bon", weight[:, :, 0], h) + bias[:, None]).reshape(x.shape)

  def entry(name, x, how):
    """All modules of one numbered entry; a second residual block in it, and only that, is the way up."""
    for i in range(3):
      part = f"{name}.{i}"
      if f"{part}.qkv.weight" in tensors:
        x = attention(part, x)
      elif f"{part}.in_layers.0.weight" in tensors:
        x = block(part, x, "up" if how == "output" and i else how)
      elif f"{part}.weight" in tensors:
        x = conv(part, x)
    return x

  half = spec.channels // 2
  angles = np.asarray(t, np.float64)[:, None] * np.exp(-np.log(10000) * np.arange(half) / half)
  emb = linear("time_embed.0", np.concatenate([np.cos(angles), np.sin(angles)], 1))
  emb = linear("time_embed.2", silu(emb))
  if label is not None:
    emb = emb + tensors["label_emb.weight"][label]
  h, kept = np.asarray(x, np.float64), []
  per_level = spec.num_blocks + 1
  for number in range(per_level * len(spec.channel_mult)):
    h = entry(f"input_blocks.{number}", h, "down" if number and number % per_level == 0 else None)
    kept.append(h)
  h = entry("middle_block", h, None)
  for number in range(len(kept)):
    h = entry(f"output_blocks.{number}", np.concatenate([h, kept.pop()], 1), "output")
  return conv("out.2", silu(norm("out.0", h)))
