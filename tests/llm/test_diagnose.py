"""``matrix-ssl llm diagnose``: windows of a text, layers of small models, what is written and what is refused."""

import gc
import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from matrix_ssl.cli.llm import diagnose as command
from matrix_ssl.cli.main import commands
from matrix_ssl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MatrixError,
    MatrixSSLError,
    NotFiniteError,
    RunFolderError,
)
from matrix_ssl.llm.data.examples import special_tokens
from matrix_ssl.llm.diagnose import windows as reading
from matrix_ssl.llm.diagnose.run import DiagnoseSettings, choose_layers, diagnose
from matrix_ssl.runs.files import read_json
from tests.llm.test_representations import textbook_covariance_entropy, textbook_entropy, textbook_nuclear_norm

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is missing")

CPU = torch.device("cpu")
WORDS = "the quick brown fox jumps over a lazy dog while Grüße from 東京 arrive at noon and seven cats sleep"


def sentences(count, seed=0):
    """Random words, a line a sentence."""
    draw = np.random.default_rng(seed)
    return "".join(" ".join(draw.choice(WORDS.split(), size=draw.integers(3, 12))) + ".\n" for _ in range(count))


def make_tokenizer(folder, *, before="", after=""):
    """A byte-level tokenizer trained on the spot, that puts special tokens around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([sentences(200)], trainer)
    if before or after:
        special = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(), special_tokens=special
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(folder)
    return wrapped


def make_llama(folder, *, seed=0, layers=3, width=32, before="<s>"):
    """A tiny LLaMA with random weights, larger than at initialisation, so that it is no fresh one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(folder, before=before)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    ))  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.data.mul_(1 if "norm" in name else 4)
    model.save_pretrained(folder)
    return folder


