"""The documentation without Sphinx: the reference is complete, and what pages name, quote and run is there."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest

from diffusion_jax import config, methods
from diffusion_jax.data import sources

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"generated", "_build"} & set(path.parts))
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`([\w./-]+\.py)(?:: (\w+(?:\.\w+)?))?`((?:(?:,| and|;)?\s+`\w+(?:\.\w+)?`)*)")  # file: f`, `g`
FENCED = re.compile(r"```.*?```", re.S)
RESULTS = re.compile(r"\]\(((?:\.\./)+experiments/results/[^)]+README\.md)\)")
DECIMAL = re.compile(r"(?<![\w.])\d*\.\d+(?![\w.]*\w)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def load(name: str):
  spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def api():
  return load("api")


@functools.cache
def names_in(path: Path) -> set[str]:
  """What a source defines at its top level, and Class.member of its classes."""
  names = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
    if isinstance(node, ast.ClassDef):
      names |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
    if isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      names |= {target.id for target in targets if isinstance(target, ast.Name)}
  return names


def located(name: str) -> Path | None:
  """A source by the name that a page gives it: in the repository, the library, or beside a file of `configs/`."""
  places = (ROOT, ROOT / "diffusion_jax", DOCS, ROOT / "configs", ROOT / "experiments")
  found = [place / name for place in places if (place / name).is_file()]
  if not found and "/" not in name:
    found = sorted((ROOT / "diffusion_jax").rglob(name))
  return found[0] if found else None


def test_the_reference_has_every_public_function_and_class(api, tmp_path):
  pages = "".join(path.read_text() for path in api.write(tmp_path))
  sources = sorted((ROOT / "diffusion_jax").rglob("*.py"))
  assert len(sources) > 100
  for path in sources:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert f".. automodule:: {module}\n" in pages
    for kind, name in re.findall(r"^(def|class) ([A-Za-z]\w*)", path.read_text(), re.M):
      directive = "autofunction" if kind == "def" else "autoclass"
      assert f".. {directive}:: {module}.{name}\n" in pages, f"{path}: {name}"


def test_the_reference_is_of_its_packages(api):
  pages = api.pages(api.modules())
  assert [module.name for module in pages["diffusion_jax.process"]] == [
    "diffusion_jax.process", "diffusion_jax.process.attenuation", "diffusion_jax.process.base",
    "diffusion_jax.process.decoupled", "diffusion_jax.process.gaussian",
  ]  # fmt: skip
  assert {"diffusion_jax.times", "diffusion_jax.losses"} < {module.name for module in pages["diffusion_jax"]}
  assert "heun" in next(m for m in pages["diffusion_jax.samplers"] if m.name == "diffusion_jax.samplers").exports


def test_a_new_function_is_in_the_reference(api, tmp_path):
  package = tmp_path / "diffusion_jax"
  (package / "new").mkdir(parents=True)
  (package / "__init__.py").write_text("")
  (package / "new" / "thing.py").write_text("def made():\n  pass\n\n\ndef _hidden():\n  pass\n")
  (package / "new" / "__init__.py").write_text("")
  api.write(tmp_path / "pages", tmp_path)
  page = (tmp_path / "pages" / "diffusion_jax.new.rst").read_text()
  assert ".. autofunction:: diffusion_jax.new.thing.made\n" in page and "_hidden" not in page
  (package / "new" / "thing.py").write_text("")
  (package / "new" / "__init__.py").unlink()
  (package / "new" / "thing.py").unlink()
  api.write(tmp_path / "pages", tmp_path)
  assert not (tmp_path / "pages" / "diffusion_jax.new.rst").exists()


@each_page
def test_links_lead_somewhere(page):
  for target in LINK.findall(FENCED.sub("", page.read_text())):
    if not re.match(r"[a-z]+:", target):
      path, _, anchor = target.partition("#")
      there = (page.parent / path).resolve() if path else page
      assert there.is_file(), target
      if anchor:
        headings = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
        assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target


@each_page
def test_sources_and_functions_that_are_named_exist(page):
  whole = page.read_text()
  for name, first, more in SOURCE.findall(FENCED.sub("", whole)):
    if "NAME" in name:
      continue
    path = located(name)
    assert path, name
    for function in filter(None, [first, *re.findall(r"`([\w.]+)`", more if first else "")]):
      if not function.endswith(".py"):
        assert function in names_in(path), f"{name}: {function}"
  for path in re.findall(r"(?<![\w/])(?:experiments|configs|tests|diffusion_jax)/[\w/]+\.(?:py|ipynb)", whole):
    assert (ROOT / path).is_file() or "NAME" in path, path


def test_every_page_is_in_the_index():
  index = (DOCS / "index.md").read_text()
  listed = set(re.findall(r"^[\w/]+$", "\n".join(FENCED.findall(index)), re.M))
  assert {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"} <= listed


@each_page
def test_numbers_of_results_are_those_of_the_files_named_beside_them(page):
  """Decimals of a section "Results" stand in one of the results that it links to."""
  for section in re.findall(r"^## Results\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S):
    files = [(page.parent / target).resolve() for target in RESULTS.findall(section)]
    assert files, page
    known = {number.lstrip("0") for path in files for number in DECIMAL.findall(path.read_text())}
    quoted = {number.lstrip("0") for number in DECIMAL.findall(LINK.sub("", section))}
    assert quoted <= known, quoted - known


@functools.cache
def messages() -> str:
  """All strings of the library and its programs, with … for what is put into them."""
  out = []
  for folder in ("diffusion_jax", "experiments"):
    for path in (ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
          out.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
          out.append(re.sub(r"%[sdg]", "…", node.value))
  return "\n".join(out)


def test_messages_of_troubleshooting_are_those_of_the_code():
  text = (DOCS / "howto" / "troubleshooting.md").read_text()
  quoted = re.findall(r"^    (.*)$", text, re.M)
  assert len(quoted) > 15
  for message in quoted:
    field, message = re.fullmatch(r"(?:config\.([\w.]+) = …: )?(.*)", message).groups()
    assert field is None or field in config.flatten(config.default()), field
    parts = [part.strip(" :=,;'") for part in message.removeprefix("error: ").replace("; ", "…").split("…")]
    for part in filter(lambda part: len(part) > 6, parts):
      assert part in messages(), f"{message}: {part!r}"


@pytest.mark.parametrize("page", ["add_a_sampler", "add_a_data_set"])
def test_examples_run(page):
  run_examples(DOCS / "howto" / f"{page}.md")


@pytest.mark.slow
def test_the_example_of_a_method_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run_examples(DOCS / "howto" / "add_a_method.md")


def run_examples(page: Path):
  """Executes the Python of a page, whose assertions are the test; what it registers goes again."""
  blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
  assert blocks
  before = [(table, dict(table)) for table in (methods.BY_NAME, sources.SOURCES)]
  try:
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": page.stem})
  finally:
    for table, old in before:
      table.clear()
      table.update(old)
