"""σ_min by score: the best is found where it is known, kept for its checkpoint and sampling, and used."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax import methods, process, sampling, times
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, features, images, scoring, sigma_min
from diffusion_jax.evaluation.reference import RealImages
from diffusion_jax.evaluation.sigma_min import Found
from diffusion_jax.parameterization import VEPreconditioner

STD = 0.1
MEANS = np.array([0.5, -0.5])[:, None, None, None] * np.ones((2, 2, 2, 1))  # images of norm 1


def config_of(steps=2, **sampling):
  config = config_lib.default()
  config.data.update(resolution=2, channels=1, num_classes=0)
  config.sampling.update(sampler="dpdm", grid="dpdm", num_steps=steps, **sampling)
  return config


@pytest.fixture(scope="module")
def method():
  exact = oracle.mixture_denoise(process.EDM(), jnp.asarray(MEANS), jnp.array([0.5, 0.5]), STD)
  denoise = lambda variables, x, t, cond: exact(x, t)
  return methods.Method(None, None, denoise, process.EDM(), ("dpdm",))


@pytest.fixture(scope="module")
def scorer():
  return scorer_of_seed(0)


def scorer_of_seed(seed, name="learned"):
  rng = np.random.default_rng(seed)
  real = MEANS[rng.integers(0, 2, 1000)] + STD * rng.normal(size=(1000, 2, 2, 1))
  source = sources.Arrays("mixture", "all", images.to_uint8(real), np.zeros(1000, np.int32), 0)
  extractor = dataclasses.replace(features.load("pixels", None, 2, 1), name=name)
  return scoring.Scorer(extractor, ["frechet"], RealImages(extractor, source))


def distance(sigma):
  """The Fréchet distance of two steps, in bytes squared: the first gives 0, the mean of both modes, about exactly.

  The second one's posterior mean of σz is, on the line through the modes, that of two Gaussians, and off it of one.
  """
  z = np.linspace(-8, 8, 20_001)
  density, total = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), STD**2 + sigma**2
  along = (STD**2 * sigma * z + sigma**2 * np.tanh(sigma * z / total)) / total
  stds = np.sqrt(np.trapezoid(along**2 * density, z)), STD**2 * sigma / total
  return 127.5**2 * ((stds[0] - np.sqrt(1 + STD**2)) ** 2 + 3 * (stds[1] - STD) ** 2)


def test_the_best_level_of_two_modes(method, scorer):
  """From the mean of both modes, a small σ stays there, and a large one cannot tell them apart."""
  found = sigma_min.search(config_of(), method, {}, scorer, num_images=500)
  assert list(found.scores) == sigma_min.candidates(config_of(), method) and len(found.scores) == 12
  expected = {level: distance(level) for level in found.scores}
  assert found.sigma_min == min(expected, key=expected.get) == 0.46
  np.testing.assert_allclose(list(found.scores.values()), list(expected.values()), rtol=0.1, atol=200)
  again = sigma_min.search(config_of(), method, {}, scorer, num_images=500, levels=[3.0, 0.18])
  assert again.scores == pytest.approx({level: found.scores[level] for level in (3.0, 0.18)})


def test_candidates_are_what_the_network_and_the_range_allow(method):
  assert 0.2 in sigma_min.candidates(config_of(5), method) and 0.2 not in sigma_min.candidates(config_of(3), method)
  ve = method._replace(preconditioner=VEPreconditioner())
  assert min(sigma_min.candidates(config_of(), ve)) == 0.02
  assert max(sigma_min.candidates(config_of(sigma_max=1.0), method)) < 1.0


@pytest.mark.parametrize("steps", [2, 5])
def test_levels_that_make_no_grid_are_no_candidates(steps, method, scorer):
  """VP's noise up to 80 cannot grow from .18 and more: the search goes on without these; without any it cannot."""
  config = config_of(steps, process="vp")
  known = sigma_min.candidates(config, method)
  assert known == [level for level in sigma_min.candidates(config_of(steps), method) if level < 0.18]
  assert sigma_min.search(config, method, {}, scorer, num_images=8).sigma_min in known and len(known) > 5
  resolved = sigma_min.resolve(config_of(steps, process="vp", sigma_min_search=True), None, None, lambda: (method, {}),
                               [scorer], num_images=8)  # fmt: skip
  assert resolved.sampling.sigma_min in known
  with pytest.raises(config_lib.ConfigError, match="too large for vp up to 80"):
    sigma_min.candidates(config, method._replace(preconditioner=VEPreconditioner(sigma_min=0.5)))


