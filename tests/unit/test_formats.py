import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, safe_open, save_file

from steer_heal.config import SettingsError
from steer_heal.vectors import formats
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.formats import files
from tests.unit.test_vector import random_vector


def equal(a, b):
    return torch.equal(a.directions_LD, b.directions_LD) and a.directions_LD.dtype == b.directions_LD.dtype


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("name", ["steer-heal", "steering-lite", "npz", "tensors"])
def test_a_vector_comes_back_bit_for_bit(name, tmp_path):
    made = random_vector(n_layers=5, width=8)
    path = formats.write(made, tmp_path / "deep" / f"v{formats.FORMATS[name]}", format=name)
    back = formats.read(path, n_layers=5)
    assert equal(made, back)
    if name in ("steer-heal", "steering-lite"):
        assert torch.equal(made.norms_L, back.norms_L)
        assert torch.equal(made.residual_norms_L, back.residual_norms_L)
    assert back.meta["trait" if name != "npz" else "n_layers"] == ("t" if name != "npz" else "5")
    assert list(path.parent.iterdir()) == [path]
    again = formats.write(back, tmp_path / f"w{path.suffix}", format=name)
    assert equal(made, formats.read(again))


def test_the_layout_is_steering_lites(tmp_path):
    """As its `Vector.save` writes: `layer<n>.v`, and a config its dataclass takes."""
    path = formats.write(
        random_vector(), tmp_path / "v.safetensors", format="steering-lite", layers=(1, 2), coefficient=3.5
    )
    assert sorted(load_file(path)) == ["layer1.v", "layer2.v"]
    config = json.loads(metadata_of(path)["cfg"])
    assert (config["method"], config["layers"], config["coeff"], config["dtype"]) == (
        "mean_diff",
        [1, 2],
        3.5,
        "float32",
    )


def test_a_steering_lite_file_goes_out_as_it_came(tmp_path):
    config = {"method": "mean_diff", "layers": None, "target": "residual", "target_submodule": None}
    config |= {
        "coeff": -2.25,
        "dtype": "bfloat16",
        "seed": 7,
        "normalize": False,
        "subtract_corpus_mean": True,
    }
    theirs = {f"layer{n}.v": torch.randn(6).bfloat16() for n in (3, 4)}
    save_file(theirs, tmp_path / "a.safetensors", metadata={"cfg": json.dumps(config)})
    read = formats.read(tmp_path / "a.safetensors", n_layers=8)
    assert read.n_layers == 8
    assert read.meta["normalized"] == "no"
    assert not read.directions_LD[[0, 1, 2, 5, 6, 7]].any()
    formats.write(read, tmp_path / "b.safetensors", format="steering-lite")
    back = load_file(tmp_path / "b.safetensors")
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], theirs[name]) and back[name].dtype == torch.bfloat16 for name in back)
    assert json.loads(metadata_of(tmp_path / "b.safetensors")["cfg"]) == config


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"method": "linear_act"}, {"layer1.omega": torch.ones(2)}, "linear_act"),
        ({"method": "spherical"}, {"layer1.v": torch.ones(2)}, "spherical"),
        ({"method": "pca"}, {"layer1.V": torch.ones(2, 2)}, "one component"),
        ({}, {"layer1.v": torch.ones(2)}, "readable"),
    ],
)
def test_what_does_not_add_one_direction_is_refused(config, tensors, words, tmp_path):
    save_file(tensors, tmp_path / "v.safetensors", metadata={"cfg": json.dumps(config)})
    with pytest.raises(SettingsError, match=words):
        formats.read(tmp_path / "v.safetensors")


def test_gguf_is_what_llama_cpp_loads(tmp_path):
    """Only `direction.<n>` with n > 0, float32, one row each; its two keys."""
    made = random_vector(n_layers=4, width=32)
    path = formats.write(made, tmp_path / "v.gguf")
    file = GGUFReader(path)
    assert [tensor.name for tensor in file.tensors] == ["direction.1", "direction.2", "direction.3"]
    assert [list(tensor.shape) for tensor in file.tensors] == [[32]] * 3
    assert bytes(file.fields["general.architecture"].parts[-1]) == b"controlvector"
    assert file.fields["controlvector.layer_count"].contents() == 3
    back = formats.read(path)
    assert torch.equal(back.directions_LD[1:], made.directions_LD[1:])
    assert not back.directions_LD[0].any()
    assert back.meta["trait"] == "t"


