"""guided-diffusion's state dicts: the same function as an independent forward pass, and errors that name a tensor."""

import math

import guided_diffusion as gd
import jax
import numpy as np
import pytest
from guided_diffusion import Spec

from diffusion_jax import process
from diffusion_jax.interop import adm_weights
from diffusion_jax.nets import unet

SPECS = {
  "three levels, 2 heads": Spec(channel_mult=(1, 1, 2), attention_ds=(4,), num_classes=5, heads=2),
  "two blocks, new order": Spec(channel_mult=(1, 1), num_blocks=2, attention_ds=(1, 2), image_channels=1,
                                out_channels=1, new_order=True),
}  # fmt: skip


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_network_is_guided_diffusions(spec):
  tensors = gd.draw(spec)
  found = adm_weights.architecture(tensors)
  network = found.network(resolution=8, num_heads=spec.heads or 0)
  params = adm_weights.from_state_dict(tensors, network, spec.new_order)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(tensor.size for tensor in tensors.values())
  rng = np.random.default_rng(1)
  x, t = rng.standard_normal((2, spec.image_channels, 8, 8)), np.array([3, 901])
  label = np.array([4, 1]) if spec.num_classes else None
  expected = gd.forward(tensors, spec, x, t, label).transpose(0, 2, 3, 1)
  one_hot = None if label is None else np.eye(spec.num_classes)[label]
  heads = jax.jit(network.apply)({"params": params}, x.transpose(0, 2, 3, 1), t, one_hot)
  assert list(heads) == ["eps", "variance"][: spec.out_channels // spec.image_channels]
  out = np.concatenate(list(heads.values()), -1)
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())


# The published networks: sizes as in the paper's tables, 296M, 422M, 554M parameters.
IMAGENET_64 = Spec(192, (1, 2, 3, 4), 3, (2, 4, 8), num_classes=1000)
IMAGENET_128 = Spec(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), num_classes=1000)
IMAGENET_256 = Spec(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), num_classes=1000)


@pytest.mark.parametrize("spec, resolution, millions, published", [
  (IMAGENET_64, 64, 296, (0, True, process.Cosine(1000))), (IMAGENET_128, 128, 422, (4, False, process.DDPM())),
  (IMAGENET_256, 256, 554, None),
], ids=["64", "128", "256"])  # fmt: skip
def test_published_architectures_are_recognised(spec, resolution, millions, published):
  shapes = gd.shapes(spec)
  found = adm_weights.architecture({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
  assert (found.channels, found.channel_mult, found.num_blocks, found.num_classes) == (*spec[:3], 1000)
  assert found.usual_resolution == resolution and found.published == published
  assert [2**level for level in found.attention_levels] == list(spec.attention_ds)
  assert round(sum(map(math.prod, shapes.values())) / 1e6) == millions
  network = found.network(resolution)
  names = {**adm_weights.encoder_names(network), **adm_weights.middle_names(network),
           **adm_weights.decoder_names(network), **adm_weights.embedding_names()}  # fmt: skip
  prefixes = [prefix for each in names.values() for prefix in each]
  assert len(set(prefixes)) == len(prefixes)
  assert {name for name in shapes if not any(name.startswith(f"{prefix}.") for prefix in prefixes)} == set()


def changed(**tensors):
  """A state dict in which some tensors have other shapes, or are left out (None)."""
  shapes = {name.replace("/", "."): shape for name, shape in tensors.items()}
  state = gd.shapes(Spec(num_classes=5)) | shapes
  return {name: np.broadcast_to(np.float32(0), shape) for name, shape in state.items() if shape is not None}


@pytest.mark.parametrize("tensors, pattern", [
  ({"middle_block/1/qkv/weight": None}, "missing tensor 'middle_block.1.qkv.weight': expected shape .768, 256, 1."),
  ({"input_blocks/3/0/skip_connection/weight": (256, 128, 3, 3)},
   r"tensor 'input_blocks.3.0.skip_connection.weight' has shape .256, 128, 3, 3.: expected .256, 128, 1, 1."),
  ({"middle_block/1/qkv/weights": (1,)}, r"unexpected tensor 'middle_block.1.qkv.weights' of shape .1."),
  ({"input_blocks/1/0/emb_layers/1/weight": (128, 512)}, r"'input_blocks.1.0.emb_layers.1.weight' has shape .128"),
  ({"time_embed/0/weight": None}, "missing tensor 'time_embed.0.weight': no state dict of a guided-diffusion U-Net"),
  ({"time_embed/0/weight": (512, 256)}, "level 0 has 128 channels: expected a multiple of the base width, 256"),
  ({"output_blocks/9/0/x": (1,)}, "5 output_blocks, 4 input_blocks: expected as many"),
  ({"input_blocks/2/0/op/weight": (1,)}, "tensor 'input_blocks.2.0.op.weight': expected residual blocks that change"),
])  # fmt: skip
def test_another_state_dict_is_one_line(tensors, pattern):
  with pytest.raises(ValueError, match=pattern) as error:
    state = changed(**tensors)
    adm_weights.from_state_dict(state, adm_weights.architecture(state).network(8))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields, pattern", [
  (dict(channels=256), "network.channels = 256: the file's network has 128"),
  (dict(num_classes=7), "network.num_classes = 7: the file's network has 5"),
  (dict(attention_resolutions=(8, 4)), r"network.attention_resolutions = .8, 4.: the file's network has .4,."),
  (dict(heads=(("eps", 3), ("x", 3), ("r", 1))), "network.heads = 7: the file's network has 6"),
  (dict(decoders=2), "network.decoders = 2: the file's network has 1"),
])  # fmt: skip
def test_another_network_is_one_line(fields, pattern):
  network = adm_weights.architecture(changed()).network(8).clone(**fields)
  with pytest.raises(ValueError, match=pattern):
    adm_weights.from_state_dict(changed(), network)


def test_narrow_networks_are_refused():
  """They would have other groups there."""
  tensors = gd.draw(Spec(channels=64))
  with pytest.raises(ValueError, match="network.channels = 64: .* 32 groups"):
    adm_weights.from_state_dict(tensors, adm_weights.architecture(tensors).network(8))


def test_half_precision_is_converted():
  tensors = gd.draw(Spec(channel_mult=(1,), attention_ds=()), dtype=np.float16)
  params = adm_weights.from_state_dict(tensors, adm_weights.architecture(tensors).network(4))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(params["map_layer0"]["bias"], tensors["time_embed.0.bias"])


def test_the_number_of_heads_must_divide_the_channels():
  with pytest.raises(ValueError, match="network.num_heads = 3: expected a number of heads that divides 128 channels"):
    unet.adm(channels=128, channel_mult=(1,), attention_resolutions=(), num_heads=3)
