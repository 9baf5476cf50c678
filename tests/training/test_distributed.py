"""Two processes, started by torchrun, give the results of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toy_training import RandomWindows, logged, small_pair, small_processor, small_trainer

TESTS = Path(__file__).parents[1]


def train(folder: Path, **changes) -> dict:
    """Two steps of 8 rows, and a validation of 5 rows, which no two processes share evenly."""
    student, teacher = small_pair()
    evaluation = {"one": RandomWindows(5), "two": RandomWindows(3, seed=9)}
    settings = {"learning_rate": 1e-2, "per_device_eval_batch_size": 2, "mse_weight": 0.1, "evaluation": evaluation}
    settings |= {"train": RandomWindows(16), "processor": small_processor(), **changes}
    trainer = small_trainer(folder, student, teacher, **settings)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    return {
        "processes": trainer.accelerator.num_processes,
        "rows": len(trainer.predict(RandomWindows(5)).predictions),
        "logs": {name: logged(trainer, name) for name in ("loss", "grad_norm", "kl", "pl", "mse")},
        "metrics": {name: metrics[name] for name in metrics if not name.endswith(("runtime", "second", "time"))},
        "weights": {name: weight.double().sum().item() for name, weight in student.state_dict().items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"freeze_encoder": False},
        {"teacher_cache": "encoder"},
        {"teacher_cache": "both", "teacher_cache_dir": "cache"},
    ],
    ids=str,
)
def test_two_processes_give_the_losses_gradients_and_wer_of_one(tmp_path, monkeypatch, settings):
    """Upstream scales the loss by the number of processes, and counts some validation rows twice."""
    monkeypatch.chdir(tmp_path)  # the processes fill a part of the cache each; the single one reads all of it
    Path("script.py").write_text(
        "import json, os, pathlib, sys\n"
        "from accelerate import PartialState\n"
        "from test_distributed import train\n"
        "results = train(pathlib.Path('two'), **json.loads(sys.argv[1]))\n"
        "pathlib.Path(f'rank{os.environ[\"RANK\"]}.json').write_text(json.dumps(results))\n"
        "PartialState().destroy_process_group()\n"
    )
    settings_of_two = settings | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", "script.py", json.dumps(settings_of_two)]
    path = os.pathsep.join(map(str, (TESTS.parent / "src", TESTS, Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = train(Path("one"), per_device_train_batch_size=8, **settings)
    for rank in (0, 1):
        results = json.loads(Path(f"rank{rank}.json").read_text())
        assert (results["processes"], results["rows"], expected["rows"]) == (2, 5, 5)
        for name, values in expected["logs"].items():
            assert results["logs"][name] == pytest.approx(values, rel=1e-3), name
        assert results["metrics"] == pytest.approx(expected["metrics"], rel=1e-3)
        assert results["weights"] == pytest.approx(expected["weights"], rel=1e-2, abs=1e-2)
    assert Path("two", "model.safetensors").is_file()
