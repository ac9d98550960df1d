"""torch.compile, torch.export and ONNX: one graph, any size."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from tcae_diffusers.models.onnx_export import export_onnx

# What a compiler makes of one operation differs in rounding only.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def model(make_tiny_tcae):
    return make_tiny_tcae(encoder_num_layers=(1, 1))


def test_encode_and_decode_compile_to_one_graph_for_all_sizes(model):
    counters = CompileCounterWithBackend("eager"), CompileCounterWithBackend("eager")
    encode = torch.compile(model.encode, backend=counters[0], fullgraph=True, dynamic=True)
    decode = torch.compile(model.decode, backend=counters[1], fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, height, width in ((2, 32, 48), (3, 64, 40), (4, 96, 200)):
            images = torch.randn(batch, 3, height, width)
            latent = encode(images).latent
            assert torch.allclose(latent, model.encode(images).latent, atol=TOLERANCE)
            assert torch.allclose(decode(latent).sample, model.decode(latent).sample, atol=TOLERANCE)
    assert [counter.frame_count for counter in counters] == [1, 1]


def test_training_compiles_without_a_graph_break(make_tiny_tcae):
    model = make_tiny_tcae(encoder_num_layers=(1, 0))
    compiled = torch.compile(model.train(), backend="eager", fullgraph=True, dynamic=True)
    images = torch.randn(2, 3, 32, 48)
    compiled(images).sample.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(images).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5), name


def test_repeated_blocks_compile_once(make_tiny_tcae):
    model = make_tiny_tcae(encoder_num_layers=(3, 2))
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = model(images).sample
        counter = CompileCounterWithBackend("eager")
        model.compile_repeated_blocks(backend=counter, fullgraph=True, dynamic=True)
        assert torch.allclose(model(images).sample, expected, atol=TOLERANCE)
    # Ten blocks on three lengths of sequence.
    assert counter.frame_count == 1


class Encode(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.encode(images).latent


def test_export_takes_any_batch_and_size(model):
    batch, height, width = Dim("batch"), Dim("height", min=2, max=256), Dim("width", min=2, max=256)
    with torch.no_grad():
        program = torch.export.export(
            Encode(model).eval(),
            (torch.randn(2, 3, 32, 48),),
            dynamic_shapes=({0: batch, 2: 8 * height, 3: 8 * width},),
        )
        for shape in ((1, 3, 64, 64), (3, 3, 16, 120)):
            images = torch.randn(shape)
            assert torch.allclose(program.module()(images), model.encode(images).latent, atol=TOLERANCE)
    operators = {str(node.target) for node in program.graph.nodes}
    assert "aten.linear.default" in operators and not [name for name in operators if "mkldnn" in name]


def test_onnx_runtime_agrees_for_any_batch_and_size(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    encoder_path, decoder_path = export_onnx(model, tmp_path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    encoder = onnxruntime.InferenceSession(encoder_path, options)
    decoder = onnxruntime.InferenceSession(decoder_path, options)
    for shape in ((1, 3, 64, 64), (3, 3, 24, 40)):
        images = torch.randn(shape)
        with torch.no_grad():
            latent = model.encode(images).latent
            sample = model.decode(latent).sample
        assert np.abs(encoder.run(["latent"], {"images": images.numpy()})[0] - latent.numpy()).max() < 1e-4
        assert np.abs(decoder.run(["images"], {"latent": latent.numpy()})[0] - sample.numpy()).max() < 1e-4
