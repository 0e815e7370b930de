"""Studies: started again they compute nothing that they had, a changed config runs anew, the tables are right."""

import io
import json
import shutil
import types
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest
from data.formats import encoded, make_folder, make_zip
from training import tiny, toy, toy_task

from diffusion_jax import config as config_lib
from diffusion_jax import methods
from diffusion_jax.evaluation import bench, sigma_min, statistics
from diffusion_jax.methods import base
from diffusion_jax.study import Evaluation, Plot, Run, Study, StudyError, Table, loading, show
from diffusion_jax.study import run as runs
from diffusion_jax.training import checkpoint, loop, start

CONFIG = "tests/training/tiny.py"


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())


@pytest.fixture
def calls(monkeypatch):
  """What was trained, and how many images were drawn for scores."""
  seen = {"trained": [], "drawn": 0}
  train, generate = loop.train, bench.sampling.generate

  def counted_train(config, workdir):
    seen["trained"].append(workdir.name)
    return train(config, workdir)

  def counted_generate(config, method, variables, seeds, *args, **kwargs):
    seen["drawn"] += len(seeds)
    return generate(config, method, variables, seeds, *args, **kwargs)

  monkeypatch.setattr(loop, "train", counted_train)
  monkeypatch.setattr(bench.sampling, "generate", counted_generate)
  return seen


def study_of(steps=(2, 4), **fields):
  runs = [Run({"steps": str(n)}, CONFIG, {"train.num_steps": n, "train.checkpoint_every": 2}) for n in steps]
  euler = [Evaluation({"sampler": "Euler"}, {"sampler": "euler", "num_steps": n}) for n in (1, 2)]
  default = dict(runs=runs, evaluations=euler, seeds=(0, 1), metrics=("frechet",), num_images=16)
  return Study(**{**default, **fields})


def run(study, root, stored_only=False):
  pool, found = runs.ScorerPool(study), []
  for job in runs.jobs(study, root):
    if not runs.trained(job):
      runs.train(job)
    found += runs.evaluate(study, job, pool.of(job), stored_only)
  return found


def test_a_study_computes_everything_once(tmp_path, calls):
  found = run(study_of(), tmp_path)
  assert len(calls["trained"]) == 4 and calls["drawn"] == 4 * 2 * 16 and len(found) == 8
  assert {(r["study"]["steps"], r["study"]["seed"], r["study"]["NFE"]) for r in found} == {
    (n, seed, nfe) for n in "24" for seed in (0, 1) for nfe in (1, 2)
  }
  calls.update(trained=[], drawn=0)
  assert run(study_of(), tmp_path) == found
  assert calls == {"trained": [], "drawn": 0}


def test_a_changed_config_runs_that_one_alone(tmp_path, calls):
  run(study_of(seeds=(0,)), tmp_path)
  calls.update(trained=[], drawn=0)
  changed = study_of(seeds=(0,))
  fields = {**changed.runs[1].fields, "optimizer.learning_rate": 3e-3}
  changed = study_of(seeds=(0,), runs=[changed.runs[0], changed.runs[1]._replace(fields=fields)])
  run(changed, tmp_path)
  (name,) = calls["trained"]
  assert name.startswith("4_0_") and calls["drawn"] == 2 * 16
  calls.update(trained=[], drawn=0)
  more = changed.evaluations + [Evaluation({"sampler": "Heun"}, {"sampler": "heun", "num_steps": 2})]
  run(study_of(seeds=(0,), runs=changed.runs, evaluations=more), tmp_path)  # a new evaluation trains nothing
  assert calls == {"trained": [], "drawn": 2 * 16}


def test_recovery_is_an_evaluation(tmp_path, calls):
  """Beside sampling, of all real images, with one evaluation an image; computed once, shown like other scores."""
  levels = [Evaluation({"sigma": f"{sigma:g}"}, recovery=sigma) for sigma in (0.1, 1)]
  evaluations = [*levels, Evaluation({"sampler": "Euler"}, {"sampler": "euler", "num_steps": 2})]
  study = study_of(steps=(2,), seeds=(0,), evaluations=evaluations)
  found = run(study, tmp_path)
  assert [r["study"] for r in found[:2]] == [{"seed": 0, "steps": "2", "sigma": s, "NFE": 1} for s in ("0.1", "1")]
  assert [r["recovery"]["sigma"] for r in found[:2]] == [0.1, 1.0] and "recovery" not in found[2]
  assert [r["num_images"] for r in found] == [1797, 1797, 16] and calls["drawn"] == 16
  assert 0 < found[0]["value"] < found[1]["value"]
  assert run(study, tmp_path, stored_only=True) == run(study, tmp_path) == found and calls["drawn"] == 16
  assert len((tmp_path / found[0]["checkpoint"]["name"] / "evaluation/scores.jsonl").read_text().splitlines()) == 3
  assert "0.1" in show.markdown(Table("Recovery", ("sigma", "NFE"), when={"NFE": 1}), found)
  assert show.draw(Plot("recovery", "sigma", "steps"), found, tmp_path / "recovery.png")


