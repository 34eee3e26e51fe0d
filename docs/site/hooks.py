"""What the site holds beside the pages in docs/: see mkdocs.yml, which names this file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from from_code import PARTS
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
# Files of the project's top level that are pages too, and under which names.
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
EXPERIMENT = re.compile(r"\[([^\]]+)\]\s*\((experiments/[^)]*)\)")
# In tables GitHub wants a bar in code with a backslash before it, the site without.
BAR = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
GENERATED = re.compile(r"^<!-- generated: ([\w-]+)(?: ([\w-]+))? -->$", re.M)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for name, page in OUTSIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put in what is made from the code, and lead links to the site's pages.

    Links are right in the project's folder. Those to scripts and figures of experiments, which are
    no pages, become plain text.
    """
    markdown = GENERATED.sub(_part, markdown)
    markdown = BAR.sub(lambda code: code[0].replace("\\|", "|"), markdown)
    up = "../" * page.file.src_uri.count("/")
    for name, target in OUTSIDE.items():
        markdown = re.sub(rf"\]\((\.\./)+{re.escape(name)}", f"]({up}{target}", markdown)
    return EXPERIMENT.sub(lambda link: link[0] if ".md" in link[2] else link[1], markdown)


def _part(mark: re.Match[str]) -> str:
    return PARTS[mark[1]](*([mark[2]] if mark[2] else []))