def test_a_repeng_file_is_read(tmp_path):
    """Layers n-1 down to 1, as repeng numbers them, with its hint of the model."""
    rows = {layer: np.random.default_rng(layer).normal(size=16).astype(np.float32) for layer in (2, 1)}
    named = {f"direction.{layer}": torch.from_numpy(row) for layer, row in rows.items()}
    write_gguf(tmp_path / "r.gguf", named, **{"controlvector.model_hint": "mistral"})
    read = formats.read(tmp_path / "r.gguf", n_layers=3)
    assert read.meta["model"] == "mistral"
    assert all(np.array_equal(read.directions_LD[layer].numpy(), row) for layer, row in rows.items())
    assert read.meta["normalized"] == "no"


def test_a_gguf_model_is_not_a_vector(tmp_path):
    write_gguf(tmp_path / "m.gguf", {}, kind="llama")
    with pytest.raises(SettingsError, match="llama, not a control vector"):
        formats.read(tmp_path / "m.gguf")
    (tmp_path / "junk.gguf").write_bytes(b"GGUF")
    with pytest.raises(SettingsError, match="readable GGUF"):
        formats.read(tmp_path / "junk.gguf")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"layer0": [1.0, 2.0], "layer1": [1.0, 2.0, 3.0]}, "same width"),
        ({"layer0": [[1.0]]}, "one row"),
        ({"layer0": [1.0, float("nan")]}, "not finite"),
        ({"layer0": [0.0, 0.0]}, "zero"),
        ({"layer0": [1, 2]}, "floating-point"),
        ({"direction": [1.0]}, "layer number"),
        ({"layer1": [1.0], "blocks.1": [1.0]}, "twice"),
        ({"layer9": [1.0]}, "layers 0-3"),
        ({"layer.-5": [1.0]}, "layers -4 to -1"),
        ({"layer.-1": [1.0], "layer.0": [1.0]}, "from the start and from the end"),
        ({"layer-1": [1.0]}, "may be layer 1 or count from the end"),
        ({f"layer{'9' * 5000}": [1.0]}, "layer number"),
        ({}, "no direction"),
    ],
)
def test_plain_tensors_are_checked(arrays, words, tmp_path):
    rows = {name: np.array(value, dtype=None) for name, value in arrays.items()}
    np.savez(tmp_path / "v.npz", **rows)
    with pytest.raises(SettingsError, match=words):
        formats.read(tmp_path / "v.npz", n_layers=4)
    if rows:
        save_file({name: torch.tensor(row) for name, row in rows.items()}, tmp_path / "v.safetensors")
        with pytest.raises(SettingsError, match=words):
            formats.read(tmp_path / "v.safetensors", n_layers=4)