def test_a_run_with_a_task_is_scored_on_other_conditions(tmp_path, calls, monkeypatch):
  """Images are made from the split that the run names, and compared with it; computed once."""
  monkeypatch.setattr(base, "network_from_config", toy_task.network_from_config)
  task = "tests/training/toy_task.py"
  fields = {"train.num_steps": 2, "train.checkpoint_every": 2, "train.sample_every": 2}
  own = dict(runs=[Run({"steps": "2"}, task, fields, data={"split": "test"})], metrics=("psnr", "frechet"))
  steps = [Evaluation({}, {"num_steps": n}) for n in (1, 3)]
  study = study_of(seeds=(0,), evaluations=steps, **own)
  found = run(study, tmp_path)
  assert [(r["metric"], r["study"]["NFE"], r["main"]) for r in found] == [
    (metric, nfe, True) for nfe in (1, 3) for metric in ("psnr", "frechet")
  ]
  assert {(r["reference"]["name"], r["reference"]["num_images"]) for r in found} == {("digits/test", 297)}
  assert {r["task"]["name"] for r in found} == {"inpaint"} and calls["drawn"] == 2 * 16
  (workdir,) = tmp_path.iterdir()
  size = PIL.Image.open(workdir / "samples/step_00000002.png").size
  assert size == (10 * 33 - 1, 9 * 33 - 1)
  assert run(study, tmp_path) == run(study, tmp_path, stored_only=True) == found and calls["drawn"] == 2 * 16
  with pytest.raises(StudyError, match="recovery = 0.5: not for a run that makes images from others"):
    run(study_of(seeds=(0,), evaluations=[Evaluation({}, recovery=0.5)], **own), tmp_path)


def test_a_published_network_recovers_the_images_beside_a_file_of_statistics(tmp_path):
  rng = np.random.default_rng(0)
  images = [encoded(image, "png") for image in rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)]
  make_zip(tmp_path / "data.zip", images, [i % 4 for i in range(20)])
  statistics.write(tmp_path / "stored.npz", statistics.Statistics(np.zeros(192), np.eye(192), extractor="pixels"))
  network = Run({}, checkpoint="tests/golden/edm_tiny.pkl", reference=str(tmp_path / "stored.npz"))
  data = dict(resolution=8, channels=3, num_classes=0)
  found = dict(data, name="zip", path=str(tmp_path / "data.zip"))
  study = study_of(runs=[network._replace(data=found)], evaluations=[Evaluation({}, recovery=0.5)])
  (record,) = run(study, tmp_path)
  assert (record["num_images"], record["reference"]["name"]) == (20, "stored.npz")
  with pytest.raises(ValueError, match="only a file of their statistics"):
    run(study_of(runs=[network._replace(data=data)], evaluations=study.evaluations), tmp_path)


def test_killed_while_training_or_scoring(tmp_path, calls, monkeypatch):
  whole = run(study_of(seeds=(0,)), tmp_path / "whole")
  calls.update(trained=[], drawn=0)

  class Killed(BaseException):
    pass

  def killed(*args, **kwargs):
    raise Killed

  with monkeypatch.context() as patch:  # after the first training
    patch.setattr(bench.sampling, "generate", killed)
    with pytest.raises(Killed):
      run(study_of(seeds=(0,)), tmp_path / "killed")
  with monkeypatch.context() as patch:  # in the second one, after its first checkpoint
    patch.setattr(loop, "save_grid", killed)
    with pytest.raises(Killed):
      run(study_of(seeds=(0,)), tmp_path / "killed")
  first, second = calls["trained"]
  assert first[0] == "2" and second[0] == "4" and calls["drawn"] == 2 * 16
  assert run(study_of(seeds=(0,)), tmp_path / "killed")
  assert calls["drawn"] == 4 * 16
  values = lambda found: [record["value"] for record in found]
  assert values(run(study_of(seeds=(0,)), tmp_path / "killed")) == values(whole)


