"""Every key of a job with odd values: each is valid, or is refused once, by the key's name, with exit code 2 and nothing of a library's text.

Oracle: what is accepted is printed, and what is printed reads back to the same print; what is refused says so in one sentence that begins with the key.
The keys are those that the program prints, so that a new one is looked at, too.
"""

import json
import random
import re
import subprocess
import zlib

import pytest
import yaml
from ranks import PATIENCE_SECONDS, without_launcher
from small_job import PROGRAM, SmallJob

from conclave._library import operators

SEED = 20261201
HUGE = 1 << 80
# As YAML or JSON has them.
VALUES = [
    None, True, False, 0, 1, 2, 3, -1, 7, 1 << 31, 1 << 53, 1 << 63, -(1 << 63), HUGE, -HUGE, 0.5, -0.5, 1e-320, 1e308, -1e308, "1e400", "nan", ".nan", ".inf", "-.inf", "1_000", "0x10",
    "0o17", "1,5", "1.", ".5", "+3", "+-3", "1e3", "3h", "90m", "true", "yes", "on", "null", "~", "", " ", "\t", "\n", "a\nb", "auto", "none", "each", "bias", "fp8", "never",
    "Größe 漢字 \U0001f600", "\u202eabc", "\x7f", "\\", "'", '"', "{}", "[]", "*a", "&a b", "!!str 3", "!!python/object:os.system ls", "%TAG", "@", "`", "a: b", "# c", "$", "${", "${}", "${X",
    "$NO_SUCH_VARIABLE", "$$", "~nobody_at_all", "/", "..", "/dev/null", "/proc/self/mem", "all but ", "all but layers.0-", "all but layers.1-0", "all but layers.0-99999999999999999999",
    "all but layers.0," * 50, "run.steps", "run.steps,", ",,,", "no.such.key", "x" * 1000, [], [[]], [1, 2], [None], ["a", "a"], [{"path": "a"}, {"path": "a"}],
    [{"path": "a", "weight": -1}], [{"path": "a", "weight": "x"}], [{"path": None}], [{"paht": "a"}], [{"name": "a"}], {}, {"a": None}, {"a": {"b": {"c": {"d": 1}}}}, {"": "a"},
    {"a b": "c"}, {"path": "a", "weight": 1}, [[[[[[1]]]]]], {"a": [1]},
]
LIBRARY_WORDS = re.compile(r"yaml-cpp|std::|basic_|terminate|bad_alloc|exception|invariant|vector|stoi|Traceback|errno|c10|\bat::|json\.")


def keys_of_a_job() -> list[str]:
    sections = yaml.safe_load(operators().read_settings([]))
    return [f"{section}.{key}" for section, keys in sections.items() for key in keys]


def random_values(chance: random.Random, count: int) -> list[str]:
    alphabet = list("abz019.-+eE_~$#:,{}[]!&*|>'\"%@`\\ /\t") + ["true", "null", "all but ", "layers."]
    return ["".join(chance.choices(alphabet, k=chance.randint(1, 12))) for _ in range(count)]


def check_refusal(text: str, key: str, value: object) -> None:
    what = f"{key} = {value!r}: {text[:2000]}"
    for mistake in text.split("\nerror: "):  # a key may break several rules
        assert key in mistake.splitlines()[0], what
    assert not LIBRARY_WORDS.search(text.replace(str(value), "")), what
    assert len(text) < 6000, what


def check_override(key: str, value: object, text: str) -> str | None:
    """The refusal, if it was one."""
    try:
        printed = operators().read_settings([f"{key}={text}"])
    except RuntimeError as refusal:
        check_refusal(str(refusal), key, value)
        return str(refusal)
    name = key.split(".")[1]
    (line,) = re.findall(rf"^{key.split('.')[0]}:.*?^  ({name}: .*?)  # ", printed, re.M | re.S)
    again = operators().read_settings([f"{key}={line[len(name) + 2 :].strip()}"])
    assert again == printed, f"{key} = {value!r} is printed as {line}, which reads back as another value"
    return None


def test_every_key_with_every_odd_value():
    keys, chance = keys_of_a_job(), random.Random(SEED)
    assert len(keys) > 70
    refused = 0
    for key in keys:
        refusals = [check_override(key, value, json.dumps(value, ensure_ascii=False)) for value in VALUES]
        refusals += [check_override(key, value, value) for value in VALUES if isinstance(value, str) and "\n" not in value]
        refusals += [check_override(key, value, value) for value in random_values(chance, 40)]
        refused += sum(refusal is not None for refusal in refusals)
        # A flag has two values and a choice a handful; a path may be any text. None takes a group in a list in a list.
        assert refusals[VALUES.index([[]])] is not None, key
    print(f"seed {SEED}: {refused} refusals of {len(keys)} keys")


# Valid sizes beyond what this machine has memory for; their ranges are seen above.
SIZES = {"data.micro_batch_size", "data.global_batch_size", "data.sequence_length"}


def check_program(folder, key: str, value: object) -> None:
    """In a job file, of the program: valid, and trained by, or refused by both commands, before anything is trained."""
    name = f"{zlib.crc32(repr((key, value)).encode())}"
    job = SmallJob(folder, {"run.output_dir": str(folder / name), "run.steps": 1, "run.stop_after": "20s", "data.validation": str(folder / "tokens"), key: value})
    file = job.write(f"{name}.json")
    options = {"capture_output": True, "timeout": PATIENCE_SECONDS, "cwd": folder, "env": without_launcher() | {"HOME": str(folder), "OMP_NUM_THREADS": "1"}}
    checked = subprocess.run([PROGRAM, "validate", file], **options)
    text = checked.stderr.decode()
    what = f"{key} = {value!r}: exit code {checked.returncode}: {text[-3000:]}"
    assert checked.returncode in (0, 2) and not LIBRARY_WORDS.search(text), what
    assert checked.returncode == 0 or text.count("error:") >= 1, what
    if key in SIZES and checked.returncode == 0:
        return
    trained = subprocess.run([PROGRAM, "train", file], **options)
    text = trained.stderr.decode()
    what = f"{key} = {value!r}: validate ends with {checked.returncode}, train with {trained.returncode}: {text[-3000:]}"
    assert trained.returncode in ((0, 6) if checked.returncode == 0 else (2,)), what
    assert not LIBRARY_WORDS.search(text), what
    if trained.returncode == 2:
        assert all(key in line or str(value) in line for line in text.splitlines() if line.startswith("error:")), what
        assert not (folder / name / "metrics.jsonl").exists(), what


def sampled(count: int | None) -> list[tuple[str, object]]:
    pairs = [(key, value) for key in keys_of_a_job() for value in VALUES]
    return pairs if count is None else random.Random(SEED).sample(pairs, count)


def test_a_sample_in_job_files_of_the_program(tmp_path):
    print(f"seed {SEED}")
    for key, value in sampled(10):
        check_program(tmp_path, key, value)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_all_in_job_files_of_the_program(part, tmp_path):
    for key, value in sampled(None)[part::8]:
        check_program(tmp_path, key, value)