@pytest.mark.parametrize("setting, expected", [
  (dict(steps=2), True), (dict(steps=3), True), (dict(steps=1), False), (dict(steps=1, sigma_min_search=True), False),
  (dict(steps=5), False), (dict(steps=12), False), (dict(steps=5, sigma_min_search=True), True),
  (dict(steps=2, sigma_min=0.2), False), (dict(steps=5, sigma_min_search=True, sigma_min=0.2), False),
])  # fmt: skip
def test_what_is_searched(setting, expected):
  assert sigma_min.wanted(config_of(**setting).sampling) == expected
  other = config_of(**setting)
  other.sampling.grid = "edm"
  assert not sigma_min.wanted(other.sampling)


@pytest.fixture
def searched(monkeypatch):
  """The numbers of steps that were searched; what is found is .01 × the how-manieth search it is."""
  calls = []

  def search(config, *args, **kwargs):
    calls.append(config.sampling.num_steps)
    return Found(0.01 * len(calls), {0.01 * len(calls): 1.0, 2.0: 3.0})

  monkeypatch.setattr(sigma_min, "search", search)
  return calls


def test_it_is_kept_for_its_checkpoint_and_sampling(tmp_path, method, scorer, searched, capsys):
  def resolve(steps=2, step=7, by=scorer, **sampling):
    setting = config_of(steps, **sampling)
    return sigma_min.resolve(setting, tmp_path / "run", step, lambda: (method, {}), by and [by]).sampling

  first = resolve()
  assert (first.sigma_min, first.grid, first.sigma_min_search) == (0.01, "dpdm", False)
  note = "500 images by learned against mixture/all; the published table is for 4 and more on CIFAR-10)"
  begun = "the best of 12 levels is searched, 500 images by learned against mixture/all each"
  lines = [f"σ_min for 2 steps: {line}" for line in (begun, f"0.01 (searched, {note}", f"0.01 (found before, {note}")]
  assert capsys.readouterr().out.splitlines() == lines[:2]
  assert resolve().sigma_min == resolve(by=None).sigma_min == resolve(sigma_min_search=True).sigma_min == 0.01
  assert capsys.readouterr().out.splitlines() == lines[2:] * 3
  assert searched == [2]
  others = [dict(step=8), dict(steps=3), dict(sigma_max=50.0), dict(process="vp"), dict(by=scorer_of_seed(1))]
  assert [resolve(**other).sigma_min for other in others] == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06])
  assert [resolve(**other).sigma_min for other in others] == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06])
  assert resolve().sigma_min == 0.01 and resolve(steps=5).sigma_min == 0 and len(searched) == 6
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["sigma_min.json"]
  entry = json.loads((tmp_path / "run" / "sigma_min.json").read_text())[0]
  assert (entry["step"], entry["num_steps"], entry["sampling"]) == (7, 2, {"sampler": "dpdm"})
  assert entry["scores"] == {"0.01": 1.0, "2.0": 3.0} and entry["by"]["num_images"] == 500
  (tmp_path / "run" / "sigma_min.json").write_text('[{"step": 7')  # cut off: it does not count
  assert resolve().sigma_min == pytest.approx(0.07)


def test_nothing_is_computed_or_kept_where_that_is_not_wanted(tmp_path, method, scorer, searched, capsys):
  take = lambda: (method, {})
  stored = lambda steps: sigma_min.resolve(config_of(steps), tmp_path, 7, take, [scorer], stored_only=True)
  assert stored(2) is None and stored(5).sampling.sigma_min == 0 and searched == []
  for _ in range(2):
    sigma_min.resolve(config_of(), None, None, take, [scorer])  # no folder: each time
  assert searched == [2, 2] and list(tmp_path.iterdir()) == []
  sigma_min.resolve(config_of(), tmp_path, 7, take, [scorer])
  assert capsys.readouterr().out.count("\n") == 6 and stored(2).sampling.sigma_min == pytest.approx(0.03)
  assert capsys.readouterr().out == ""


def test_what_learned_features_found_goes_before_what_pixels_found(tmp_path, method, scorer, searched, capsys):
  """By pixels nothing is searched unasked, and a score by pixels takes what is there."""
  pixels = scorer_of_seed(0, "pixels")

  def resolve(by, **sampling):
    return sigma_min.resolve(config_of(**sampling), tmp_path, 7, lambda: (method, {}), by).sampling

  plain = resolve([pixels])
  assert (plain.sigma_min, plain.grid) == (0.0, "dpdm") and searched == []
  table = "that of 4 in the published table; experiments/sigma_min.py --inception=FILE searches one"
  assert capsys.readouterr().out == f"σ_min for 2 steps: {table}\n"
  stored = sigma_min.resolve(config_of(), tmp_path, 7, None, [pixels], stored_only=True)
  assert stored.sampling == plain and capsys.readouterr().out == ""  # a study finds the scores that it made so
  assert resolve([pixels], sigma_min_search=True).sigma_min == 0.01
  assert "500 images by pixels against mixture/all" in capsys.readouterr().out
  assert resolve([scorer]).sigma_min == 0.02
  resolve([pixels], sigma_max=50.0, sigma_min_search=True)  # of another sampling
  assert [resolve(by).sigma_min for by in ([pixels], [scorer], None)] == [0.02] * 3 and len(searched) == 3
  by_pixels = sigma_min.stored(tmp_path, config_of(), 7, pixels)
  assert by_pixels.sigma_min == 0.01  # where these alone are asked for


