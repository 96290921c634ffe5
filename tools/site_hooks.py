"""What `./dev docs` adds to the pages of docs/: the front page from README.md, and the reference from the one description of each thing.

Commands and keys are what the program's --help says, Python is what docstrings say. Links to files outside docs/ become their names: the site has the
documentation, not the sources.
"""

from __future__ import annotations

import ast
import functools
import logging
import os
import re
import subprocess
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(os.environ.get("CONCLAVE_PROGRAM") or ROOT / "build/conclave")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
PACKAGE = ROOT / "python/conclave"
log = logging.getLogger("mkdocs.hooks.conclave")  # a warning of it fails a strict build


def on_files(files: Files, config: dict) -> Files:
    """Adds the pages that are made here."""
    made = {"index.md": front_page(), "reference/commands.md": commands_page(), "reference/keys.md": keys_page(), "reference/python.md": python_page()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: object, config: dict, files: Files) -> str:
    """Replaces links that leave docs/ by what they name."""
    return LINK.sub(lambda link: link[1] if link[2].startswith("../") and not page.file.src_uri.startswith("reference/") else link[0], markdown)


def front_page() -> str:
    """README.md as a page of docs/."""
    def seen_from_docs(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        if target.startswith("docs/"):
            return f"[{text}]({target.removeprefix('docs/')})"
        return link[0] if "://" in target or target.startswith("#") else text

    return LINK.sub(seen_from_docs, (ROOT / "README.md").read_text())


@functools.cache
def help_of(*command: str) -> str:
    """What a command says of itself. Without the program the page says how to get it."""
    if not PROGRAM.exists():
        log.warning("build/conclave is not built, so the reference of its commands is empty. ./dev docs builds it.")
        return ""
    return subprocess.run([PROGRAM, *command, "--help"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=60).stdout


def subcommands_of(text: str) -> list[str]:
    """The names under Subcommands of a --help."""
    _, _, listed = text.partition("Subcommands:\n")
    return re.findall(r"^  (\w[\w-]*)", listed.partition("\n\n")[0], re.MULTILINE)


def commands_page() -> str:
    """Every command with its --help."""
    lines = ["# Commands\n", "This is what `conclave COMMAND --help` says. The keys of a job have [a page of their own](keys.md).\n"]
    for name in subcommands_of(help_of()):
        commands = [[name], *([name, inner] for inner in subcommands_of(help_of(name)))]
        for command in commands:
            text = help_of(*command)
            if command == ["train"]:
                text = text.partition("The job file\n")[0].rstrip() + "\n"
            lines.append(f"{'#' * (1 + len(command))} conclave {' '.join(command)}\n\n```text\n{text}```\n")
    return "\n".join(lines)


def keys_page() -> str:
    """The keys of a job, with type, default and meaning."""
    _, _, text = help_of("train").partition("The job file\n")
    return f"# Keys of a job\n\nThis is what `conclave train --help` says of the job file. [The job file](../job_file.md) explains more.\n\n```text\n{text.strip()}\n```\n"


def public_names() -> dict[str, str]:
    """The names that `import conclave` offers, each with its module."""
    module = ast.parse((PACKAGE / "__init__.py").read_text())
    (imports,) = [node for node in module.body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in imports.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def signature_of(node: ast.FunctionDef | ast.ClassDef) -> str:
    """As it is written, without the body."""
    if isinstance(node, ast.ClassDef):
        (init,) = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"] or [None]
        return f"class {node.name}" + (f"({ast.unparse(init.args).removeprefix('self, ').removeprefix('self')})" if init else "")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"


def python_page() -> str:
    """Signatures and docstrings of the public names, by module."""
    lines = ["# Python\n", "These are the names that `import conclave` offers. [Keep your PyTorch script](../python.md) shows how they work together.\n"]
    for name, module in sorted(public_names().items(), key=lambda pair: (pair[0][0].isupper(), pair[0])):
        file = PACKAGE / ("__init__.py" if module == "conclave" else f"{module.removeprefix('conclave.')}.py")
        if module == "conclave":  # a module of its own
            docstring = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text()))
            lines.append(f"## conclave.{name}\n\n```text\n{docstring}\n```\n")
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                lines.append(f"## conclave.{name}\n\n```python\n{signature_of(node)}\n```\n\n```text\n{ast.get_docstring(node) or ''}\n```\n")
    return "\n".join(lines)
