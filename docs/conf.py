"""Settings of Sphinx. `make docs` builds the site into docs/_build/html, without a connection.

What is not written by hand is made here at every build, under docs/generated: the API reference (api.py), the notebook,
and the results of experiments/results, so that pages link to files of the repository as they stand in it.
"""

import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
sys.path[:0] = [str(DOCS), str(ROOT)]

import api  # noqa: E402

project = "diffusion_jax"
copyright = "the diffusion_jax authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Few-step diffusion models in JAX", "page_width": "1100px", "fixed_sidebar": True}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_sourcelink = False

nb_execution_mode = "off"
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in signatures, shapes in the text
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # a method without a docstring is that of its base class
smartquotes = False
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def generate():
  """Fills docs/generated."""
  api.write(GENERATED / "api")
  shutil.rmtree(GENERATED / "results", ignore_errors=True)
  shutil.copytree(ROOT / "experiments/results", GENERATED / "results")
  shutil.copy2(ROOT / "experiments/colab/quickstart.ipynb", GENERATED / "quickstart.ipynb")
  listed = sorted(str(path.relative_to(GENERATED).with_suffix("")) for path in GENERATED.glob("results/**/README.md"))
  lines = ["# Results", "", "What came out here, as committed under `experiments/results`.", ""]
  lines += ["```{toctree}", ":maxdepth: 1", "", *(f"/generated/{name}" for name in listed), "```", ""]
  (GENERATED / "results.md").write_text("\n".join(lines))


def to_generated(app, docname, source):
  """Links to what was copied lead to the copies."""
  for there, here in (("experiments/results/", "results/"), ("experiments/colab/", "")):
    source[0] = re.sub(rf"\]\((?:\.\./)+{there}", f"](/generated/{here}", source[0])


def to_rst(app, what, name, obj, options, lines):
  """Docstrings as reStructuredText: indented equations and tables are shown as they are, other signs are only signs."""
  if what == "module":  # whose equations may be all that is below the first line: no common indent to take away
    lines[:] = (obj.__doc__ or "").expandtabs().splitlines()
  out, literal, section, returns = [], None, False, False
  for line in lines:
    indent = len(line) - len(line.lstrip())
    if literal is not None:
      if line.strip() and indent < literal:
        literal = None
        out.append("")
      else:
        out.append(line)
        continue
    if line.strip() and not indent:
      section = line.rstrip() in SECTIONS
      if line.rstrip() == "Returns:":  # a field at once: napoleon would take what stands before a colon for a type
        returns = True
        continue
    if line.strip() and indent >= 2 and not section and (not out or not out[-1].strip()):
      out += ["::", ""]
      literal = indent
    if returns and line.strip():
      line, returns = f":returns: {line.strip()}", False
    out.append(line if literal is not None else escaped(line))
  lines[:] = out


SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:", "Yields:", "Example:", "Examples:", "Note:")


def escaped(line: str) -> str:
  """A line with the signs of reStructuredText escaped outside of `code`."""
  parts = re.split(r"(`[^`]*`)", line)
  for i, part in enumerate(parts):
    if part[:1] != "`":
      parts[i] = re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part)
    elif parts[i + 1][:1].isalpha():  # `sample`d
      parts[i] += "\\ "
  return "".join(parts)


def shorter(app, what, name, obj, options, signature, returns):
  """Signatures without what Flax adds to those of all networks."""
  return signature and re.sub(r"(, )?parent=<[^>]*>, name=None", "", signature), returns


def without_aliases(app, what, name, obj, skip, options):
  """Fields of a NamedTuple are told by its docstring."""
  return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app):
  generate()
  app.connect("source-read", to_generated)
  app.connect("autodoc-process-docstring", to_rst, priority=1)  # before napoleon
  app.connect("autodoc-process-signature", shorter)
  app.connect("autodoc-skip-member", without_aliases)