def test_a_run_that_was_stopped_is_not_scored(tmp_path, monkeypatch):
  (job, *_) = runs.jobs(study_of(seeds=(0,)), tmp_path)
  train = loop.train

  def stopped(config, workdir):
    return train(config, workdir).replace(step=np.int32(1))

  monkeypatch.setattr(loop, "train", stopped)
  with pytest.raises(runs.Stopped, match="at step 1"):
    runs.train(job)


def test_workdirs_are_named_after_what_determines_the_updates(tmp_path):
  name = lambda **fields: runs.config_hash(with_(**fields))
  plain, paths = name(), []
  assert name(sampling__num_steps=7) == plain
  for folder, data in (("a", b"12"), ("b", b"12"), ("c", b"123")):  # moved, and changed
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "x.zip").write_bytes(data)
    paths.append(name(data__path=str(tmp_path / folder / "x.zip")))
  assert paths[0] == paths[1] != paths[2] != plain
  partners = []
  for folder, data in (("d", b"12"), ("e", b"12"), ("f", b"123")):
    make_folder(tmp_path / folder, {"1.png": data})
    partners.append(name(task__path=str(tmp_path / folder)))
  assert partners[0] == partners[1] != partners[2] != plain
  assert name(seed=1) != plain and name(train__num_steps=7) != plain and name(edm__p_mean=-1.0) != plain
  free = {"train__checkpoint_every": 8, "train__parallel": "jit", "data__cache": "none", "hang_timeout": 3.0}
  assert all(name(**{field: value}) == plain for field, value in free.items())


def test_data_are_told_apart_by_what_they_hold(tmp_path):
  """Wherever they lie; other data under the same name and of the same size are others."""
  name = lambda kind, path: runs.config_hash(with_(data__name=kind, data__path=str(path)))
  tfds = [name("tfds", f"imagenet_resized/{size}x{size}") for size in (32, 64)]
  image, other = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
  for folder, inside in (("a", image), ("b", image), ("c", other)):
    make_folder(tmp_path / folder / "set", {"x/1.png": encoded(inside, "bmp")})
    make_zip(tmp_path / folder / "set.zip", [encoded(inside, "bmp")], [0])
    (tmp_path / folder / "set.bin").write_bytes(inside.tobytes())
  assert (tmp_path / "a/set.zip").stat().st_size == (tmp_path / "c/set.zip").stat().st_size
  make_folder(tmp_path / "d" / "set", {"x/2.png": encoded(image, "bmp")})  # other names
  make_folder(tmp_path / "e" / "set", {"x/1.png": encoded(image, "bmp"), "dataset.json": b'{"labels": null}'})
  make_folder(tmp_path / "f" / "set", {"x/1.png": encoded(image, "bmp"), "notes.txt": b"x"})
  zips = [name("zip", tmp_path / folder / "set.zip") for folder in "abc"]
  files = [name("npz", tmp_path / folder / "set.bin") for folder in "abc"]
  folders = [name("folder", tmp_path / folder / "set") for folder in "abdef"]
  moved = [tfds[:1] * 2 + tfds[1:], zips, files]
  assert all(a == b != c for a, b, c in moved) and folders[0] == folders[1] == folders[4]
  assert len({*tfds, *zips, *files, *folders}) == 2 * 3 + 3
  assert name("zip", tmp_path / "none.zip") == name("zip", tmp_path / "a" / "none.zip")
  (tmp_path / "a/set/y.bmp").write_bytes(encoded(image, "bmp"))
  assert name("folder", tmp_path / "a/set") != folders[0]


def test_the_names_of_workdirs_are_fixed():
  """Of data that come with the library: nothing on a disk counts."""
  assert runs.config_hash(config_lib.default()) == "44136fa3"
  assert runs.config_hash(loading.load_config("configs/edm_photos.py")) == runs.config_hash(
    loading.load_config("configs/edm_photos.py", {"data.cache": "none", "sampling.num_steps": 3})
  )


