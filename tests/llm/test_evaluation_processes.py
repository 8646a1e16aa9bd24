"""Held-out rows that two real processes measure together: means over the tokens of each row, counted once."""

from pathlib import Path

import pytest

from tests.support.runs import start_processes

ROOT = str(Path(__file__).parents[2])


def check() -> None:
    """What each of the processes does: batches, also packed, that divide 5 rows neither evenly nor into whole ones."""
    import tempfile

    from matrix_ssl.llm import MatrixTrainer
    from tests.llm.test_packing import examples
    from tests.llm.test_trainer import MATRIX, textbook
    from tests.support import llm_toys

    rows, model = examples()[:5], llm_toys.llama()
    ce, mce = (x.item() for x in textbook(model, rows, MATRIX))
    for batch, packing in ((1, False), (2, False), (5, False), (2, True), (5, True)):
        with tempfile.TemporaryDirectory() as folder:
            arguments = llm_toys.arguments(Path(folder), per_device_eval_batch_size=batch, ddp_backend="gloo")
            trainer = MatrixTrainer(
                model=model, args=arguments, data_collator=llm_toys.collate, matrix=MATRIX, packing=packing
            )
            assert trainer.accelerator.num_processes == 2
            found = trainer.evaluate(rows)
        assert found["eval_ce"] == pytest.approx(ce, rel=1e-5)
        assert found["eval_loss"] == pytest.approx(ce + MATRIX.weight * mce, rel=1e-5)


@pytest.mark.slow  # two processes that import transformers
def test_together_they_measure_what_one_process_measures(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {ROOT!r}); import tests.llm.test_evaluation_processes as t; t.check()"
    for command in start_processes(tmp_path, [], count=2, before=f"{code}; raise SystemExit(0)"):
        ended = command.wait()
        assert ended.code == 0, ended.err
