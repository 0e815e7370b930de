"""Inception Score (Salimans et al. 2016), in float64.

    IS = exp( E_x KL( p(y|x) ‖ p(y) ) ),   p(y) = E_x p(y|x)                                             (1)

over each of several consecutive splits of the images.
"""

import numpy as np
import scipy.special


def inception_score(logits, splits: int = 10) -> tuple[float, float]:
  """Equation (1): between 1 and the number of classes, larger is better.

  Args:
    logits: [N, classes] in the order of the images, which is kept: split i holds images ⌊i·N/splits⌋ to
      ⌊(i + 1)·N/splits⌋. FID's network is used without the bias of its last layer.
    splits: how many.

  Returns:
    Mean over the splits, and their standard deviation (divisor `splits`).

  Raises:
    ValueError: logits are not [N, classes] or not all finite, or there are fewer images than splits.
  """
  logits = np.asarray(logits, np.float64)
  if logits.ndim != 2 or not logits.size:
    raise ValueError(f"logits must be [N, classes], got shape {list(logits.shape)}")
  bad = len(logits) - np.count_nonzero(np.isfinite(logits).all(axis=1))
  if bad:
    raise ValueError(f"logits must be finite, got {bad} of {len(logits)} rows that are not")
  n = len(logits)
  if not 1 <= splits <= n:
    raise ValueError(f"splits must be in [1, {n}], the number of images, got {splits}")
  log_p = scipy.special.log_softmax(logits, axis=1)
  scores = [_score(log_p[i * n // splits : (i + 1) * n // splits]) for i in range(splits)]
  return float(np.mean(scores)), float(np.std(scores))


def _score(log_p) -> float:
  log_marginal = scipy.special.logsumexp(log_p, axis=0) - np.log(len(log_p))  # finite where every p underflows
  return np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1)))