def test_scorers_are_shared_by_what_has_the_same_real_images(monkeypatch):
  made = []
  make = lambda config, *args, **kwargs: made.append(dict(config.data)) or [len(made)]
  monkeypatch.setattr(bench, "scorers_for", make)
  pool = runs.ScorerPool(study_of())

  def of(reference=None, **data):
    return pool.of(runs.Job(Run({}, CONFIG, data=data, reference=reference), 0, config_lib.default(), None))

  first = of()
  for same in ({"cache": "none"}, {"flip": True}, {"augment": 0.1}, {"num_classes": 0}):
    assert of(**same) is first
  others = [{"split": "test"}, {"transform": "resize"}, {"data_dir": "x"}, {"resolution": 16}, {"reference": "a"}]
  assert len({id(found) for found in [first, *(of(**other) for other in others)]}) == len(made) == 6


def with_(**fields):
  config = tiny.get_config()
  config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return config


def records_of(values):
  """Records as of `evaluate`: values {(network, config, seed): value}."""
  return [
    {
      "metric": "frechet",
      "value": value,
      "extractor": {"name": "digits"},
      "main": True,
      "study": {"seed": seed, "network": network, "config": config, "NFE": 35},
    }
    for (network, config, seed), value in values.items()
  ]


def test_tables_show_mean_and_spread_over_seeds():
  found = records_of(
    {("VP", "A", 0): 2.0, ("VP", "A", 1): 4.0, ("VE", "A", 0): 7.0, ("VP", "B", 0): 1.0, ("VP", "B", 1): 1.5}
  )
  text = show.markdown(Table("Table 2", ("config",), ("network",)), found)
  head, _, header, _, a, b = text.splitlines()
  assert head == "**Table 2** (Fréchet distance (digits), 2 seeds)"
  cells = lambda line: [cell.strip() for cell in line.strip("|").split("|")]
  assert cells(header) == ["config", "VP", "VE"]
  assert cells(a) == ["A", "3.000 ± 1.414", "7.000 [1]"]
  assert cells(b) == ["B", "1.250 ± 0.354", ""]
  with pytest.raises(StudyError, match="table 'T': rows and columns do not tell .*'B'.* from another score"):
    show.markdown(Table("T", ("network",)), found)
  text = show.markdown(Table("All", ("network", "NFE"), when={"config": "A"}), found)
  assert cells(text.splitlines()[2]) == ["network", "NFE", "Fréchet distance (digits)"]
  assert cells(text.splitlines()[4]) == ["VP", "35", "3.000 ± 1.414"]


def test_blocks_are_averaged_before_seeds():
  first, second = ({("VP", "A", 0): value, ("VP", "A", 1): 5.0} for value in (2.0, 4.0))
  found = records_of(first) + records_of(second)
  assert show.rows(found, "frechet") == [(found[0]["study"], 3.0), (found[1]["study"], 5.0)]


def test_plots_are_drawn(tmp_path):
  found = records_of({("VP", "A", 0): 2.0, ("VP", "A", 1): 5.0, ("VE", "A", 0): 1.0})
  assert show.draw(Plot("p", "NFE", "network", "config"), found, tmp_path / "p.png")
  assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
  assert not show.draw(Plot("q", "S_churn", "network"), found, tmp_path / "q.png")
  assert not show.draw(Plot("q", "NFE", "network", when={"config": "F"}), found, tmp_path / "q.png")
  assert not (tmp_path / "q.png").exists()


def test_the_main_extractor_is_shown_whatever_the_data_of_a_run():
  found = records_of({("digits", "A", 0): 2.0, ("photos", "A", 0): 5.0, ("photos", "A", 1): 3.0})
  found[1]["extractor"] = found[2]["extractor"] = {"name": "pixels"}
  found[2].update(main=False)
  assert [value for _, value in show.rows(found, "frechet")] == [2.0, 5.0]
  text = show.markdown(Table("T", ("network",)), found)
  assert "Fréchet distance (digits) / Fréchet distance (pixels)" in text


def pair(**fields):
  """A pupil that starts from a teacher."""
  runs = [
    Run({"network": "teacher", "kind": "x"}, CONFIG, {"train.num_steps": 2, "train.checkpoint_every": 2}),
    Run({"network": "pupil"}, CONFIG, {"train.num_steps": 4, "train.checkpoint_every": 2}, init={"network": "teacher"}),
  ]
  return study_of(**{"runs": runs, "seeds": (0, 1), **fields})