def make_gpt2(folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=48, bos_token_id=0, eos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """No bars of transformers while models are written, and one thread."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return make_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(sentences(30), encoding="utf-8")
    return path


def expected_rows(model, folder, path, *, window, before=()):
    """The measures of every layer, by transformers window by window and NumPy."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    room = window - len(before)
    windows = [[*before, *tokens[i * room : (i + 1) * room]] for i in range(len(tokens) // room)]
    with torch.no_grad():
        states = [model(torch.tensor([w]), output_hidden_states=True).hidden_states for w in windows]
    rows = []
    for layer in range(len(states[0])):
        parts = [state[layer][0].double() for state in states]
        rows.append({
            "layer": layer,
            "matrix_entropy": textbook_covariance_entropy(torch.cat(parts)),
            "effective_rank": np.exp(textbook_covariance_entropy(torch.cat(parts))),
            "erank": np.exp(np.mean([textbook_entropy(part) for part in parts])),
            "matrix_nuclear_norm": np.mean([textbook_nuclear_norm(part) for part in parts]),
        })  # fmt: skip
    return rows, windows


def run(*words, **options):
    """The command, in this process."""
    arguments = [str(word) for word in words]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    command.main(arguments, standalone_mode=False)


class TestReading:
    def test_blocks_are_the_text(self, tmp_path, monkeypatch):
        monkeypatch.setattr(reading, "BLOCK", 64)
        path = tmp_path / "t"
        for content in (sentences(40), "\n" + "東" * 300, "ü " * 200, "x" * 64, "a\r\nb\n" * 30, "x"):
            path.write_bytes(content.encode())
            blocks = list(reading.read_blocks(path))
            assert "".join(blocks) == content
            assert all(0 < len(block) <= 64 for block in blocks)
        path.write_text(sentences(40), encoding="utf-8")
        assert all(block.endswith("\n") for block in reading.read_blocks(path))
        path.write_text("ab " * 100)
        assert all(block.endswith(" ") for block in reading.read_blocks(path))

    @pytest.mark.parametrize("offset", [0, 5, 63, 64, 65, 127, 128, 1000])
    def test_the_offset_of_a_wrong_byte(self, tmp_path, monkeypatch, offset):
        monkeypatch.setattr(reading, "BLOCK", 64)
        path = tmp_path / "t"
        path.write_bytes(("東" * 400).encode()[: offset // 3 * 3] + b"x" * (offset % 3) + b"\xff" + b"y" * 200)
        with pytest.raises(DataError, match=rf"is not UTF-8: byte 0xff at offset {offset} \(invalid start byte\)"):
            list(reading.read_blocks(path))

    @pytest.mark.parametrize("length", [1, 62, 63, 64, 200])
    def test_a_character_cut_by_the_end(self, tmp_path, monkeypatch, length):
        monkeypatch.setattr(reading, "BLOCK", 64)
        path = tmp_path / "t"
        path.write_bytes(b"x" * length + "東".encode()[:2])
        with pytest.raises(DataError, match=rf"byte 0xe6 at offset {length} \(unexpected end of data\)"):
            list(reading.read_blocks(path))

    def test_files_that_hold_no_text(self, tmp_path):
        with pytest.raises(DataError, match=r"missing.txt does not exist"):
            list(reading.read_blocks(tmp_path / "missing.txt"))
        with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
            list(reading.read_blocks(tmp_path))
        (tmp_path / "empty").touch()
        with pytest.raises(DataError, match=r"empty is empty"):
            list(reading.read_blocks(tmp_path / "empty"))

    def test_windows(self):
        def windows(text, length, *, before=(), after=(), max_tokens=None):
            blocks = [text[i : i + 7] for i in range(0, len(text), 7)]
            found = reading.token_windows(
                blocks, lambda block: [ord(c) for c in block], length=length, before=list(before), after=list(after),
                max_tokens=max_tokens,
            )  # fmt: skip
            return ["".join(map(chr, window)) for window in found]

        assert windows("abcdefghijk", 3) == ["abc", "def", "ghi"]  # jk fills no window
        assert windows("abcdefghijk", 5, before=[60], after=[62]) == ["<abc>", "<def>", "<ghi>"]
        assert windows("abcdefghijk", 4, max_tokens=9) == ["abcd", "efgh"]
        assert windows("abcdefghijk", 4, max_tokens=8) == ["abcd", "efgh"]
        assert windows("abcdefghijk", 100, before=[60]) == ["<abcdefghijk"]
        assert windows("abcdefghijk", 100, max_tokens=2) == ["ab"]
        with pytest.raises(DataError, match="The text has 1 token; pass at least two"):
            windows("a", 4, before=[60])
        with pytest.raises(ConfigError, match="window=2: the tokenizer's special tokens fill the window"):
            windows("abc", 2, before=[60], after=[62])

    def test_the_text_is_read_as_its_windows_are_used(self, tmp_path):
        """So that a text of any length needs the memory of a block."""
        path, blocks = tmp_path / "t", []
        path.write_text(sentences(6000), encoding="utf-8")

        def encode(block):
            blocks.append(len(block))
            return [ord(c) for c in block]

        found = reading.token_windows(
            reading.read_blocks(path), encode, length=64, before=[0], after=[], max_tokens=None
        )
        for used, _ in enumerate(found):
            assert sum(blocks[:-1]) < (used + 1) * 63 <= sum(blocks)  # no block before the last one is needed
        assert len(blocks) > 3 and max(blocks) <= reading.BLOCK

    def test_special_tokens(self, tmp_path):
        for before, after, found in (("", "", ([], [])), ("<s>", "", ([0], [])), ("<s>", "</s>", ([0], [1]))):
            tokenizer = make_tokenizer(tmp_path / "t", before=before, after=after)
            assert special_tokens(tokenizer) == found


class TestMeasuring:
    def test_a_configuration_is_a_reference_with_random_weights(self, llama, text, tmp_path):
        rows = []
        for reference in ("untrained", f"config:{llama}"):
            settings = DiagnoseSettings(str(llama), text, reference=reference, window=20, seed=5, layers="last")
            result = diagnose(settings, tmp_path, device=torch.device("cpu"))
            assert result["reference"]["seed"] == 5
            rows.append(result["rows"])
        assert rows[0] == rows[1]

    def test_against_the_textbook_with_an_untrained_reference(self, llama, text, tmp_path):
        from transformers import AutoModel

        settings = DiagnoseSettings(str(llama), text, reference="untrained", window=20, batch_size=3, seed=5)
        torch.manual_seed(1)
        untouched = torch.rand(2)
        torch.manual_seed(1)
        result = diagnose(settings, tmp_path / "out", device=CPU)
        assert torch.equal(torch.rand(2), untouched)  # the caller's random numbers

        model = AutoModel.from_pretrained(llama)
        rows, windows = expected_rows(model, llama, text, window=20, before=[0])
        assert (result["windows"], result["tokens"]) == (len(windows), 20 * len(windows))
        assert len(windows) > 9 and len(windows) % 3  # the last batch is a smaller one
        assert result["special_tokens"] == {"before": ["<s>"], "after": []}
        torch.manual_seed(5)
        fresh = AutoModel.from_config(model.config).eval()
        others, _ = expected_rows(fresh, llama, text, window=20, before=[0])
        assert [row["layer"] for row in result["rows"]] == [0, 1, 2, 3]
        for found, row, other in zip(result["rows"], rows, others, strict=True):
            assert {key: found[key] for key in row} == pytest.approx(row, rel=1e-5)
            compared = found["reference"] | {"layer": row["layer"]}
            assert {key: compared[key] for key in other} == pytest.approx(other, rel=1e-5)
            assert (
                found.keys() - {"diff_erank", "reference", "layer"}
                == found["reference"].keys()
                > other.keys() - {"layer"}
            )
            assert found["diff_erank"] == pytest.approx(other["erank"] - row["erank"], rel=1e-3)

    @pytest.mark.slow  # quick: batches of three against the textbook
    def test_the_batch_size_changes_nothing(self, llama, text, tmp_path):
        found = [
            diagnose(DiagnoseSettings(str(llama), text, window=16, batch_size=size), tmp_path / str(size), device=CPU)[
                "rows"
            ]
            for size in (1, 7)
        ]
        for one, seven in zip(*found, strict=True):
            assert one == pytest.approx(seven, rel=1e-6)

    def test_gpt2_and_its_reference(self, gpt2, text, tmp_path):
        """Without special tokens; against itself nothing differs; the default window is the model's limit."""
        from transformers import AutoModel

        settings = DiagnoseSettings(str(gpt2), text, reference=str(gpt2), layers="2,0")
        result = diagnose(settings, tmp_path / "out", device=CPU)
        rows, windows = expected_rows(AutoModel.from_pretrained(gpt2), gpt2, text, window=48)
        assert result["window"] == 48 and result["windows"] == len(windows)
        assert result["special_tokens"] == {"before": [], "after": []}
        assert [row["layer"] for row in result["rows"]] == [0, 2]
        for found, row in zip(result["rows"], (rows[0], rows[2]), strict=True):
            assert {key: found[key] for key in row} == pytest.approx(row, rel=1e-5)
            assert found["diff_erank"] == 0

    def test_a_run_of_fine_tuning(self, llama, text, tmp_path):
        """Its model lies in a folder of the run, which is complete when it has a result."""
        run_folder = tmp_path / "run"
        shutil.copytree(llama, run_folder / "model")
        (run_folder / "environment.json").write_text("{}")
        settings = DiagnoseSettings(str(run_folder), text, window=20)
        with pytest.raises(RunFolderError, match="is not complete: run its command"):
            diagnose(settings, tmp_path / "out", device=CPU)
        (run_folder / "finetune.json").write_text('{"settings": {}}')
        found = diagnose(settings, tmp_path / "out", device=CPU)
        expected = diagnose(DiagnoseSettings(str(llama), text, window=20), tmp_path / "out", device=CPU)
        assert found["rows"] == expected["rows"]

    def test_the_last_layer_is_what_enters_the_head(self, llama, text, tmp_path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        settings = DiagnoseSettings(str(llama), text, layers="last", max_tokens=30, window=64)
        result = diagnose(settings, tmp_path / "out", device=CPU)
        assert (result["windows"], result["tokens"]) == (1, 31)
        model, entered = AutoModelForCausalLM.from_pretrained(llama), []
        model.lm_head.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        tokens = AutoTokenizer.from_pretrained(llama)(text.read_text("utf-8")).input_ids[:31]
        with torch.no_grad():
            model(torch.tensor([tokens]))
        expected = np.exp(textbook_entropy(entered[0][0].double()))
        assert [row["layer"] for row in result["rows"]] == [3]
        assert result["rows"][0]["erank"] == pytest.approx(expected, rel=1e-5)

    def test_layers(self):
        assert choose_layers("all", 2) == [0, 1, 2]
        assert choose_layers("last", 2) == [2]
        assert choose_layers("2,0,2", 2) == [0, 2]
        with pytest.raises(ConfigError, match=r"there is no layer 3; 0 is the embeddings, 2 the last layer"):
            choose_layers("1,3", 2)
        for wrong in ("first", "", "1,", "1-2"):
            with pytest.raises(ConfigError, match=r"pass all, last, or numbers"):
                choose_layers(wrong, 2)

    def test_nothing_of_a_window_is_kept(self, llama, tmp_path):
        """As many tensors are alive after one window as after another."""
        path, alive = tmp_path / "t", {}
        path.write_text(sentences(90), encoding="utf-8")

        shares = []

        def look(name, count, share):
            shares.append(share)
            if count % 5 == 0:
                alive[name, count] = sum(type(x) is torch.Tensor for x in gc.get_objects())

        settings = DiagnoseSettings(str(llama), path, window=32, batch_size=1)
        diagnose(settings, tmp_path / "out", device=CPU, on_progress=look)
        assert len(alive) > 4 and len(set(alive.values())) == 1, alive
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1


class TestWriting:
    def test_it_is_a_command(self):
        assert commands.commands["llm"].commands["diagnose"] is command

    def test_what_a_person_sees(self, llama, text, tmp_path, capsys):
        out = tmp_path / "a" / "out"
        run(model=llama, reference="untrained", text=text, window=20, out=out, device="cpu")
        printed = capsys.readouterr().out
        result = read_json(out / "diagnose.json")
        assert sorted(path.name for path in out.iterdir()) == [".lock", "diagnose.html", "diagnose.json"]
        page = (out / "diagnose.html").read_text("utf-8")
        for shown in (printed, page):
            for word in ("entropy", "effective", "eRank", "nuclear", "Diff-eRank", "reference", "embeddings"):
                assert word in shown
            last = result["rows"][-1]
            assert f"{last['erank']:.4g}" in shown and f"{last['reference']['erank']:.4g}" in shown
        assert "layer 3" in printed and max(map(len, printed.partition("results")[0].splitlines())) <= 80
        assert page.count("<svg") == 11 and "<script" not in page and "http" not in page.split("</head>")[1]
        assert "&lt;s&gt;" in page  # special tokens are text
        assert result["reference"]["seed"] == 0 and result["environment"]["transformers"]

    def test_the_same_command_again(self, llama, text, tmp_path, capsys):
        words = {"model": llama, "text": text, "window": 20, "out": tmp_path / "out", "device": "cpu"}
        run(**words)
        first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert "Diff-eRank" not in capsys.readouterr().out  # nothing to compare with
        run(**words)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
        run(**words, max_tokens=40)
        assert json.loads((tmp_path / "out" / "diagnose.json").read_text())["windows"] == 2

    def test_a_killed_one_leaves_what_was_there(self, llama, text, tmp_path):
        out = tmp_path / "out"
        diagnose(DiagnoseSettings(str(llama), text, window=20, max_tokens=60), out, device=CPU)
        first = {path.name: path.read_bytes() for path in out.iterdir()}
        (out / ".diagnose.json.abc.tmp").write_text("{")  # what a kill within a write leaves
        child = os.fork()
        if child == 0:
            settings = DiagnoseSettings(str(llama), text, window=20)
            diagnose(settings, out, device=CPU, on_progress=lambda name, n, share: os.kill(os.getpid(), signal.SIGKILL))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert {path.name: path.read_bytes() for path in out.iterdir()} == first

    def test_a_place_that_cannot_be_written(self, llama, text, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(RunFolderError, match=r"Cannot write"):
            run(model=llama, text=text, out=tmp_path / "file", device="cpu")
        (tmp_path / "out" / "diagnose.html").mkdir(parents=True)
        with pytest.raises(RunFolderError, match=r"diagnose.html: it exists and is not a file"):
            run(model=llama, text=text, out=tmp_path / "out", device="cpu")


class TestRefused:
    def refuse(self, error, match, *, out, **options):
        with pytest.raises(error, match=match) as caught:
            run(out=out, device="cpu", **options)
        assert isinstance(caught.value, MatrixSSLError) and caught.value.exit_code != 0
        assert not [path for path in out.glob("*") if path.name != ".lock"]

    @pytest.fixture
    def copy(self, llama, tmp_path):
        return Path(shutil.copytree(llama, tmp_path / "copy"))

    def test_texts(self, llama, tmp_path):
        out = tmp_path / "out"
        self.refuse(DataError, "none.txt does not exist", model=llama, text=tmp_path / "none.txt", out=out)
        (tmp_path / "t").touch()
        self.refuse(DataError, "t is empty", model=llama, text=tmp_path / "t", out=out)
        (tmp_path / "t").write_bytes(b"caf\xe9 and more")
        self.refuse(DataError, "byte 0xe9 at offset 3", model=llama, text=tmp_path / "t", out=out)
        (tmp_path / "t").write_text("a")
        self.refuse(DataError, "The text has 1 token", model=llama, text=tmp_path / "t", out=out)

    def test_models(self, copy, text, tmp_path):
        out = tmp_path / "out"
        self.refuse(CheckpointError, "nothing does not exist", model=tmp_path / "nothing", text=text, out=out)
        for name, said in (
            ("config.json", "it has no config.json"),
            ("model.safetensors", "has no weights"),
            ("tokenizer.json", "The tokenizer of .* cannot be loaded"),
        ):
            kept = (copy / name).read_bytes()
            (copy / name).unlink()
            self.refuse(CheckpointError, said, model=copy, text=text, out=out)
            (copy / name).write_bytes(kept)
        (copy / "model.safetensors").write_bytes(b"abc")
        self.refuse(CheckpointError, "cannot be loaded", model=copy, text=text, out=out)

    def test_weights_that_are_not_complete(self, copy, text, tmp_path):
        import safetensors.torch

        path = copy / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        said = r"lacks 1 tensor of the model, such as layers.1.mlp.up_proj.weight"
        self.refuse(CheckpointError, said, model=copy, text=text, out=tmp_path / "out")

    def test_references(self, llama, gpt2, text, tmp_path):
        out = tmp_path / "out"
        said = r"gpt2 has 2 layers, but .*llama has 3: pass a reference of the same architecture"
        self.refuse(ConfigError, said, model=llama, reference=gpt2, text=text, out=out)
        wide = make_llama(tmp_path / "wide", width=40)
        self.refuse(ConfigError, "wide has 40 hidden dimensions", model=llama, reference=wide, text=text, out=out)

    def test_windows_and_layers(self, llama, text, tmp_path):
        out = tmp_path / "out"
        said = "--window 65: the model's context is 64 tokens"
        self.refuse(ConfigError, said, model=llama, text=text, window=65, out=out)
        self.refuse(ConfigError, "there is no layer 4", model=llama, text=text, layers="4", out=out)

    def test_a_tokenizer_of_another_model(self, copy, text, tmp_path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(copy)
        tokenizer.add_tokens(["fox"])
        tokenizer.save_pretrained(copy)
        said = r"Token id 330 exceeds the 330 embeddings of .*copy; tokenizer and model do not match"
        self.refuse(ConfigError, said, model=copy, text=text, out=tmp_path / "out")

    def test_hidden_states_that_are_not_finite(self, copy, text, tmp_path):
        import safetensors.torch

        path = copy / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        said = r"copy, layer 2, window 1: .* is not finite: \d+ NaN"
        self.refuse(NotFiniteError, said, model=copy, text=text, out=tmp_path / "out")

    def test_a_constant_representation(self, gpt2, tmp_path):
        llama = make_llama(tmp_path / "bare", before="")
        path = tmp_path / "t"
        path.write_text(sentences(4) + "x" * 200)
        said = r"bare, embeddings, window \d+: .*all 16 rows are equal up to rounding"
        self.refuse(MatrixError, said, model=llama, text=path, window=16, layers="0", out=tmp_path / "out")
        settings = DiagnoseSettings(str(gpt2), path, window=16, layers="0")  # its embeddings know their positions
        assert diagnose(settings, tmp_path / "out", device=CPU)["rows"][0]["erank"] > 1
