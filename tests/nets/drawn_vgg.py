"""VGG16 and LPIPS with weights drawn from their names, in the published state dicts' format."""

import json
import math
import pathlib
import runpy

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "metrics_state_dicts.json").read_text())
SHAPES = MANIFEST["vgg16"] | MANIFEST["lpips"]
draw = runpy.run_path(str(GOLDEN / "draw.py"))["draw"]


def state_dict(*prefixes: str) -> dict:
  """The tensors whose names begin so: features., classifier.0, classifier.3, classifier.6, lin."""
  return {name: draw(name, shape, 0, math.sqrt(2)) for name, shape in SHAPES.items() if name.startswith(prefixes)}
