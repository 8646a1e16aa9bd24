"""Code in the folder of a model or dataset never runs, whatever stands on standard input."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.cli import main
from matrix_ssl.data.kinds import huggingface
from matrix_ssl.errors import CheckpointError, DataError, MatrixSSLError
from matrix_ssl.llm.data.question_files import read_rows
from tests.support import llm_toys

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
MARK = "EXECUTED"
CLASSES = (
    "from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast\n"
    "class Tokenizer(PreTrainedTokenizerFast): pass\n"
    "class Config(LlamaConfig): model_type = 'unheard-of'\n"
    "class Model(LlamaModel): config_class = Config\n"
    "class Causal(LlamaForCausalLM): config_class = Config\n"
)
AUTO_MAPS: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    "config.json": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Causal"},
}


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> io.StringIO:
    """Standard input that says yes to every question, and a cache of modules that begins empty."""
    stdin = io.StringIO("y\n" * 100)
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return stdin


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in llm_toys.questions(8)), "utf-8")
    return file


def hostile(folder: Path, *files: str) -> Path:
    """A model and tokenizer of which ``files`` ask for classes in a Python file beside them."""
    llm_toys.llama().save_pretrained(folder)
    llm_toys.tokenizer().save_pretrained(folder)
    (folder / "evil.py").write_text(f"open({str(folder / MARK)!r}, 'w').close()\n{CLASSES}", "utf-8")
    for file in files:
        values = json.loads((folder / file).read_text("utf-8")) | {"auto_map": AUTO_MAPS[file]}
        values |= {"tokenizer_class": "Tokenizer"} if "tokenizer" in file else {"model_type": "unheard-of"}
        (folder / file).write_text(json.dumps(values), "utf-8")
    return folder


def words(name: str, model: Any, data: Path, out: Path) -> list[str]:
    own = {
        "finetune": ["--data", data, "--template", "plain", "--set", "epochs=1", "--set", "batch_size=4"],
        "score": ["--data", data, "--template", "plain"],
        "diagnose": ["--text", data],
    }[name]
    return [str(word) for word in ("llm", name, "--model", model, "--out", out, "--device", "cpu", *own)]


@pytest.mark.parametrize("file", list(AUTO_MAPS))
@pytest.mark.parametrize("name", ["finetune", "score", "diagnose"])
def test_commands_refuse_a_model_with_code_of_its_own(name, file, data, tmp_path, answers):
    folder = hostile(tmp_path / "model", file)
    refused(words(name, folder, data, tmp_path / "out"), folder, answers)


def test_random_weights_of_a_configuration_with_code(data, tmp_path, answers):
    folder = hostile(tmp_path / "model", "config.json")
    refused(words("finetune", f"config:{folder}", data, tmp_path / "out"), folder, answers)


def test_a_reference_with_code(data, tmp_path, answers):
    folder = hostile(tmp_path / "reference", "config.json")
    plain = hostile(tmp_path / "model")
    refused([*words("diagnose", plain, data, tmp_path / "out"), "--reference", str(folder)], folder, answers)


def test_the_model_below_an_adapter(data, tmp_path, answers):
    import peft

    base = hostile(tmp_path / "base")
    adapted = peft.get_peft_model(llm_toys.llama(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    llm_toys.tokenizer().save_pretrained(tmp_path / "adapter")
    hostile(base, "config.json")
    arguments = words("score", tmp_path / "adapter", data, tmp_path / "out")
    refused(arguments, base, answers)
    assert not (tmp_path / "adapter" / MARK).exists()


def refused(arguments: list[str], folder: Path, answers: io.StringIO) -> None:
    with pytest.raises(
        MatrixSSLError, match=r"needs Python code of its own \(auto_map\), which is never run"
    ) as caught:
        main.commands.main(arguments, standalone_mode=False)
    assert isinstance(caught.value, CheckpointError) and str(folder) in str(caught.value)
    assert not (folder / MARK).exists()
    assert answers.tell() == 0  # no question was asked


def test_classes_of_transformers_are_taken_where_a_file_names_both(data, tmp_path, answers):
    """Many models on the hub are of a known class and still carry the code they had before it was."""
    folder = hostile(tmp_path / "model")
    for file, auto_map in AUTO_MAPS.items():
        values = json.loads((folder / file).read_text("utf-8")) | {"auto_map": auto_map}
        (folder / file).write_text(json.dumps(values), "utf-8")
    main.commands.main(words("diagnose", folder, data, tmp_path / "out"), standalone_mode=False)
    assert not (folder / MARK).exists() and answers.tell() == 0


def test_datasets_with_a_script(tmp_path, monkeypatch, answers):
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(folder / MARK)!r}, 'w').close()\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    for opening in (lambda: huggingface.load_splits(str(folder)), lambda: read_rows(f"hf:{folder}")):
        with pytest.raises(DataError, match=r"script needs Python code of its own .*never run: save the dataset as"):
            opening()
    assert not (folder / MARK).exists() and answers.tell() == 0
