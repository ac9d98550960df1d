"""Guiders of diffusers in TCDiTPipeline: the arithmetic, the steps, and what cannot guide this transformer."""

import copy
import json
import logging

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    guiders,
)
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    AutoGuidance,
    BaseGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    LTX2Guidance,
    MagnitudeAwareGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)

from tcae_diffusers import TCDiTTransformer2DModel
from tcae_diffusers.evaluation.arguments.sampling import GUIDERS
from tcae_diffusers.pipelines import TCDiTPipeline, export_with_remote_code
from tcae_diffusers.pipelines.guidance import fractions_of_steps, steps_within

from .conftest import make_transformer

IDS, NULL, STEPS = torch.tensor([0, 2]), 3, 6


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def noise():
    return torch.cat([torch.randn(1, 4, 2, 2, generator=generator) for generator in seeds(0, 1)])


def draw(pipeline, **settings):
    settings = {"num_inference_steps": STEPS, "output_type": "latent", **settings}
    return pipeline(IDS, generator=seeds(0, 1), **settings).images


def tc_dit():
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3}
    transformer = TCDiTTransformer2DModel(**sizes, in_channels=4, sample_size=2, num_classes=3).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return transformer


@torch.no_grad()
def sampled(pipeline, combine):
    """Sampling written out: `combine(step, t, x)` is the prediction that the scheduler gets."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    latents = noise() * getattr(scheduler, "init_noise_sigma", 1.0)
    for step, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(combine(step, t, x), t, latents, return_dict=False)[0]
    return latents


def classifier_free(transformer, scale, interval, weaker=None):
    """Guidance as it was before there were guiders: both halves in one batch, except with a weaker transformer."""

    def predict(model, x, t, ids):
        return model(x, timestep=t.expand(len(x)), class_labels=ids, return_dict=False)[0]

    def combine(step, t, x):
        level = (t.float() / 1000).item()
        if not interval[0] <= level <= interval[1] or scale <= 1:
            return predict(transformer, x, t, IDS)[:, :4]
        if weaker is not None:
            conditional, guiding = predict(transformer, x, t, IDS), predict(weaker, x, t, IDS)
        else:
            labels = torch.cat([IDS, torch.full_like(IDS, NULL)])
            conditional, guiding = predict(transformer, torch.cat([x, x]), t, labels).chunk(2)
        return guiding[:, :4] + scale * (conditional[:, :4] - guiding[:, :4])

    return combine


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8), (0.0, 0.0005), (0.95, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["euler", "heun", "epsilon", "karras", "variance", "autoguidance"])
def test_guidance_by_scale_and_interval_draws_what_it_drew_without_guiders(make_pipeline, kind, scale, interval):
    schedulers = {
        "heun": FlowMatchHeunDiscreteScheduler(),
        "epsilon": DDIMScheduler(clip_sample=False),
        "karras": EulerDiscreteScheduler(use_karras_sigmas=True),
        "variance": DDIMScheduler(clip_sample=False),
    }
    weaker = make_transformer(seed=1, num_layers=1) if kind == "autoguidance" else None
    transformer = make_transformer(out_channels=8 if kind == "variance" else 4)
    scheduler = schedulers.get(kind, FlowMatchEulerDiscreteScheduler())
    pipeline = make_pipeline(transformer=transformer, scheduler=scheduler, guidance_transformer=weaker)
    drawn = draw(pipeline, guidance_scale=scale, guidance_interval=interval)
    assert torch.equal(drawn, sampled(pipeline, classifier_free(transformer, scale, interval, weaker)))


def test_a_fraction_of_the_steps_stands_for_exactly_these_steps():
    for count in range(1, 120):
        levels = [1 - step / count for step in range(count)]
        for first in range(0, count, 7):
            for last in (first, (first + count - 1) // 2, count - 1):
                if last >= first:
                    inside = steps_within(levels, (levels[last], levels[first]))
                    start, stop = fractions_of_steps(inside, count)
                    assert int(start * count) == first and int(stop * count) == last + 1
                    assert 0 <= start < 1 and start <= stop <= 1
    assert steps_within([1.0, 0.5], (0.6, 0.7)) is None


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.4, 0.9), (0.0, 0.3), (0.9, 1.0)])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.9, 1.0), (0.3, 0.6), (0.0, 0.4), (0.45, 0.5)])
@pytest.mark.parametrize("kind", [SkipLayerGuidance, PerturbedAttentionGuidance])
def test_an_interval_holds_for_weakened_layers_too(make_pipeline, kind, interval, window):
    prefix, name = {
        SkipLayerGuidance: ("skip_layer_guidance", "skip_layer_guidance_layers"),
        PerturbedAttentionGuidance: ("perturbed_guidance", "perturbed_guidance_layers"),
    }[kind]
    start, stop = window
    settings = {f"{prefix}_start": start, f"{prefix}_stop": stop, name: [1], "guidance_scale": 1.0}
    pipeline, calls, levels = make_pipeline(transformer=tc_dit(), guider=kind(**settings)), [0], []
    pipeline.transformer.register_forward_hook(lambda *_: calls.append(calls.pop() + 1))

    def count(pipe, step, timestep, tensors):
        levels.append(float(timestep) / 1000)
        calls.append(0)
        return {}

    # What diffusers makes of the window alone: all steps between its ends, without either.
    guided = {step for step in range(STEPS) if int(start * STEPS) < step < int(stop * STEPS)}
    draw(pipeline, guidance_interval=interval, callback_on_step_end=count)
    inside = {step for step, level in enumerate(levels) if interval[0] <= level <= interval[1]}
    assert [step for step in range(STEPS) if calls[step] == 2] == sorted(guided & inside)


PLAIN = [
    ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.5, start=0.2, stop=0.9),
    ClassifierFreeGuidance(guidance_scale=2.0, use_original_formulation=True),
    AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5, eta=0.3),
    AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=2),
    TangentialClassifierFreeGuidance(guidance_scale=3.0),
    MagnitudeAwareGuidance(guidance_scale=5.0, alpha=0.5),
    LTX2Guidance(guidance_scale=3.0),
]


@pytest.mark.parametrize("guider", PLAIN, ids=lambda guider: type(guider).__name__)
@pytest.mark.parametrize("weaker", [None, make_transformer(seed=1, num_layers=1)], ids=["null", "weaker"])
def test_each_guider_combines_the_two_predictions(make_pipeline, tiny_transformer, guider, weaker):
    pipeline = make_pipeline(guider=guider, guidance_transformer=weaker)
    alone = guider.new()

    def combine(step, t, x):
        alone.set_state(step, STEPS, t)
        ids = torch.full_like(IDS, NULL) if weaker is None else IDS
        batches = alone.prepare_inputs({"labels": (IDS, ids)})
        for batch, model in zip(batches, (tiny_transformer, weaker or tiny_transformer), strict=False):
            # Of the two dimensions that the norm of magnitude-aware guidance takes; to the others it is the same.
            batch.noise_pred = model(x, t.expand(2), batch.labels).sample.flatten(2)
        return alone(batches).pred.view_as(x)

    drawn = draw(pipeline)
    torch.testing.assert_close(drawn, sampled(pipeline, combine), rtol=1e-4, atol=1e-4)
    unguided = draw(make_pipeline())
    assert not torch.allclose(drawn, unguided, atol=1e-2)
    assert torch.equal(draw(pipeline), drawn), "a call leaves no momentum for the next one"


def without_block(transformer, index):
    weaker = copy.deepcopy(transformer)
    del weaker.transformer_blocks[index]
    return weaker


@pytest.mark.parametrize("make", [tc_dit, lambda: make_transformer(num_layers=3)], ids=["tc-dit", "dit"])
def test_guiders_that_skip_blocks_guide_by_the_transformer_without_them(make_pipeline, make):
    transformer = make()
    weaker = without_block(transformer, 1)
    auto = AutoGuidance(guidance_scale=2.5, auto_guidance_layers=[1], dropout=1.0)
    drawn = draw(make_pipeline(transformer=transformer, guider=auto))
    expected = draw(make_pipeline(transformer=transformer, guidance_transformer=weaker), guidance_scale=2.5)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)

    skip = SkipLayerGuidance(
        guidance_scale=1.0,
        skip_layer_guidance_layers=[1],
        skip_layer_guidance_scale=2.0,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=0.7,
    )
    pipeline = make_pipeline(transformer=transformer, guider=skip)
    plain, guide = classifier_free(transformer, 1.0, (0, 1)), classifier_free(weaker, 1.0, (0, 1))

    def combine(step, t, x):
        # Of the steps from 0 to 4 diffusers guides neither the first nor the last.
        conditional, weak = plain(step, t, x), guide(step, t, x)
        return weak + 2.0 * (conditional - weak) if 0 < step < 4 else conditional

    torch.testing.assert_close(draw(pipeline), sampled(pipeline, combine), rtol=1e-4, atol=1e-4)
    expected = draw(make_pipeline(transformer=transformer), guidance_scale=1)
    assert torch.equal(draw(pipeline, guidance_scale=1), expected), "scale 1 turns all of it off, and leaves no hook"


class AttendsToItself(torch.nn.Module):
    """Attention of which each token sees itself alone: what perturbed attention stands for."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states, *args, **kwargs):
        return self.attention.to_out[0](self.attention.to_v(hidden_states))


