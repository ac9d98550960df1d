"""The losses against slow float64 references written from the papers' equations, token by token."""

import math

import pytest
import torch

from tcae_diffusers.objectives.schedules import teacher_temperature
from tcae_diffusers.self_supervision.koleo import koleo_loss
from tcae_diffusers.self_supervision.masked_tokens import MaskedTokens
from tcae_diffusers.self_supervision.self_distillation_loss import SelfDistillationLoss
from tcae_diffusers.self_supervision.teacher_targets import sinkhorn_knopp

from .recipes import head_and_loss

GLOBALS, LOCALS, BATCH, TOKENS, CLASSES, PATCH_CLASSES = 2, 3, 4, 6, 7, 5
TEMPERATURE, PATCH_TEMPERATURE = 0.05, 0.06


def softmax64(logits):
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [e / sum(exponentials) for e in exponentials]


def cross_entropy64(targets, student_logits):
    probabilities = softmax64([x / 0.1 for x in student_logits])
    return -sum(t * math.log(p) for t, p in zip(targets, probabilities, strict=True))


def teacher_targets64(logits, center, temperature):
    return softmax64([(x - c) / temperature for x, c in zip(logits, center, strict=True)])


def class_loss64(student, teacher, center, temperature):
    """iBOT, equation 3: every teacher view against every other student view."""
    terms = []
    for q in range(len(teacher)):
        for v in range(len(student)):
            if v != q:
                for b in range(len(teacher[q])):
                    targets = teacher_targets64(teacher[q][b], center, temperature)
                    terms.append(cross_entropy64(targets, student[v][b]))
    return sum(terms) / len(terms)


def mim_loss64(student, teacher, mask, center, temperature, average="images"):
    """iBOT, equation 2, with the release's mean over masked tokens, then over images; or over all masked tokens."""
    images = []
    for v in range(len(student)):
        for b in range(len(student[v])):
            terms = []
            for n in range(len(student[v][b])):
                if mask[v][b][n]:
                    targets = teacher_targets64(teacher[v][b][n], center, temperature)
                    terms.append(cross_entropy64(targets, student[v][b][n]))
            images.append(terms)
    if average == "images":
        return sum(sum(terms) / max(len(terms), 1) for terms in images) / len(images)
    return sum(sum(terms) for terms in images) / max(sum(len(terms) for terms in images), 1)


def moved_center64(center, outputs, momentum=0.9):
    if not outputs:
        return center
    mean = [sum(column) / len(outputs) for column in zip(*outputs, strict=True)]
    return [momentum * c + (1 - momentum) * m for c, m in zip(center, mean, strict=True)]


def make_batch(seed, mask_probability=0.4):
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape):
        return torch.rand(*shape, generator=generator) * 2 - 1

    mask = torch.rand(GLOBALS, BATCH, TOKENS, generator=generator) < mask_probability
    mask[0, 1] = False  # one image without a mask, and another with all of its tokens masked
    mask[1, 2] = mask_probability > 0
    return {
        "student": logits(GLOBALS + LOCALS, BATCH, CLASSES),
        "teacher": logits(GLOBALS, BATCH, CLASSES) + 0.3,
        "student_patch": logits(GLOBALS, BATCH, TOKENS, PATCH_CLASSES),
        "teacher_patch": logits(GLOBALS, BATCH, TOKENS, PATCH_CLASSES) - 0.2,
        "mask": mask,
    }


def apply(loss_fn, batch, **options):
    masked = MaskedTokens.from_mask(batch["mask"])
    options = {"teacher_temperature": TEMPERATURE, "patch_teacher_temperature": PATCH_TEMPERATURE, **options}
    return loss_fn(
        batch["student"],
        batch["teacher"],
        masked.gather(batch["student_patch"]),
        masked.gather(batch["teacher_patch"]),
        masked,
        **options,
    )


def masked_outputs(batch):
    return batch["teacher_patch"][batch["mask"]].double().tolist()


