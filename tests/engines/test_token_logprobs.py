"""token_logprobs.py against autograd through a full log-softmax, finite differences, and a search of the vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prmbench.engines import token_logprobs

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
    mine = loss(*token_logprobs.target_logprobs(hidden, weight, targets, used, softcap, chunk))
    full = loss(*slow(hidden, weight, targets, used, softcap))
    torch.testing.assert_close(mine, full, rtol=1e-6, atol=1e-6)
    for got, expected in zip(gradients(mine, *leaves), gradients(full, *leaves), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck_by_finite_differences(softcap: float | None) -> None:
    hidden, weight, bias, targets = parts(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs.target_logprobs(h, w, targets, b, softcap, chunk=4), (hidden, weight, bias)
    )


IDS = torch.arange(3 * N).view(N, 3) % V
IDS[:, 2] = IDS[:, 0]  # the sampled token is one of its own candidates


def of_three(logprobs: Tensor, normalisers: Tensor) -> Tensor:
    """Each of the three ids counts differently, the two that are the same token too."""
    scale = torch.tensor([1.0, -2.0, 0.5]).double()
    return ((logprobs.double() * scale).sum(1).cumsum(0).sigmoid() + 0.3 * normalisers.double()).sum()


@pytest.mark.parametrize("chunk", [4, 1000])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_several_ids_a_row_agree_with_a_full_log_softmax(chunk: int, softcap: float | None) -> None:
    hidden, weight, bias, _ = parts()
    leaves = (hidden, weight, bias)
    logprobs, logz = token_logprobs.logprobs_at(hidden, weight, IDS, bias, softcap, chunk)
    each = [slow(hidden, weight, IDS[:, k], bias, softcap) for k in range(3)]
    full = torch.stack([logp for logp, _ in each], dim=1), each[0][1]
    torch.testing.assert_close(logprobs.double(), full[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logz.double(), full[1], rtol=1e-6, atol=1e-6)
    expected = gradients(of_three(*full), *leaves)
    for got, other in zip(gradients(of_three(logprobs, logz), *leaves), expected, strict=True):
        torch.testing.assert_close(got, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck_of_several_ids(softcap: float | None) -> None:
    hidden, weight, bias, _ = parts(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs.logprobs_at(h, w, IDS, b, softcap, chunk=4), (hidden, weight, bias)
    )


def test_one_id_is_the_target() -> None:
    hidden, weight, bias, targets = parts()
    one, logz = token_logprobs.target_logprobs(hidden, weight, targets, bias)
    column, same = token_logprobs.logprobs_at(hidden, weight, targets[:, None], bias)
    assert torch.equal(one, column[:, 0])
    assert torch.equal(logz, same)


def test_chunks_do_not_matter() -> None:
    hidden, weight, bias, targets = parts(torch.float64)
    leaves = (hidden, weight, bias)
    candidates = [
        gradients(loss(*token_logprobs.target_logprobs(hidden, weight, targets, bias, chunk=c)), *leaves)
        for c in (1, 5, 99)
    ]
    for other in candidates[1:]:
        for one, two in zip(candidates[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_only_the_gradient_that_is_wanted(wanted: str) -> None:
    hidden, weight, bias, targets = parts()
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    expected = gradients(loss(*slow(hidden, weight, targets, bias, None)), leaves[wanted])[0]
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == wanted)
    loss(*token_logprobs.target_logprobs(hidden, weight, targets, bias)).backward()
    torch.testing.assert_close(leaves[wanted].grad, expected, rtol=1e-5, atol=1e-6)
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != wanted)


def test_one_output_alone() -> None:
    hidden, weight, _, targets = parts()
    for pick in (0, 1):
        got = gradients(token_logprobs.target_logprobs(hidden, weight, targets)[pick].sum(), hidden)[0]
        expected = gradients(slow(hidden, weight, targets, None, None)[pick].sum(), hidden)[0]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_tied_head_adds_both_gradients() -> None:
    _, weight, _, targets = parts()
    ids = torch.arange(N) % V

    def run(through: object) -> Tensor:
        return gradients(loss(*through(weight[ids].tanh(), weight, targets)), weight)[0]  # type: ignore[operator]

    expected = run(lambda h, w, t: slow(h, w, t, None, None))
    torch.testing.assert_close(run(token_logprobs.target_logprobs), expected, rtol=1e-5, atol=1e-6)


def test_no_rows() -> None:
    hidden, weight, _, targets = parts()
    logp, _ = token_logprobs.target_logprobs(hidden[:0], weight, targets[:0])
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
        logp, _ = token_logprobs.target_logprobs(hidden, weight, torch.arange(n) % v, softcap=2.0, chunk=chunk)
        logp.sum().backward()
    assert largest.elements == max(chunk * v, n * H)
    assert n * v > largest.elements


def test_nothing_is_kept_but_states_ids_and_normalisers() -> None:
    hidden, weight, bias, targets = parts()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        token_logprobs.target_logprobs(hidden, weight, targets, bias)
    assert sorted(tuple(x.shape) for x in kept) == sorted([(N, H), (V, H), (V,), (N, 1), (N,)])


# --- candidates -----------------------------------------------------------------------------------------------------


def peaked(dtype: torch.dtype = torch.float32, n: int = 200) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States under which a few tokens, none or one are likely."""
    torch.manual_seed(2)
    hidden = (torch.randn(n, H) * torch.linspace(0.1, 2, n)[:, None]).to(dtype)
    return hidden, torch.randn(V, H).to(dtype), torch.linspace(-1, 1, V).to(dtype), torch.randint(V, (n,))


