"""JupyterLab and the kit's own pages in a real browser, Chromium (Debian: apt install chromium): `make browser`.

    python tests/browser/look.py                     # all of it; pictures go to build/browser
    python tests/browser/look.py pages               # the report, the inspector and the served page alone
    python tests/browser/look.py lab --notebook 02a_retriever_and_metric

`lab` opens a copy of a notebook in JupyterLab under the profile smoke, runs all of it, and wants: no cell in error,
every figure drawn, every slider there, no error of a notebook in the console. `pages` wants at 360 and 1280 pixels,
light and dark: nothing wider than the window, every link and field reached by the Tab key in its order, a ring on what
has the focus, and no finding of axe-core (WCAG 2 A and AA).
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "browser"
WIDTHS, SCHEMES = (360, 1280), ("light", "dark")
TAGS = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}}
FOCUSABLE = "a[href], button, input:not([type=hidden]), textarea, select, summary, [tabindex='0']"
# JupyterLab's own, with or without this kit: extensions that ask a server which is not there
OWN = ("favicon", "/lab/api/", "jupyterlab-", "lsp", "translations", "workspaces", "settings", "terminals")
BADGE = '<svg xmlns="http://www.w3.org/2000/svg"/>'  # of another machine, which may be out of reach
problems: list[str] = []


def wanted(holds: bool, told: str) -> None:
    print(("ok    " if holds else "FAULT ") + told, flush=True)
    if not holds:
        problems.append(told)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def served(command: list[str], address: str, **env: str) -> Iterator[None]:
    """A server for the time of the block; it counts as up when `address` answers."""
    process = subprocess.Popen([sys.executable, "-m", *command], env=os.environ | env, stdout=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with status {process.returncode}") from None
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(30)


def lab(page: Page, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = shutil.copytree(ROOT / "notebooks", Path(folder) / "notebooks") / f"{name}.ipynb"
        for other in ("data", "docs", "recr1_lite"):
            (Path(folder) / other).symlink_to(ROOT / other)
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        options = [
            "--no-browser",
            "--expose-app-in-browser",
            f"--port={port}",
            "--IdentityProvider.token=",
            f"--notebook-dir={place.parent}",
        ]
        options += ["--allow-root", "--LabApp.news_url=None", "--log-level=ERROR"]
        settings = dict(
            JUPYTERLAB_WORKSPACES_DIR=folder, RECR1_PROFILE="smoke", RECR1_RUNS=f"{folder}/runs", PYTHONPATH=str(ROOT)
        )
        with served(["jupyterlab", *options], f"{address}/api", **settings):
            run_all(page, f"{address}/lab/tree/{place.name}", name)


def run_all(page: Page, address: str, name: str) -> None:
    errors: list[str] = []
    page.on("console", lambda one: errors.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda one: errors.append(str(one)))
    page.route("**/colab-badge.svg", lambda asked: asked.fulfill(content_type="image/svg+xml", body=BADGE))
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    panel = "window.jupyterapp.shell.currentWidget"
    page.wait_for_function(f"{panel}?.sessionContext?.session?.kernel?.status == 'idle'", timeout=120_000)
    for command in ("notebook:clear-all-cell-outputs", "notebook:run-all-cells"):  # waits for the last cell
        page.evaluate(f"window.jupyterapp.commands.execute('{command}')")
    model = f"{panel}.content.model"
    counts = page.evaluate(f"Array.from({model}.cells).filter(c => c.type == 'code').map(c => c.executionCount)")
    wanted(counts == [*range(1, len(counts) + 1)], f"{name}: {len(counts)} code cells ran in their order")
    kinds = page.evaluate(
        f"Array.from({model}.cells).filter(c => c.type == 'code').flatMap(c => c.outputs.toJSON())"
        ".map(o => [o.output_type, Object.keys(o.data || {})])"
    )
    wanted(all(kind != "error" for kind, _ in kinds), f"{name}: {len(kinds)} outputs, none an error")
    config = f"{panel}.content.notebookConfig"  # draw the cells that are out of sight too
    page.evaluate(f"{config} = {{...{config}, windowingMode: 'none'}}")
    page.wait_for_timeout(5000)
    drawn = page.evaluate("Array.from(document.querySelectorAll('.jp-OutputArea img')).map(i => i.naturalWidth)")
    pictures = sum("image/png" in data for _, data in kinds)
    wanted(len(drawn) >= pictures and all(drawn), f"{name}: {pictures} figures, all drawn")
    sliders = sum("application/vnd.jupyter.widget-view+json" in data for _, data in kinds)
    shown = page.locator(".jupyter-widgets.widget-container, .jupyter-widgets.widget-slider").count()
    wanted(shown >= sliders, f"{name}: {sliders} widgets, {shown} parts of them shown")
    ours = [text for text in errors if not any(own in text for own in OWN)]
    wanted(not ours, f"{name}: no error in the console {ours[:3] or ''}")
    page.screenshot(path=OUT / f"lab-{name}.png")
    page.goto("about:blank")  # before its server ends


def pages(page: Page) -> None:
    adapter, ledger = ROOT / "data" / "adapters" / "clothing", ROOT / "data" / "runs" / "ledger.jsonl"
    told = ["--ledger", ledger, "--run", "demo-cpu-seed0", "--out", OUT / "report.html"]
    subprocess.run([sys.executable, "-m", "recr1_lite", "report", *told], check=True)
    looked_at(page, (OUT / "report.html").as_uri(), "report with inspector")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with served(["recr1_lite", "serve", "--adapter", str(adapter), "--port", str(port)], address):
        looked_at(page, address, "served page", ask)


def ask(page: Page) -> None:
    """A request by keyboard alone."""
    field = page.locator("input[type=text], input:not([type]), textarea").first
    field.focus()
    page.keyboard.type("my old coat is falling apart")
    page.keyboard.press("Enter")
    page.wait_for_load_state("networkidle")
    wanted("coat" in page.locator("body").inner_text(), "served page: Enter in the field brings an answer")


def looked_at(page: Page, address: str, name: str, act: Callable[[Page], None] | None = None) -> None:
    for width in WIDTHS:
        for scheme in SCHEMES:
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            page.goto(address)
            if act:
                act(page)
            told = f"{name}, {width} px, {scheme}"
            wide = page.evaluate("document.documentElement.scrollWidth")
            wanted(wide <= width, f"{told}: as wide as the window ({wide} px)")
            by_keyboard(page, told)
            found = Axe().run(page, options=TAGS).response["violations"]
            wanted(not found, f"{told}: axe finds nothing {[(one['id'], len(one['nodes'])) for one in found] or ''}")
            page.screenshot(path=OUT / f"{name.replace(' ', '-')}-{width}-{scheme}.png", full_page=True)


def by_keyboard(page: Page, told: str) -> None:
    fields = page.locator(f":is({FOCUSABLE}):visible")
    total = fields.count()
    page.evaluate("const b = document.body; b.tabIndex = -1; b.focus(); b.removeAttribute('tabindex')")  # from the top
    reached, bare = [], 0
    for _ in range(total):
        page.keyboard.press("Tab")
        place = page.evaluate(
            f"Array.from(document.querySelectorAll(`{FOCUSABLE}`)).filter(e => e.checkVisibility())"
            ".indexOf(document.activeElement)"
        )
        reached.append(place)
        ring = "getComputedStyle(document.activeElement)"
        bare += page.evaluate(f"{ring}.outlineStyle == 'none' && {ring}.boxShadow == 'none'")
    wanted(sorted(set(reached)) == list(range(total)), f"{told}: Tab reaches {len(set(reached))} of {total} in order")
    wanted(not bare, f"{told}: the focus is seen on {total - bare} of {total}")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", default=["lab", "pages"])
    options.add_argument("--notebook", nargs="*", default=["00_start_here", "02a_retriever_and_metric"])
    given = options.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        print("there is no Chromium here; install it (Debian: apt install chromium) and run `make browser` again")
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        for name in given.notebook if "lab" in given.parts else ():
            lab(page, name)
        if "pages" in given.parts:
            pages(page)
    print(f"{len(problems)} faults; pictures in {OUT.relative_to(ROOT)}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