@pytest.mark.parametrize("average", ["images", "masked_tokens"])
def test_ibot_equals_the_equations_over_steps_of_moving_centers(average):
    loss_fn = SelfDistillationLoss(
        CLASSES,
        PATCH_CLASSES,
        center_momentum=0.9,
        patch_center_momentum=0.6,
        mim_weight=1.3,
        mim_average=average,
    )
    center, patch_center = [0.0] * CLASSES, [0.0] * PATCH_CLASSES
    # The third batch has no masked token at all: its loss is 0 and the patch centre rests. Both temperatures warm up
    # over three steps, between ends of their own.
    for step, mask_probability in enumerate((0.4, 0.4, 0.0, 0.6, 0.3)):
        batch = make_batch(step, mask_probability)
        temperature, patch_temperature = (
            teacher_temperature(step, 5, first, last, warmup_fraction=0.6)
            for first, last in ((0.04, 0.07), (0.05, 0.11))
        )
        output = apply(loss_fn, batch, teacher_temperature=temperature, patch_teacher_temperature=patch_temperature)
        as_lists = {name: tensor.double().tolist() for name, tensor in batch.items()}
        cls = class_loss64(as_lists["student"], as_lists["teacher"], center, 0.04 + 0.01 * min(step, 3))
        mim = mim_loss64(
            as_lists["student_patch"],
            as_lists["teacher_patch"],
            batch["mask"].tolist(),
            patch_center,
            0.05 + 0.02 * min(step, 3),
            average,
        )
        assert output.loss_cls.item() == pytest.approx(cls, rel=2e-6)
        assert output.loss_mim.item() == pytest.approx(mim, rel=2e-6)
        assert output.loss.item() == pytest.approx(cls + 1.3 * mim, rel=2e-6)

        loss_fn.update_centers()
        center = moved_center64(center, [row for view in as_lists["teacher"] for row in view], momentum=0.9)
        patch_center = moved_center64(patch_center, masked_outputs(batch), momentum=0.6)
        torch.testing.assert_close(loss_fn.class_center, torch.tensor(center), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(loss_fn.patch_center, torch.tensor(patch_center), rtol=1e-5, atol=1e-7)


def test_patch_tokens_follow_class_tokens_where_nothing_else_is_said():
    batch = make_batch(0)
    same, said = (
        SelfDistillationLoss(CLASSES, PATCH_CLASSES, 0.1, 0.8),
        SelfDistillationLoss(CLASSES, PATCH_CLASSES, 0.1, 0.8, patch_center_momentum=0.8),
    )
    for _ in range(2):
        first = apply(same, batch, patch_teacher_temperature=None)
        second = apply(said, batch, patch_teacher_temperature=TEMPERATURE)
        torch.testing.assert_close(first.loss, second.loss, rtol=0, atol=0)
        for loss_fn in (same, said):
            loss_fn.update_centers()
    torch.testing.assert_close(same.patch_center, said.patch_center, rtol=0, atol=0)


def test_accumulated_batches_move_the_centers_like_one_large_batch():
    batch = make_batch(4)
    whole, parts = (SelfDistillationLoss(CLASSES, PATCH_CLASSES) for _ in range(2))
    expected = apply(whole, batch).loss
    losses = [
        apply(parts, {name: tensor[:, [b]] for name, tensor in batch.items()}).loss / BATCH for b in range(BATCH)
    ]
    torch.testing.assert_close(sum(losses), expected)
    for loss_fn in (whole, parts):
        loss_fn.update_centers()
    torch.testing.assert_close(parts.class_center, whole.class_center)
    torch.testing.assert_close(parts.patch_center, whole.patch_center)


def test_a_discarded_step_leaves_the_centers_alone():
    loss_fn = SelfDistillationLoss(CLASSES, PATCH_CLASSES)
    batch = make_batch(5)
    apply(loss_fn, {**batch, "teacher": torch.full_like(batch["teacher"], math.nan)})
    loss_fn.discard_pending(torch.tensor(True))
    apply(loss_fn, batch)
    loss_fn.discard_pending(torch.tensor(False))
    loss_fn.update_centers()
    fresh = SelfDistillationLoss(CLASSES, PATCH_CLASSES)
    apply(fresh, batch)
    fresh.update_centers()
    torch.testing.assert_close(loss_fn.class_center, fresh.class_center, rtol=0, atol=0)


def sinkhorn64(logits, temperature, iterations=3):
    """DINOv2's algorithm with its constants, in float64: prototypes first, then samples."""
    q = torch.exp(logits.double() / temperature).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= samples
    return (q * samples).T


def koleo64(tokens):
    """DINOv2, section 4, by brute force over all pairs."""
    tokens = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in tokens]
    nearest = [min(math.dist(a, b) for j, b in enumerate(tokens) if j != i) for i, a in enumerate(tokens)]
    return -sum(math.log(d) for d in nearest) / len(nearest)


def test_sinkhorn_knopp_equals_the_published_algorithm():
    logits = make_batch(6)["teacher_patch"].flatten(0, 2)
    targets = sinkhorn_knopp(logits, 0.05)
    torch.testing.assert_close(targets.double(), sinkhorn64(logits, 0.05), rtol=1e-5, atol=1e-7)


def test_sinkhorn_knopp_neither_overflows_nor_underflows():
    targets = sinkhorn_knopp(torch.tensor([[900.0, -900.0, 0.0], [850.0, -700.0, 1.0]]), 0.01)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(2))
    assert sinkhorn_knopp(torch.empty(0, 3), 0.04).shape == (0, 3)


def test_koleo_equals_the_search_over_all_pairs():
    tokens = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    assert koleo_loss(tokens).item() == pytest.approx(koleo64(tokens.double().tolist()), rel=1e-5)