@pytest.fixture
def folders(monkeypatch):
  """`loop.train` makes folders alone."""

  def train(config, workdir):
    checkpoint.write_config(workdir, config)
    (checkpoint.folder_of(workdir) / str(config.train.num_steps)).mkdir(parents=True)
    return types.SimpleNamespace(step=config.train.num_steps)

  monkeypatch.setattr(loop, "train", train)


def test_a_run_starts_from_another_of_its_seed(tmp_path, folders):
  jobs = runs.jobs(pair(), tmp_path)
  assert [job.config.init_from for job in jobs] == ["", str(jobs[0].workdir), "", str(jobs[2].workdir)]
  with pytest.raises(runs.Waiting, match=f"{jobs[1].workdir} waits for {jobs[0].workdir}, which is not trained"):
    runs.train(jobs[1])
  assert not runs.trained(jobs[1]) and list(tmp_path.iterdir()) == []
  for job in jobs[:2]:
    runs.train(job)
    assert runs.trained(job)
  shutil.rmtree(jobs[0].workdir)  # it is not needed any more
  shutil.move(tmp_path / jobs[1].workdir.name, tmp_path / "moved" / jobs[1].workdir.name)
  moved = runs.jobs(pair(), tmp_path / "moved")
  assert [runs.trained(job) for job in moved] == [False, True, False, False]


def test_a_chain_is_a_run_and_what_starts_from_it(tmp_path):
  """Of one seed, by way of others too; a published network is there, so that runs that start from it are chains."""

  def numbers(study):
    jobs = runs.jobs(study, tmp_path)
    return [[jobs.index(job) for job in chain] for chain in runs.chains(jobs)]

  third, alone = Run({"network": "grandpupil"}, CONFIG, init={"network": "pupil"}), Run({"network": "alone"}, CONFIG)
  alone = alone._replace(fields={"train.num_steps": 3})
  assert numbers(pair(runs=[pair().runs[0], alone, pair().runs[1], third])) == [[0, 2, 3], [1], [4, 6, 7], [5]]
  published = Run({"network": "teacher"}, checkpoint="tests/golden/edm_tiny.pkl")
  assert numbers(pair(runs=[published, pair().runs[1], third])) == [[0], [1, 2], [3, 4]]


def test_the_name_of_a_run_holds_what_it_starts_from(tmp_path):
  """Not where that lies; a change of the teacher is another pupil, and of that one's pupil."""
  names = lambda study, root=tmp_path: [job.workdir.name for job in runs.jobs(study, root)]
  plain = pair()
  third = Run({"network": "grandpupil"}, CONFIG, init={"network": "pupil"})
  base = names(pair(runs=[*plain.runs, third], seeds=(0,)))
  assert names(plain, "elsewhere") == names(plain) and names(plain)[:2] == base[:2]
  teacher = plain.runs[0]._replace(fields={**plain.runs[0].fields, "edm.p_mean": -1.0})
  other = names(pair(runs=[teacher, plain.runs[1], third], seeds=(0,)))
  assert all(a != b for a, b in zip(base, other))
  alone = names(pair(runs=[plain.runs[0], plain.runs[1]._replace(init={})], seeds=(0,)))
  assert alone[0] == base[0] and alone[1] != base[1]


def test_a_run_starts_from_a_published_network(tmp_path, monkeypatch):
  teacher = Run({"network": "teacher"}, checkpoint="tests/golden/edm_tiny.pkl")
  study = pair(runs=[teacher, pair().runs[1]])
  first, pupil, other = runs.jobs(study, tmp_path)
  assert first.config is None and pupil.config.init_from == other.config.init_from == "tests/golden/edm_tiny.pkl"
  shutil.copy("tests/golden/edm_tiny.pkl", tmp_path / "b.pkl")
  moved = pair(runs=[teacher._replace(checkpoint=str(tmp_path / "b.pkl")), study.runs[1]])
  assert runs.jobs(moved, tmp_path)[1].workdir == pupil.workdir
  lost = pair(runs=[teacher._replace(checkpoint="no.pkl"), study.runs[1]])
  with pytest.raises(StudyError, match="no.pkl cannot be read"):
    runs.jobs(lost, tmp_path)