@pytest.mark.parametrize("name, reason", [("none", "the config has no data"), ("zip", "config.data.path = ''")])
def test_where_none_can_be_searched_the_table_serves_unless_one_was_asked_for(name, reason, method, searched, capsys):
  config = config_of()
  config.data.name = name
  resolved = sigma_min.resolve(config, None, None, lambda: (method, {}))
  assert resolved.sampling == config.sampling and searched == []
  line = capsys.readouterr().out
  assert line.startswith(f"σ_min for 2 steps: that of 4 in the published table, as none can be searched: {reason}")
  config.sampling.sigma_min_search = True
  with pytest.raises(config_lib.ConfigError, match="config.sampling.sigma_min_search = True: none can be .*" + reason):
    sigma_min.resolve(config, None, None, lambda: (method, {}))


def test_two_evaluations_at_once_keep_what_both_found(tmp_path, method, scorer, monkeypatch):
  """The file is read when the search is done, and no two processes write the same temporary file."""
  names, kind = [], type(epath.Path(""))
  replace = kind.replace
  monkeypatch.setattr(kind, "replace", lambda path, to: names.append(path.name) or replace(path, to))
  resolve = lambda steps: sigma_min.resolve(config_of(steps), tmp_path, 7, lambda: (method, {}), [scorer])

  def search(config, *args, **kwargs):
    if config.sampling.num_steps == 2:
      resolve(3)  # another one ends while this one runs
    return Found(0.1 * config.sampling.num_steps, {0.1: 1.0})

  monkeypatch.setattr(sigma_min, "search", search)
  resolve(2)
  found = [sigma_min.stored(tmp_path, config_of(steps), 7, scorer).sigma_min for steps in (2, 3)]
  assert found == pytest.approx([0.2, 0.3]) and len(set(names)) == 2
  assert [path.name for path in tmp_path.iterdir()] == ["sigma_min.json"]


def test_the_first_hosts_file_decides(tmp_path, method, scorer, searched, monkeypatch):
  """Another host, whose folder is empty, takes what the first one found and does not search alone."""
  sigma_min.resolve(config_of(), tmp_path / "first", 7, lambda: (method, {}), [scorer])
  said = json.dumps(sigma_min.stored(tmp_path / "first", config_of(), 7, scorer))
  monkeypatch.setattr(sigma_min.mesh, "from_first_host", lambda read: said)
  found, new = sigma_min.find(config_of(), tmp_path / "second", 7, None, scorer)
  assert (found.sigma_min, found.scores, new) == (0.01, {0.01: 1.0, 2.0: 3.0}, False) and len(searched) == 1


def test_the_table_warns_where_it_has_no_entry(method, recwarn):
  for steps in (1, 2, 3, 5):
    sampling.evaluations(config_of(steps).sampling, method)
  sampling.generate(config_of(5), method, {}, np.arange(8))
  sampling.generate(config_of(2, sigma_min=0.1), method, {}, np.arange(8))
  assert len(recwarn) == 0
  with pytest.warns(UserWarning, match="no σ_min for 2 evaluations: that of 4, 0.3"):
    two = sampling.generate(config_of(2), method, {}, np.arange(8))
  np.testing.assert_array_equal(two, sampling.generate(config_of(2, sigma_min=0.3), method, {}, np.arange(8)))
  with pytest.warns(UserWarning, match="for 3 evaluations"):
    assert times.dpdm_grid(3)[-2] == pytest.approx(0.3)


def test_records_hold_what_was_found():
  """A score with a σ_min that was searched is the score of a run that has it; so is one that needs none."""
  subject = lambda config: bench.of_model({"sha256": "x"}, config, None).sampling
  decided = lambda **sampling: subject(sigma_min.resolve(config_of(**sampling), None, None, None))
  for fields in (dict(steps=1), dict(steps=5, sigma_min=0.2)):
    assert decided(sigma_min_search=True, **fields) == subject(config_of(**fields))
  other = config_of(sigma_min_search=True)
  other.sampling.grid = "edm"
  assert not sigma_min.resolve(other, None, None, None).sampling.sigma_min_search
  assert subject(sigma_min._with(config_of(sigma_min_search=True), 0.2)) == subject(config_of(sigma_min=0.2))
