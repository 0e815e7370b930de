"""EDM's Table 2 in small: configs A to F with both networks, on class-conditional 8×8 digits.

  python experiments/study.py experiments/studies/edm_table2_digits.py

36 trainings of 1,000 steps, two minutes each on a CPU core; sampled by the paper's deterministic sampler at NFE 35.
"""

from diffusion_jax.study import Evaluation, Run, Study, Table

ROWS = {
  "A": "A Baseline",
  "B": "B + Adjust hyperparameters",
  "C": "C + Redistribute capacity",
  "D": "D + Our preconditioning",
  "E": "E + Our loss function",
  "F": "F + Non-leaky augmentation",
}
SHORT = {"train.num_steps": 1000, "train.checkpoint_every": 1000, "train.sample_every": 1000}


def get_study():
  return Study(
    about=(
      "EDM's Table 2 on 8×8 digits: .3 to .8 million parameters, 1,000 steps of 32 images. The paper's own numbers "
      "are FIDs of other data: compare the order of the rows, not the values. A has no ramp of its EMA, which still "
      "holds much of the initial weights after so few steps. F leaks its augmentation at this length: a third to a "
      "half of its images are nearer to a training digit once they are mirrored (leak.txt, by "
      "experiments/figures/augmentation_leak.py)."
    ),
    runs=[
      Run({"network": network.upper(), "config": name}, f"configs/ablations/table2_digits.py:{network}-{letter}", SHORT)
      for network in ("vp", "ve")
      for letter, name in ROWS.items()
    ],
    evaluations=[Evaluation({"sampler": "Heun"}, {"num_steps": 18})],
    metrics=("frechet", "precision", "recall"),
    tables=[
      Table("EDM, Table 2: training configurations", ("config",), ("network",)),
      Table("The same, all metrics", ("network", "config", "NFE"), (), ("frechet", "precision", "recall")),
    ],
  )
