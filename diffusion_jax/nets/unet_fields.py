"""Which U-Nets can be built: every field of nets.unet.UNet, alone and with the others."""

import difflib

import jax.numpy as jnp

from diffusion_jax.nets import layers
from diffusion_jax.nets.blocks import BlockStyle

_CHOICES = {
  "embedding": ("positional", "fourier"),
  "encoder": ("standard", "skip", "residual"),
  "decoder": ("standard", "skip"),
}
_DTYPES = ("float32", "bfloat16", "float16")


def check(network):
  """Raises ValueError if `network` cannot be built; the message is one line: network.<field>, value, expectation."""
  resolution, channels, mults = network.resolution, network.channels, network.channel_mult
  whole = lambda v: isinstance(v, int) and not isinstance(v, bool)
  for name in ("resolution", "channels", "num_blocks", "embedding_mult", "decoders"):
    _expect(network, name, whole(getattr(network, name)) and getattr(network, name) > 0, "a positive integer")
  for name in ("num_classes", "augment_dim", "num_heads", "tokens"):
    _expect(network, name, whole(getattr(network, name)) and getattr(network, name) >= 0, "an integer of at least 0")
  positive = isinstance(mults, tuple) and mults and all(whole(m) and m > 0 for m in mults)
  _expect(network, "channel_mult", positive, "a tuple of positive integers, one a level")
  wanted = network.attention_resolutions
  _expect(network, "attention_resolutions", isinstance(wanted, tuple), "a tuple of resolutions")
  for name, choices in _CHOICES.items():
    value = getattr(network, name)
    _expect(network, name, value in choices, f"one of {', '.join(choices)}{nearest(value, choices)}")
  try:
    dtype = jnp.dtype(network.dtype).name
  except TypeError:
    dtype = str(network.dtype)
  _expect(network, "dtype", dtype in _DTYPES, f"one of {', '.join(_DTYPES)}{nearest(dtype, _DTYPES)}")
  _expect(network, "block", isinstance(network.block, BlockStyle), "a BlockStyle such as blocks.SONG or blocks.ADM")
  rate = network.dropout
  _expect(network, "dropout", isinstance(rate, (int, float)) and 0 <= rate < 1, "a probability in [0, 1)")
  pair = lambda h: isinstance(h, tuple) and len(h) == 2 and isinstance(h[0], str) and whole(h[1]) and h[1] > 0
  valid = isinstance(network.heads, tuple) and network.heads and all(pair(head) for head in network.heads)
  names = [name for name, _ in network.heads] if valid else []
  valid = names and len(set(names)) == len(names)
  _expect(network, "heads", valid, "pairs (name, channels) with different names and positive channels")
  _expect(network, "decoders", network.decoders in (1, len(names)), f"1, or one for each of the {len(names)} heads")
  branches = isinstance(network.branch, bool) and not (network.branch and (network.decoders > 1 or len(names) < 2))
  _expect(network, "branch", branches, "False, or True with one decoder and at least 2 heads")
  taps = network.resample_filter
  even = isinstance(taps, tuple) and len(taps) % 2 == 0 and sum(taps) != 0
  _expect(network, "resample_filter", even, "a tuple of an even number of taps, sum not 0")

  steps = 2 ** (len(mults) - 1)
  _expect(network, "resolution", resolution % steps == 0, f"a multiple of {steps}, for {len(mults)} levels")
  sizes = [resolution >> level for level in range(len(mults))]
  for size in wanted:
    _expect(network, "attention_resolutions", size in sizes, f"only resolutions that occur: {sizes}")
  pair = lambda c: isinstance(c, tuple) and len(c) == 2 and c[0] in sizes and whole(c[1]) and c[1] > 0
  joined = network.context
  valid = isinstance(joined, tuple) and all(pair(c) for c in joined) and len(dict(joined)) == len(joined)
  expected = f"pairs (resolution, channels), resolutions different and of {sizes}, channels positive"
  _expect(network, "context", valid, expected)
  valid = isinstance(network.cross_attention, tuple) and all(s in dict(joined) for s in network.cross_attention)
  _expect(network, "cross_attention", valid, f"only resolutions of network.context: {list(dict(joined))}")
  valid = isinstance(network.token_attention, tuple) and all(s in sizes for s in network.token_attention)
  _expect(network, "token_attention", valid, f"only resolutions that occur: {sizes}")
  _expect(network, "token_bottleneck", isinstance(network.token_bottleneck, bool), "True or False")
  used = bool(network.token_attention or network.token_bottleneck)
  expected = "a positive width where token_attention or token_bottleneck is set, 0 where neither is"
  _expect(network, "tokens", used == (network.tokens > 0), expected)
  half = channels * network.embedding_mult / 2
  _expect(network, "channels", half % 1 == 0 and half > 1, "an even number of at least 4")
  if network.freqs is not None:
    _expect(network, "freqs", len(network.freqs) == half, f"None or {half:g} numbers")

  for width in sorted(_widths(network)):
    groups = layers.num_groups(width)
    fits = groups > 0 and width % groups == 0
    _expect(network, "channels", fits, f"a value for which the {groups} GroupNorm groups divide {width} channels")
  head = 0 if network.num_heads else network.block.head_channels
  attending = {*wanted, *network.cross_attention, *network.token_attention}
  attending = {channels * mult for size, mult in zip(sizes, mults) if size in attending}
  for width in sorted(attending | {channels * mults[-1]}):
    _expect(network, "channels", not head or width % head == 0, f"{width} channels in heads of {head}, no remainder")
    fits = width % max(network.num_heads, 1) == 0
    _expect(network, "num_heads", fits, f"a number of heads that divides {width} channels")


def _widths(network) -> set[int]:
  """Every number of channels that a GroupNorm of the network meets."""
  widths = [network.channels * mult for mult in network.channel_mult]
  skips = [network.channels]
  for level, width in enumerate(widths):
    skips += ([widths[level - 1]] if level else []) + [width] * network.num_blocks
  met, x = {*skips, *widths}, widths[-1]
  for width in reversed(widths):
    for _ in range(network.num_blocks + 1):
      met.add(x + skips.pop())
      x = width
  return met


def _expect(network, name: str, holds: bool, expected: str):
  if not holds:
    raise ValueError(f"network.{name} = {getattr(network, name)!r}: expected {expected}")


def nearest(value, choices) -> str:
  near = difflib.get_close_matches(str(value), choices, 1, 0.0)
  return f" (nearest: {near[0]})" if near else ""
