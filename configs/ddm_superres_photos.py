"""Super-resolution ×4 of 16×16 patches of scikit-learn's two photographs, by decoupled diffusion.

  python experiments/train.py --config=configs/ddm_superres_photos.py --workdir=runs/ddm_superres
  python experiments/evaluate.py --workdir=runs/ddm_superres --split=test --nfe=5,10

The condition is the patch at 4×4 pixels, enlarged again by bicubic interpolation, as the evaluation's first row is.
After the colon: ddm, or of the same network ddpm, a conditional DDPM, or regression, which gives the mean in one step.
"""

from diffusion_jax import presets


def get_config(row="ddm"):
  return presets.small_task("superres", "photos", *presets.row(row, presets.TASK_METHODS))
