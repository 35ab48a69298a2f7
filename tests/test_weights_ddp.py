"""Two processes that score half of the samples each find what one process finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_decoders import texts, tiny_decoder

from prunekit.weights.blocks import all_matrices, prunable, stream_gradients, stream_grams, weight_of
from prunekit.weights.importance import GradientSums

LENGTHS = (12, 7, 20, 9)


def statistics(samples):
    """Sums over all samples, of all processes."""
    model = tiny_decoder()
    blocks = prunable(model)
    sums = {name: GradientSums(weight_of(module), second=True) for name, module in all_matrices(blocks).items()}
    stream_gradients(model, samples, blocks, lambda name, gradient: sums[name].add(gradient))
    for found in sums.values():
        found.all_reduce()
    grams = {}
    stream_grams(model, samples, blocks, lambda number, found: grams.update(found) or False)
    return {
        name: [s.magnitude.sum().item(), s.fisher.sum().item(), s.samples, grams[name].hessian.sum().item()]
        for name, s in sums.items()
    }


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    rendezvous = tmp_path / "rendezvous"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(rendezvous), str(tmp_path / f"{rank}.json")],
            env={**os.environ, "PYTHONPATH": path},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    alone = statistics(texts(LENGTHS))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, numbers in alone.items():
            assert found[name] == pytest.approx(numbers, rel=1e-4)


if __name__ == "__main__":
    rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    out.write_text(json.dumps(statistics(texts(LENGTHS)[rank::2])))
    torch.distributed.destroy_process_group()