@pytest.mark.parametrize("change, message", [
  (lambda a, b: [a, b._replace(init={"network": "techer"})], "init={'network': 'techer'} .*, got none"),
  (lambda a, b: [a, a._replace(labels={"network": "teacher"}), b], "expected one run, got .*'x'} and {'network'"),
  (lambda a, b: [b, a], "must stand before it in the list of runs"),
  (lambda a, b: [a, b._replace(init={"network": "pupil"})], "must stand before it"),
  (lambda a, b: [a, b._replace(fields={"init_from": "x"})], r"has both init and fields\['init_from'\]"),
  (lambda a, b: [a, b._replace(checkpoint="a.pkl")], "has both init and checkpoint"),
  (lambda a, b: [a._replace(fields={"edm.preconditioner": "vp"}), b], "init_from was trained with VP"),
])  # fmt: skip
def test_what_a_run_cannot_start_from(change, message, tmp_path):
  with pytest.raises((StudyError, config_lib.ConfigError), match=message):
    runs.jobs(pair(runs=change(*pair().runs)), tmp_path)


def test_a_study_searches_sigma_min_where_the_table_has_none(tmp_path, monkeypatch):
  """Once; the records hold it, and what is on file is found without a search."""
  searched = []
  found = lambda config, *args, **kwargs: searched.append(1) or sigma_min.Found(0.7, {0.7: 1.0})
  monkeypatch.setattr(sigma_min, "search", found)
  sampling = {"sampler": "dpdm", "grid": "dpdm"}
  dpdm = [Evaluation({"n": str(n)}, {**sampling, "num_steps": n}) for n in (2, 5)]
  study = study_of(steps=(2,), seeds=(0,), evaluations=dpdm)
  (job,) = runs.jobs(study, tmp_path)
  shapes = start.shapes(methods.from_config(job.config), job.config)
  checkpoint.write_config(job.workdir, job.config)
  checkpoints = checkpoint.Checkpoints(job.workdir, job.config)
  checkpoints.save(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), 2)
  checkpoints.close()
  scorers = runs.ScorerPool(study).of(job)
  assert runs.evaluate(study, job, scorers, stored_only=True) == [] and not searched
  done = runs.evaluate(study, job, scorers)
  assert [record["sampling"]["sigma_min"] for record in done] == [0.7, 0.0] and len(searched) == 1
  assert runs.evaluate(study, job, scorers, stored_only=True) == done == runs.evaluate(study, job, scorers)
  assert len(searched) == 1 and (job.workdir / "sigma_min.json").exists()


def test_a_damaged_checkpoint_is_not_scored_as_another(tmp_path):
  """Its scores would stand under the wrong step."""
  study = study_of(steps=(4,), seeds=(0,))
  (job,) = runs.jobs(study, tmp_path)
  runs.train(job)
  for path in (job.workdir / "checkpoints" / "4").glob("*"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(checkpoint.WorkdirError):
    runs.evaluate(study, job, runs.ScorerPool(study).of(job))


def test_a_folder_of_another_config_is_refused(tmp_path):
  """As when a default of the library has changed, which the folder's name does not show."""
  (job, *_) = runs.jobs(study_of(), tmp_path)
  other = job.config.copy_and_resolve_references()
  other.optimizer.beta2 = 0.99
  checkpoint.write_config(job.workdir, other)
  with pytest.raises(checkpoint.WorkdirError, match="holds a run with config.optimizer.beta2 = 0.99, not 0.999"):
    runs.trained(job)


def test_a_published_network_is_scored_without_training(tmp_path, calls):
  with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)):
      data = io.BytesIO()
      PIL.Image.fromarray(image).save(data, "png")
      archive.writestr(f"{i:08d}.png", data.getvalue())
  data = dict(name="zip", path=str(tmp_path / "data.zip"), resolution=8, channels=3, num_classes=0)
  study = study_of(runs=[Run({"network": "tiny"}, checkpoint="tests/golden/edm_tiny.pkl", data=data)])
  found = run(study, tmp_path)
  assert calls["trained"] == [] and len(found) == 2 and found[0]["checkpoint"]["name"] == "edm_tiny.pkl"
  assert calls["drawn"] == 2 * 16
  run(study, tmp_path)
  assert calls["drawn"] == 2 * 16


