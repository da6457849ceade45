"""The hooks of the documentation site. `make docs` checks its links."""

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import markdown
import pytest
from markdown_it import MarkdownIt
from mkdocs.exceptions import PluginError

from conftest import script

ROOT = Path(__file__).parents[1]
SITE = script("docs_site")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])


def page(uri: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri))


@pytest.mark.parametrize(
    ("uri", "link", "in_site"),
    [
        ("index.md", "[a](docs/tasks.md#answers)", "[a](tasks.md#answers)"),
        ("index.md", "![a](docs/demo.png)", "![a](demo.png)"),
        ("index.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("index.md", "[a](docs/demo.ipynb)", "[a](demo.md)"),
        ("index.md", "[a](src/estep/loop.py)", "[a](files/src/estep/loop.py.md)"),
        ("contributing.md", "[a](src/estep/m_step)", "[a](files/src/estep/m_step/index.md)"),
        ("studies.md", "[a](../src/estep/configs/demo.yaml)", "[a](files/src/estep/configs/demo.yaml.md)"),
        ("studies/cpu/README.md", "[a](index.html)", "[a](page.html)"),
        ("studies/cpu/README.md", "[a](../../log.md)", "[a](../../log.md)"),
        ("demo.md", "[a](../README.md)", "[a](index.md)"),
        ("index.md", "[a](https://arxiv.org/abs/2512.20169)", "[a](https://arxiv.org/abs/2512.20169)"),
        ("index.md", "[a](#on-gpus)", "[a](#on-gpus)"),
    ],
)
def test_a_path_in_the_repository_becomes_one_in_the_site(uri: str, link: str, in_site: str) -> None:
    assert SITE.on_page_markdown(link, page(uri)) == in_site


def test_a_link_to_nothing_is_left_for_the_strict_build_to_report() -> None:
    assert SITE.on_page_markdown("[a](docs/nothing.md)", page("index.md")) == "[a](docs/nothing.md)"


@pytest.mark.parametrize(
    "loaded",
    [
        '<script async src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        "<img alt=a src=http://example.org/a.png>",
    ],
)
def test_a_page_that_loads_something_from_another_server_is_refused(loaded: str) -> None:
    with pytest.raises(PluginError, match=r"^tasks\.md loads something from another server: <"):
        SITE.on_post_page(f"<head>{loaded}</head>", page("tasks.md"))


def test_a_page_may_link_another_server_and_load_its_own_files() -> None:
    output = '<a href="https://example.org">a</a><script src="assets/a.js"></script><link href="css/a.css">'
    assert SITE.on_post_page(output, page("tasks.md")) == output


def shape(html: str) -> Counter[str]:
    """How many paragraphs, list items and the like a page has; Python-Markdown sets no paragraphs in some lists."""
    return Counter(re.findall(r"<(li|em|strong|table|tr|pre|blockquote|h\d|img|ol|ul)\b", html))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_site_reads_a_document_as_the_repositorys_host_does(path: Path) -> None:
    text = path.read_text()
    extensions = ["tables", "pymdownx.betterem", "pymdownx.superfences"]
    site = markdown.markdown(
        text, extensions=extensions, extension_configs={"pymdownx.betterem": {"smart_enable": "all"}}
    )
    assert shape(site) == shape(MarkdownIt("commonmark").enable("table").render(text))
