"""Two processes that score half of the samples each give the same result as one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import ROOT, TESTS
from support.tiny_decoders import texts, tiny_decoder

from prunekit.weights.decoder import all_matrices, prunable_matrices, weight_of
from prunekit.weights.gradients import stream_gradients
from prunekit.weights.grams import stream_grams
from prunekit.weights.importance import GradientSums, dual_score, general_importance, normalise
from prunekit.weights.masks import keep_masks

LENGTHS = (12, 7, 20, 9)
SUMS = ("magnitude", "fisher", "signed")


def statistics(samples):
    """The sums over all samples of all processes, and the masks that result from them."""
    model = tiny_decoder()
    blocks = prunable_matrices(model)
    sums = {name: GradientSums(weight_of(module), SUMS) for name, module in all_matrices(blocks).items()}
    stream_gradients(model, samples, blocks, lambda name, gradient: sums[name].add(gradient))
    for found in sums.values():
        found.all_reduce()
    grams = {}
    stream_grams(model, samples, blocks, lambda number, found: grams.update(found) or False)
    found = {}
    for name, module in all_matrices(blocks).items():
        total, hessian = sums[name], grams[name].hessian
        general = normalise(general_importance(weight_of(module).detach(), hessian, "obs_chol", 0.01, name))
        score = dual_score(weight_of(module).detach(), general, total.state["magnitude"], samples=total.samples)
        found |= {f"{name}.{key}": tensor for key, tensor in total.state.items()}
        found |= {f"{name}.hessian": hessian, f"{name}.samples": torch.tensor(total.samples)}
        found[f"{name}.keep"] = keep_masks({name: score}, {name: 0.5})[name]
    return found


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    rendezvous = tmp_path / "rendezvous"
    path = os.pathsep.join([str(TESTS), str(ROOT)])
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(rendezvous), str(tmp_path / f"{rank}.pt")],
            env={**os.environ, "PYTHONPATH": path},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    alone = statistics(texts(LENGTHS))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4 * float(tensor.abs().mean()))
            else:  # number of samples, and the masks
                assert torch.equal(found[name], tensor)


if __name__ == "__main__":
    rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.save(statistics(texts(LENGTHS)[rank::2]), out)
    torch.distributed.destroy_process_group()
