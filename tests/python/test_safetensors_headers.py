"""Headers of safetensors files that other programs write: `conclave` and the Python package read the same ones.

Oracle: safetensors 0.8.0 itself. Both are stricter than it where a header has two meanings; docs/checkpoints.md lists it.
"""

import json
import struct
import subprocess

import pytest
import torch
from safetensors import SafetensorError, safe_open
from small_job import PATIENCE_SECONDS, PROGRAM

import conclave
from conclave.checkpoint_files import CheckpointFolder

PLAIN = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def described(more, after=""):
    return '{"a":{"dtype":"F32",' + more + '"shape":[2],"data_offsets":[0,8]' + after + "}}"


HEADERS = {
    "plain": "{" + PLAIN + "}",
    "leading white space": " \n\t\r{" + PLAIN + "}",
    "trailing white space": "{" + PLAIN + "} \n\t\r ",
    "metadata null": '{"__metadata__":null,' + PLAIN + "}",
    "metadata null at the end": "{" + PLAIN + ',"__metadata__":null}',
    "metadata empty": '{"__metadata__":{},' + PLAIN + "}",
    "unknown text": described('"order":"C",'),
    "unknown number": described('"order":-1.5e3,'),
    "unknown null": described('"order":null,'),
    "unknown list": described('"order":[1,[true,{}]],'),
    "unknown object that looks like a description": described('"order":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'),
    "unknown twice": described('"x":1,"x":2,'),
    "unknown at the end": described("", ',"quantized":{"scale":[1,2]}'),
    "unknown 125 deep": described('"x":' + "[" * 125 + "]" * 125 + ","),
    "escaped name": '{"\\u0061":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "unaligned": "{" + PLAIN + " }",
    # Refused by all.
    "unknown 126 deep": described('"x":' + "[" * 126 + "]" * 126 + ","),
    "unknown number too large": described('"x":1.5e400,'),
    "byte order mark": "\ufeff{" + PLAIN + "}",
    "second value": "{" + PLAIN + "}{}",
    "metadata of numbers": '{"__metadata__":{"a":1},' + PLAIN + "}",
    "metadata of nulls": '{"__metadata__":{"a":null},' + PLAIN + "}",
    "metadata a list": '{"__metadata__":[],' + PLAIN + "}",
    "metadata twice": '{"__metadata__":{},"__metadata__":{},' + PLAIN + "}",
    "a tensor of null": '{"b":null,' + PLAIN + "}",
    "a key twice": described('"dtype":"F32",'),
    "a shape of fractions": '{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
    "trailing comma": "{" + PLAIN + ",}",
}
STRICTER = {
    "a tensor twice": "{" + PLAIN + "," + PLAIN + "}",
    "metadata with a key twice": '{"__metadata__":{"a":"1","a":"2"},' + PLAIN + "}",
    "a list for an object": '{"a":["F32",[2],[0,8]]}',
}


def folder_with(path, header):
    path.mkdir()
    data = torch.tensor([1.5, -2.0]).numpy().tobytes()
    text = header.encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def safetensors_reads(folder):
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return file.get_tensor("a").tolist() == [1.5, -2.0]
    except SafetensorError:
        return False


def python_reads(folder):
    try:
        checkpoint = CheckpointFolder(folder)
        return checkpoint.names() == ["a"] and checkpoint.slice_of("a")[:].tolist() == [1.5, -2.0]
    except conclave.CheckpointError:
        return False


def program_reads(folder, tmp_path):
    """Held against the plain file by `ckpt diff`."""
    plain = folder_with(tmp_path / "expected", HEADERS["plain"])
    done = subprocess.run([PROGRAM, "ckpt", "diff", plain, folder, "--json"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    if done.returncode == 2:
        assert "is not a valid safetensors file" in done.stderr and "json.exception" not in done.stderr
    else:
        json.loads(done.stdout)
    return done.returncode == 0


@pytest.mark.parametrize("case", HEADERS)
def test_all_three_read_the_same_headers(case, tmp_path):
    folder = folder_with(tmp_path / "model", HEADERS[case])
    expected = safetensors_reads(folder)
    assert expected == (list(HEADERS).index(case) < list(HEADERS).index("unknown 126 deep"))
    assert (python_reads(folder), program_reads(folder, tmp_path)) == (expected, expected)


@pytest.mark.parametrize("case", STRICTER)
def test_a_header_with_two_meanings_is_refused_by_ours(case, tmp_path):
    folder = folder_with(tmp_path / "model", STRICTER[case])
    assert safetensors_reads(folder)
    assert not python_reads(folder) and not program_reads(folder, tmp_path)
