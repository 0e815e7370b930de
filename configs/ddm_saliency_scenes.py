"""Saliency: the mask of a digit that was pasted on a 16×16 patch of a photograph, by decoupled diffusion.

  python experiments/train.py --config=configs/ddm_saliency_scenes.py --workdir=runs/ddm_saliency
  python experiments/evaluate.py --workdir=runs/ddm_saliency --split=test --nfe=5,10

The image is the mask, the condition the patch.
After the colon: ddm, or of the same network ddpm, a conditional DDPM, or regression, which gives the mean in one step.
"""

from diffusion_jax import presets


def get_config(row="ddm"):
  return presets.small_task("saliency", "scenes", *presets.row(row, presets.TASK_METHODS))
