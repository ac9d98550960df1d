"""Two gloo ranks see the same centres, targets and losses as one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from tcae_diffusers.self_supervision.masked_tokens import MaskedTokens
from tcae_diffusers.self_supervision.self_distillation_loss import SelfDistillationLoss

from .recipes import head_and_loss

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

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


def train(batches, options):
    loss_fn = SelfDistillationLoss(CLASSES, patch_center_momentum=0.6, **options)
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


def train_head(batches, parallel):
    """Steps of two accumulated halves, the last layer frozen in the first of them."""
    torch.manual_seed(0)
    head, loss_fn = head_and_loss("ibot", CLASSES, 7, hidden_dim=8, bottleneck_dim=5, sharing="separate")
    model = nn.parallel.DistributedDataParallel(head) if parallel else head
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.4)
    last_layers = []
    for step, batch in enumerate(batches):
        size = batch["mask"].shape[1] // 2
        for half in (slice(0, size), slice(size, 2 * size)):
            part = {name: tensor[:, half] for name, tensor in batch.items()}
            masked = MaskedTokens.from_mask(part["mask"])
            logits, patch_logits = model(part["student"], masked.gather(part["student_patch"]))
            targets, patch_targets = head(part["teacher"], masked.gather(part["teacher_patch"]))
            loss = loss_fn(logits, targets, patch_logits, patch_targets, masked, teacher_temperature=0.1).loss
            (loss / 2).backward()
        if step == 0:
            head.cancel_last_layer_gradients()
        optimizer.step()
        optimizer.zero_grad()
        loss_fn.update_centers()
        last_layers.append(head.patch_last_layer.weight.detach().clone())
    return torch.stack(last_layers), {**head.state_dict(), **loss_fn.state_dict()}


def run_rank(rank, folder, what, argument):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    share = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    batches = [{name: tensor[:, share] for name, tensor in batch.items()} for batch in make_batches()]
    torch.save(what(batches, argument), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_a_head_in_ddp_with_a_frozen_last_layer_equals_one_process(tmp_path):
    mp.start_processes(run_rank, args=(tmp_path, train_head, True), nprocs=2, start_method="fork")
    expected, state = train_head(make_batches(), False)
    for rank in range(2):
        last_layers, rank_state = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(last_layers, expected, rtol=1e-4, atol=1e-5)
        for name, tensor in rank_state.items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(expected[1], expected[0]), "thawed after the first step"


@pytest.mark.parametrize(
    "options", [{}, {"mim_average": "masked_tokens"}, {"centering": "sinkhorn_knopp"}], ids=lambda o: str(o)
)
def test_two_ranks_equal_one_process(options, tmp_path):
    # Forked, because a fresh interpreter would spend its time importing torch.
    mp.start_processes(run_rank, args=(tmp_path, train, options), nprocs=2, start_method="fork")
    (losses_0, state_0), (losses_1, state_1) = (torch.load(tmp_path / f"rank{r}.pt") for r in range(2))
    losses, state = train(make_batches(), options)
    torch.testing.assert_close((losses_0 + losses_1) / 2, losses)
    for name in state:
        torch.testing.assert_close(state_0[name], state_1[name], rtol=0, atol=0)
        torch.testing.assert_close(state_0[name], state[name])
    assert (losses_1[:, 1] == 0).all()
    assert state["class_center"].abs().max() > 0 or options.get("centering") == "sinkhorn_knopp"
