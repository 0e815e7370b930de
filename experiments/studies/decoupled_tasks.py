"""Conditional tasks on built-in data: the paper's Tables 2 and 3, DDM beside a DDPM of the same U-Net and encoder.

  python experiments/study.py experiments/studies/decoupled_tasks.py:superres --out=results/decoupled/superres
  python experiments/study.py experiments/studies/decoupled_tasks.py:inpaint --out=results/decoupled/inpaint
  python experiments/study.py experiments/studies/decoupled_tasks.py:saliency --out=results/decoupled/saliency

Images are 16×16, of regions of the photographs that no network was trained on. The regression is DDM's own network,
trained where x_t says nothing of the image. The Fréchet distance of so few filled images tells gross differences alone;
evaluate.py measures it on all of the split. On a CPU core an hour each.
"""

from diffusion_jax import presets
from diffusion_jax.evaluation import tasks
from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

CONFIGS = {"superres": "superres_photos", "inpaint": "inpaint_photos", "saliency": "saliency_scenes"}
UPDATES, IMAGES = 600, 250
DDM_STEPS, DDPM_STEPS = (5, 10, 20), (5, 10, 20, 50, 100)
NAMES = {"ddm": "DDM", "ddpm": "DDPM", "regression": "regression"}


def get_study(task="superres"):
  presets.row(task, tuple(CONFIGS))
  fields = {f"train.{name}": UPDATES for name in ("num_steps", "checkpoint_every", "sample_every")}
  optimizer = {f"optimizer.{name}": value for name, value in presets.decoupled_optimizer(2e-3).items()}
  config = lambda method: f"configs/ddm_{CONFIGS[task]}.py:{method}"
  runs = [
    Run({"method": name}, config(method), {**fields, **optimizer}, data={"split": "test"})
    for method, name in NAMES.items()
  ]
  steps = [("DDM", n) for n in DDM_STEPS] + [("DDPM", n) for n in DDPM_STEPS] + [("regression", 1)]
  return Study(
    about=(
      f"Networks of .87 million parameters, all with one decoder, after {UPDATES:,} updates of 32 images by one "
      f"optimizer; scores of {IMAGES} images from conditions of the test split, evenly spread over it."
    ),
    runs=runs,
    evaluations=[Evaluation({}, {"num_steps": n}, {"method": method}) for method, n in steps],
    metrics=tasks.METRICS[task],
    num_images=IMAGES,
    tables=[Table(f"Tables 2 and 3: {task}", ("method", "NFE"), metrics=tasks.METRICS[task])],
    plots=[Plot(metric, "NFE", "method", metric=metric) for metric in tasks.METRICS[task]],
  )