@pytest.mark.parametrize(
  "run, message",
  [
    (Run({}, "configs/nothing.py"), "configs/nothing.py: no such file"),
    (Run({}, "tests/oracle.py"), r"no get_config\(\)"),
    (Run({}, CONFIG, {"train.num_stpes": 3}), "config.train.num_stpes = 3: unknown field; nearest: .*num_steps"),
    (Run({}, CONFIG, {"train.num_steps": "many"}), "config.train.num_steps = 'many': expected int"),
    (Run({}, CONFIG + ":x"), r"get_config\(\) takes no argument"),
    (Run({}, "configs"), "configs: no such file"),
    (Run({}, CONFIG, {"train.num_steps": 0}), "config.train.num_steps = 0: must be positive"),
    (Run({}, "configs/ablations/table2_digits.py:vp-G"), "vp-G: expected"),
  ],
)
def test_wrong_runs_are_refused_before_anything_is_trained(run, message, tmp_path):
  with pytest.raises((StudyError, config_lib.ConfigError), match=message):
    runs.jobs(study_of(runs=[run]), tmp_path)
  assert not list(tmp_path.iterdir())


def test_wrong_studies(tmp_path):
  with pytest.raises(StudyError, match="two runs have the labels {'steps': '2'}"):
    runs.jobs(study_of(steps=(2, 2)), tmp_path)
  with pytest.raises(StudyError, match="no such file"):
    loading.load("experiments/studies/nothing.py")
  (tmp_path / "s.py").write_text("def get_study(): return 3\n")
  with pytest.raises(StudyError, match="must return a diffusion_jax.study.Study, got int"):
    loading.load(str(tmp_path / "s.py"))
  with pytest.raises(StudyError, match=r"metrics must be a list of names such as \('frechet',\)"):
    study_of(metrics="frechet")
  for evaluations, message in [
    ([Evaluation({}, {"steps": 3})], "sampling.steps"),
    ([Evaluation({}, {"sampler": "huen"})], "sampling.sampler = 'huen'"),
    ([Evaluation({}, {"num_steps": "x"})], "sampling.num_steps = 'x': expected int"),
    ([Evaluation({"sampler": "Heun"}, {"rho": rho}) for rho in (5.0, 7.0)], "two evaluations of .* have the labels"),
    ([Evaluation({"s": "0"}, recovery=0)], "evaluation {'s': '0'}: recovery = 0: sigma must be a positive number"),
    ([Evaluation({}, recovery="a")], "recovery = 'a': sigma must be a positive number"),
    ([Evaluation({}, {"rho": 5.0}, recovery=1.0)], "recovery samples nothing"),
    ([Evaluation({}, recovery=sigma) for sigma in (1, 2)], "two evaluations of .* have the labels"),
  ]:
    with pytest.raises((StudyError, config_lib.ConfigError), match=message):
      runs.jobs(study_of(steps=(2,), evaluations=evaluations), tmp_path)


WRONG_FILES = {
  "def get_study(:\n  pass": "SyntaxError: invalid syntax (line 1)",
  "\n\nstudy = Studdy()": "NameError: name 'Studdy' is not defined (line 3)",
  "import nothing_of_this_name": "ModuleNotFoundError: No module named 'nothing_of_this_name' (line 1)",
  "def get_study():\n  x = {}\n  return x['a']": "KeyError: 'a' (line 3)",
  "def get_study():\n  raise ValueError('two\\nlines')": "ValueError: two lines (line 2)",
  "def get_study():\n  assert False": "AssertionError: (line 2)",
  "def get_study(folder):\n  pass": "get_study() needs an argument, as {file}:ARGUMENT",
  "def get_study():\n  pass": "get_study() returns nothing",
  "import diffusion_jax.study as s\ndef get_study():\n  return s.Study(run=[])": (
    "TypeError: Study.__init__() got an unexpected keyword argument 'run' (line 3)"
  ),
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, text):
  file = tmp_path / "s.py"
  file.write_text(text + "\n")
  with pytest.raises(StudyError) as error:
    loading.load(str(file))
  assert str(error.value) == f"{file}: {WRONG_FILES[text]}".format(file=file)


def test_committed_studies_hold_together(tmp_path):
  """Every config of a study under experiments/studies is one that can be trained."""
  for name, count in (("edm_table2_digits", 36), ("edm_samplers_digits", 12)):
    study = loading.load(f"experiments/studies/{name}.py")
    assert len({job.workdir for job in runs.jobs(study, tmp_path)}) == count
    labels = {name for run in study.runs for name in run.labels}
    labels |= {name for evaluation in study.evaluations for name in evaluation.labels} | {"NFE"}
    for table in study.tables:
      assert {*table.rows, *table.columns, *table.when} <= labels, table
    json.dumps([dict(run.fields) for run in study.runs])
