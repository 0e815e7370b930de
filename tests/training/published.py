"""A published pickle as a config of this library."""

import json
from pathlib import Path

from training import tiny

GOLDEN = Path(__file__).parents[1] / "golden"


def published_config():
  """The network of edm_tiny.pkl as a config of this library; its data are not there."""
  kwargs = json.loads((GOLDEN / "nets.json").read_text())["edm_tiny"]["init_kwargs"]
  c = tiny.get_config()
  c.data.update(resolution=kwargs["img_resolution"], channels=kwargs["img_channels"], num_classes=kwargs["label_dim"])
  c.data.update(augment=0.1, flip=False)
  c.network.update(channels=kwargs["model_channels"], channel_mult=tuple(kwargs["channel_mult"]))
  c.network.update(num_blocks=kwargs["num_blocks"], attention_resolutions=tuple(kwargs["attn_resolutions"]))
  c.init_from = str(GOLDEN / "edm_tiny.pkl")
  return c