def test_dinov2_adds_sinkhorn_targets_and_koleo_of_each_global_view():
    batch = make_batch(7)
    _, loss_fn = head_and_loss("dinov2", 4, CLASSES, PATCH_CLASSES)
    tokens = torch.randn(GLOBALS, BATCH, 4, generator=torch.Generator().manual_seed(1))
    output = apply(loss_fn, batch, student_class_tokens=tokens)

    targets = sinkhorn64(batch["teacher"].flatten(0, 1), TEMPERATURE).view(GLOBALS, BATCH, CLASSES)
    pairs = [
        cross_entropy64(targets[q, b].tolist(), batch["student"][v, b].double().tolist())
        for q in range(GLOBALS)
        for v in range(GLOBALS + LOCALS)
        for b in range(BATCH)
        if v != q
    ]
    masked = batch["mask"].nonzero().tolist()
    patch_targets = sinkhorn64(batch["teacher_patch"][batch["mask"]], PATCH_TEMPERATURE)
    mim = 0.0
    for row, (v, b, n) in enumerate(masked):
        share = 1 / (batch["mask"][v, b].sum().item() * GLOBALS * BATCH)
        student = batch["student_patch"][v, b, n].double().tolist()
        mim += share * cross_entropy64(patch_targets[row].tolist(), student)
    koleo = sum(koleo64(view.double().tolist()) for view in tokens)
    assert output.loss_cls.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert output.loss_mim.item() == pytest.approx(mim, rel=1e-5)
    assert output.loss_koleo.item() == pytest.approx(koleo, rel=1e-5)
    assert output.loss.item() == pytest.approx(sum(pairs) / len(pairs) + mim + 0.1 * koleo, rel=1e-5)


def test_dino_is_ibot_without_its_masked_tokens():
    batch = make_batch(8)
    head, loss_fn = head_and_loss("dino", 4, CLASSES, hidden_dim=8, bottleneck_dim=4)
    assert head.patch_out_dim is None
    output = loss_fn(batch["student"], batch["teacher"], teacher_temperature=TEMPERATURE)
    expected = apply(SelfDistillationLoss(CLASSES, PATCH_CLASSES), batch).loss_cls
    torch.testing.assert_close(output.loss, expected)
    assert set(output.diagnostics) == {"teacher_class_entropy", "teacher_class_mean_entropy"}


def test_loss_and_gradients_are_fp32_inside_autocast():
    batch = make_batch(9)
    batch["student"].requires_grad_()
    loss_fn = SelfDistillationLoss(CLASSES, PATCH_CLASSES).to(torch.bfloat16)
    assert loss_fn.class_center.dtype == torch.float32
    plain = apply(loss_fn, batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = apply(loss_fn, batch).loss
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


def test_a_step_without_masked_tokens_still_reaches_every_parameter_of_the_head():
    head, loss_fn = head_and_loss("dinov2", 4, CLASSES, koleo_weight=0.0, hidden_dim=8, bottleneck_dim=4)
    masked = MaskedTokens.from_mask(torch.zeros(GLOBALS, BATCH, TOKENS, dtype=torch.bool))
    class_logits, patch_logits = head(torch.randn(GLOBALS, BATCH, 4), torch.empty(0, 4))
    output = loss_fn(class_logits, class_logits, patch_logits, patch_logits, masked, teacher_temperature=0.04)
    output.loss.backward()
    assert output.loss_mim.item() == 0.0
    assert math.isnan(output.diagnostics["teacher_patch_entropy"].item())
    assert all(p.grad is not None for p in head.parameters()), "DDP waits for parameters that take no part"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SelfDistillationLoss(4, centering="mean"), "centering is 'mean'; expected one of momentum"),
        (lambda: SelfDistillationLoss(4, mim_average="tokens"), "mim_average is 'tokens'"),
        (lambda: SelfDistillationLoss(4, center_momentum=1.5), "center_momentum is 1.5"),
        (lambda: SelfDistillationLoss(4, patch_center_momentum=-0.1), "patch_center_momentum is -0.1"),
        (lambda: SelfDistillationLoss(4, student_temperature=0), "student_temperature is 0"),
        (lambda: apply(SelfDistillationLoss(CLASSES, 9), make_batch(0)), "one row per masked token"),
        (
            lambda: SelfDistillationLoss(4)(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), teacher_temperature=0.04),
            "pass empty ones for a batch without masks",
        ),
        (
            lambda: SelfDistillationLoss(4, mim_weight=0)(
                torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), teacher_temperature=0.04
            ),
            "at least two",
        ),
        (
            lambda: SelfDistillationLoss(4, mim_weight=0)(
                torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), teacher_temperature=0
            ),
            "teacher temperature is 0",
        ),
        (lambda: koleo_loss(torch.zeros(1, 4)), "B at least 2"),
        (lambda: MaskedTokens.from_mask(torch.zeros(2, 4)), "expected torch.bool"),
        (
            lambda: MaskedTokens.from_mask(torch.ones(2, 4, dtype=torch.bool)).gather(torch.zeros(3, 4, 8)),
            "the mask was drawn for 2",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
