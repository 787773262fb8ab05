"""The site of `make docs`: no warning, no network, every public name on a page, links that lead somewhere."""

from __future__ import annotations

import html
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from urllib.parse import unquote

import pytest

import ulam
from pages import DOCS, uses

pytest.importorskip("sphinx", reason="sphinx is not installed: pip install 'ulam[docs]', on Python 3.11 or newer")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from sphinx.util.inventory import InventoryFile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_OPTIONS = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --virtual-time-budget=20000"
MEASURE = """
window.onload = () => {
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument.documentElement;
    return frame.title + ' ' + page.scrollWidth + ' ' + page.clientWidth;
  });
  document.body.innerHTML = '<pre>' + found.join('\\n') + '</pre>';
};
"""
OFFLINE = """
import socket

def refused(*_, **__):
    raise OSError("no network while the site is built")

socket.getaddrinfo = refused
"""


@pytest.fixture(scope="module")
def docstrings() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as `make docs` does, where a look-up of any host fails."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "offline").mkdir()
    (folder / "offline" / "sitecustomize.py").write_text(OFFLINE)
    paths = [str(folder / "offline"), *sys.path]
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run(
        [*command, "--doctree-dir", str(folder / "trees"), str(DOCS), str(folder / "html")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


def test_every_public_name_is_on_a_page(site: Path, docstrings: types.ModuleType) -> None:
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda _, name: name)
    listed = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    public = {f"{package}.{name}" for package, names in docstrings.public_names().items() for name in names}
    assert len(public) > 200 and sorted(public - listed) == [], "add them to a page of docs/api"
    modules = [name for name in ulam.__all__ if isinstance(getattr(ulam, name), types.ModuleType)]
    assert {f"ulam.{name}" for name in modules} <= {*docstrings.PUBLIC} <= listed


def test_links_lead_to_pages_and_places_that_are_there(site: Path) -> None:
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    lost = []
    for path, text in pages.items():
        for link in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            target, _, place = unquote(link).partition("#")
            there = (path.parent / target).resolve() if target else path
            if re.match(r"https?:|mailto:", link):
                continue
            if not there.exists() or (place and there in places and place not in places[there]):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 30 and lost == []


def test_no_markup_is_shown_as_text(site: Path) -> None:
    """No role or double backquote in texts and formulas; in texts no other backquote and no escape either."""
    shown = []
    for path in site.rglob("*.html"):
        if "_modules" in path.parts:
            continue
        text = re.sub(r"<(script|style)\b.*?</\1>", "", path.read_text(), flags=re.DOTALL)
        text = re.sub(r'<div class="highlight-python.*?</pre>', "", text, flags=re.DOTALL)  # has docstrings of its own
        prose = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
        for kept, markup in (text, r":[a-z]+:`|``"), (prose, r"`|\\[*_|]"):
            words = html.unescape(re.sub(r"<[^>]+>", "", kept))
            shown += [f"{path.relative_to(site)}: {found}" for found in re.findall(rf".*(?:{markup}).*", words)]
    assert shown == []


def test_parameters_that_share_a_text_share_a_field(site: Path) -> None:
    words = html.unescape(re.sub(r"<[^>]+>", "", (site / "api" / "mcmc.html").read_text()))
    assert words.count("steps, warmup, thin \N{EN DASH} whole numbers;") == words.count("the states after thin,") == 1
    assert "Policy.__call__()" in re.sub(r"<[^>]+>", "", (site / "api" / "engine.html").read_text())


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert re.findall(r'<(?:script|img|link|iframe|source)[^>]+(?:src|href)="(?:https?:)?//[^"]*', text) == [], path
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet


def test_docstrings_keep_their_formulas_and_their_text(docstrings: types.ModuleType) -> None:
    lines = ["A |z| of x_, [B, *shape]; see `Job` and ``a * b``.", "", "    x_s = a * x_t", "", "After."]
    docstrings.process(None, "function", "", None, None, lines)
    said = "\n".join(lines)
    assert r"A \|z\| of x\_, [B, \*shape]" in said and "`Job`" in said and "``a * b``" in said
    assert "::\n\n    x_s = a * x_t\n" in said and lines[-1] == "After."


def test_every_public_name_has_an_example_that_runs(docstrings: types.ModuleType) -> None:
    """Called, passed on or returned in a block of Python of some page, all of which test_pages and its like execute."""
    pages = [path.read_text() for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    used = {place: it for text in pages for place, it in uses(text).items()}
    public = {
        f"{package}.{name}": getattr(importlib.import_module(package), name)
        for package, names in docstrings.public_names().items()
        for name in names
    }
    functions = {name: it for name, it in public.items() if inspect.isclass(it) or callable(it)}
    assert len(functions) > 200 and sorted(name for name, it in functions.items() if id(it) not in used) == []


def test_a_name_that_is_only_imported_or_said_has_no_example() -> None:
    block = """```python
import ulam
from ulam import bulk, samplers
from ulam.rollouts import mixed

"ulam.sample"  # ulam.tune
def ours(x: ulam.Result) -> ulam.Job: ...
net: ulam.Denoiser
report: ulam.Report = ulam.Engine(samplers.DDIM, key=bulk.run).report
```
"""
    modules = (ulam, ulam.bulk, ulam.samplers)
    public = {id(getattr(module, name)): name for module in modules for name in module.__all__}
    found = {public[place] for place in uses(block) if place in public}
    assert found == {"Report", "Engine", "DDIM", "run", "bulk", "samplers"}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [360, 1400])
def test_no_page_is_wider_than_the_screen(site: Path, tmp_path: Path, width: int) -> None:
    """In headless Chromium, on a telephone and on a desk."""
    pages = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html")) if "_modules" not in path.parts]
    frames = "".join(
        f'<iframe title="{page}" src="{(site / page).as_uri()}" style="width:{width}px;height:900px"></iframe>'
        for page in pages
    )
    (tmp_path / "frames.html").write_text(f"<body>{frames}<script>{MEASURE}</script>")
    assert CHROMIUM is not None
    command = [CHROMIUM, *CHROMIUM_OPTIONS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=200, check=True
    )
    (found,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, flags=re.DOTALL)
    measured = [line.rsplit(" ", 2) for line in html.unescape(found).splitlines()]
    assert [page for page, _, _ in measured] == pages
    assert [line for line in measured if int(line[1]) > int(line[2]) or int(line[2]) < width - 30] == []
