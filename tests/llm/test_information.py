"""MIR and HDR of hidden states and rows of the head, alone and in a training."""

import copy

import pytest
import torch

from matrix_ssl.errors import DataError
from matrix_ssl.matrix import of_features
from tests.support import llm_toys

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")


def test_in_a_training(tmp_path):
    from matrix_ssl.llm import InformationCallback, MatrixTrainer

    batch = llm_toys.collate(llm_toys.sequences(4))
    callback = InformationCallback(batch, positions=20)
    model = llm_toys.llama()
    before = callback.measure(copy.deepcopy(model))
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hidden = model.eval().model(**inputs).last_hidden_state
    counted = [(i, t) for i, row in enumerate(batch["labels"]) for t in range(1, len(row)) if row[t] != -100][:20]
    features = torch.stack([hidden[i, t - 1] for i, t in counted]).double()
    rows = torch.stack([model.lm_head.weight[batch["labels"][i, t]] for i, t in counted]).detach().double()
    assert before["mir"] == pytest.approx(of_features.matrix_mutual_information_ratio(features, rows).item(), rel=1e-6)
    assert before["hdr"] == pytest.approx(of_features.entropy_difference_ratio(features, rows).item(), abs=1e-6)

    trainer = MatrixTrainer(
        model=model, args=llm_toys.arguments(tmp_path, logging_steps=1, max_steps=2), callbacks=[callback],
        train_dataset=llm_toys.sequences(), data_collator=llm_toys.collate,
    )  # fmt: skip
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2 and all(0 <= line[name] <= 1 for line in lines for name in ("mir", "hdr"))
    assert lines[-1]["mir"] == pytest.approx(callback.measure(model)["mir"], rel=1e-6)


def test_a_batch_without_labels():
    from matrix_ssl.llm import InformationCallback

    batch = llm_toys.collate(llm_toys.sequences(2))
    with pytest.raises(DataError, match="needs labels with at least two counted positions"):
        InformationCallback(batch | {"labels": torch.full_like(batch["labels"], -100)})
    with pytest.raises(DataError, match="needs labels with at least two counted positions"):
        InformationCallback({"input_ids": batch["input_ids"]})
