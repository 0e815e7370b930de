"""Combinators, and the members that come of them: their ids depend on what determines them alone."""

import pytest
from sweep import sweeps

from diffusion_jax.study import run as runs
from diffusion_jax.sweep import Override, Plot, Sweep, SweepError, chain, plan, product, values, worker, zipped
from diffusion_jax.training import checkpoint

RATES = values("optimizer.learning_rate", (1e-3, 2e-3))
STEPS = values("sampling.num_steps", (1, 2))


def members(*overrides, **more):
  fields = dict(metrics=("frechet",), num_images=16)
  base = more.pop("fields", {})
  return plan.members(Sweep(sweeps.TINY, overrides, **{**fields, **more}), base)


def test_product_varies_the_last_axis_fastest():
  assert [dict(o.labels) for o in product(RATES, STEPS)] == [
    {"learning_rate": rate, "num_steps": n} for rate in (1e-3, 2e-3) for n in (1, 2)
  ]
  assert product(RATES, STEPS)[1].fields == {"optimizer.learning_rate": 1e-3, "sampling.num_steps": 2}
  assert product() == [Override({}, {})]


def test_zipped_and_chain():
  together = zipped(RATES, STEPS)
  assert [tuple(o.fields.values()) for o in together] == [(1e-3, 1), (2e-3, 2)]
  assert chain(RATES, [{"seed": 3}]) == [*RATES, Override({"seed": 3}, {"seed": 3})]
  with pytest.raises(SweepError, match=r"axes of one length, got \[2, 1\]"):
    zipped(RATES, STEPS[:1])


def test_labels():
  named = values("optimizer.learning_rate", {"slow": 1e-4}, "rate")
  assert named == [Override({"optimizer.learning_rate": 1e-4}, {"rate": "slow"})]
  with pytest.raises(SweepError, match="set the field 'optimizer.learning_rate'"):
    product(RATES, values("optimizer.learning_rate", (3e-3,), "other"))
  with pytest.raises(SweepError, match="set the label 'sigma_max'; .*label="):
    product(values("sampling.sigma_max", (10.0,)), values("edm.sigma_max", (10.0,)))
  with pytest.raises(SweepError, match="expected an override such as .*, got 3"):
    chain([3])


def test_members_that_differ_in_sampling_share_a_training():
  found = members(*product(RATES, STEPS))
  assert [m.name for m in found][:2] == ["learning_rate=0.001,num_steps=1", "learning_rate=0.001,num_steps=2"]
  assert len({m.id for m in found}) == 4 and len({m.group for m in found}) == 2
  assert [len(group) for group in plan.groups(found).values()] == [2, 2]
  assert [m.labels["NFE"] for m in found] == [1, 3, 1, 3]
  assert found[0].group == runs.config_hash(found[0].config)


def test_ids_depend_on_what_determines_a_member_alone():
  (plain,) = members({"optimizer.learning_rate": 2e-3, "sampling.num_steps": 2})
  for other in (
    members({"sampling.num_steps": 2, "optimizer.learning_rate": 2e-3}),  # another order
    members(Override({"sampling.num_steps": 2, "optimizer.learning_rate": 2e-3}, {"called": "something else"})),
    members({"sampling.num_steps": 2}, fields={"optimizer.learning_rate": 2e-3}),
    members({"sampling.num_steps": 2, "optimizer.learning_rate": 2e-3, "sampling.rho": 7.0}),  # a default
    members({"config": sweeps.TINY, "sampling.num_steps": 2, "optimizer.learning_rate": 2e-3}),
  ):
    assert (other[0].group, other[0].id) == (plain.group, plain.id)
  same = {"optimizer.learning_rate": 2e-3, "sampling.num_steps": 2}
  for other in (members({**same, "sampling.rho": 5.0}), members(same, num_images=17), members(same, blocks=2)):
    assert other[0].group == plain.group and other[0].id != plain.id
  (other,) = members({**same, "seed": 1})
  assert other.group != plain.group and other.id != plain.id


@pytest.mark.parametrize(
  "overrides, message",
  [
    ((), "the sweep has no members"),
    (({"seed": 1}, {"seed": 1}), "two members are the same run: seed=1 and seed=1"),
    (({"seed": 0}, {}), "two members are the same run: seed=0 and base"),
    ((Override({"seed": 1}, {}), Override({"seed": 2}, {})), "two members are called base"),
    (({"train.num_stpes": 1},), "member num_stpes=1: config.train.num_stpes = 1: unknown field; nearest: .*num_steps"),
    (({"train.num_steps": "x"},), "member num_steps=x: config.train.num_steps = 'x': expected int"),
    (({"train.num_steps": 0},), "member num_steps=0: config.train.num_steps = 0: must be positive"),
    (({"sampling.grid": "emd"},), "member grid=emd: config.sampling.grid = 'emd': .*nearest: edm"),
    (({"method": "emd"},), "member method=emd: config.method = 'emd'"),
    (({"config": "configs/nothing.py"},), "member config=configs/nothing.py: configs/nothing.py: no such file"),
  ],
)
def test_wrong_members_are_named_before_anything_runs(overrides, message):
  with pytest.raises(SweepError, match=message):
    members(*overrides)


