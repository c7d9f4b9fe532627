"""The README's own example runs as it is printed, on files of the columns that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KINDS = ["red dress", "blue skirt", "wool sweater", "denim jacket", "black trousers", "white blouse"]


def block(heading: str) -> str:
    """The first Python block under a heading."""
    return re.search(rf"^## {heading}$.*?^```python\n(.*?)^```$", README, re.M | re.S).group(1)


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path / "runs"))
    rows = [f"{at},{kind},{kind} in our shop" for at, kind in enumerate(KINDS)]
    Path("items.csv").write_text("\n".join(["item_id,title,text", *rows]))
    asked = [
        f'"{kind} number {at}","{{""{at % 6}"": 1.0, ""{(at + 1) % 6}"": 0.1}}"' for at, kind in enumerate(KINDS * 4)
    ]
    Path("requests.csv").write_text("\n".join(["request,relevant", *asked]))


def test_your_own_data_and_engine(own_files, tiny_folder, monkeypatch, capsys):
    from tiny import tiny_profile

    from recr1_lite import profiles

    asked = []

    def my_search(query: str) -> list[str]:
        asked.append(query)
        words = set(query.split())
        return sorted("012345", key=lambda item: -len(words & set(KINDS[int(item)].split())))

    code = block("Your own data and your own recommender")
    assert len(code.strip().splitlines()) <= 6 and "my_search" in code
    monkeypatch.setattr(profiles, "get_profile", lambda name=None: tiny_profile(tiny_folder, n_val=4, n_test=4))
    exec(compile(code, "README.md", "exec"), {"my_search": my_search})
    assert any("number" in query for query in asked)
    assert Path("runs/mine/report.html").is_file() and Path("runs/mine/grpo/best/adapter_config.json").is_file()
    assert "Sealed test, task custom" in capsys.readouterr().out


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LINKS = {(page, link) for page in PAGES for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())}


@pytest.mark.parametrize("page, link", sorted(LINKS), ids=lambda part: getattr(part, "stem", part))
def test_a_link_leads_somewhere(page, link):
    assert (page.parent / link).exists(), f"{page.name}: {link}"


TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`((?:\w+/)+\w+\.py)`", TEXT))))
def test_a_file_that_is_named_is_there(file):
    assert (ROOT / file).exists() or (ROOT / "recr1_lite" / file).exists(), file


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
