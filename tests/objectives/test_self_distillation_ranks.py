"""Two gloo ranks see the same centres, targets and losses as one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tcae_diffusers.objectives.masked_tokens import MaskedTokens
from tcae_diffusers.objectives.self_distillation import SelfDistillationLoss

STEPS, BATCH, TOKENS, CLASSES = 3, 4, 5, 6


def make_batches():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(STEPS):
        mask = torch.rand(2, BATCH, TOKENS, generator=generator) < 0.5
        mask[:, BATCH // 2 :] = False  # the second rank has no masked token in any step
        mask[0, 0, 0] = True
        batches.append(
            {
                "student": torch.randn(4, BATCH, CLASSES, generator=generator),
                "teacher": torch.randn(2, BATCH, CLASSES, generator=generator),
                "student_patch": torch.randn(2, BATCH, TOKENS, CLASSES, generator=generator),
                "teacher_patch": torch.randn(2, BATCH, TOKENS, CLASSES, generator=generator),
                "mask": mask,
            }
        )
    return batches


def train(batches, centering):
    loss_fn = SelfDistillationLoss(CLASSES, centering=centering)
    losses = []
    for batch in batches:
        masked = MaskedTokens.from_mask(batch["mask"])
        output = loss_fn(
            batch["student"],
            batch["teacher"],
            masked.gather(batch["student_patch"]),
            masked.gather(batch["teacher_patch"]),
            masked,
            teacher_temperature=0.5,
        )
        loss_fn.update_centers()
        losses.append(torch.stack([output.loss_cls, output.loss_mim]))
    return torch.stack(losses), loss_fn.state_dict()


def run_rank(rank, folder, centering):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    share = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    batches = [{name: tensor[:, share] for name, tensor in batch.items()} for batch in make_batches()]
    torch.save(train(batches, centering), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("centering", ["momentum", "sinkhorn_knopp"])
def test_two_ranks_equal_one_process(centering, tmp_path):
    # Forked, because a fresh interpreter would spend its time importing torch.
    mp.start_processes(run_rank, args=(tmp_path, centering), nprocs=2, start_method="fork")
    (losses_0, state_0), (losses_1, state_1) = (torch.load(tmp_path / f"rank{r}.pt") for r in range(2))
    losses, state = train(make_batches(), centering)
    torch.testing.assert_close((losses_0 + losses_1) / 2, losses)
    for name in state:
        torch.testing.assert_close(state_0[name], state_1[name], rtol=0, atol=0)
        torch.testing.assert_close(state_0[name], state[name])
    assert (losses_1[:, 1] == 0).all()
    assert state["class_center"].abs().max() > 0 or centering == "sinkhorn_knopp"