@pytest.mark.parametrize("p_min", [0.05, 0.1, 0.2, 0.7])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_candidates_are_all_tokens_with_p_min_and_no_others(p_min: float, softcap: float | None) -> None:
    hidden, weight, bias, targets = peaked()
    found, entropy = token_logprobs.candidates(hidden, weight, targets, p_min, bias, softcap, chunk=64)
    token_ids, logprobs, mask = (columns[:, 1:] for columns in found)
    logits = hidden.double() @ weight.double().T + bias
    full = (softcap * torch.tanh(logits / softcap) if softcap else logits).log_softmax(-1)
    assert token_ids.shape == mask.shape == (200, int(1 / p_min))
    sizes = set()
    for row in range(200):
        order = sorted(range(V), key=lambda token: -float(full[row, token]))
        likely = [token for token in order if float(full[row, token].exp()) >= p_min]
        kept = mask[row]
        assert token_ids[row][kept].tolist() == likely
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
        torch.testing.assert_close(logprobs[row][kept].double(), full[row, likely], rtol=1e-5, atol=1e-6)
        assert not logprobs[row][~kept].any()
        sizes.add(len(likely))
    assert len(sizes) > (p_min < 0.5), "rows of one kind would hide a wrong set"
    assert found.token_ids[:, 0].tolist() == targets.tolist()
    sampled = full.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.old_logprobs[:, 0].double(), sampled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy.double(), -(full.exp() * full).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 3.3, 17.0])
@pytest.mark.parametrize("least", [3, 10, 20])
def test_as_many_as_fit_are_kept_at_exactly_p_min(least: int, offset: float) -> None:
    weight = torch.full((V, 1), -90.0)
    weight[5 : 5 + least] = offset
    found, _ = token_logprobs.candidates(torch.ones(1, 1), weight, torch.tensor([5]), 1 / least)
    assert found.mask.tolist() == [[True] * (1 + least)]
    assert sorted(found.token_ids[0, 1:].tolist()) == list(range(5, 5 + least))
    weight[4] = offset  # one more, and all of them have less
    found, _ = token_logprobs.candidates(torch.ones(1, 1), weight, torch.tensor([5]), 1 / least)
    assert not found.mask[:, 1:].any()


def test_max_candidates() -> None:
    assert [token_logprobs.max_candidates(p) for p in (0.05, 0.1, 0.15, 0.2, 0.3, 1 / 3, 0.7, 1.0)] == [
        20,
        10,
        6,
        5,
        3,
        3,
        1,
        1,
    ]
    assert token_logprobs.max_candidates(0.0) == 0


def test_no_candidates_are_asked_for() -> None:
    hidden, weight, bias, targets = peaked()
    found, entropy = token_logprobs.candidates(hidden, weight, targets, 0.0, bias)
    assert [x.shape for x in found] == [(200, 1)] * 3
    some, same_entropy = token_logprobs.candidates(hidden, weight, targets, 0.1, bias)
    assert torch.equal(found.old_logprobs[:, 0], some.old_logprobs[:, 0])
    assert torch.equal(entropy, same_entropy)


def test_a_vocabulary_smaller_than_the_set() -> None:
    found, _ = token_logprobs.candidates(torch.zeros(2, H), torch.zeros(4, H), torch.tensor([1, 3]), 0.1)
    assert found.mask.tolist() == [[True] * 5] * 2
    assert found.token_ids[:, 0].tolist() == [1, 3]
    assert found.token_ids.dtype == torch.int64


