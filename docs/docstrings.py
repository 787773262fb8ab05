"""From the docstrings of ulam to reStructuredText, and from the names in them to their pages.

Docstrings are plain text with `code` in single or double backticks, formulas as indented lines, and sections of
arguments and errors. What reStructuredText would read as markup is escaped, formulas are kept as they are set.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

# Every package whose names are public: `__all__`, or what a module defines itself.
PUBLIC = (
    "ulam", "ulam.bounds", "ulam.bulk", "ulam.chain_kernel", "ulam.ebm", "ulam.guidance", "ulam.mcmc", "ulam.models",
    "ulam.noise", "ulam.objectives", "ulam.objectives.timesteps", "ulam.objectives.weightings", "ulam.ops",
    "ulam.rollouts", "ulam.samplers", "ulam.schedules", "ulam.sure", "ulam.throughput", "ulam.tweedie", "ulam.vae",
    "ulam.integrations.diffusers", "ulam_kernels", "ulam_kernels.likelihood", "ulam_kernels.mcmc",
    "ulam_kernels.networks", "ulam_kernels.walks",
)  # fmt: skip
POINTERS = {"ulam.Energy", "ulam_kernels.backends", "ulam_kernels.walk"}  # second names, which point to the first
SPAN = re.compile(r"(``.+?``|:[\w:]+:`[^`]+`|`[^`]+`)")
FIELD = re.compile(r"^(\s*:[a-z]+(?: [^:`]*)?:)(\s.*|)$")
ATTRIBUTE = re.compile(r"^:ivar ([^:]*):(.*)$")
PARAMETER = re.compile(r"^:param ([^:]*):(.*)$")
BULLET = re.compile(r"^(\s*(?::\w+:)?\s*\* )(\*\*[^*]+\*\*)( -- .*)$")  # of several errors or warnings, by napoleon
NAME = re.compile(r"(?:[A-Z]\w*|\w+\.[\w.]+)(?:\(\))?")  # what may be public, and not an argument


def public_names() -> dict[str, list[str]]:
    """The public names of each package, without the modules among them, which have pages of their own."""
    found = {}
    for package in PUBLIC:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or _stated(module)
        found[package] = sorted(name for name in names if not isinstance(getattr(module, name), ModuleType))
    return found


def _stated(module: ModuleType) -> list[str]:
    """What a module without `__all__` defines, and what it imports as itself: `from .a import b as b`."""
    assert module.__file__ is not None
    names = []
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
    return [name for name in names if not name.startswith("_") and callable(getattr(module, name))]


@cache
def places() -> dict[str, str]:
    """Where an object is documented, by where it is defined: ulam.Job for ulam.engine.job.Job."""
    found: dict[str, str] = {}
    for package, names in public_names().items():
        for name in names:
            it = getattr(importlib.import_module(package), name)
            found.setdefault(f"{getattr(it, '__module__', '')}.{getattr(it, '__qualname__', '')}", f"{package}.{name}")
    return found


def inline(text: str) -> str:
    """A line with its markup escaped, but for `code`, ``code`` and references."""
    parts = SPAN.split(text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([\\*|_])", r"\\\1", part)
        else:
            if part.startswith("`") and not part.startswith("``") and not NAME.fullmatch(part[1:-1]):
                part = f"`{part}`"
            parts[i] = f"\\ {part}\\ "
    return "".join(parts)


def bare(text: str) -> str:
    """A line of a formula, which is set as it stands, without the markup of its names."""
    return re.sub(r":[a-z]+:`([^`]+)`|``(.+?)``|`([^`]+)`", lambda found: next(filter(None, found.groups())), text)


def table(rows: list[str]) -> list[str]:
    """A table as the docstrings draw it, with bars, as reStructuredText's."""
    out = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        if not set(row) <= set("|-"):
            cells = re.split(r"(?<=\s)\|(?=\s)", row.strip()[1:-1])  # a bar of |x| has no space on one side
            out += [f"   {'* -' if i == 0 else '  -'} {inline(cell.strip())}" for i, cell in enumerate(cells)]
    return [*out, ""]


def joined(lines: list[str]) -> list[str]:
    """The lines, with `code` that goes on in the next line in one."""
    out: list[str] = []
    for line in lines:
        if out and line.strip() and (out[-1].count("``") % 2 or out[-1].count("`") % 2):
            out[-1] += f" {line.lstrip()}"
        else:
            out.append(line)
    return out


