"""The score of a run while it trains: the Fréchet distance of its averaged network, by which checkpoints are kept."""

from collections.abc import Callable

import jax
import numpy as np

from diffusion_jax import config as config_lib
from diffusion_jax import guidance, latent, mesh, methods, sampling
from diffusion_jax.evaluation import bench, scoring


class InTraining:
  """Draws seeds 0, 1, … with config.sampling and compares them with the run's data; a function of the weights alone.

  The features are those of `bench.scorers_for`: the digits classifier's, pixels, or Inception's, which makes it FID,
  where config.train.score_inception has its weights.
  """

  def __init__(
    self,
    config,
    method: methods.Method,
    classifier: guidance.Classifier | None = None,
    decoder: latent.Decoder | None = None,
  ):
    """`classifier` and `decoder` are those of the config; raises ConfigError where that cannot be measured."""
    self._config, self._method, self._classifier, self._decoder = config, method, classifier, decoder
    weights = config.train.score_inception
    extractor, files = ("inception", {"inception": weights}) if weights else (None, None)
    try:
      (self._scorer,) = bench.scorers_for(config, ["frechet"], extractor, files)
    except config_lib.ConfigError:
      raise
    except ValueError as error:
      raise config_lib.wrong("train.score_inception", weights, str(error)) from None
    least = scoring.minimum_images(("frechet",))
    if config.train.score_images < least:
      raise config_lib.wrong("train.score_images", config.train.score_images, f"must be at least {least}")

  def __call__(self, variables, progress: Callable[[int], None]) -> float:
    """The score, the same on all hosts; all of them must call it. progress(n) is called as images are drawn."""
    batch, variables = 256 * jax.local_device_count(), mesh.everywhere(variables)
    draw = lambda seeds: sampling.generate(
      self._config, self._method, variables, seeds, None, batch, progress, self._classifier, decoder=self._decoder
    )
    seeds = np.arange(self._config.train.score_images)
    (found,) = scoring.score_block(draw, seeds, [self._scorer], None)
    return float(found["frechet"])