def write_gguf(path, rows, *, kind="controlvector", **texts):
    writer = GGUFWriter(path, kind)
    for key, text in texts.items():
        writer.add_string(key, text)
    for name, row in rows.items():
        writer.add_tensor(name, row.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tensors(path, name, by_layer, **metadata):
    """One row a layer under the names that a format gives them, with what other tools may write beside."""
    rows = {name.format(layer): row for layer, row in by_layer.items()}
    if path.suffix == ".gguf":
        write_gguf(path, rows, **{f"steer_heal.{key}": text for key, text in metadata.items()})
    elif path.suffix == ".npz":
        np.savez(path, **{key: row.numpy() for key, row in rows.items()})
    else:
        save_file(rows, path, metadata=metadata or None)


LITE = {"cfg": json.dumps({"method": "mean_diff", "layers": [-1]})}
FROM_THE_END = [
    ("v.safetensors", "layer.{}", {}),
    ("v.safetensors", "{}", {}),
    ("v.safetensors", "layer.\u2212{}", {}),
    ("v.npz", "layer_{}", {}),
    ("v.gguf", "direction.{}", {}),
    ("v.safetensors", "layer{}.v", LITE),
]


@pytest.mark.parametrize(("file", "name", "metadata"), FROM_THE_END)
def test_layers_below_0_count_from_the_end_as_in_python(file, name, metadata, tmp_path):
    rows = {layer: torch.full((32,), float(layer)) for layer in range(-4, 0)}
    if "\u2212" in name:
        write_tensors(tmp_path / file, name, {-layer: row for layer, row in rows.items()}, **metadata)
    else:
        write_tensors(tmp_path / file, name, rows, **metadata)
    read = formats.read(tmp_path / file, n_layers=5)
    assert read.directions_LD[:, 0].tolist() == [0.0, -4.0, -3.0, -2.0, -1.0]
    assert read.meta["layers"] == "1,2,3,4"
    assert all(torch.equal(read.directions_LD[layer], row) for layer, row in rows.items())
    again = formats.write(read, tmp_path / "lite.safetensors", format="steering-lite")
    assert equal(formats.read(again), read)
    assert json.loads(metadata_of(again)["cfg"])["layers"] in ([1, 2, 3, 4], None)
    for depth in (None, 3):
        with pytest.raises(SettingsError, match=r"from the end|layers -3 to -1"):
            formats.read(tmp_path / file, n_layers=depth)


def test_a_file_that_says_its_depth_is_counted_from_its_end(tmp_path):
    path = tmp_path / "v.safetensors"
    write_tensors(path, "layer.{}", {-1: torch.ones(4)}, n_layers="12")
    assert formats.read(path).meta["layers"] == "11"
    with pytest.raises(SettingsError, match="from the end of 12, but the model has 9"):
        formats.read(path, n_layers=9)


def test_a_hyphen_is_no_minus_where_it_stands_before_layer_0_too(tmp_path):
    write_tensors(tmp_path / "v.npz", "layer-{}", {layer: torch.ones(4) for layer in (0, 1)})
    assert formats.read(tmp_path / "v.npz", n_layers=9).meta["layers"] == "0,1"


@pytest.mark.parametrize(("file", "name", "metadata"), [FROM_THE_END[0], *FROM_THE_END[3:]])
def test_endings_in_capitals_are_endings(file, name, metadata, tmp_path):
    write_tensors(tmp_path / file, name, {1: torch.ones(32)}, **metadata)
    capital = (tmp_path / file).rename(tmp_path / file.upper())
    read = formats.read(capital, n_layers=3)
    assert read.meta["layers"] == "1"
    assert formats.write(read, tmp_path / f"W{capital.suffix}").name == f"W{capital.suffix}"
    assert torch.equal(
        formats.read(tmp_path / f"W{capital.suffix}", n_layers=3).directions_LD, read.directions_LD
    )
    (tmp_path / "V.PT").write_bytes(b"")
    with pytest.raises(SettingsError, match="pickle"):
        formats.read(tmp_path / "V.PT")


DEEP = "[" * 100_000
CONFIG = json.dumps({"method": "mean_diff"})
LENGTHS = ("[1]", '{"1": NaN}', '{"1": [1]}')
ODD_OF_LITE = (DEEP, "[]", '{"meta": 1}', *(f'{{"norms": {lengths}}}' for lengths in LENGTHS))


@pytest.mark.parametrize(
    "metadata",
    [
        *({"n_layers": text} for text in ("\u00b2", "9" * 5000, "99999", "-3", "many", "")),
        *({"steering_lite": text} for text in (DEEP, "{", "[1]", '{"method": [1]}')),
        {"tensor_dtype": "nonsense", "normalized": "maybe", "layers": "x", "format": "pt"},
        {"cfg": CONFIG, "steer_heal": '{"meta": {"trait": "\\ud83d"}}'},
    ],
)
def test_odd_metadata_do_not_stop_a_vector_from_being_read_and_written(metadata, tmp_path):
    write_tensors(tmp_path / "v.safetensors", "layer{}.v", {1: torch.ones(4)}, **metadata)
    assert formats.read(tmp_path / "v.safetensors").meta["layers"] == "1"
    read = formats.read(tmp_path / "v.safetensors", n_layers=3)
    for name, ending in formats.FORMATS.items():
        made = formats.write(read, tmp_path / f"w{ending}", format=name)
        assert torch.equal(formats.read(made, n_layers=3).directions_LD, read.directions_LD)


@pytest.mark.parametrize(
    "metadata",
    [
        *({"cfg": text} for text in (DEEP, "{", "[1]", '"x"', "{}", '{"method": ["a"]}', "1" * 5000)),
        *({"cfg": CONFIG, "steer_heal": text} for text in ODD_OF_LITE),
    ],
)
def test_metadata_that_a_format_needs_are_refused_in_a_sentence_where_they_are_odd(metadata, tmp_path):
    write_tensors(tmp_path / "v.safetensors", "layer{}.v", {1: torch.ones(4)}, **metadata)
    with pytest.raises(SettingsError, match=r"v\.safetensors is not a readable") as refused:
        formats.read(tmp_path / "v.safetensors", n_layers=3)
    assert len(str(refused.value)) < 400


def packed(path, header):
    """An .npz of one array that has this header and no numbers."""
    whole = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("layer1.npy", whole)


@pytest.mark.parametrize("shape", ["10000000000000,", f"{'9' * 30},", "[" * 500])
def test_a_packed_array_that_cannot_be_is_refused(shape, tmp_path):
    packed(tmp_path / "v.npz", f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape})}}".encode())
    with pytest.raises(SettingsError, match="plain numbers"):
        formats.read(tmp_path / "v.npz")


