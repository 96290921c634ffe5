"""What an export takes along besides weights: tokenizer, chat templates, generation settings; and what it says of itself.

Oracle: the source's own files, byte for byte; Transformers and the tokenizers package, for what a folder means.
"""

import json
import shutil

import pytest
import torch
from ranks import succeed
from small_job import MODEL, SmallJob
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer, GenerationConfig, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

VOCABULARY = MODEL["vocab_size"]
TEMPLATES = {"chat_template.jinja": "{{ messages }}", "additional_chat_templates/tools.jinja": "{{ tools }}"}


def tokenizer_of(ids, added=0):
    """A tokenizer of so many ids, the last `added` of them added tokens."""
    tokenizer = Tokenizer(models.BPE(vocab={f"t{i}": i for i in range(ids - added)}, merges=[]))
    tokenizer.add_tokens([AddedToken(f"<added {i}>") for i in range(added)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write_templates(folder):
    for name, text in TEMPLATES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def source(tmp_path):
    """A model's folder with all that belongs to one, and with things that do not."""
    torch.manual_seed(1)
    folder = tmp_path / "source"
    MixtralForCausalLM(MixtralConfig(**MODEL)).save_pretrained(folder)
    tokenizer_of(VOCABULARY, added=3).save_pretrained(folder)
    GenerationConfig(eos_token_id=[2, 5, 9], bos_token_id=1, do_sample=True, temperature=0.6, top_p=0.9).save_pretrained(folder)
    write_templates(folder)
    for name in ("tokenizer.model.v3", "special_tokens_map.json", "vocab.txt", "qwen.tiktoken"):
        (folder / name).write_text("{}")
    for name in ("README.md", "optimizer.pt", "training_args.bin"):
        (folder / name).write_text("not of the model")
    return folder


def job_from(tmp_path, source, **keys):
    return SmallJob(tmp_path, {"model.init_from": str(source), "run.steps": 1, "checkpoint.every": 1, **keys})


def small_files(folder):
    """By path: the content of all files but weights and config.json."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith("model") and name != "config.json"}


def companions_of(source):
    return {name: content for name, content in small_files(source).items() if name not in ("README.md", "optimizer.pt", "training_args.bin")}


def test_both_kinds_of_export_take_along_what_belongs_to_the_model(source, tmp_path):
    job = job_from(tmp_path, source, **{"checkpoint.export_every": 1})
    job.must_run(2)
    exports = [job.output / "export/step-00000001", job.must_export(tmp_path / "exported")]
    job.must_export(tmp_path / "exported")  # over the older one, with its folder of templates
    for folder in exports:
        assert small_files(folder) == companions_of(source)
        settings = GenerationConfig.from_pretrained(folder)
        assert settings.eos_token_id == [2, 5, 9] and settings.temperature == 0.6 and settings.do_sample
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert len(tokenizer) == VOCABULARY and tokenizer.chat_template is not None


def test_an_upcycled_run_takes_along_the_dense_models(source, tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "max_position_embeddings", "rms_norm_eps")
    dense = tmp_path / "dense"
    MistralForCausalLM(MistralConfig(**{key: MODEL[key] for key in same}, sliding_window=None,
                                     rope_parameters={"rope_type": "default", "rope_theta": MODEL["rope_theta"]})).save_pretrained(dense)
    for name in companions_of(source):
        (dense / name).parent.mkdir(exist_ok=True)
        shutil.copy(source / name, dense / name)
    job = job_from(tmp_path, source, **{"model.init_from": None, "model.upcycle_from": str(dense)})
    job.must_run()
    assert small_files(job.must_export(tmp_path / "exported")) == companions_of(source)


def test_a_tokenizer_that_is_given_goes_before_the_sources(source, tmp_path):
    job = job_from(tmp_path, source)
    job.must_run()
    given = tmp_path / "tokenizer"
    tokenizer_of(VOCABULARY - 20).save_pretrained(given)
    GenerationConfig(eos_token_id=7).save_pretrained(given)
    succeed(job.run(1, "validate"))
    exported = tmp_path / "exported"
    ended = run_ckpt("export", job.output, exported, "--tokenizer", given)
    assert ended.returncode == 0, ended.stderr
    assert small_files(exported) == {**small_files(given), "generation_config.json": (source / "generation_config.json").read_bytes()}


def test_a_run_from_random_weights_says_its_own_tokens_or_takes_the_tokenizers(source, tmp_path):
    job = job_from(tmp_path, source, **{"model.init_from": None})
    job.must_run()
    exported = job.must_export(tmp_path / "exported")
    assert small_files(exported).keys() == {"generation_config.json"}
    assert GenerationConfig.from_pretrained(exported).eos_token_id == 2
    ended = run_ckpt("export", job.output, tmp_path / "with-tokenizer", "--tokenizer", source)
    assert ended.returncode == 0 and small_files(tmp_path / "with-tokenizer") == companions_of(source)


def test_a_source_that_is_gone_costs_the_tokenizer_and_a_warning(source, tmp_path):
    job = job_from(tmp_path, source, **{"checkpoint.export_every": 1, "data.global_batch_size": 4})
    job.must_run()
    shutil.rmtree(source)
    ended = job.export(tmp_path / "exported")
    assert ended.returncode == 0 and f"warning: {source}, which the run started from, is gone" in ended.stderr, ended.stderr
    assert small_files(tmp_path / "exported").keys() == {"generation_config.json"}
    longer = job.with_keys({"run.steps": 2}).must_run(2)
    assert "is gone" in longer.text and (job.output / "export/step-00000002/model.safetensors").exists()


# ---- more ids than embeddings


def run_ckpt(*arguments):
    import subprocess

    from small_job import PATIENCE_SECONDS, PROGRAM

    return subprocess.run([PROGRAM, "ckpt", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def pieces(count):
    """A sentencepiece model by its published format: field 1, of bytes, once a piece; then the trainer's settings, field 2."""
    piece = b"\x0a\x02ab\x15\x00\x00\x00\x00"
    return (b"\x0a" + bytes([len(piece)]) + piece) * count + b"\x12\x03\x18\xac\x02"


def with_added_tokens(folder):
    tokenizer_of(VOCABULARY + 5, added=5).save_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == VOCABULARY + 5


def of_a_list(folder):
    """A Unigram model: pieces in the order of ids."""
    Tokenizer(models.Unigram([(f"p{i}", -1.0) for i in range(VOCABULARY + 5)], unk_id=0)).save(str(folder / "tokenizer.json"))


def of_pieces(folder):
    (folder / "tokenizer.model").write_bytes(pieces(VOCABULARY + 5))


def of_pieces_and_added_tokens(folder):
    (folder / "tokenizer.model").write_bytes(pieces(VOCABULARY))
    (folder / "added_tokens.json").write_text(json.dumps({f"<{i}>": VOCABULARY + i for i in range(5)}))


def of_a_vocabulary(folder):
    (folder / "vocab.json").write_text(json.dumps({f"t{i}": i for i in range(VOCABULARY + 5)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


FORMS = [with_added_tokens, of_a_list, of_pieces, of_pieces_and_added_tokens, of_a_vocabulary]


def without_tokenizer(source):
    for name in companions_of(source):
        (source / name).unlink()
    return source


@pytest.mark.parametrize("form", FORMS)
def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(form, source, tmp_path):
    without_tokenizer(source)
    job = job_from(tmp_path, source)
    job.must_run()
    given = tmp_path / "tokenizer"
    given.mkdir()
    form(given)
    ended = run_ckpt("export", job.output, tmp_path / "exported", "--tokenizer", given)
    assert ended.returncode == 2 and ended.stderr.count("error:") == 1, ended.stderr
    for fact in (str(given), f"{VOCABULARY + 5} ids", f"embeddings for {VOCABULARY}", f"model.resize_vocabulary: {VOCABULARY + 5}"):
        assert fact in ended.stderr, ended.stderr
    assert not (tmp_path / "exported").exists()

    form(source)
    another = job.with_keys({"run.output_dir": str(tmp_path / "another")})
    for ended in (another.run(1, "validate"), another.run(2)):
        assert ended.codes == [2] * len(ended.codes) and f"Set model.resize_vocabulary to {VOCABULARY + 5}" in ended.text, ended.text
    another.with_keys({"model.resize_vocabulary": VOCABULARY + 5}).must_run()
    exported = another.must_export(tmp_path / "exported")
    assert MixtralForCausalLM.from_pretrained(exported).config.vocab_size == VOCABULARY + 5
    if form is with_added_tokens:
        assert AutoTokenizer.from_pretrained(exported).convert_tokens_to_ids("<added 4>") == VOCABULARY + 4


def test_a_tokenizer_of_exactly_the_embeddings_or_fewer_is_taken(source, tmp_path):
    job = job_from(tmp_path, without_tokenizer(source))
    job.must_run()
    for number, ids in enumerate((VOCABULARY, VOCABULARY - 9)):
        given = tmp_path / f"tokenizer-{number}"
        given.mkdir()
        (given / "tokenizer.model").write_bytes(pieces(ids))
        ended = run_ckpt("export", job.output, tmp_path / f"exported-{number}", "--tokenizer", given)
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name, content", [
    ("tokenizer.json", b"[" * 100_000), ("tokenizer.json", b"[]"), ("tokenizer.json", b'{"model": {"vocab": {"a": "b"}}}'),
    ("tokenizer.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), ("vocab.json", b'{"a": -1}'), ("vocab.json", b"\xff"),
])
def test_a_damaged_tokenizer_is_named(name, content, source, tmp_path):
    (without_tokenizer(source) / name).write_bytes(content)
    ended = job_from(tmp_path, source).run(1, "validate")
    assert ended.codes == [2] and name in ended.text and ended.text.count("error:") == 1, ended.text
    assert "json.exception" not in ended.text


# ---- what it says


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_size_that_is_printed_is_the_size_on_disk(dtype, source, tmp_path):
    job = job_from(tmp_path, source)
    job.must_run()
    ended = run_ckpt("export", job.output, tmp_path / "exported", "--dtype", dtype, "--max-shard-size", "50KB")
    assert ended.returncode == 0, ended.stderr
    size, unit = ended.stdout.split(": ")[-1].split()[:2]
    printed = float(size) * {"bytes": 1, "kB": 1e3, "MB": 1e6}[unit]
    tensors = sum(path.stat().st_size for path in (tmp_path / "exported").glob("*.safetensors"))
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in (tmp_path / "exported").glob("*.safetensors"))
    assert printed == pytest.approx(tensors - headers, rel=0.01)
