"""Method × solver × evaluations on 8×8 digits: what a trained denoiser gains from each training-free solver.

  python experiments/study.py experiments/studies/solvers.py --out=results/solvers/digits

EDM, Dual-Output and DDM of one U-Net, 1,000 updates of 32 images each, given the digit; three seeds. In the process of
each; EDM and Dual-Output on EDM's grid of noise levels, DDM on its own, t = (1 − i/n)². Nine trainings of some three
minutes on a CPU core, and an hour of sampling.
"""

from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

UPDATES, IMAGES = 1000, 500
EVALUATIONS = (5, 8, 10, 15, 20)
NETWORKS = {"EDM": "edm_digits.py", "Dual-Output": "dual_digits.py:linear", "DDM": "ddm_digits.py:constant"}
SOLVERS = {
  "DDIM": {"sampler": "ddim"},
  "DPM-Solver++(2M)": {"sampler": "dpmpp_2m"},
  "DPM-Solver++(3M)": {"sampler": "dpmpp_3m"},
  "DEIS, order 3": {"sampler": "deis"},
  "UniPC-2": {"sampler": "unipc", "order": 2},
  "angle, order 2": {"sampler": "multistep", "order": 2},
  "SDE-DPM-Solver++(2M)": {"sampler": "dpmpp_2m_sde"},
}
HEUN_STEPS = {5: 3, 7: 4, 9: 5, 15: 8, 19: 10}


def evaluations():
  for network in NETWORKS:
    grid = {"grid": "decoupled", "power": 2.0} if network == "DDM" else {"grid": "edm"}
    for nfe in sorted({*HEUN_STEPS, *EVALUATIONS}):  # the columns' order
      if nfe in HEUN_STEPS:
        heun = {**grid, "sampler": "heun", "num_steps": HEUN_STEPS[nfe]}
        yield Evaluation({"solver": "Heun"}, heun, {"network": network})
      for name, choice in SOLVERS.items() if nfe in EVALUATIONS else ():
        yield Evaluation({"solver": name}, {**grid, **choice, "num_steps": nfe}, {"network": network})


def get_study():
  fields = {f"train.{name}": UPDATES for name in ("num_steps", "checkpoint_every", "sample_every")}
  return Study(
    about=(
      f"Networks of .75 million parameters (DDM's two decoders have more), {UPDATES:,} updates of 32 images; scores of "
      f"{IMAGES} images, the same seeds for all solvers."
    ),
    runs=[Run({"network": name}, f"configs/{config}", fields) for name, config in NETWORKS.items()],
    evaluations=list(evaluations()),
    metrics=("frechet",),
    num_images=IMAGES,
    tables=[Table("Fréchet distance (digits)", ("network", "solver"), ("NFE",))],
    plots=[Plot("nfe", "NFE", "solver", "network")],
  )
