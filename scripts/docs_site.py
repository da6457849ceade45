"""Hooks of the documentation site (mkdocs.yml): pages from outside docs/, and links as the repository's host has them.

The documents link each other and the code by relative paths. README.md and its like become pages of the site, and so do
a notebook and each file or folder that a page links. A page that would load a script, a style or a picture from another
server stops the build.
"""

import ast
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "docs/demo.ipynb": "demo.md",
}
"""Files of the repository that are pages of the site."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^()\s#]+)(#[^()\s]*)?(?=[\s)])")
LOADED = re.compile(r"""<(?:(?:script|img|iframe)\b[^>]*\bsrc|link\b[^>]*\bhref)=["']?(?:https?:)?//""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    for path, uri in PAGES.items():
        if (notebook := files.get_file_from_path(path.removeprefix("docs/"))) is not None:
            files.remove(notebook)
        _add(files, config, uri, _text(path, files, config))
    for file in list(files.documentation_pages()):
        for target in _linked(_origin(file.src_uri), file.content_string):
            if not target.startswith("docs/") and target not in PAGES:
                _add(files, config, _uri(target), _source(target))
    for page in sorted((ROOT / "docs").glob("studies/*/index.html")):  # its README.md becomes index.html
        uri = page.relative_to(ROOT / "docs").with_name("page.html").as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn paths in the repository into paths in the site."""
    uri = page.file.src_uri
    origin = _origin(uri)

    def replaced(match: re.Match[str]) -> str:
        target = _target(origin, match[1])
        if target is None:
            return match[0]
        inside = _uri(target)
        return os.path.relpath(inside, PurePosixPath(uri).parent) + (match[2] or "")

    return LINK.sub(replaced, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse pages that load something from another server."""
    if (found := LOADED.search(output)) is not None:
        raise PluginError(f"{page.file.src_uri} loads something from another server: {output[found.start() :][:120]}")
    return output


def _add(files: Files, config: MkDocsConfig, uri: str, content: str) -> None:
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, content=content))


def _text(path: str, files: Files, config: MkDocsConfig) -> str:
    """A page's Markdown; the pictures of a notebook become files beside it."""
    if not path.endswith(".ipynb"):
        return (ROOT / path).read_text(encoding="utf-8")
    from nbconvert import MarkdownExporter

    body, resources = MarkdownExporter().from_filename(str(ROOT / path))
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, name, content=content))
    return body


def _origin(uri: str) -> str:
    """The path in the repository of what a page is made from."""
    return next((path for path, page in PAGES.items() if page == uri), f"docs/{uri}")


def _target(origin: str, link: str) -> str | None:
    """The path in the repository that a link leads to; None if there is none, which the build then reports."""
    target = os.path.normpath(PurePosixPath(origin).parent / link)
    return target if not target.startswith("..") and (ROOT / target).exists() else None


def _uri(target: str) -> str:
    """Where the site has a file or folder of the repository."""
    if target in PAGES:
        return PAGES[target]
    if not target.startswith("docs/"):
        return f"files/{target}.md" if (ROOT / target).is_file() else f"files/{target}/index.md"
    return re.sub(r"^(studies/[^/]+)/index\.html$", r"\1/page.html", target.removeprefix("docs/"))


def _linked(origin: str, markdown: str) -> list[str]:
    return [target for match in LINK.finditer(markdown) if (target := _target(origin, match[1])) is not None]


@cache
def _source(path: str) -> str:
    """A page that shows a file of the repository, or lists the files of a folder with what they are for."""
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# `{path}`\n\n"
    if (ROOT / path).is_file():
        language = {".py": "python", ".yaml": "yaml", ".sh": "sh"}.get(Path(path).suffix, "text")
        return f"{head}````{language}\n{(ROOT / path).read_text(encoding='utf-8').rstrip()}\n````\n"
    tracked = [file for file in sorted((ROOT / path).rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    return head + "".join(f"- `{file.relative_to(ROOT / path)}`{_purpose(file)}\n" for file in tracked)


def _purpose(file: Path) -> str:
    """The first sentence of a module's docstring."""
    if file.suffix != ".py":
        return ""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return f": {first}" if (first := docstring.partition("\n")[0]) else ""
