"""No command uses a network unless it is asked to: each runs where there is none, and tries nothing."""

import json
from pathlib import Path

import pytest

from matrix_ssl.cli.main import commands
from tests.support import comparisons, drawn_coco, llm_toys, runs
from tests.support.runs import BARE, from_files, make_images

# addresses of other machines are asked for or connected to by these functions of Python; in a name space of its own,
# where the system lets a test make one, libraries in C have no network either
BLOCKED = """
import ctypes, os, socket, traceback
def refuse(*place, **_):
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{place}\\n" + "".join(traceback.format_stack()[-6:-1]))
    raise OSError(101, "Network is unreachable")
connect = socket.socket.connect
def local(self, place):
    return connect(self, place) if self.family == socket.AF_UNIX else refuse(place)
socket.socket.connect = socket.socket.connect_ex = local
socket.getaddrinfo = socket.gethostbyname = refuse
if os.geteuid() == 0:
    ctypes.CDLL(None).unshare(0x40000000)  # CLONE_NEWNET
"""
WORDS = {
    "pretrain": from_files("photos"),
    "evaluate": ["evaluate", "r", "--data", "photos", "--protocol", "knn", "--device", "cpu"],
    "embed": ["embed", "r", "--data", "photos", "--out", "f.npz", "--device", "cpu"],
    "export": ["export", "r"],
    "import": ["import", "random/tiny_resnet", "--out", "i"],
    "measure": ["measure", "f.npz"],
    "report": ["report", "r"],
    "pack": ["pack", "photos", "p", "--workers", "0"],
    "methods": ["methods"],
    "recipes": ["recipes"],
    "doctor": ["doctor"],
    "search": ["search", "f.npz", "--query", "0"],
    "duplicates": ["duplicates", "f.npz"],
    "outliers": ["outliers", "f.npz", "-k", "2"],
    "cluster": ["cluster", "f.npz", "--count", "2"],
    "mislabels": ["mislabels", "f.npz"],
    "select": ["select", "f.npz", "--count", "3"],
    "explore": ["explore", "f.npz", "--data", "photos", "--out", "page", "--map", "pca"],
    "serve": ["serve", "r", "--index", "f.npz", "--check", "--device", "cpu"],
    "diagnose": ["diagnose", "r", "--data", "photos", "--out", "d", "--images", "8", "--device", "cpu"],
    "chain": ["chain", "images", "--data", "photos", "--out", "c", "--dry-run"],
    "compare": comparisons.words("--seeds", "1", "--trials", "1", "--budget", "1", out="cmp"),
    "detect": [],  # their words need paths
    "worth": ["worth", "images", "--data", "photos", "--from", "r", "--seeds", "1", "--epochs", "1", "--out", "w",
              "--device", "cpu", *from_files("photos", "batch_size=8")[8:], "--tune-set", "steps=2",
              "--tune-set", "batch_size=4", "--tune-set", "rates=0.02,0.1"],
    "llm finetune": ["llm", "finetune", "--model", "m", "--data", "q.jsonl", "--out", "ft", "--template", "plain",
                     "--set", "epochs=1", "--set", "batch_size=4", "--set", "lora=2", "--device", "cpu"],
    "llm merge": ["llm", "merge", "--model", "ft", "--out", "merged"],
    "llm generate": ["llm", "generate", "--model", "m", "--prompt", "1 + 1?", "--template", "plain",
                     "--max-new-tokens", "2", "--device", "cpu"],
    "llm score": ["llm", "score", "--model", "m", "--data", "q.jsonl", "--out", "s.jsonl", "--template", "plain",
                  "--limit", "2", "--max-new-tokens", "2", "--device", "cpu"],
    "llm diagnose": ["llm", "diagnose", "--model", "m", "--text", "q.jsonl", "--out", "ld", "--device", "cpu"],
}  # fmt: skip
QUICK = ("pretrain", "embed", "import", "measure", "methods", "doctor")  # in this order: some need what others wrote
_MORE = {"compare": comparisons.FORKED, "detect": drawn_coco.THINLY, "pretrain": BARE, "evaluate": BARE}


def test_every_command_is_tried() -> None:
    assert sorted(WORDS) == sorted(runs.leaves(commands))


@pytest.mark.parametrize("names", [QUICK, pytest.param(tuple(WORDS), marks=pytest.mark.slow)], ids=["quick", "all"])
def test_no_command_tries_a_network(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in ("ant", "bee"):
        make_images(tmp_path / "photos" / name, 12)
    if "llm score" in names:
        llm_toys.llama().save_pretrained(tmp_path / "m")
        llm_toys.tokenizer().save_pretrained(tmp_path / "m")
        rows = [json.dumps(row) + "\n" for row in llm_toys.questions(8)]
        (tmp_path / "q.jsonl").write_text("".join(rows))
    attempts = tmp_path / "attempts.txt"
    for name in names:
        words = WORDS[name] or drawn_coco.arguments(drawn_coco.write_set(tmp_path / "coco"), "epochs=0.4")
        if name == "detect":
            words[words.index("--out") + 1] = "det"
        environment = {"ATTEMPTS": str(attempts), "HF_HUB_OFFLINE": "0"}
        code = f"{_MORE.get(name, '')}\n{BLOCKED}"
        ended = runs.start(tmp_path, words, before=code, environment=environment).wait(900)  # worth has 23 parts
        assert ended.code == 0, (name, ended.err)
        assert not attempts.exists(), (name, attempts.read_text())


def test_an_attempt_is_noticed(tmp_path: Path) -> None:
    attempts = tmp_path / "attempts.txt"
    words = ["import", "torchvision/resnet18", "--download", "--out", "i"]
    environment = {"ATTEMPTS": str(attempts), "TORCH_HOME": str(tmp_path)}
    message = runs.check_failure(runs.run(tmp_path, words, before=BLOCKED, environment=environment))
    assert "cannot be downloaded from https://download.pytorch.org" in message
    assert "download.pytorch.org" in attempts.read_text()
