"""Learning rate × EMA half-life of EDM on 8×8 digits, and the batch size with the rate that is scaled with it.

  python experiments/sweep.py run configs/sweeps/digits_rates.py
  python experiments/sweep.py run configs/sweeps/digits_rates.py --set=train.num_steps=100 --num_images=200  # a look

11 members, 11 trainings of 1,000 steps.
"""

from diffusion_jax.sweep import Plot, Sweep, chain, product, values, zipped


def get_sweep():
  rate = lambda given: values("optimizer.learning_rate", given, "rate")
  averages = product(rate((5e-4, 1e-3, 2e-3)), values("ema.half_life_images", (5_000, 20_000, 80_000), "half_life"))
  batches = zipped(values("train.batch_size", (16, 64), "batch"), rate((1e-3, 4e-3)))
  return Sweep(
    config="configs/edm_digits.py",
    members=chain(averages, batches),
    metrics=("frechet",),
    plot=Plot("report", "rate", "half_life"),
  )