@pytest.mark.parametrize("kind", [0, 8, 9])
@pytest.mark.timeout(10)
def test_a_gguf_array_that_says_it_is_longer_than_the_file_is_refused(kind, tmp_path):
    """Of numbers, of texts, of arrays: its length alone would be read for ever."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x"
    (tmp_path / "v.gguf").write_bytes(head + struct.pack("<IIQ", 9, kind, 1 << 60))
    with pytest.raises(SettingsError, match="readable GGUF file: it ends too early"):
        formats.read(tmp_path / "v.gguf")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float16])
def test_a_vector_of_ours_in_another_type_of_number_is_damaged(dtype, tmp_path):
    shapes = {"directions": (3, 4), "norms": (3,), "residual_norms": (3,)}
    rows = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
    save_file(rows, tmp_path / "v.safetensors", metadata={"format": vectors.FORMAT})
    with pytest.raises(SettingsError, match="damaged"):
        formats.read(tmp_path / "v.safetensors")


def test_what_is_too_large_for_a_vector_is_refused_unread(tmp_path, monkeypatch):
    """By what lies on the disk, and by what a packed file says it would unpack to."""
    made = random_vector()
    for name in ("v.safetensors", "v.gguf", "v.npz"):
        path = formats.write(made, tmp_path / name)
        with monkeypatch.context() as patched:
            patched.setattr(files, "MAX_UPLOAD_BYTES", path.stat().st_size - 1)
            with pytest.raises(SettingsError, match="at most"):
                formats.read(path)
    np.savez_compressed(tmp_path / "bomb.npz", layer0=np.zeros(10**6, dtype=np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 10**5
    monkeypatch.setattr(files, "MAX_UPLOAD_BYTES", 10**6)
    with pytest.raises(SettingsError, match="holds 4 MB"):
        formats.read(tmp_path / "bomb.npz")


def test_pickles_are_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('ran')",)

    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / "layer1.pt").write_bytes(pickle.dumps(Bomb()))
    for path in (folder, folder / "layer1.pt"):
        with pytest.raises(SettingsError, match=r"pickle.*safetensors"):
            formats.read(path)
    np.savez(tmp_path / "v.npz", layer0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(SettingsError, match="plain numbers"):
        formats.read(tmp_path / "v.npz")


def test_names_and_places_are_checked(tmp_path):
    made = random_vector()
    for path, values, words in [
        ("v.txt", {}, "Unknown vector format"),
        ("v.gguf", {"format": "npz"}, r"ends in \.npz"),
        ("v.npz", {"format": "onnx"}, "Unknown vector format"),
        ("v.npz", {"layers": (7,)}, "layers 0-2"),
        ("v.gguf", {"layers": (0,)}, "cannot steer layer 0"),
    ]:
        with pytest.raises(SettingsError, match=words):
            formats.write(made, tmp_path / path, **values)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be saved"):
        formats.write(made, tmp_path / "file" / "v.npz")
    for path in ("none.npz", ".", "file"):
        with pytest.raises(SettingsError, match=r"no vector file|folder|give a vector"):
            formats.read(tmp_path / path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_vector_must_fit_its_model():
    formats.check(random_vector(), 3, 4, "m")
    with pytest.raises(SettingsError, match="3 layers of width 4, but m has 5"):
        formats.check(random_vector(), 5, 4, "m")