def together(lines: list[str]) -> list[str]:
    """The lines, with one field for parameters that share a text: napoleon repeats it for each of their names."""
    blocks: list[list[str]] = []
    for line in lines:
        if blocks and line.startswith("    ") and PARAMETER.match(blocks[-1][0]):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    out: list[list[str]] = []
    for block in blocks:
        new, above = PARAMETER.match(block[0]), PARAMETER.match(out[-1][0]) if out else None
        if new and above and _words(new[2], block) == _words(above[2], out[-1]):
            out[-1][0] = f":param {above[1]},{new[1]}:{above[2]}"  # `spaced` sets a space after the comma
        else:
            out.append(block)
    return [line for block in out for line in block]


def _words(first: str, block: list[str]) -> list[str]:
    return " ".join([first, *block[1:]]).split()


OF_ONE_VALUE = ("attribute", "data", "property")  # of which napoleon would take words before a colon as a type
WRITTEN: dict[str, list[str]] = {}  # their docstrings, by name, until they are processed


def keep(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """autodoc's event, before napoleon's."""
    if what in OF_ONE_VALUE:
        WRITTEN[name] = list(lines)


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """autodoc's event, after napoleon's: the docstring's lines in place."""
    if what in OF_ONE_VALUE:
        lines[:] = WRITTEN.pop(name, lines)
    out: list[str] = []
    section = ""  # in which the lines are: "literal", "fields" or "attributes"
    for is_table, group in groupby(together(lines), lambda line: line.startswith("| ") or line.startswith("|--")):
        rows = list(group)
        if is_table:
            out += table(rows)
            continue
        section = _text(joined(rows), out, section)
    lines[:] = out


def _text(lines: list[str], out: list[str], section: str) -> str:
    """What is no table, appended to ``out``; the section where it ends."""
    for line in lines:
        indent, above = len(line) - len(line.lstrip()), out[-1] if out else ""
        if not line.strip():
            out.append("")
        elif section == "literal" and indent >= 4:
            out.append(bare(line))
        elif attribute := ATTRIBUTE.match(line):
            out += ([] if section == "attributes" else [""]) + [f"* ``{attribute[1]}``: {inline(attribute[2].strip())}"]
            section = "attributes"
        elif bullet := BULLET.match(line):
            out.append(bullet[1] + bullet[2] + inline(bullet[3]))
            section = "fields"
        elif field := FIELD.match(line):
            out.append(field[1] + inline(field[2]))
            section = "fields"
        elif indent and section in ("fields", "attributes"):
            out.append(" " * (2 if section == "attributes" else indent) + inline(line.lstrip()))
        elif indent >= 4 and above.strip() and section == "" and not above.rstrip().endswith(":"):
            out.append(inline(line.lstrip()))  # of an argument in a text: what it says goes on
        elif indent >= 4:
            stated = next((text for text in reversed(out) if text.strip()), "").endswith("::")
            out += ([""] if above else []) + ([] if stated else ["::", ""]) + [bare(line)]
            section = "literal"
        else:
            out += ([""] if above.startswith(" ") else []) + [inline(line)]
            section = ""
    return section


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Sphinx's event for a name that is on no page as it stands: perhaps its object is, by its public name."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    head, _, last = target.rpartition(".")
    for name in (places().get(target), places().get(head) and f"{places()[head]}.{last}"):
        if name and name in (objects := env.domains["py"].objects):
            from sphinx.util.nodes import make_refnode

            place = objects[name]
            return make_refnode(app.builder, node["refdoc"], place.docname, place.node_id, contnode, name)
    return None


def without_source(app: Any, doctree: Any) -> None:
    """Sphinx's event, before viewcode's, which links a file of source back to one package alone."""
    for signature in doctree.findall(lambda node: node.tagname == "desc_signature"):
        if f"{signature.get('module')}.{signature.get('fullname')}" in POINTERS:
            del signature["module"]


def spaced(app: Any, doctree: Any) -> None:
    """Sphinx's event: the names of parameters that share a field, `together`, with spaces between."""
    for names in doctree.findall(lambda node: node.tagname == "literal_strong"):
        for text in list(names.findall(lambda node: node.tagname == "#text" and "," in node)):
            text.parent.replace(text, type(text)(", ".join(text.split(","))))


def setup(app: Any) -> None:
    app.connect("doctree-read", spaced)
    app.connect("doctree-read", without_source, priority=400)
    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", process, priority=900)
    app.connect("missing-reference", resolve)
