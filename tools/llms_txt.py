"""Writes `llms.txt` beside the built pages: what the documentation has, for programs that read rather than browse.

A hook of mkdocs; see `hooks:` in mkdocs.yml.
"""

import re
from pathlib import Path
from typing import Any

_about: dict[str, str] = {}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> None:
    """Keep the first sentence of each page."""
    paragraphs = [part for part in markdown.split("\n\n") if re.match(r"(?!```|--8)[\w`*\[]", part)]
    text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split())) if paragraphs else ""
    if not page.is_homepage:
        _about[page.file.src_uri] = re.split(r"(?<=[.!?]) ", text)[0].rstrip(":")


def on_post_build(*, config: Any, **_: Any) -> None:
    """Write the file, in the order of the navigation."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]

    def add(entries: list[Any], level: int) -> None:
        for entry in entries:
            ((title, target),) = entry.items()
            if isinstance(target, str):
                address = config.site_url + re.sub(r"(index)?\.md$", "/", target).lstrip("/")
                about = _about.get(target)
                lines.append(f"- [{title}]({address})" + (f": {about}" if about else ""))
            else:
                lines.extend(["", f"{'#' * level} {title}", ""])
                add(target, level + 1)

    add(config.nav, 2)
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