def test_candidates_of_no_rows() -> None:
    hidden, weight, bias, targets = peaked()
    found, entropy = token_logprobs.candidates(hidden[:0], weight, targets[:0], 0.1, bias)
    assert [tuple(x.shape) for x in (*found, entropy)] == [(0, 11), (0, 11), (0, 11), (0,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_control_equal_weights_give_a_td_of_exactly_0(dtype: torch.dtype, softcap: float | None) -> None:
    hidden, weight, bias, targets = peaked(dtype)
    old, _ = token_logprobs.candidates(hidden, weight, targets, 0.1, bias, softcap, chunk=64)
    new, _ = token_logprobs.logprobs_at(hidden.requires_grad_(), weight, old.token_ids, bias, softcap, chunk=64)
    assert new.requires_grad
    assert not old.old_logprobs.requires_grad
    assert old.mask[:, 1:].any()
    assert torch.equal(new[old.mask], old.old_logprobs[old.mask])


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_of_candidates_are_those_of_their_log_probabilities(softcap: float | None) -> None:
    hidden, weight, bias, targets = peaked()
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    found, entropy = token_logprobs.candidates(*inputs[:2], targets, 0.1, bias, softcap, chunk=64)
    asked, _ = token_logprobs.logprobs_at(*inputs[:2], found.token_ids, bias, softcap, chunk=64)
    pull = torch.randn(asked.shape)
    one = torch.autograd.grad((found.old_logprobs * pull).sum(), inputs)
    two = torch.autograd.grad((asked * pull * found.mask).sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(float(a.abs().max()) > 0.1 for a in one)
    assert not entropy.requires_grad


def test_candidates_hold_no_block_of_all_logits_either() -> None:
    hidden, weight, bias, targets = peaked()
    with Largest() as largest:
        token_logprobs.candidates(hidden, weight, targets, 0.1, bias, chunk=60)
    assert largest.elements == 60 * V > max(200 * H, 200 * 10)
    assert largest.elements < 200 * V


# --- bfloat16 -------------------------------------------------------------------------------------------------------


def test_bfloat16_states_keep_float32_sums() -> None:
    hidden, weight, bias, targets = parts(torch.bfloat16)
    logp, logz = token_logprobs.target_logprobs(hidden, weight, targets, bias)
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
        mine = token_logprobs.target_logprobs(hidden, weight, targets)
        got = gradients(loss(*mine), hidden, weight)
    for one, two in zip(mine, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)
    for one, two in zip(got, gradients(loss(*exact), hidden, weight), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=2**-6, atol=1e-2)


def test_autocast_does_not_round_the_entropy() -> None:
    """bfloat16 factors of p log p would move it by 1e-2."""
    hidden, weight, _, targets = parts()
    hidden, weight = (x.detach().bfloat16().float() for x in (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        _, entropy = token_logprobs.candidates(hidden, weight, targets, 0.1)
    logp = (hidden.double() @ weight.double().T).log_softmax(-1)
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), -(logp.exp() * logp).sum(-1), rtol=1e-5, atol=1e-5)


def test_the_products_leave_no_setting_behind() -> None:
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    hidden, weight, _, targets = parts(torch.bfloat16)
    try:
        settings.fp32_precision = "ieee"
        token_logprobs.target_logprobs(hidden, weight, targets)[0].sum().backward()
        with pytest.raises(RuntimeError):
            token_logprobs.target_logprobs(hidden, weight[:, :3], targets)
        assert settings.fp32_precision == "ieee"
    finally:
        settings.fp32_precision = before


# --- reading without gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_bias", [False, True])
def test_blocks_of_the_vocabulary_give_the_same_numbers(
    softcap: float | None, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven blocks of six tokens, the last of one token alone, in chunks of three rows."""
    monkeypatch.setattr(token_logprobs, "BLOCK", 6)
    monkeypatch.setattr(token_logprobs, "BLOCK_CHUNK", 3)
    hidden, weight, bias, _ = parts()
    targets = torch.tensor([0, 5, 6, 35, 36, 12, 17, 18, 30, 29, 36])  # first and last of blocks
    used = bias if with_bias else None
    logp, logz = token_logprobs.read_target_logprobs(hidden, weight, targets, used, softcap)
    assert logp.dtype == logz.dtype == torch.float32
    assert not logp.requires_grad
    exact = slow(hidden, weight, targets, used, softcap)
    torch.testing.assert_close(logp.double(), exact[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(logz.double(), exact[1], rtol=0, atol=2e-6)


def test_blocks_of_a_real_vocabulary_differ_by_roundings_only() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(40, 64), 0.1 * torch.randn(9001, 64), torch.randint(9001, (40,))
    for mine, other in zip(
        token_logprobs.read_target_logprobs(hidden, weight, targets),
        token_logprobs.target_logprobs(hidden, weight, targets),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-6)


def test_reading_holds_only_a_block_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_logprobs, "BLOCK", 10)
    monkeypatch.setattr(token_logprobs, "BLOCK_CHUNK", 60)
    hidden, weight, bias, targets = peaked()
    with Largest() as largest:
        token_logprobs.read_target_logprobs(hidden, weight, targets, bias)
    assert largest.elements == 60 * 10 < 60 * V


def test_a_chunk_is_as_large_as_the_device_affords() -> None:
    """256 rows on a CPU; on a GPU 2,048 of 152k tokens, and fewer of more."""
    cpu, smollm2, qwen, gemma = (
        torch.empty(v, 0, device="meta" if v > 1 else "cpu") for v in (1, 49_152, 151_936, 262_144)
    )
    assert [token_logprobs.default_chunk(w) for w in (cpu, smollm2, qwen, gemma)] == [256, 2048, 2048, 1280]


def test_the_gradient_of_the_head_is_written_by_the_first_chunk_and_added_to_by_the_others() -> None:
    """Bytes of [V, h] tensors written: one product, then an addition in place for each further chunk; no zeros."""
    hidden, weight, _, targets = parts()
    names: list[str] = []

    class Written(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape == weight.shape and not func.is_view:
                names.append(func.__name__.partition(".")[0])
            return out

    logp, _ = token_logprobs.target_logprobs(hidden, weight, targets, chunk=4)
    with Written():
        torch.autograd.grad(logp.sum(), weight)
    assert names == ["mm", "addmm_", "addmm_"]