def test_wrong_sweeps(tmp_path):
  with pytest.raises(SweepError, match="got 'fid'"):
    members({}, metrics=("fid",))
  with pytest.raises(SweepError, match="expected num_images >= 2"):
    members({}, num_images=1)
  with pytest.raises(SweepError, match="metrics are frechet, .*, got none"):
    members({}, metrics=())
  with pytest.raises(SweepError, match="extractor must be one of .*, got 'fid'"):
    members({}, extractor="fid")
  with pytest.raises(SweepError, match="extractor 'inception' needs the file of its weights, --inception"):
    members({}, extractor="inception")
  with pytest.raises(SweepError, match="member base: inception_score needs class logits, which pixels has not"):
    members({}, metrics=("inception_score",), extractor="pixels")
  photos = {"data.name": "npz", "data.path": "a.npz", "data.channels": 3, "data.resolution": 64}
  with pytest.raises(SweepError, match="member base: no Fréchet distance of 64×64×3 pixels"):
    members({}, fields=photos)
  with pytest.raises(SweepError, match="member base: extractor 'digits' does not take images of 64×64×3"):
    members({}, fields=photos, extractor="digits")
  (tmp_path / "s.py").write_text("def get_sweep(): return 3\n")
  with pytest.raises(SweepError, match="must return a diffusion_jax.sweep.Sweep, got int"):
    plan.load(str(tmp_path / "s.py"))


@pytest.mark.parametrize(
  "plot, message",
  [
    (Plot("report", "learning_rat", ""), "plot: x = 'learning_rat': expected a label .* learning_rate, NFE"),
    (Plot("report", "", ""), "plot: x = ''"),
    (Plot("report", "NFE", "sampler"), "plot: line = 'sampler'"),
    (Plot("report", "NFE", "", "sampler"), "plot: panel = 'sampler'"),
    (Plot("report", "NFE", "", when={"sampler": "heun"}), "plot: when = 'sampler'"),
    (Plot("report", "NFE", "", metric="recall"), "plot: metric = 'recall': expected one of frechet"),
    (Plot("report", "speed", ""), "plot: x = 'speed': expected numbers, got 'slow'"),
  ],
)
def test_a_plot_that_cannot_be_drawn(plot, message):
  axis = values("optimizer.learning_rate", {"slow": 1e-4}, "speed") if plot.x == "speed" else RATES
  with pytest.raises(SweepError, match=message):
    members(*axis, plot=plot)
  members(*RATES, plot=Plot("report", "NFE", "learning_rate", metric="recall"), metrics=None)


@pytest.mark.parametrize("label", plan.RESERVED)
def test_labels_that_are_columns_of_every_report(label):
  with pytest.raises(SweepError, match=f"every report has a column {label!r}; .*label="):
    members(*values("seed", (0, 1), label))


def test_another_sweep_does_not_take_a_folder(tmp_path):
  sweep = Sweep(sweeps.TINY, [{}], metrics=("frechet",), num_images=16)
  planned = plan.members(sweep)
  plan.write(tmp_path / "root", f"{tmp_path}/one.py:a", sweep, planned)
  plan.write(tmp_path / "root", f"{tmp_path}/./one.py:a", sweep, planned)
  for other in ("two.py:a", "one.py:b"):
    with pytest.raises(SweepError, match=f"root holds the sweep of .*/one.py:a, not of .*/{other}; --runs"):
      plan.write(tmp_path / "root", f"{tmp_path}/{other}", sweep, planned)


def test_data_that_moved_are_found_where_they_are_now(tmp_path):
  """The plan says so to the worker, whose training may have started elsewhere and may have resolved other fields."""
  sweep = Sweep(sweeps.TINY, [{}], metrics=("frechet",), num_images=16)
  for place in ("here", "there"):
    (member,) = plan.members(sweep, {"data.name": "npz", "data.path": f"{place}/images.npz"})
    plan.write(tmp_path, "one.py", sweep, [member])
  group = tmp_path / member.group
  planned = checkpoint.read_config(group / "members")
  assert planned.data.path == "there/images.npz" and list(tmp_path.glob("*/members/config.json")) != []
  started = planned.copy_and_resolve_references()
  started.data.path, started.network.channels = "here/images.npz", 16
  checkpoint.write_config(group, started)
  now = worker._as_planned(group, planned)
  assert now.data.path == "there/images.npz" and now.network.channels == 16


@pytest.mark.parametrize("name, count, trainings", [("digits_samplers", 36, 4), ("digits_rates", 11, 11)])
def test_committed_sweeps_hold_together(name, count, trainings):
  """The head of each says how many members and trainings it has."""
  path = f"configs/sweeps/{name}.py"
  found = plan.members(plan.load(path))
  assert (len(found), len(plan.groups(found))) == (count, trainings)
  with open(sweeps.ROOT / path) as file:
    assert f"{count} members" in (head := file.read()) and f"{trainings} trainings" in head
