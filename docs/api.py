"""The pages of the API reference, made from the source: one a package, with every public function and class.

    python docs/api.py         # prints what there is, module by module

Public is what a module defines at its top level under a name without a leading underscore. Sources are parsed, not
imported, so that a listing takes no time; `write` is called by conf.py at every build. A new module or function is
in the reference without being named anywhere.
"""

import ast
import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "diffusion_jax"
CLASS_OPTIONS = ("   :members:", "   :special-members: __call__", "   :show-inheritance:")


@dataclasses.dataclass(frozen=True)
class Module:
  """A module as its source has it.

  Attributes:
    name: with dots, such as "diffusion_jax.samplers.ode".
    path: of its file.
    functions: names of its public functions, in the file's order.
    classes: of its public classes.
    constants: of what else it assigns under a name of its own.
    exports: of a package, what its `__all__` has from its modules.
  """

  name: str
  path: Path
  functions: tuple[str, ...]
  classes: tuple[str, ...]
  constants: tuple[str, ...]
  exports: tuple[str, ...]

  @property
  def package(self) -> str:
    """The page that it is on: the package below diffusion_jax, or diffusion_jax itself."""
    parts = self.name.split(".")
    return ".".join(parts[: 2 if len(parts) > 2 or self.path.name == "__init__.py" else 1])


def modules(root: Path = ROOT) -> list[Module]:
  """All public modules of the library, packages before their modules, by name."""
  paths = sorted((root / PACKAGE).rglob("*.py"))
  found = [_read(path, root) for path in paths if not any(_private(part) for part in path.relative_to(root).parts)]
  return sorted(found, key=lambda module: module.name)


def pages(found: list[Module]) -> dict[str, list[Module]]:
  """{package: its modules}."""
  out = {}
  for module in found:
    out.setdefault(module.package, []).append(module)
  return out


def page(package: str, members: list[Module]) -> str:
  """The reference of one package, in reStructuredText."""
  lines = [package, "=" * len(package), ""]
  for module in members:
    if module.name != package:
      lines += [module.name, "-" * len(module.name), ""]
    lines += [f".. automodule:: {module.name}", ""]
    if module.exports:
      lines += [f"Names of the package: {_code(module.exports)}.", ""]
    if module.constants:
      lines += [f"Constants and types: {_code(module.constants)}.", ""]
    for name in module.classes:
      lines += [f".. autoclass:: {module.name}.{name}", *CLASS_OPTIONS, ""]
    for name in module.functions:
      lines += [f".. autofunction:: {module.name}.{name}", ""]
  return "\n".join(lines)


def index(packages: list[str]) -> str:
  """The page that lists the others."""
  title = "API reference"
  about = "Every public function and class, from the docstrings. Packages export what is most used."
  entries = [f"   {package}" for package in packages]
  return "\n".join([title, "=" * len(title), "", about, "", ".. toctree::", "   :maxdepth: 2", "", *entries, ""])


def write(folder: Path, root: Path = ROOT) -> list[Path]:
  """Writes all pages; returns their paths. Files that are as they should be are left alone, others removed."""
  found = pages(modules(root))
  texts = {f"{package}.rst": page(package, members) for package, members in found.items()}
  texts["index.rst"] = index(list(found))
  folder.mkdir(parents=True, exist_ok=True)
  for path in folder.glob("*.rst"):
    if path.name not in texts:
      path.unlink()
  for name, text in texts.items():
    path = folder / name
    if not path.exists() or path.read_text() != text:
      path.write_text(text)
  return [folder / name for name in texts]


def _private(part: str) -> bool:
  return part.startswith("_") and part != "__init__.py"


def _read(path: Path, root: Path) -> Module:
  parts = path.relative_to(root).with_suffix("").parts
  name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
  functions, classes, constants, exports = [], [], [], []
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      functions.append(node.name)
    elif isinstance(node, ast.ClassDef):
      classes.append(node.name)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      names = [target.id for target in targets if isinstance(target, ast.Name)]
      constants += names
      if names == ["__all__"]:
        exports = list(ast.literal_eval(node.value))
  own = (*functions, *classes, *constants)
  exports = [export for export in exports if export not in own]
  public = lambda names: tuple(name for name in dict.fromkeys(names) if not name.startswith("_"))
  return Module(name, path, public(functions), public(classes), public(constants), tuple(exports))


def _code(names) -> str:
  return ", ".join(f"``{name}``" for name in names)


if __name__ == "__main__":
  for module in modules():
    print(module.name, *module.classes, *module.functions)
