"""The step in PyTorch computes what ours does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import params_of

from benchmarks import building, plain, shapes
from mdlm_jax.diffusion import corrupt, corrupted_loss
from mdlm_jax.networks import bert

torch = pytest.importorskip("torch")
twin = pytest.importorskip("benchmarks.torch_twin")
theirs = pytest.importorskip("benchmarks.torch_encoder")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["tiny", "quickstart"])
def ours(request):
    """A shape, random parameters, a corrupted batch, and the loss and its gradient."""
    shape = shapes.shape(request.param, rows=4, length=24)
    config = shape.encoder
    params = params_of(config, noise=0.05)
    tokens = jnp.asarray(building.random_tokens(0, shape))
    corrupted = corrupt(jax.random.key(1), tokens, mask_id=config.mask_id, paired=True)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return corrupted_loss(bert.denoiser(params, config), corrupted)[0]

    return shape, params, corrupted, *loss(params)


@pytest.mark.parametrize("loss_of", ["slots", "full"])
def test_the_loss_and_its_gradient_are_ours(ours, loss_of):
    shape, params, corrupted, loss, gradient = ours
    encoder = theirs.Encoder(shape.encoder, torch.float32)
    theirs.load(encoder, plain.params_of(params, shape.encoder))
    parts = (corrupted.canvas, corrupted.positions, corrupted.targets)
    slots = theirs.Slots(
        *(torch.tensor(np.array(x)).long() for x in parts),
        torch.tensor(np.array(corrupted.weights)),
    )
    value = twin.LOSSES[loss_of](encoder, slots)
    value.backward()
    assert value.item() == pytest.approx(float(loss), rel=1e-4)

    wanted = theirs.Encoder(shape.encoder, torch.float32)
    theirs.load(wanted, plain.params_of(gradient, shape.encoder))
    got = dict(encoder.named_parameters())
    for name, right in wanted.named_parameters():
        scale = float(right.detach().abs().max())
        difference = float((got[name].grad - right.detach()).abs().max())
        assert difference <= 1e-4 * scale, name


def test_its_pairs_are_masked_as_ours():
    torch.manual_seed(0)
    tokens = torch.arange(8 * 5).view(8, 5)
    counts = []
    for _ in range(500):
        slots = theirs.corrupt(tokens, mask_id=99)
        masked = slots.canvas == 99
        assert torch.equal(torch.where(masked, tokens, slots.canvas), tokens)
        count = masked.sum(1)
        counts.append(count)
        assert torch.all(count.view(4, 2).sum(1) == 6)
        assert torch.equal(slots.targets, tokens.view(4, 10).gather(1, slots.positions))
        # A row's weights sum to 1 / rows: it counts 1 / count for each mask.
        np.testing.assert_allclose(slots.weights.sum(), 1, rtol=1e-6)
    # Uniform on {1..5}: 2000 independent pairs, 4.5 standard errors, a false alarm in 30,000 runs.
    share = torch.bincount(torch.stack(counts)[:, ::2].flatten(), minlength=6)[1:] / 2000
    assert torch.all((share - 0.2).abs() < 4.5 * (0.16 / 2000) ** 0.5)


def test_it_tells_the_line_of_train_step(capsys):
    arguments = ["--shape=tiny", "--device=cpu", "--compile=none", "--steps=2"]
    assert twin.main(arguments) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["framework"] == "torch" and line["figure"] == "train_step"
    assert 0 < line["ms_lowest"] <= line["ms"] <= line["ms_highest"]
    assert line["flops"] == building.counted(shapes.shape("tiny"), 34, whole=True)
    assert line["versions"]["torch"] == torch.__version__
