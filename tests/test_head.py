"""head.py, backward: against autograd through a full log-softmax, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prmbench import head

N, H, V = 11, 8, 37


def parts(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, bias (leaves that want gradients), targets."""
    torch.manual_seed(1)
    leaves = (torch.randn(N, H), torch.randn(V, H), torch.linspace(-1, 1, V))
    hidden, weight, bias = (x.to(dtype).requires_grad_() for x in leaves)
    return hidden, weight, bias, torch.randint(V, (N,))


def slow(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The full block of logits, in float64."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], logits.logsumexp(-1)


def loss(logprobs: Tensor, normalisers: Tensor) -> Tensor:
    """Uses both outputs, every row differently, and rows through one another as a prefix value does."""
    row = torch.arange(1, N + 1) / N
    return (logprobs.double().cumsum(0).sigmoid() * row + 0.3 * row.flip(0) * normalisers.double()).sum()


def gradients(value: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_loss_and_gradients_agree_with_a_full_log_softmax(chunk: int, with_bias: bool, softcap: float | None) -> None:
    hidden, weight, bias, targets = parts()
    leaves = (hidden, weight, bias) if with_bias else (hidden, weight)
    used = bias if with_bias else None
    mine = loss(*head.target_logprobs(hidden, weight, targets, used, softcap, chunk))
    full = loss(*slow(hidden, weight, targets, used, softcap))
    torch.testing.assert_close(mine, full, rtol=1e-6, atol=1e-6)
    for got, expected in zip(gradients(mine, *leaves), gradients(full, *leaves), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck_by_finite_differences(softcap: float | None) -> None:
    hidden, weight, bias, targets = parts(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: head.target_logprobs(h, w, targets, b, softcap, chunk=4), (hidden, weight, bias)
    )


def test_chunks_do_not_matter() -> None:
    hidden, weight, bias, targets = parts(torch.float64)
    leaves = (hidden, weight, bias)
    found = [
        gradients(loss(*head.target_logprobs(hidden, weight, targets, bias, chunk=c)), *leaves) for c in (1, 5, 99)
    ]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_only_the_gradient_that_is_wanted(wanted: str) -> None:
    hidden, weight, bias, targets = parts()
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    expected = gradients(loss(*slow(hidden, weight, targets, bias, None)), named[wanted])[0]
    for name, leaf in named.items():
        leaf.requires_grad_(name == wanted)
    loss(*head.target_logprobs(hidden, weight, targets, bias)).backward()
    torch.testing.assert_close(named[wanted].grad, expected, rtol=1e-5, atol=1e-6)
    assert all(leaf.grad is None for name, leaf in named.items() if name != wanted)


def test_one_output_alone() -> None:
    hidden, weight, _, targets = parts()
    for pick in (0, 1):
        got = gradients(head.target_logprobs(hidden, weight, targets)[pick].sum(), hidden)[0]
        expected = gradients(slow(hidden, weight, targets, None, None)[pick].sum(), hidden)[0]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_tied_head_adds_both_gradients() -> None:
    _, weight, _, targets = parts()
    ids = torch.arange(N) % V

    def run(through: object) -> Tensor:
        return gradients(loss(*through(weight[ids].tanh(), weight, targets)), weight)[0]  # type: ignore[operator]

    expected = run(lambda h, w, t: slow(h, w, t, None, None))
    torch.testing.assert_close(run(head.target_logprobs), expected, rtol=1e-5, atol=1e-6)


def test_no_rows() -> None:
    hidden, weight, _, targets = parts()
    logp, _ = head.target_logprobs(hidden[:0], weight, targets[:0])
    assert logp.shape == (0,)
    assert gradients(logp.sum(), weight)[0].abs().sum() == 0


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made inside had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, list | tuple) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_block_of_all_logits_lives() -> None:
    torch.manual_seed(0)
    n, v, chunk = 64, 50, 4
    hidden = torch.randn(n, H, requires_grad=True)
    weight = torch.randn(v, H, requires_grad=True)
    with Largest() as largest:
        logp, _ = head.target_logprobs(hidden, weight, torch.arange(n) % v, softcap=2.0, chunk=chunk)
        logp.sum().backward()
    assert largest.elements == max(chunk * v, n * H)
    assert n * v > largest.elements


def test_nothing_is_kept_but_states_ids_and_normalisers() -> None:
    hidden, weight, bias, targets = parts()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        head.target_logprobs(hidden, weight, targets, bias)
    assert sorted(tuple(x.shape) for x in kept) == sorted([(N, H), (V, H), (V,), (N,), (N,)])


# --- bfloat16 -------------------------------------------------------------------------------------------------------


def test_bfloat16_states_keep_float32_sums() -> None:
    hidden, weight, bias, targets = parts(torch.bfloat16)
    logp, logz = head.target_logprobs(hidden, weight, targets, bias)
    slow_logp, slow_logz = slow(hidden, weight, targets, bias, None)
    torch.testing.assert_close(logp.double(), slow_logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logz.double(), slow_logz, rtol=1e-5, atol=1e-5)
    leaves = (hidden, weight, bias)
    for got, expected in zip(
        gradients(loss(logp, logz), *leaves), gradients(loss(slow_logp, slow_logz), *leaves), strict=True
    ):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected.float(), rtol=2**-6, atol=1e-2)


def test_autocast_rounds_the_factors_and_nothing_else() -> None:
    """A product that autocast took over would round its result to 8 bits: an error of 1e-2 and more."""
    hidden, weight, _, targets = parts()
    with torch.no_grad():  # factors that bfloat16 can hold, so that rounding them again changes nothing
        hidden.copy_(hidden.bfloat16())
        weight.copy_(weight.bfloat16())
    exact = slow(hidden, weight, targets, None, None)
    with torch.autocast("cpu", torch.bfloat16):
        mine = head.target_logprobs(hidden, weight, targets)
        got = gradients(loss(*mine), hidden, weight)
    for one, two in zip(mine, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)
    for one, two in zip(got, gradients(loss(*exact), hidden, weight), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=2**-6, atol=1e-2)


def test_the_products_leave_no_setting_behind() -> None:
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    hidden, weight, _, targets = parts(torch.bfloat16)
    try:
        settings.fp32_precision = "ieee"
        head.target_logprobs(hidden, weight, targets)[0].sum().backward()
        with pytest.raises(RuntimeError):
            head.target_logprobs(hidden, weight[:, :3], targets)
        assert settings.fp32_precision == "ieee"
    finally:
        settings.fp32_precision = before