@pytest.mark.parametrize(("make", "name"), [(tc_dit, "attn"), (make_transformer, "attn1")], ids=["tc-dit", "dit"])
def test_perturbed_attention_guides_by_tokens_that_see_themselves_alone(make_pipeline, make, name):
    perturbed = PerturbedAttentionGuidance(
        guidance_scale=1.0,
        perturbed_guidance_scale=2.0,
        perturbed_guidance_layers=[0],
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=0.7,
    )
    transformer, weaker = make(), make()
    block = weaker.transformer_blocks[0]
    setattr(block, name, AttendsToItself(getattr(block, name)))
    plain, guide = classifier_free(transformer, 1.0, (0, 1)), classifier_free(weaker, 1.0, (0, 1))

    def combine(step, t, x):
        conditional, weak = plain(step, t, x), guide(step, t, x)
        return weak + 2.0 * (conditional - weak) if 0 < step < 4 else conditional

    pipeline = make_pipeline(transformer=transformer, guider=perturbed)
    torch.testing.assert_close(draw(pipeline), sampled(pipeline, combine), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(draw(pipeline), sampled(pipeline, plain), atol=1e-2)


@pytest.mark.parametrize(
    ("guider", "message"),
    [
        (
            SmoothedEnergyGuidance(seg_guidance_layers=[0], seg_guidance_stop=1.0),
            r"SmoothedEnergyGuidance weakens no layer of DiTTransformer2DModel for pred_cond_seg",
        ),
        (
            LTX2Guidance(stg_scale=1.0, spatio_temporal_guidance_blocks=[0]),
            r"LTX2Guidance weakens no layer of DiTTransformer2DModel for pred_cond_stg",
        ),
        (SkipLayerGuidance(skip_layer_guidance_layers=[9], skip_layer_guidance_stop=1.0), r"indices \[9\]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_guider_that_would_guide_by_nothing_is_refused(make_pipeline, guider, message):
    pipeline = make_pipeline(guider=guider)
    with pytest.raises(ValueError, match=message):
        draw(pipeline)
    assert torch.equal(draw(pipeline, guidance_scale=1), draw(make_pipeline(), guidance_scale=1))


def test_every_guider_of_diffusers_can_be_chosen_or_is_refused():
    classes = {name for name in vars(guiders) if isinstance(getattr(guiders, name), type)}
    classes = {name for name in classes if issubclass(getattr(guiders, name), BaseGuidance)} - {"BaseGuidance"}
    assert set(GUIDERS) == classes - {"SmoothedEnergyGuidance", "LTX2Guidance"}


def test_the_call_changes_scale_and_interval_of_the_guider_and_leaves_it_alone(make_pipeline):
    own = AdaptiveProjectedGuidance(guidance_scale=2.0, eta=0.2)
    pipeline = make_pipeline(guider=own)
    for settings, changes in (
        ({"guidance_scale": 5.0}, {"guidance_scale": 5.0}),
        ({"guidance_interval": (0.3, 1.0)}, {"stop": 0.7}),
        ({"guidance_scale": 3.0, "guidance_interval": (0.0, 0.6)}, {"guidance_scale": 3.0, "start": 0.5}),
    ):
        assert torch.equal(draw(pipeline, **settings), draw(make_pipeline(guider=own.new(**changes))))
        assert pipeline.current_guider.eta == 0.2 and pipeline.guidance_scale == changes.get("guidance_scale", 2.0)
    assert pipeline.guider is own and own.guidance_scale == 2.0
    zero_star = make_pipeline(guider=ClassifierFreeZeroStarGuidance())
    assert torch.equal(draw(zero_star, guidance_scale=1.0), draw(make_pipeline(), guidance_scale=1.0))
    own.disable()
    assert torch.equal(draw(pipeline, guidance_scale=5.0), draw(make_pipeline(), guidance_scale=1.0))


def test_scales_that_a_guider_does_not_have_or_counts_otherwise_are_refused(make_pipeline):
    class TwoScales(ClassifierFreeGuidance):
        @property
        def config(self):
            return {"guidance_scales": [1.0, 2.0]}

    with pytest.raises(ValueError, match=r"guidance_scale=2.0 given, but TwoScales has no single guidance_scale"):
        draw(make_pipeline(guider=TwoScales()), guidance_scale=2.0)
    original = ClassifierFreeGuidance(guidance_scale=2.0, use_original_formulation=True)
    with pytest.raises(ValueError, match=r"use_original_formulation=True, where 0 does"):
        draw(make_pipeline(guider=original), guidance_scale=2.0)


def test_without_a_null_class_only_a_weaker_transformer_guides(make_pipeline):
    transformer = make_transformer()
    for block in transformer.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table = torch.nn.Embedding(3, 16)
    with pytest.raises(ValueError, match="TangentialClassifierFreeGuidance needs a null class"):
        draw(make_pipeline(transformer=transformer, guider=TangentialClassifierFreeGuidance()))
    auto = AutoGuidance(guidance_scale=2.0, auto_guidance_layers=[1], dropout=1.0)
    guided = draw(make_pipeline(transformer=transformer, guider=auto))
    assert not torch.allclose(guided, draw(make_pipeline(transformer=transformer), guidance_scale=1), atol=1e-3)
    weaker = without_block(transformer, 1)
    draw(
        make_pipeline(transformer=transformer, guider=TangentialClassifierFreeGuidance(), guidance_transformer=weaker)
    )
    with pytest.raises(ValueError, match="AutoGuidance guides by the transformer with weaker layers"):
        draw(make_pipeline(transformer=transformer, guider=auto, guidance_transformer=weaker))


def test_layers_of_a_compiled_transformer_are_left_alone(make_pipeline):
    compiled = torch.compile(make_transformer(), backend="eager")
    guider = SkipLayerGuidance(skip_layer_guidance_layers=[0], skip_layer_guidance_stop=1.0)
    with pytest.raises(ValueError, match=r"SkipLayerGuidance weakens single layers.*before torch.compile"):
        draw(make_pipeline(transformer=compiled, guider=guider))


def test_guiders_see_the_velocity_of_a_model_that_predicts_the_clean_latent(make_pipeline):
    from .test_pipeline_tc_dit import PredictsSample

    guider = AdaptiveProjectedGuidance(guidance_scale=3.0, eta=0.2)
    expected = draw(make_pipeline(guider=guider))
    pipeline = make_pipeline(guider=guider.new(), prediction_type="flow_sample")
    pipeline.transformer = PredictsSample(pipeline.transformer)
    torch.testing.assert_close(draw(pipeline), expected, rtol=1e-3, atol=1e-3)


def test_a_callback_can_switch_guidance_off_for_the_rest(make_pipeline):
    def stop(pipe, step, timestep, tensors):
        if step == 2:
            pipe.current_guider.disable()
        return {}

    drawn = draw(make_pipeline(), guidance_scale=3.0, callback_on_step_end=stop)
    expected = draw(make_pipeline(guider=ClassifierFreeGuidance(guidance_scale=3.0, stop=0.5)))
    assert torch.equal(drawn, expected)
    assert not torch.equal(drawn, draw(make_pipeline(), guidance_scale=3.0))


def test_a_guider_switched_off_by_a_callback_guides_the_next_call(make_pipeline):
    pipeline = make_pipeline(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    expected = draw(pipeline)

    def stop(pipe, step, timestep, tensors):
        pipe.current_guider.disable()
        return {}

    assert not torch.equal(draw(pipeline, callback_on_step_end=stop), expected)
    assert torch.equal(draw(pipeline), expected)


@pytest.mark.parametrize(
    "guider",
    [
        AdaptiveProjectedGuidance(guidance_scale=3.0, eta=0.2),
        AutoGuidance(guidance_scale=2.0, auto_guidance_layers=[1], dropout=1.0, stop=0.8),
        SkipLayerGuidance(skip_layer_guidance_layers=[0], skip_layer_guidance_stop=1.0),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_a_pipeline_is_saved_and_loaded_with_its_guider(make_pipeline, guider, tmp_path):
    pipeline = make_pipeline(guider=guider)
    expected = draw(pipeline)
    pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["guider"] == ["diffusers", type(guider).__name__]
    export_with_remote_code(pipeline, tmp_path / "exported")
    assert "def guider_of_call" in (tmp_path / "exported" / "pipeline_tc_dit.py").read_text()
    loaded = TCDiTPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.guider) is type(guider)
    torch.testing.assert_close(draw(loaded), expected, rtol=1e-4, atol=1e-4)
    assert TCDiTPipeline.from_pipe(loaded).guider is loaded.guider
    other = TCDiTPipeline.from_pretrained(tmp_path / "saved", guider=None)
    assert other.guider is None


def test_nobody_is_warned_of_guiders_that_they_did_not_ask_for(make_pipeline, caplog):
    root = logging.getLogger("diffusers")
    root.propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            draw(make_pipeline(), guidance_scale=2.0)
            assert "experimental" not in caplog.text
            ClassifierFreeGuidance()
        assert "experimental" in caplog.text
    finally:
        root.propagate = False
