"""What the documentation says exists: commands with their options, files, links, job keys, example jobs.

Oracles: the programs' own --help, the file system, and the description of the job's fields in src/config/*_section.cpp.
"""

import functools
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build/conclave"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [("examples/quickstart/job.yaml", 2), ("examples/mixtral-8x7b.yaml", 64), ("examples/mixtral-8x22b.yaml", 64),
            ("examples/olmoe-1b-7b.yaml", 8), ("examples/qwen3-30b-a3b.yaml", 64),
            ("examples/deepseek-v3.yaml", 256), ("examples/gpt-oss-20b.yaml", 16)]

needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason="build/conclave is not built")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list:
    """Every line of every ```sh block."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    found.append(pytest.param(words, id=f"{page.name}: {line[:60]}"))
    return found


@functools.cache
def help_of(*command: str) -> str:
    done = subprocess.run([*command, "--help"], cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "python"}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{shlex.join(command)} --help: {done.stderr}"
    return done.stdout


def has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def helper_of(words: list[str]) -> tuple[list[str], list[str]]:
    """(the command whose --help explains the line, the words that are its arguments)."""
    for i, word in enumerate(words):
        if word == "build/conclave":
            names = words[i + 1 : i + (3 if words[i + 1] in ("bench", "ckpt", "data") else 2)]
            return [word, *names], words[i + 1 + len(names) :]
        if word == "conclave.data":
            return [sys.executable, "-m", word, words[i + 1]], words[i + 2 :]
        if word.endswith(".py"):
            return [sys.executable, word], words[i + 1 :]
        if word == "./dev":
            return [word], words[i + 1 :]
    return [], []


@pytest.mark.parametrize("words", commands())
def test_command_exists_with_its_options(words):
    helper, arguments = helper_of(words)
    if not helper:
        # pip: test_wheel.py does what the line says
        assert words[0] in ("sbatch", "pip"), f"no test knows the command {words[0]}"
        return
    if helper[0] == "build/conclave" and not PROGRAM.exists():
        pytest.skip("build/conclave is not built")
    text = help_of(*helper)
    options = [word.partition("=")[0] for word in arguments if word.startswith("--") and word != "--help"]
    for option in options:
        assert has_word(text, option), f"{shlex.join(helper)} --help does not know {option}"
    if helper == ["./dev"]:
        assert has_word(text, arguments[0])


def named_files() -> list:
    """Paths in commands, inline code and links that are files of this checkout."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        for words in blocks(page, "sh"):
            found |= {(page, word) for word in shlex.split(words, comments=True)}
        found |= {(page, code) for code in re.findall(r"`([^`\s]+)`", text)}
    tracked = re.compile(r"(\./dev|(src|tests|examples|docs|python|cmake|benchmarks)/[\w./-]+)$")
    in_text = {(page, ROOT / name) for page, name in found if tracked.match(name)}
    links = {(page, page.parent / target) for page in PAGES
             for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in target}
    return [pytest.param(path, id=f"{page.name}: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
            for page, path in sorted(in_text | links)]


@pytest.mark.parametrize("path", named_files())
def test_file_exists(path):
    assert path.exists()


def keys_of(job: dict) -> set[str]:
    return {f"{section}.{key}" for section, keys in job.items() for key in keys}


def described_keys() -> set[str]:
    sections = sorted((ROOT / "src/config").glob("*_section.cpp"))
    if not sections:
        pytest.skip("src/config is not there")
    return {key for section in sections for key in re.findall(r'\.field\(\s*"(\w+\.\w+)"', section.read_text())}


def test_job_page_has_exactly_the_keys_there_are():
    (block,) = blocks(ROOT / "docs/job_file.md", "yaml")
    assert keys_of(yaml.safe_load(block)) == described_keys()


@pytest.mark.parametrize("job", [*(job for job, _ in EXAMPLES), "examples/finetune/job.yaml"])
def test_example_job_has_known_keys(job):
    assert keys_of(yaml.safe_load((ROOT / job).read_text())) <= described_keys()


@needs_program
@pytest.mark.parametrize("job, ranks", EXAMPLES)
def test_example_job_is_valid(job, ranks, tmp_path):
    # A data set of 5000 tokens stands for the one that the example's user makes.
    (tmp_path / "tokens.bin").write_bytes(bytes(2 * 5000))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 1, 2) + struct.pack("<iqqq", 5000, 0, 0, 1)
    (tmp_path / "tokens.idx").write_bytes(index)
    tokens = tmp_path / "tokens"
    done = subprocess.run([PROGRAM, "validate", job, "--world", str(ranks), "--set", f"data.train={tokens}", "--set",
                           f"data.validation={tokens}", "--set", f"run.output_dir={tmp_path / 'run'}"],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has keys that" not in done.stdout + done.stderr  # a published file has none that nobody knows


def test_quickstart_and_its_model_agree_on_the_vocabulary():
    vocabulary = re.search(r"^VOCABULARY = (\d+)", (ROOT / "examples/quickstart/run.py").read_text(), re.MULTILINE)
    config = yaml.safe_load((ROOT / "examples/quickstart/model/config.json").read_text())
    assert config["vocab_size"] == int(vocabulary[1])


def anchors_of(page: Path) -> set[str]:
    """What a link may name behind #: the headings, as Markdown renderers spell them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def links_with_anchors() -> list:
    found = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", page.read_text()):
            if "://" not in target:
                found.append(pytest.param(page, target, id=f"{page.name}: {target}"))
    return found


@pytest.mark.parametrize("page, target", links_with_anchors())
def test_anchor_exists(page, target):
    file, _, anchor = target.partition("#")
    assert anchor in anchors_of(page.parent / file if file else page)


def test_every_page_is_in_the_site():
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == {name for name in named if "/" not in name} - {"index.md"}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning():
    done = subprocess.run([ROOT / "dev", "docs"], cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "WARNING" not in done.stdout + done.stderr
    commands = (ROOT / "build/site/reference/commands.html").read_text()
    assert "conclave ckpt export" in commands and "load_checkpoint" in (ROOT / "build/site/reference/python.html").read_text()
