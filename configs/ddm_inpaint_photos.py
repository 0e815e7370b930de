"""Inpainting of 16×16 patches of scikit-learn's two photographs, by decoupled diffusion.

  python experiments/train.py --config=configs/ddm_inpaint_photos.py --workdir=runs/ddm_inpaint
  python experiments/evaluate.py --workdir=runs/ddm_inpaint --split=test --nfe=5,10

Holes are strokes or boxes; results are scored with what is around the holes put back.
After the colon: ddm, or of the same network ddpm, a conditional DDPM, or regression, which gives the mean in one step.
"""

from diffusion_jax import presets


def get_config(row="ddm"):
  return presets.small_task("inpaint", "photos", *presets.row(row, presets.TASK_METHODS))
